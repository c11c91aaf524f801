//! Removal from every node: the agents' own DaemonSet is made to uninstall, and waited for.
//!
//! Pods of another DaemonSet would stand beside the agents, which put back what is removed. In the agents' place they
//! come when those have gone, on new nodes too, and are gone with what installed the agents.

mod left;

use std::time::Duration;

use futures::TryStreamExt as _;
use kube::core::params::{Patch, PatchParams, WatchParams};
use kube::core::{Request, WatchEvent};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::Error;
use super::config::Connection;
use super::failure::Failure;
use crate::model::Name;

pub use left::Left;
use left::Nodes;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long after a failure, or after a watch that the server has ended, it is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// The agents' container in their DaemonSet.
const CONTAINER: &str = "agent";
/// What uninstalls, before anything else in its pod.
const UNINSTALL: &str = "uninstall";
/// How often it is asked whether only nodes that are not ready are left.
const LOOK: Duration = Duration::from_secs(10);

/// How long is waited, and for which nodes.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For all of them.
    pub limit: Duration,
    /// Nodes that are not ready are left as they are once all others are clean.
    pub leave_unready: bool,
}

/// What has come of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// How many nodes are clean.
    pub nodes: u64,
    /// Those that were left as they are.
    pub left: Vec<Left>,
    /// Those that keep pods away until an agent comes.
    pub tainted: Vec<String>,
}

/// Has the agents' DaemonSet uninstall in the agents' place, and waits until every node is clean.
///
/// # Errors
/// There is no such DaemonSet, it may not be changed, or not every node was clean in time.
pub async fn uninstall_everywhere(
    connection: &Connection,
    daemon_set: &Name,
    patience: Patience,
) -> Result<Cleaned, Error> {
    let set = Set { connection, name: daemon_set };
    let failed = |failure: Failure| Error::Removal { name: daemon_set.clone(), reason: failure.reason().to_owned() };
    let found = set.get().await.map_err(failed)?;
    let change = change(&found)
        .ok_or_else(|| failed(Failure::other(format!("it has no container `{CONTAINER}`: is it Portcullis's?"))))?;
    set.patch(change).await.map_err(failed)?;
    let mut progress = Progress { clean: 0, nodes: 0, seen: false, done: false };
    let waited = timeout(patience.limit, set.wait(&mut progress, patience.leave_unready)).await;
    // For people: what is not known of them changes nothing.
    let nodes = Nodes::ask(connection, daemon_set).await.unwrap_or_else(|failure| {
        tracing::warn!("cannot say more of the nodes: {}", failure.reason());
        Nodes::default()
    });
    match waited {
        Ok(left) => Ok(Cleaned { nodes: progress.nodes - left.len() as u64, left, tainted: nodes.tainted }),
        Err(_) => Err(Error::NotClean {
            name: daemon_set.clone(),
            clean: progress.clean.max(progress.nodes.saturating_sub(nodes.left.len() as u64)),
            nodes: progress.nodes,
            seconds: patience.limit.as_secs(),
            left: nodes.left,
        }),
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    clean: u64,
    nodes: u64,
    /// The controller has seen the change.
    seen: bool,
    done: bool,
}

impl Progress {
    /// Pods are ready when their first container, which uninstalls, has succeeded. What was counted before the
    /// controller saw the change is of the agents.
    fn of(set: &Value) -> Self {
        let number = |pointer: &str| set.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        let seen = number("/status/observedGeneration") >= number("/metadata/generation");
        let (nodes, updated) = (number("/status/desiredNumberScheduled"), number("/status/updatedNumberScheduled"));
        let clean = if seen && updated == nodes { number("/status/numberReady") } else { 0 };
        Self { clean, nodes, seen, done: seen && updated == nodes && clean == nodes }
    }
}

/// What makes a DaemonSet of agents uninstall; `None` if it is none.
fn change(set: &Value) -> Option<Value> {
    let containers = set.pointer("/spec/template/spec/containers")?.as_array()?;
    let mut first = containers.iter().find(|container| container["name"] == CONTAINER)?.clone();
    let fields = first.as_object_mut()?;
    for field in ["startupProbe", "livenessProbe", "readinessProbe", "ports", "env", "envFrom", "lifecycle"] {
        fields.remove(field);
    }
    fields.insert("name".into(), json!(UNINSTALL));
    fields.insert("args".into(), json!(["uninstall"]));
    let none = Value::Null;
    Some(json!({"spec": {
        // Nothing is served any more: all nodes at once.
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}},
        "template": {"spec": {
            "initContainers": [first],
            "containers": [{
                "name": CONTAINER, "args": ["uninstall", "--stay"],
                "startupProbe": none, "livenessProbe": none, "readinessProbe": none,
            }],
        }},
    }}))
}

/// A DaemonSet by its name.
struct Set<'a> {
    connection: &'a Connection,
    name: &'a Name,
}

impl Set<'_> {
    fn requests(&self) -> Request {
        Request::new(format!("/apis/apps/v1/namespaces/{}/daemonsets", self.name.namespace))
    }

    async fn get(&self) -> Result<Value, Failure> {
        let request = self.requests().get(&self.name.name, &Default::default());
        let request = request.map_err(|error| Failure::other(error.to_string()))?;
        let answer = timeout(LIMIT, self.connection.client.request(request)).await;
        answer.map_err(|_| Failure::timed_out(LIMIT))?.map_err(|error| Failure::of(&error))
    }

    async fn patch(&self, change: Value) -> Result<(), Failure> {
        let request = self.requests().patch(&self.name.name, &PatchParams::default(), &Patch::Strategic(change));
        let request = request.map_err(|error| Failure::other(error.to_string()))?;
        let answer = timeout(LIMIT, self.connection.client.request_text(request)).await;
        answer.map_err(|_| Failure::timed_out(LIMIT))?.map_err(|error| Failure::of(&error)).map(drop)
    }

    /// Until it is done, but for nodes that are not ready where those may be left: gives them. What fails is tried again:
    /// the caller knows how long.
    async fn wait(&self, progress: &mut Progress, leave_unready: bool) -> Vec<Left> {
        while !progress.done {
            match timeout(LOOK, self.follow(progress)).await {
                Ok(Ok(())) if progress.done => break,
                Ok(Ok(())) => sleep(AGAIN).await,
                Ok(Err(failure)) => {
                    tracing::warn!("{}; trying again", failure.reason());
                    sleep(AGAIN).await;
                }
                Err(_) if leave_unready => {
                    if let Some(left) = self.only_unready(progress).await {
                        return left;
                    }
                }
                Err(_) => {}
            }
        }
        Vec::new()
    }

    /// The nodes that are not clean, if none of them can be: their kubelets do not answer.
    async fn only_unready(&self, progress: &Progress) -> Option<Vec<Left>> {
        if !progress.seen {
            return None;
        }
        match Nodes::ask(self.connection, self.name).await {
            Ok(nodes) => Some(nodes.left).filter(|left| !left.is_empty() && left.iter().all(|node| !node.ready)),
            Err(failure) => {
                tracing::warn!("{}; trying again", failure.reason());
                None
            }
        }
    }

    /// Until it is done, or the server ends the watch.
    async fn follow(&self, progress: &mut Progress) -> Result<(), Failure> {
        let found = self.get().await?;
        tell(progress, Progress::of(&found));
        if progress.done {
            return Ok(());
        }
        let version = found.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        // By the name, which RBAC may grant alone.
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", self.name.name)).timeout(240);
        let request = self.requests().watch(&parameters, version);
        let request = request.map_err(|error| Failure::other(error.to_string()))?;
        let events = self.connection.client.request_events::<Value>(request).await;
        let mut events = std::pin::pin!(events.map_err(|error| Failure::of(&error))?);
        while let Some(event) = events.try_next().await.map_err(|error| Failure::of(&error))? {
            if let WatchEvent::Added(set) | WatchEvent::Modified(set) = event {
                tell(progress, Progress::of(&set));
                if progress.done {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn tell(progress: &mut Progress, now: Progress) {
    if *progress != now {
        tracing::info!(clean = now.clean, nodes = now.nodes, "uninstalling");
        *progress = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_clean_when_what_uninstalls_is_ready_on_each() {
        let set = |generation: u64, status: [u64; 4]| {
            let [observed, desired, updated, ready] = status;
            json!({"metadata": {"generation": generation}, "status": {
                "observedGeneration": observed, "desiredNumberScheduled": desired,
                "updatedNumberScheduled": updated, "numberReady": ready,
            }})
        };
        let rows = [
            (set(2, [1, 3, 3, 3]), (0, 3, false), "the controller has not seen the change: these are agents"),
            (set(2, [2, 3, 1, 3]), (0, 3, false), "some are agents still"),
            (set(2, [2, 3, 3, 1]), (1, 3, false), "one is clean"),
            (set(2, [2, 3, 3, 3]), (3, 3, true), "all are"),
            (set(2, [2, 0, 0, 0]), (0, 0, true), "a cluster without nodes"),
            (json!({"metadata": {"generation": 1}}), (0, 0, false), "no status yet"),
        ];
        for (set, (clean, nodes, done), message) in rows {
            let found = Progress::of(&set);
            assert_eq!((found.clean, found.nodes, found.done), (clean, nodes, done), "{message}");
        }
    }

    #[test]
    fn what_uninstalls_has_the_agents_rights_and_places_and_nothing_else_of_it() {
        let agent = json!({
            "name": "agent", "image": "x:1", "args": ["run"], "env": [{"name": "A"}], "ports": [{"containerPort": 1}],
            "livenessProbe": {}, "securityContext": {"readOnlyRootFilesystem": true}, "volumeMounts": [{"name": "bpf"}],
        });
        let set = |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
        let change = change(&set(json!([{"name": "other"}, agent]))).expect("a DaemonSet of agents");
        assert_eq!(
            change.pointer("/spec/template/spec/initContainers"),
            Some(&json!([{
                "name": "uninstall", "image": "x:1", "args": ["uninstall"],
                "securityContext": {"readOnlyRootFilesystem": true}, "volumeMounts": [{"name": "bpf"}],
            }]))
        );
        assert_eq!(change.pointer("/spec/template/spec/containers/0/args"), Some(&json!(["uninstall", "--stay"])));
        assert_eq!(change.pointer("/spec/template/spec/containers/0/livenessProbe"), Some(&Value::Null), "removed");
        assert_eq!(super::change(&set(json!([{"name": "other"}]))), None, "somebody else's DaemonSet");
        assert_eq!(super::change(&json!({})), None, "no DaemonSet");
    }
}
