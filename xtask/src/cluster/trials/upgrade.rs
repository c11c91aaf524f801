//! Other images for the agents, and back: one that differs in nothing, and one whose tables have another layout.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::inside_pods::probe::now;
use super::super::plan::Machine;
use super::super::{inside, portcullis};
use super::space::{PodPlan, Space, Target, eventually, policy};
use super::{Stand, askers::Askers, askers::has_passed};
use crate::image::{TAG, archive};
use portcullis::OTHER_TAG;

const SAME: &str = "portcullis:same";
/// Where the server that echoes listens.
const ECHO: u16 = 7000;
/// Where agents pin what outlives them, a folder for each layout.
const PINS: &str = "/sys/fs/bpf/portcullis";

/// Connections that were open before go on, and denied tries that go on all the while never pass, nor is one lost that is
/// allowed.
pub(super) fn images_change_without_a_gap(stand: &Stand) -> Result<()> {
    let (now_tag, same) = (archive::full_name(TAG), archive::full_name(SAME));
    for node in stand.state.plan.nodes() {
        let words = ["ctr", "--namespace", "k8s.io", "images", "tag", "--force", &now_tag, &same];
        inside::output(&stand.state, Machine::Node(node), &words)?;
    }
    let space = Space::new(stand, "trial-upgrade")?;
    let askers = Askers::new(&space)?;
    let target = make_pods(&space, &askers)?;
    check(&space, &askers, &target, u64::MAX)?;
    let begun = now();
    let usual = layouts(stand)?;
    for image in [SAME, OTHER_TAG, TAG] {
        portcullis::set_image(&stand.kubectl, image).with_context(|| format!("changing the image to {image}"))?;
        check(&space, &askers, &target, begun).with_context(|| format!("after the image was changed to {image}"))?;
        let found = layouts(stand)?;
        if (found == usual) == (image == OTHER_TAG) || found.iter().any(|layouts| layouts.lines().count() != 1) {
            bail!("with the image {image}, the nodes have tables of the layouts {found:?}; before, {usual:?}");
        }
    }
    Ok(())
}

/// Both ends are enforced: the clients' egress, the server's ingress.
fn make_pods(space: &Space<'_>, askers: &Askers<'_>) -> Result<Target> {
    let server = [("app", "server")];
    let friend = [("role", "friend")];
    let script = format!("nc -ll -p {ECHO} -e cat & exec /agnhost netexec --http-port=8080");
    space.add_pod(&PodPlan::new("server", "node1").labels(&server).script(script))?;
    let friends = json!({"podSelector": {"matchLabels": {"role": "friend"}}});
    space.apply(policy(
        "friends-only",
        &server,
        json!({"policyTypes": ["Ingress"], "ingress": [{"from": [friends]}]}),
    ))?;
    let servers = json!({"podSelector": {"matchLabels": {"app": "server"}}});
    space.apply(policy("to-server", &friend, json!({"policyTypes": ["Egress"], "egress": [{"to": [servers]}]})))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    let target = targets.first().context("the server has no address")?.clone();
    let address = target.address();
    askers.aim("all", [&target])?;
    let script = format!(
        "(while :; do echo beat; sleep 0.2; done) | nc {address} {ECHO} | while read line; do echo $line; done; echo ENDED"
    );
    for node in ["node1", "node2"] {
        let number = node.trim_start_matches("node");
        let client = format!("client{number}");
        space.add_pod(&PodPlan::new(&client, node).labels(&friend).script(script.clone()))?;
        askers.add(&format!("friend{number}"), node, &friend, "all")?;
        askers.add(&format!("stranger{number}"), node, &[], "all")?;
    }
    space.await_pods()?;
    Ok(target)
}

/// Every client's one connection carries something still, and all tries came out as they should.
fn check(space: &Space<'_>, askers: &Askers<'_>, target: &Target, begun: u64) -> Result<()> {
    let (targets, since) = (std::slice::from_ref(target), now());
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
    for (kind, is_allowed) in [("friend", true), ("stranger", false)] {
        for number in [1, 2] {
            let pod = format!("{kind}{number}");
            askers.expect(&pod, targets, is_allowed, since)?;
            let tries = askers.tries(&pod)?;
            let wrong = tries.iter().filter(|one| one.begun >= begun && has_passed(one) != is_allowed).count();
            if wrong > 0 {
                bail!("{wrong} tries of {pod} came out otherwise than policy says");
            }
        }
    }
    Ok(())
}

/// The layouts of which there are tables, of each node.
fn layouts(stand: &Stand) -> Result<Vec<String>> {
    let list =
        |node| inside::output(&stand.state, Machine::Node(node), &["sh", "-c", &format!("cd {PINS} && ls -d v*")]);
    stand.state.plan.nodes().map(list).collect()
}
