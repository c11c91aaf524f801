//! Which nodes are not clean, and why; and which keep pods away for an agent that will not come.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::Request;
use kube::core::params::ListParams;
use serde_json::Value;
use tokio::time::timeout;

use super::super::config::Connection;
use super::super::failure::Failure;
use super::super::kind::Kind;
use super::super::taint;
use super::{LIMIT, UNINSTALL};
use crate::model::Name;

/// What the DaemonSet's pods are labelled with.
const LABELS: &str = "app.kubernetes.io/name=portcullis,app.kubernetes.io/component=agent";

/// A node that is not clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name.
    pub node: String,
    /// Whether its kubelet answers: what is to run there can.
    pub ready: bool,
    /// What is known of its pod.
    pub because: String,
}

/// The nodes as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    /// Those that are not clean.
    pub(super) left: Vec<Left>,
    /// Those that have the taint which agents take away.
    pub(super) tainted: Vec<String>,
}

impl Nodes {
    /// Asks for pods and nodes.
    pub(super) async fn ask(connection: &Connection, set: &Name) -> Result<Self, Failure> {
        let pods = format!("/api/v1/namespaces/{}/pods", set.namespace);
        let pods = list(connection, &pods, ListParams::default().labels(LABELS)).await?;
        let nodes = list(connection, Kind::Node.path(), ListParams::default()).await?;
        Ok(Self { left: left(&pods, &nodes), tainted: tainted(&nodes) })
    }
}

/// One answer, also of many nodes: it comes from the server's memory.
async fn list(connection: &Connection, path: &str, parameters: ListParams) -> Result<Vec<Value>, Failure> {
    let request = Request::new(path).list(&parameters.match_any());
    let request = request.map_err(|error| Failure::other(error.to_string()))?;
    let answer = timeout(LIMIT, connection.client.request::<Value>(request)).await;
    let mut listed = answer.map_err(|_| Failure::timed_out(LIMIT))?.map_err(|error| Failure::of(&error))?;
    Ok(listed["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// A node is clean when what uninstalls has succeeded there: then its pod is ready.
fn left(pods: &[Value], nodes: &[Value]) -> Vec<Left> {
    let known: BTreeMap<&str, bool> = nodes.iter().map(|node| (name_of(node), holds(node, "Ready"))).collect();
    let mut because: BTreeMap<&str, String> = BTreeMap::new();
    let mut clean = BTreeSet::new();
    for pod in pods {
        // Of a node that is gone there is nothing to clean.
        let Some(node) = node_of(pod).filter(|node| known.contains_key(node)) else { continue };
        let ends = pod.pointer("/metadata/deletionTimestamp").is_some();
        if uninstalls(pod) && holds(pod, "Ready") && !ends {
            clean.insert(node);
        } else {
            because.insert(node, format!("pod {}: {}", name_of(pod), state_of(pod, ends)));
        }
    }
    because.retain(|node, _| !clean.contains(node));
    let left = |(node, because): (&str, String)| {
        let ready = known.get(node).copied().unwrap_or(false);
        let because = if ready { because } else { format!("the node is not Ready; {because}") };
        Left { node: node.to_owned(), ready, because }
    };
    because.into_iter().map(left).collect()
}

fn tainted(nodes: &[Value]) -> Vec<String> {
    let has = |node: &&Value| {
        let taints = node.pointer("/spec/taints").and_then(Value::as_array);
        taints.into_iter().flatten().any(|held| held["key"] == taint::KEY)
    };
    nodes.iter().filter(has).map(|node| name_of(node).to_owned()).collect()
}

fn name_of(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// A DaemonSet's pod is meant for one node before it is bound to it.
fn node_of(pod: &Value) -> Option<&str> {
    const TERM: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0";
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str);
    bound.or_else(|| pod.pointer(TERM).and_then(Value::as_str))
}

/// Whether a condition is true.
fn holds(object: &Value, condition: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|known| known["type"] == condition && known["status"] == "True")
}

fn uninstalls(pod: &Value) -> bool {
    let first = pod.pointer("/spec/initContainers").and_then(Value::as_array);
    first.into_iter().flatten().any(|container| container["name"] == UNINSTALL)
}

fn state_of(pod: &Value, ends: bool) -> String {
    if ends && !uninstalls(pod) {
        return "the agent has not ended".to_owned();
    }
    let statuses = pod.pointer("/status/initContainerStatuses").and_then(Value::as_array);
    for status in statuses.into_iter().flatten() {
        for state in ["waiting", "terminated"] {
            let text = |field: &str| status["state"][state][field].as_str().filter(|text| !text.is_empty());
            if let Some(reason) = text("reason").filter(|reason| *reason != "Completed") {
                return text("message").map_or(reason.to_owned(), |message| format!("{reason}, {message}"));
            }
        }
    }
    pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: &str) -> Value {
        json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn pod(node: &str, uninstalls: bool, ready: &str) -> Value {
        let first = if uninstalls { json!([{"name": UNINSTALL}]) } else { json!([]) };
        json!({
            "metadata": {"name": format!("p-{node}")}, "spec": {"nodeName": node, "initContainers": first},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[test]
    fn nodes_that_are_not_clean_are_named_with_the_reason() {
        let mut failing = pod("failing", true, "False");
        failing["status"]["initContainerStatuses"] =
            json!([{"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}}]);
        let mut ending = pod("away", false, "True");
        ending["metadata"]["deletionTimestamp"] = json!("2026-12-01T00:00:00Z");
        let mut waiting = pod("waiting", true, "False");
        waiting["spec"]["nodeName"].take();
        waiting["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "values": ["waiting"]}]}],
        }}});
        let pods = [
            pod("clean", true, "True"),
            // The agent that ended there may still be listed.
            pod("clean", false, "False"),
            pod("agent", false, "True"),
            failing,
            ending,
            waiting,
            pod("gone", true, "False"),
        ];
        let ready = ["clean", "agent", "failing", "waiting"].map(|name| node(name, "True"));
        let nodes = [&ready[..], &[node("away", "Unknown")]].concat();
        let shown: Vec<(String, bool, String)> =
            left(&pods, &nodes).into_iter().map(|left| (left.node, left.ready, left.because)).collect();
        let row = |node: &str, ready, because: &str| (node.to_owned(), ready, because.to_owned());
        assert_eq!(
            shown,
            [
                row("agent", true, "pod p-agent: Running"),
                row("away", false, "the node is not Ready; pod p-away: the agent has not ended"),
                row("failing", true, "pod p-failing: CrashLoopBackOff, back-off 10s"),
                row("waiting", true, "pod p-waiting: Running"),
            ]
        );
    }

    #[test]
    fn nodes_that_wait_for_an_agent_are_known_by_their_taint() {
        let mut held = node("held", "True");
        held["spec"]["taints"] = json!([{"key": "other"}, {"key": taint::KEY, "effect": "NoSchedule"}]);
        assert_eq!(tainted(&[held, node("free", "True")]), ["held"]);
    }
}
