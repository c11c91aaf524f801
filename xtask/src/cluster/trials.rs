//! `cargo xtask cluster test`: Portcullis on a real cluster, tried from outside as its users would.
//!
//! Each trial has a namespace of its own. Nothing looks into the agent: a trial says who may reach whom, by `kubectl`,
//! and asks programs in pods.

mod agents;
mod askers;
pub(super) mod bench;
mod beside;
mod churn;
mod examples;
mod failures;
mod kinds;
mod mesh;
mod policy;
mod removal;
mod restarts;
mod space;
mod upgrade;

use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

use super::kubectl::Kubectl;
use super::state::State;

pub(super) use space::eventually;

/// What trials work on.
pub(super) struct Stand {
    pub(super) state: State,
    pub(super) kubectl: Kubectl,
}

struct Trial {
    name: &'static str,
    /// Whether others of the kind may run at the same time: it changes nothing but its own namespaces.
    is_quiet: bool,
    run: fn(&Stand) -> Result<()>,
}

const fn trial(name: &'static str, run: fn(&Stand) -> Result<()>) -> Trial {
    Trial { name, is_quiet: false, run }
}

const fn quiet(name: &'static str, run: fn(&Stand) -> Result<()>) -> Trial {
    Trial { name, is_quiet: true, run }
}

const UPGRADE: &str = "upgrade";

/// In this order: what the rest stands on comes first, and what ends enforcement last.
const TRIALS: [Trial; 12] = [
    trial("policy", policy::allows_and_denies),
    trial("counters", policy::counters_add_up),
    quiet("recreated", restarts::recreated_pods_are_enforced_from_their_first_packet),
    quiet("stateful-set", restarts::stateful_set_keeps_its_policy),
    quiet("mesh", mesh::policy_is_judged_outside_of_sidecars),
    quiet("beside", beside::two_enforcers_enforce_both),
    trial("force-deleted", restarts::force_deleted_pods_stay_enforced),
    trial("kinds", kinds::pods_of_every_kind_are_enforced),
    trial("churn", churn::table_holds_whatever_is_killed),
    trial(UPGRADE, upgrade::images_change_without_a_gap),
    trial("examples", examples::do_as_they_say),
    trial("uninstall", removal::nodes_are_left_clean),
];

/// The names of all trials.
pub(super) fn names() -> Vec<&'static str> {
    TRIALS.iter().map(|trial| trial.name).collect()
}

/// Fails if one is named that does not exist, before anything is built for it.
pub(super) fn check(wanted: &[String]) -> Result<()> {
    match wanted.iter().find(|name| !names().contains(&name.as_str())) {
        Some(unknown) => bail!("there is no trial `{unknown}`: the trials are {}", names().join(", ")),
        None => Ok(()),
    }
}

/// Whether an agent of another layout will be installed.
pub(super) fn needs_other_layout(wanted: &[String]) -> bool {
    is_wanted(UPGRADE, wanted)
}

fn is_wanted(name: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|one| one == name)
}

/// Runs those that are named, or all, and fails if one has.
pub(super) fn run(stand: &Stand, wanted: &[String]) -> Result<()> {
    let wanted: Vec<&Trial> = TRIALS.iter().filter(|trial| is_wanted(trial.name, wanted)).collect();
    let mut failed = Vec::new();
    for together in wanted.chunk_by(|one, next| one.is_quiet && next.is_quiet) {
        failed.extend(thread::scope(|scope| {
            let running: Vec<_> =
                together.iter().map(|trial| (trial.name, scope.spawn(|| run_one(stand, trial)))).collect();
            let failed =
                running.into_iter().filter_map(|(name, running)| (!running.join().unwrap_or(false)).then_some(name));
            failed.collect::<Vec<_>>()
        }));
    }
    if !failed.is_empty() {
        bail!("these trials on the cluster failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Whether it has passed, which it says.
fn run_one(stand: &Stand, trial: &Trial) -> bool {
    let begun = Instant::now();
    let outcome = (trial.run)(stand);
    let took = begun.elapsed().as_secs_f64();
    match &outcome {
        Ok(()) => eprintln!("  {:16} passed, {took:.1} s", trial.name),
        Err(error) => eprintln!("  {:16} FAILED, {took:.1} s: {error:#}", trial.name),
    }
    outcome.is_ok()
}
