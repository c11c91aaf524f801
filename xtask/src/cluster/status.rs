//! What is up.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use super::kubectl::Kubectl;
use super::plan::Machine;
use super::state::{State, kubeconfig};
use super::{cgroups, say, up};

/// Prints the machines with what they use, the nodes as the API server sees them, and how to reach it.
pub(super) fn show() -> Result<()> {
    let Some(state) = State::read()? else {
        say("no cluster is up");
        return Ok(());
    };
    let mut text = format!("{}\n", up::describe(&state.plan));
    for machine in state.plan.machines() {
        match state.process(machine) {
            Some(process) => {
                let megabytes = memory(&state, machine) / (1 << 20);
                let _ = writeln!(text, "{}: up, process {}, {megabytes} MB", machine.name(), process.id);
            }
            None => {
                let _ = writeln!(text, "{}: ended; `cargo xtask cluster down` removes what is left", machine.name());
            }
        }
    }
    say(text.trim_end());
    if state.is_up() {
        let kubectl = Kubectl::of(&state);
        let nodes = kubectl.output(&["get", "nodes", "--output=wide"]).context("the API server does not answer")?;
        say(nodes.trim_end());
        say(&format!("export KUBECONFIG={}", kubeconfig().display()));
    }
    Ok(())
}

/// The resident memory of all of a machine's processes, in bytes.
fn memory(state: &State, machine: Machine) -> u64 {
    let folders: Vec<_> = state.cgroups.iter().filter(|folder| folder.ends_with(machine.name())).cloned().collect();
    cgroups::processes(&folders).into_iter().filter_map(resident).sum()
}

fn resident(id: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
