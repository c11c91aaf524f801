//! `cargo xtask cluster test`: Portcullis on a real cluster, tried from outside as its users would.
//!
//! Each trial has a namespace of its own. Nothing looks into the agent: a trial says who may reach whom, by `kubectl`,
//! and asks programs in pods.

mod agents;
mod examples;
mod failures;
mod policy;
mod probes;
mod removal;
mod restarts;
mod space;
mod upgrade;

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
    run: fn(&Stand) -> Result<()>,
}

const fn trial(name: &'static str, run: fn(&Stand) -> Result<()>) -> Trial {
    Trial { name, run }
}

/// In this order: what the rest stands on comes first, and what ends enforcement last.
const TRIALS: [Trial; 9] = [
    trial("policy", policy::allows_and_denies),
    trial("counters", policy::counters_add_up),
    trial("recreated", restarts::recreated_pods_are_enforced_from_their_first_packet),
    trial("stateful-set", restarts::stateful_set_keeps_its_policy),
    trial("force-deleted", restarts::force_deleted_pods_stay_enforced),
    trial("killed", failures::killed_processes_change_nothing),
    trial("upgrade", upgrade::image_changes_without_a_gap),
    trial("examples", examples::do_as_they_say),
    trial("uninstall", removal::nodes_are_left_clean),
];

/// The names of all trials.
pub(super) fn names() -> Vec<&'static str> {
    TRIALS.iter().map(|trial| trial.name).collect()
}

/// Runs those that are named, or all, and fails if one has.
pub(super) fn run(stand: &Stand, wanted: &[String]) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|name| !names().contains(&name.as_str())) {
        bail!("there is no trial `{unknown}`: the trials are {}", names().join(", "));
    }
    let mut failed = Vec::new();
    for trial in TRIALS.iter().filter(|trial| wanted.is_empty() || wanted.iter().any(|name| name == trial.name)) {
        let begun = Instant::now();
        let outcome = (trial.run)(stand);
        let took = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => eprintln!("  {:16} passed, {took:.1} s", trial.name),
            Err(error) => {
                eprintln!("  {:16} FAILED, {took:.1} s: {error:#}", trial.name);
                failed.push(trial.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("these trials on the cluster failed: {}", failed.join(", "));
    }
    Ok(())
}
