//! Processes that end at once, while a table of who reaches whom must hold.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::inside;
use super::super::plan::Machine;
use super::space::{PodPlan, Space, eventually, policy};
use super::{Stand, agents, probes};

/// Each of them, one after the other, on its machine.
const VICTIMS: [(&str, &str); 6] = [
    ("node1", "agent"),
    ("node2", "agent"),
    ("node2", "kubelet"),
    ("node2", "containerd"),
    ("control", "kube-apiserver"),
    ("control", "etcd"),
];

/// Agent, kubelet, containerd, API server and etcd are killed; nothing that is denied passes, nothing that is allowed
/// is lost, and a policy that comes after is enforced.
pub(super) fn killed_processes_change_nothing(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-killed")?;
    let server = [("app", "server")];
    space.add_pod(&PodPlan::new("server", "node2").labels(&server))?;
    space.apply(policy(
        "friends-only",
        &server,
        json!({"policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}),
    ))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    let target = targets.first().context("the server has no address")?;
    space.add_pod(&PodPlan::new("stranger", "node1"))?;
    space.await_pods()?;
    space.expect("stranger", &targets, false)?;
    let denied = probes::Probe::start(&space, "denied", "node1", &[], target)?;
    let allowed = probes::Probe::start(&space, "allowed", "node2", &[("role", "friend")], target)?;
    space.await_pods()?;
    allowed.await_tries(&space, 3)?;
    let before = allowed.failures(&space)?;
    for (machine, victim) in VICTIMS {
        let machine = Machine::named(machine).context("there is no such machine")?;
        kill(stand, machine, victim)?;
        eventually("the API server", || stand.kubectl.output(&["get", "--raw", "/readyz"]).map(drop))?;
        let so_far = (denied.tries(&space), allowed.tries(&space));
        if let (Ok(denied_tries), Ok(allowed_tries)) = so_far {
            denied.await_tries(&space, denied_tries + 2)?;
            allowed.await_tries(&space, allowed_tries + 5)?;
        }
        space.expect("stranger", &targets, false).with_context(|| format!("after {victim} was killed"))?;
    }
    agents::await_ready(stand)?;
    denied.check_never_passed(&space)?;
    let failures = allowed.failures(&space)? - before;
    if failures > 0 {
        bail!("{failures} connections that policy allows were lost while processes were killed");
    }
    // Whatever was killed is back, if a change still gets through.
    space.output(&["label", "pod", "stranger", "role=friend"])?;
    space.expect("stranger", &targets, true)
}

fn kill(stand: &Stand, machine: Machine, victim: &str) -> Result<()> {
    if victim != "agent" {
        return inside::kill(&stand.state, machine, victim);
    }
    // In the machine's own namespace of processes, where there is one agent.
    let id = inside::output(&stand.state, machine, &["pidof", "portcullis"])?;
    inside::output(&stand.state, machine, &["kill", "-9", id.trim()]).map(drop)
}
