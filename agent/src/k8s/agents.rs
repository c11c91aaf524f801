//! The agents of a cluster as the API server knows them: which node has one, and whether it is ready.

use jiff::Timestamp;
use kube::core::Request;
use kube::core::params::ListParams;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Error;
use super::config::Connection;
use super::failure::Failure;
use super::follow::Timing;
use super::kind::Kind;
use super::taint;
use crate::status::{AgentStatus, NodeStatus};

/// What the DaemonSet's pods are labelled with.
const LABELS: &str = "app.kubernetes.io/name=portcullis,app.kubernetes.io/component=agent";
/// Objects in a page: Nodes are large.
const PAGE: u32 = 200;

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct Node {
    metadata: Meta,
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    image: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    last_transition_time: Option<Timestamp>,
}

/// Every node with its agent, by name.
///
/// # Errors
/// The server does not answer, or refuses.
pub async fn agents(connection: &Connection) -> Result<Vec<NodeStatus>, Error> {
    let nodes: Vec<Node> = all(connection, Kind::Node, None).await?;
    let mut pods: Vec<Pod> = all(connection, Kind::Pod, Some(LABELS)).await?;
    // While one is replaced a node may have two: the one that is ready counts.
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.is_ready()));
    let status = |node: Node| {
        let agent = pods.iter().find(|pod| pod.spec.node_name.as_ref() == Some(&node.metadata.name));
        let held = node.spec.taints.iter().flatten().any(|taint| taint.key == taint::KEY);
        NodeStatus { name: node.metadata.name, held, agent: agent.map(Pod::status) }
    };
    let mut statuses: Vec<NodeStatus> = nodes.into_iter().map(status).collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(statuses)
}

impl Pod {
    fn ready(&self) -> Option<&Condition> {
        self.status.conditions.iter().flatten().find(|condition| condition.r#type == "Ready")
    }

    fn is_ready(&self) -> bool {
        self.ready().is_some_and(|condition| condition.status == "True")
    }

    fn status(&self) -> AgentStatus {
        let condition = self.ready();
        let because = condition.filter(|_| !self.is_ready()).and_then(|condition| {
            condition.message.clone().filter(|message| !message.is_empty()).or_else(|| condition.reason.clone())
        });
        AgentStatus {
            pod: format!("{}/{}", self.metadata.namespace, self.metadata.name),
            ready: self.is_ready(),
            since: condition.and_then(|condition| condition.last_transition_time),
            because: because.or_else(|| (!self.is_ready()).then(|| self.status.phase.clone())),
            image: self.spec.containers.first().map(|container| container.image.clone()).unwrap_or_default(),
        }
    }
}

async fn all<T: DeserializeOwned>(connection: &Connection, kind: Kind, labels: Option<&str>) -> Result<Vec<T>, Error> {
    let failed = |failure: Failure| Error::List { kind, reason: failure.reason().to_owned() };
    let mut objects = Vec::new();
    let mut next = None;
    loop {
        let page: List<T> = page(connection, kind, labels, next).await.map_err(failed)?;
        objects.extend(page.items);
        next = page.metadata.r#continue.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(objects);
        }
    }
}

async fn page<T: DeserializeOwned>(
    connection: &Connection,
    kind: Kind,
    labels: Option<&str>,
    next: Option<String>,
) -> Result<List<T>, Failure> {
    let parameters = ListParams {
        label_selector: labels.map(str::to_owned),
        limit: Some(PAGE),
        continue_token: next,
        ..ListParams::default()
    };
    let limit = Timing::default().answer;
    let request = Request::new(kind.path()).list(&parameters).map_err(|error| Failure::other(error.to_string()))?;
    let answer = timeout(limit, connection.client.request(request)).await;
    answer.map_err(|_| Failure::timed_out(limit))?.map_err(|error| Failure::of(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_is_what_its_pod_says() {
        let pod = |conditions: serde_json::Value| -> AgentStatus {
            let pod = json!({
                "metadata": {"name": "agent-x", "namespace": "portcullis"},
                "spec": {"nodeName": "a", "containers": [{"image": "portcullis:dev"}]},
                "status": {"phase": "Pending", "conditions": conditions},
            });
            serde_json::from_value::<Pod>(pod).unwrap().status()
        };
        let at = "2026-03-01T12:00:00Z";
        let ready = pod(json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]));
        assert!(ready.ready && ready.because.is_none(), "{ready:?}");
        assert_eq!((ready.pod.as_str(), ready.image.as_str()), ("portcullis/agent-x", "portcullis:dev"));
        assert_eq!(ready.since, Some(at.parse().unwrap()));
        let not =
            pod(json!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "not synced"}]));
        assert_eq!((not.ready, not.because.as_deref()), (false, Some("not synced")), "the message says more");
        let not = pod(json!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]));
        assert_eq!(not.because.as_deref(), Some("ContainersNotReady"));
        assert_eq!(pod(json!(null)).because.as_deref(), Some("Pending"), "a pod that nothing is known of");
    }
}
