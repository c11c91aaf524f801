//! Pods that start, several at once, while others end: from their creation to their first connection that policy allows.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::super::inside_pods::probe::{Outcome, now};
use super::super::super::plan::Machine;
use super::super::super::state::folder_of;
use super::super::super::{inside, say};
use super::super::Stand;
use super::super::askers::{Askers, pod_of};
use super::super::space::{PodPlan, Space, eventually, policy};
use super::spread;

/// How many start at once.
const BATCH: usize = 8;
const NODES: [&str; 2] = ["node1", "node2"];
const SERVER: [(&str, &str); 1] = [("app", "server")];
const FRIEND: [(&str, &str); 1] = [("role", "friend")];
const DAY: f64 = 86_400.0;
/// What tells when hooks are on a pod's interface.
const LOG_LEVEL: &str = "info,portcullis::reconcile=debug";

/// Milliseconds of each pod.
#[derive(Default)]
pub(super) struct Starts {
    /// From the order to create it to its first answer.
    created: Vec<f64>,
    /// From its process's first try to that.
    tried: Vec<f64>,
    /// From its interface's being up to the programs on it.
    linked: Vec<f64>,
}

/// Pods that are isolated in both directions, if anybody isolates them.
pub(super) fn measure(stand: &Stand, pods: usize) -> Result<Starts> {
    let space = Space::new(stand, "bench-starts")?;
    let askers = Askers::new(&space)?;
    space.add_pod(&PodPlan::new("server", NODES[0]).labels(&SERVER))?;
    let friends = json!({"podSelector": {"matchLabels": {"role": "friend"}}});
    let servers = json!({"podSelector": {"matchLabels": {"app": "server"}}});
    space.apply(policy("in", &SERVER, json!({"policyTypes": ["Ingress"], "ingress": [{"from": [friends]}]})))?;
    space.apply(policy("out", &FRIEND, json!({"policyTypes": ["Egress"], "egress": [{"to": [servers]}]})))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    let target = targets.first().context("the server has no address")?;
    askers.aim("all", [target])?;
    let mut starts = Starts::default();
    for batch in 0..pods.div_ceil(BATCH) {
        let names: Vec<String> = (0..BATCH).map(|number| format!("pod-{batch}-{number}")).collect();
        let items: Vec<Value> = (0..)
            .zip(&names)
            .map(|(number, name)| {
                // Tries follow each other so closely that they tell the time.
                let spec =
                    askers.spec(Some(NODES[number % NODES.len()]), "all", &["--once", "--pause=1", "--timeout=20"]);
                let mut pod = pod_of(name, &FRIEND, &spec);
                pod["metadata"]["namespace"] = json!(space.name);
                pod
            })
            .collect();
        let created = now();
        stand.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
        for name in &names {
            eventually("a pod's first answer", || {
                let tries = askers.tries(name)?;
                let answered = tries.iter().find(|one| one.outcome == Outcome::Answered).context("none yet")?;
                let first = tries.first().context("none yet")?;
                starts.created.push(milliseconds(created, answered.ended));
                starts.tried.push(milliseconds(first.begun, answered.ended));
                Ok(())
            })?;
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        space.output(&[&["delete", "pod", "--wait=false"], names.as_slice()].concat())?;
    }
    Ok(starts)
}

/// The same, with agents there: also when they put their programs on interfaces.
pub(super) fn measure_enforced(stand: &Stand, pods: usize) -> Result<Starts> {
    let mut monitors = Vec::new();
    for node in stand.state.plan.nodes() {
        let agent = agent_on(stand, Machine::Node(node))?;
        stand.kubectl.output(&[
            "--namespace",
            "portcullis",
            "exec",
            &agent,
            "--",
            "/portcullis",
            "log-level",
            LOG_LEVEL,
        ])?;
        monitors.push((Machine::Node(node), monitor(stand, Machine::Node(node))?));
    }
    let measured = measure(stand, pods);
    let mut linked = Vec::new();
    for (machine, mut monitor) in monitors {
        monitor.kill()?;
        monitor.wait()?;
        linked.extend(delays(stand, machine)?);
    }
    Ok(Starts { linked, ..measured? })
}

/// The name of a node's agent.
fn agent_on(stand: &Stand, machine: Machine) -> Result<String> {
    let field = format!("--field-selector=spec.nodeName={}", machine.name());
    let path = "--output=jsonpath={.items[0].metadata.name}";
    stand.kubectl.output(&["--namespace", "portcullis", "get", "pods", &field, path])
}

/// Where it is written when interfaces came up.
fn ups(machine: Machine) -> PathBuf {
    folder_of(machine).join("links.log")
}

/// Has the kernel tell of every interface, with the time.
fn monitor(stand: &Stand, machine: Machine) -> Result<Child> {
    let mut command = inside::command(&stand.state, machine)?;
    command.args(["ip", "-tshort", "-oneline", "monitor", "link"]);
    command.stdin(Stdio::null()).stdout(fs::File::create(ups(machine))?).spawn().context("cannot start nsenter")
}

/// From each pod's interface being up to the agent's having its programs on it.
fn delays(stand: &Stand, machine: Machine) -> Result<Vec<f64>> {
    let told = fs::read_to_string(ups(machine))?;
    let mut up: BTreeMap<String, f64> = BTreeMap::new();
    for (name, time) in told.lines().filter_map(came_up) {
        up.entry(name).or_insert(time);
    }
    let log = stand.kubectl.output(&["--namespace", "portcullis", "logs", &agent_on(stand, machine)?])?;
    let mut found = Vec::new();
    for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(device), Some(time)) = (line["device"].as_str(), line["timestamp"].as_str().and_then(seconds)) else {
            continue;
        };
        if line["message"] != "attached" {
            continue;
        }
        if let Some(begun) = up.remove(device) {
            found.push((time - begun).rem_euclid(DAY) * 1e3);
        }
    }
    Ok(found)
}

pub(super) fn tell(without: &Starts, with: &Starts) {
    say(&format!("{} pods, {BATCH} at once; milliseconds             p50     p99     all", with.created.len()));
    for (what, values) in [
        ("created to first answer, without Portcullis", &without.created),
        ("created to first answer, with", &with.created),
        ("first try to first answer, without", &without.tried),
        ("first try to first answer, with", &with.tried),
        ("interface up to programs on it", &with.linked),
    ] {
        let [half, most, all] = spread(values.clone());
        say(&format!("{what:46} {half:7.1} {most:7.1} {all:7.1}"));
    }
}

fn milliseconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// The name of a pod's interface that is up, and when that was told: `[TIME] 7: azv0123@if2: <BROADCAST,UP> ...`.
fn came_up(line: &str) -> Option<(String, f64)> {
    let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
    let (_, rest) = rest.split_once(": ")?;
    let name = rest.split(['@', ':']).next().filter(|name| name.starts_with("azv"))?;
    let flags = rest.split_once('<')?.1.split_once('>')?.0;
    flags.split(',').any(|flag| flag == "UP").then_some(())?;
    Some((name.to_owned(), seconds(time)?))
}

/// The second of the day: `2026-12-01T02:58:54.439073`, with or without `Z`.
fn seconds(time: &str) -> Option<f64> {
    let mut parts = time.trim_end_matches('Z').split_once('T')?.1.splitn(3, ':').map(str::parse::<f64>);
    let mut next = || parts.next()?.ok();
    Some((next()? * 60.0 + next()?) * 60.0 + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ip_tells_of_interfaces_is_read() {
        let up =
            "[2026-12-01T02:58:54.5] 3: azvf7cbe664550@if2: <NO-CARRIER,BROADCAST,UP,M-DOWN> mtu 1500 qdisc noqueue";
        let time = (2.0 * 60.0 + 58.0) * 60.0 + 54.5;
        assert_eq!(came_up(up), Some(("azvf7cbe664550".to_owned(), time)));
        let rows = [
            ("[2026-12-01T02:58:54.5] 3: azvf7cbe664550@if2: <BROADCAST,M-DOWN> mtu 1500", "it is down"),
            ("[2026-12-01T02:58:54.5] 3: eth0@if2: <BROADCAST,UP> mtu 1500", "no pod's"),
            ("[2026-12-01T02:58:54.5] Deleted 3: azvf7cbe664550@NONE: <BROADCAST> mtu 1500", "it goes"),
            ("", "nothing"),
        ];
        for (line, message) in rows {
            assert_eq!(came_up(line), None, "{message}");
        }
        assert_eq!(seconds("2026-12-01T00:01:02.25Z"), Some(62.25));
    }
}
