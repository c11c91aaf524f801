//! Parts of the cluster that end at once.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::super::kubectl::Kubectl;
use super::super::plan::Machine;
use super::super::{inside, reboot, up};
use super::space::eventually;
use super::{Stand, agents};

/// Ends one of a machine's parts, and gives it no time for anything.
pub(super) fn kill(stand: &Stand, machine: Machine, victim: &str) -> Result<()> {
    if victim != "agent" {
        return inside::kill(&stand.state, machine, victim);
    }
    // In the machine's own namespace of processes, where there is one agent.
    let id = inside::output(&stand.state, machine, &["pidof", "portcullis"])?;
    inside::output(&stand.state, machine, &["kill", "-9", id.trim()]).map(drop)
}

/// Waits until every part answers again.
pub(super) fn await_everything(stand: &Stand) -> Result<()> {
    eventually("the API server", || stand.kubectl.output(&["get", "--raw", "/readyz"]).map(drop))?;
    for node in stand.state.plan.nodes() {
        eventually(&node.name(), || up::is_ready(&stand.kubectl, node))?;
    }
    agents::await_ready(stand)
}

/// A node loses power and comes back; returns when its agent is ready again.
pub(super) fn power_fails(stand: &Stand, node: &str) -> Result<()> {
    let Some(Machine::Node(number)) = Machine::named(node) else { bail!("there is no node `{node}`") };
    let before = running(&stand.kubectl, node)?;
    reboot::reboot(number)?;
    // Until kubelet is there, what the API server says is of before.
    eventually("the node's pods", || {
        let now = running(&stand.kubectl, node)?;
        match now.intersection(&before).next() {
            Some(pod) => bail!("{pod} is still as before {node} lost power"),
            None => Ok(()),
        }
    })?;
    await_everything(stand)
}

/// The running pods of a node, each with its containers.
fn running(kubectl: &Kubectl, node: &str) -> Result<BTreeSet<String>> {
    let field = format!("--field-selector=spec.nodeName={node},status.phase=Running");
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID}{\"\\n\"}{end}";
    let listed = kubectl.output(&["get", "pods", "--all-namespaces", &field, "--output", path])?;
    Ok(listed.lines().map(str::to_owned).collect())
}
