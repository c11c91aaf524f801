//! A node that loses power and comes back: everything in memory is gone, what is on its disk is there.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::plan::{Machine, Node};
use super::state::{Process, State};
use super::{cgroups, down, machine, network};

/// Ends a node's machine and starts it again, with new interfaces of the same addresses.
pub(super) fn reboot(node: Node) -> Result<()> {
    let mut state = State::read()?.context("no cluster is up")?;
    let machine = Machine::Node(node);
    let folders: Vec<PathBuf> =
        state.cgroups.iter().filter(|folder| folder.ends_with(machine.name())).cloned().collect();
    down::end_processes(state.process(machine).as_slice(), &folders)?;
    network::remake(&state.plan, node)?;
    cgroups::remove(&folders)?;
    cgroups::make(&folders)?;
    let id = machine::start(machine)?;
    let process = Process::of(id).with_context(|| format!("{} has ended at once", machine.name()))?;
    state.processes.insert(machine.name(), process);
    state.write()
}
