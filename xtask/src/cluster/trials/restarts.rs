//! Pods that end, return and end badly.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::plan::Machine;
use super::super::state::folder_of;
use super::super::{cni, inside};
use super::Stand;
use super::space::{PodPlan, Space, Target, eventually, policy};

const SILENT: [(&str, &str); 1] = [("role", "silent")];
/// What a pod says when it has reached what it must not.
const PASSED: &str = "PASSED";
const DENIED: &str = "denied";

/// Tries to connect without a pause.
fn try_without_end(target: &Target) -> String {
    format!(
        "while :; do /agnhost connect '{target}' --timeout=300ms >/dev/null 2>&1 && echo {PASSED} || echo {DENIED}; done"
    )
}

/// A new pod's policy is there before its first packet, whatever ran under its name before.
pub(super) fn recreated_pods_are_enforced_from_their_first_packet(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-recreated")?;
    space.add_pod(&PodPlan::new("server", "node1"))?;
    space.add_pod(&PodPlan::new("control", "node2"))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    let target = targets.first().context("the server has no address")?;
    space.apply(policy("silent", &SILENT, json!({"policyTypes": ["Egress"], "egress": []})))?;
    for _ in 0..5 {
        space.add_pod(&PodPlan::new("silent", "node2").labels(&SILENT).script(try_without_end(target)))?;
        eventually("a try", || match space.logs("silent")?.matches(DENIED).count() {
            0..5 => bail!("fewer than five tries"),
            _ => Ok(()),
        })?;
        let passed = space.logs("silent")?.matches(PASSED).count();
        if passed > 0 {
            bail!("a new pod reached the server {passed} times before its policy was in force");
        }
        space.output(&["delete", "pod", "silent"])?;
    }
    space.expect("control", &targets, true)
}

/// Its pods return under the same name, so on Azure CNI under the same interface's name.
pub(super) fn stateful_set_keeps_its_policy(stand: &Stand) -> Result<()> {
    let labels = [("app", "db")];
    let space = Space::new(stand, "trial-stateful")?;
    space.add_pod(&PodPlan::new("friend", "node1").labels(&[("role", "friend")]))?;
    space.add_pod(&PodPlan::new("stranger", "node2"))?;
    space.apply(policy(
        "friends-only",
        &labels,
        json!({"policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}),
    ))?;
    space.apply(json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db"},
        "spec": {
            "serviceName": "db",
            "replicas": 1,
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": PodPlan::new("db", "node2").spec()},
        },
    }))?;
    let identity = || space.output(&["get", "pod", "db-0", "--output=jsonpath={.metadata.uid}"]);
    let mut last = String::new();
    for _ in 0..3 {
        eventually("the set's pod", || match identity()? {
            now if now == last => bail!("the old one is still there"),
            _ => Ok(()),
        })?;
        space.await_pods()?;
        last = identity()?;
        check_interface(stand, &space, "db-0")?;
        let targets = space.targets_of("db-0")?;
        space.expect("friend", &targets, true)?;
        space.expect("stranger", &targets, false)?;
        space.output(&["delete", "pod", "db-0", "--wait=false"])?;
    }
    Ok(())
}

/// Where interfaces are named by pods, this one is.
fn check_interface(stand: &Stand, space: &Space<'_>, pod: &str) -> Result<()> {
    if stand.state.plan.cni != super::super::plan::Cni::Azv {
        return Ok(());
    }
    let node = Machine::named(&space.node_of(pod)?).context("a pod on no node")?;
    let name = cni::host_name(&space.name, pod);
    inside::output(&stand.state, node, &["ip", "link", "show", "dev", &name]).map(drop)
}

/// The object is gone, the process is not: as long as the interface is there, so is the policy.
pub(super) fn force_deleted_pods_stay_enforced(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-forced")?;
    space.add_pod(&PodPlan::new("server", "node1"))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    let target = targets.first().context("the server has no address")?;
    space.add_pod(&PodPlan::new("victim", "node2").labels(&SILENT).script(try_without_end(target)))?;
    space.await_pods()?;
    let log = log_of(&space, "victim")?;
    eventually("the first connection", || match fs::read_to_string(&log)? {
        text if text.contains(PASSED) => Ok(()),
        _ => bail!("the victim does not reach the server without policy"),
    })?;
    space.apply(policy("silent", &SILENT, json!({"policyTypes": ["Egress"], "egress": []})))?;
    eventually("the denial", || match fs::read_to_string(&log)?.lines().last() {
        Some(line) if line.contains(DENIED) => Ok(()),
        _ => bail!("the victim still reaches the server"),
    })?;
    let machine = Machine::named("node2").context("there is no second node")?;
    inside::signal(&stand.state, machine, "kubelet", "STOP")?;
    let outcome = without_object(&space, &log);
    // It ends the process that nobody wants any more.
    inside::signal(&stand.state, machine, "kubelet", "CONT")?;
    outcome
}

fn without_object(space: &Space<'_>, log: &PathBuf) -> Result<()> {
    space.output(&["delete", "pod", "victim", "--force", "--grace-period=0"])?;
    let before = fs::read_to_string(log)?.len();
    eventually("twenty more tries", || match fs::read_to_string(log)?[before..].lines().count() {
        0..20 => bail!("the victim has ended, or waits"),
        _ => Ok(()),
    })?;
    let text = fs::read_to_string(log)?;
    let passed = text[before..].matches(PASSED).count();
    if passed > 0 {
        bail!("a pod whose object was deleted by force reached the server {passed} times");
    }
    Ok(())
}

/// What a pod's container writes, read where its node keeps it, since kubelet is not there to be asked.
fn log_of(space: &Space<'_>, pod: &str) -> Result<PathBuf> {
    let identity = space.output(&["get", "pod", pod, "--output=jsonpath={.metadata.uid}"])?;
    let machine = Machine::named(&space.node_of(pod)?).context("a pod on no node")?;
    let folder = format!("root/var/log/pods/{}_{pod}_{identity}/main/0.log", space.name);
    Ok(folder_of(machine).join(folder))
}
