//! The taint that keeps pods from a node until its agent enforces policy.
//!
//! Whoever creates nodes gives it to them (AKS: node initialization taints); the agent never does. It is taken away by a
//! JSON patch that tests that the taint still is where it was read: another's change in between makes it fail, and it is
//! read again.

use std::time::Duration;

use kube::core::Request;
use kube::core::params::{ListParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::backoff::Backoff;
use super::config::Connection;
use super::failure::Failure;
use super::kind::Kind;

/// The taint's key.
pub(super) const KEY: &str = "portcullis.io/agent-not-ready";

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Nodes {
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

/// Removes the taint whenever it is seen on a node whose pods are enforced, until nobody says any more.
pub(super) async fn remove(connection: Connection, mut wanted: watch::Receiver<bool>) {
    let Some(node) = connection.node.clone() else { return };
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
    let mut told = None;
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        match try_remove(&connection, &node).await {
            Ok(true) => {
                tracing::info!(node, "took away the taint {KEY}: pods may come");
                backoff.reset();
                told = None;
            }
            Ok(false) => {
                // It is gone, and the watch will say so: or it was only mentioned.
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(failure) => {
                if told.as_deref() != Some(failure.reason()) {
                    tracing::warn!(
                        node,
                        "cannot take away the taint {KEY}, so pods stay away: {}; trying again",
                        failure.reason()
                    );
                    told = Some(failure.reason().to_owned());
                }
                tokio::time::sleep(backoff.wait(failure.retry_after())).await;
            }
        }
    }
}

/// Removes one taint of that key; false: there is none.
async fn try_remove(connection: &Connection, node: &str) -> Result<bool, Failure> {
    let nodes = Request::new(Kind::Node.path());
    let failed = |error: &dyn std::error::Error| Failure::other(error.to_string());
    // A list of one asks for no right that watching does not.
    let parameters = ListParams::default().fields(&format!("metadata.name={node}"));
    let request = nodes.list(&parameters).map_err(|error| failed(&error))?;
    let answer = timeout(LIMIT, connection.client.request::<Nodes>(request)).await;
    let listed = answer.map_err(|_| Failure::timed_out(LIMIT))?.map_err(|error| Failure::of(&error))?;
    let taints = listed.items.first().and_then(|node| node.spec.taints.as_deref()).unwrap_or_default();
    let Some(index) = taints.iter().position(|taint| taint.key == KEY) else { return Ok(false) };
    let place = format!("/spec/taints/{index}");
    let patch = json!([
        {"op": "test", "path": format!("{place}/key"), "value": KEY},
        {"op": "remove", "path": place},
    ]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).map_err(|error| failed(&error))?);
    let request = nodes.patch(node, &PatchParams::default(), &patch).map_err(|error| failed(&error))?;
    let answer = timeout(LIMIT, connection.client.request_text(request)).await;
    answer.map_err(|_| Failure::timed_out(LIMIT))?.map_err(|error| Failure::of(&error))?;
    Ok(true)
}
