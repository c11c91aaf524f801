//! Anything is killed at random while pods come and go, and a node loses power: a table of who reaches whom holds.
//!
//! The table has four kinds of lines: allowed and denied at the server's veth, allowed and denied by what the client may send
//! to, each from both nodes to both, by the pod's addresses and by its Service's, in both families.

mod random;
mod table;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::inside_pods::probe::now;
use super::super::plan::Machine;
use super::space::Space;
use super::{Stand, failures};
use random::Random;
use table::Table;

/// How long things are killed.
const SPAN: Duration = Duration::from_secs(45);
/// Says what is killed and when, if it is set; CI sets none and always gets the same.
const SEED: &str = "PORTCULLIS_CHURN_SEED";
/// Every part of the cluster that may end at any time.
const PARTS: [(&str, &str); 12] = [
    ("node1", "agent"),
    ("node2", "agent"),
    ("node1", "kubelet"),
    ("node2", "kubelet"),
    ("node1", "containerd"),
    ("node2", "containerd"),
    ("node1", "kube-proxy"),
    ("node2", "kube-proxy"),
    ("control", "kube-apiserver"),
    ("control", "etcd"),
    ("control", "kube-controller-manager"),
    ("control", "kube-scheduler"),
];
/// The node that loses power.
const REBOOTED: &str = "node2";

pub(super) fn table_holds_whatever_is_killed(stand: &Stand) -> Result<()> {
    let seed = seed()?;
    eprintln!("  churn: {SEED}={seed} does the same again");
    let space = Space::new(stand, "trial-churn")?;
    let mut table = Table::new(&space)?;
    table.await_all(now())?;
    let begun = now();
    let killed = kill_at_random(stand, &space, &mut Random::new(seed));
    failures::await_everything(stand)?;
    table.await_all(now()).context("when everything was back")?;
    table.check(begun).context("while things were killed")?;
    eprintln!("  churn: {killed}; {}", table.summary(begun)?);
    lose_power(stand, &mut table)?;
    table.befriend()
}

/// As it was asked for; the time's otherwise, but in CI.
fn seed() -> Result<u64> {
    match std::env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED} is `{text}`, and not a number")),
        Err(_) if std::env::var("CI").as_deref() == Ok("true") => Ok(1),
        Err(_) => Ok(now() % 1_000_000),
    }
}

/// Kills each part, one or two at once, then again and again, and has pods replaced. Returns what it did.
fn kill_at_random(stand: &Stand, space: &Space<'_>, random: &mut Random) -> String {
    let until = Instant::now() + SPAN;
    let (mut deck, mut killed, mut replaced) = (PARTS.to_vec(), Vec::new(), 0);
    while Instant::now() < until {
        for _ in 0..=random.below(2) {
            if deck.is_empty() {
                // Kubelet lets what ends often wait for longer each time.
                deck.extend(PARTS.iter().filter(|(_, part)| *part != "agent"));
            }
            let (machine, part) = deck.swap_remove(random.below(deck.len()));
            // What is down already cannot be killed.
            if Machine::named(machine).is_some_and(|machine| failures::kill(stand, machine, part).is_ok()) {
                killed.push(format!("{machine}'s {part}"));
            }
        }
        // Without an API server there is nobody to be asked.
        replaced += usize::from(table::replace_a_guest(space, random.below(table::GUESTS)).is_ok());
        // At random, too.
        sleep(Duration::from_millis(200 + 100 * random.below(20) as u64));
    }
    format!("{} kills ({}), {replaced} pods replaced", killed.len(), killed.join(", "))
}

/// A node goes and comes back. What is judged on the other holds all the while; what is judged on it, from when its agent is
/// in sync: how long that takes is told.
fn lose_power(stand: &Stand, table: &mut Table<'_>) -> Result<()> {
    let begun = now();
    failures::power_fails(stand, REBOOTED)?;
    let ready = now();
    table.aim_anew()?;
    table.await_all(now()).context("after the reboot")?;
    table.check_reboot(REBOOTED, begun, ready)
}
