//! Another image for the agents, and back.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::plan::Machine;
use super::super::{inside, portcullis};
use super::space::{PodPlan, Space, Target, eventually, policy};
use super::{Stand, probes};
use crate::image::{TAG, archive};

const NEXT: &str = "portcullis:next";
/// Where the server that echoes listens.
const ECHO: u16 = 7000;

/// Connections that were open before go on, and a denied probe that runs all the while never passes.
pub(super) fn image_changes_without_a_gap(stand: &Stand) -> Result<()> {
    let (now, next) = (archive::full_name(TAG), archive::full_name(NEXT));
    for node in stand.state.plan.nodes() {
        let words = ["ctr", "--namespace", "k8s.io", "images", "tag", "--force", &now, &next];
        inside::output(&stand.state, Machine::Node(node), &words)?;
    }
    let space = Space::new(stand, "trial-upgrade")?;
    let server = [("app", "server")];
    // Both ends are enforced: the client's egress, the server's ingress.
    let friend = [("role", "friend")];
    space.add_pod(&PodPlan::new("server", "node1").labels(&server).script(format!("exec nc -ll -p {ECHO} -e cat")))?;
    space.apply(policy("friends-only", &server, json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]})))?;
    space.apply(policy(
        "to-server",
        &friend,
        json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}]}),
    ))?;
    space.await_pods()?;
    let address = space.targets_of("server")?.first().context("the server has no address")?.address();
    let target = Target::new(address, ECHO);
    let script = format!(
        "(while :; do echo beat; sleep 0.2; done) | nc {address} {ECHO} | while read line; do echo $line; done; echo ENDED"
    );
    for (pod, node) in [("client1", "node1"), ("client2", "node2")] {
        space.add_pod(&PodPlan::new(pod, node).labels(&friend).script(script.clone()))?;
    }
    let denied = probes::Probe::start(&space, "denied", "node2", &[], &target)?;
    space.await_pods()?;
    denied.await_tries(&space, 1)?;
    check_flowing(&space)?;
    for image in [NEXT, TAG] {
        portcullis::set_image(&stand.kubectl, image).with_context(|| format!("changing the image to {image}"))?;
        check_flowing(&space).with_context(|| format!("after the image was changed to {image}"))?;
        denied.check_never_passed(&space).with_context(|| format!("after the image was changed to {image}"))?;
    }
    let tries = denied.tries(&space)?;
    denied.await_tries(&space, tries + 2)?;
    denied.check_never_passed(&space)
}

/// Every client's one connection carries something still.
fn check_flowing(space: &Space<'_>) -> Result<()> {
    for pod in ["client1", "client2"] {
        let before = space.logs(pod)?.lines().count();
        eventually("an echo", || {
            let log = space.logs(pod)?;
            if log.contains("ENDED") {
                bail!("the connection of {pod} has ended");
            }
            if log.lines().count() < before + 3 {
                bail!("nothing comes back to {pod}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
