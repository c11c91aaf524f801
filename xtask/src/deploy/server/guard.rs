//! What the agent's account may do, tried with a token as a kubelet gives it to a pod.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::api::Api;
use crate::deploy::Complaint;
use crate::process;

const TAINT: &str = "portcullis.io/agent-not-ready";
/// How long the API server may take to put an admission policy into force.
const IN_FORCE: Duration = Duration::from_secs(60);

/// What is tried, with a word of the answer; `None` where it is allowed.
type Trial = (&'static str, &'static [&'static str], Option<&'static str>);

const TRIALS: [Trial; 16] = [
    ("watch pods", &["get", "pods", "--all-namespaces"], None),
    ("watch policies", &["get", "networkpolicies", "--all-namespaces"], None),
    ("read a secret", &["get", "secrets", "--all-namespaces"], Some("forbidden")),
    ("read settings of others", &["get", "configmaps", "--all-namespaces"], Some("forbidden")),
    ("delete a pod", &["delete", "pod", "agent", "--namespace=portcullis"], Some("forbidden")),
    ("delete a policy", &["delete", "networkpolicies", "--all", "--namespace=limit-to-app"], Some("forbidden")),
    ("make itself another token", &["create", "token", "portcullis", "--namespace=portcullis"], Some("forbidden")),
    ("its own node's label", &["label", "node", "own", "a=b"], Some("labels")),
    ("its own node's annotation", &["annotate", "node", "own", "a=b"], Some("annotations")),
    // `kubectl cordon` succeeds whatever the API server says.
    (
        "its own node unschedulable",
        &["patch", "node", "own", "--type=merge", "--patch={\"spec\":{\"unschedulable\":true}}"],
        Some("schedulability"),
    ),
    ("another taint on its own node", &["taint", "node", "own", "a=b:NoSchedule"], Some("neither add")),
    ("another's taint off its own node", &["taint", "node", "own", "other-"], Some("neither add")),
    (
        "its own node's status",
        &["patch", "node", "own", "--subresource=status", "--type=merge", "--patch={\"status\":{\"phase\":\"x\"}}"],
        Some("forbidden"),
    ),
    (
        "the taint off another node",
        &["taint", "node", "another", "portcullis.io/agent-not-ready-"],
        Some("that it runs on"),
    ),
    ("delete its own node", &["delete", "node", "own"], Some("forbidden")),
    ("the taint off its own node", &["taint", "node", "own", "portcullis.io/agent-not-ready-"], None),
];

/// Notes what the account may do and should not, or the other way round.
pub(super) fn check(api: &Api, complaints: &mut Vec<Complaint>) -> Result<()> {
    for node in ["own", "another"] {
        let taints = json!([
            {"key": TAINT, "effect": "NoSchedule"},
            {"key": "other", "effect": "NoSchedule"},
        ]);
        let object =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "spec": {"taints": taints}});
        create(api, &object)?;
    }
    create(
        api,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent", "namespace": "portcullis"},
            "spec": {
                "serviceAccountName": "portcullis", "nodeName": "own",
                "containers": [{"name": "agent", "image": "portcullis"}],
            },
        }),
    )?;
    // kubectl reads what it patches, which the agent does from its watch.
    let reader = ["create", "clusterrole", "test-reads-nodes", "--verb=get", "--resource=nodes"];
    process::run_silently(api.kubectl().args(reader))?;
    let binding = ["create", "clusterrolebinding", "test-reads-nodes", "--clusterrole=test-reads-nodes"];
    process::run_silently(api.kubectl().args(binding).arg("--serviceaccount=portcullis:portcullis"))?;
    let request = ["create", "token", "portcullis", "--namespace=portcullis", "--bound-object-kind=Pod"];
    let token = process::output_of(api.kubectl().args(request).arg("--bound-object-name=agent"))
        .context("there is no token for the agent")?;
    let as_agent = |arguments: &[&str]| -> Result<(), String> {
        let output =
            api.kubectl().args(arguments).arg(format!("--token={token}")).output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    };
    wait_until_in_force(&as_agent)?;
    for (what, arguments, expected) in TRIALS {
        match (as_agent(arguments), expected) {
            (Ok(()), None) => {}
            (Err(answer), Some(word)) if answer.contains(word) => {}
            (Ok(()), Some(_)) => complaints.push(format!("the agent's account may: {what}")),
            (Err(answer), _) => complaints.push(format!("the agent's account, {what}: {}", answer.trim())),
        }
    }
    Ok(())
}

fn create(api: &Api, object: &serde_json::Value) -> Result<()> {
    let created = api.kubectl_with_input(&["create", "--filename=-"], &object.to_string())?;
    created.map_err(|error| anyhow::anyhow!("cannot create {}: {error}", object["metadata"]["name"]))
}

/// An admission policy is in force some time after it was created. Until then a dry run passes.
fn wait_until_in_force(as_agent: &dyn Fn(&[&str]) -> Result<(), String>) -> Result<()> {
    let deadline = Instant::now() + IN_FORCE;
    while as_agent(&["label", "node", "own", "a=b", "--dry-run=server"]).is_ok() {
        if Instant::now() > deadline {
            bail!("the admission policy for Nodes is not in force after {} s", IN_FORCE.as_secs());
        }
        sleep(Duration::from_millis(200));
    }
    Ok(())
}
