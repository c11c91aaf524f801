//! The end of enforcement, as the documents tell it.

use anyhow::{Result, bail};
use serde_json::json;

use super::super::plan::Machine;
use super::super::{inside, portcullis};
use super::Stand;
use super::space::{PodPlan, Space, policy};

/// Without agents policy stays in force; after the uninstalling DaemonSet it does not, and nothing is left on the nodes.
pub(super) fn nodes_are_left_clean(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-uninstall")?;
    let server = [("app", "server")];
    space.add_pod(&PodPlan::new("server", "node1").labels(&server))?;
    space.add_pod(&PodPlan::new("stranger", "node2"))?;
    space.apply(policy("nobody", &server, json!({"policyTypes": ["Ingress"]})))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    space.expect("stranger", &targets, false)?;

    portcullis::remove_agents(&stand.kubectl)?;
    space.expect("stranger", &targets, false)?;

    portcullis::uninstall(&stand.kubectl)?;
    space.expect("stranger", &targets, true)?;
    for node in stand.state.plan.nodes() {
        let pinned = inside::output(&stand.state, Machine::Node(node), &["find", "/sys/fs/bpf", "-mindepth", "1"])?;
        // The kernel's own two are in every such file system.
        if let Some(left) = pinned.lines().find(|path| !path.ends_with(".debug")) {
            bail!("{} still has {left}", node.name());
        }
    }
    portcullis::finish_uninstall(&stand.kubectl)
}
