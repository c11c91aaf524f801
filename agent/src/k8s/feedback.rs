//! What the agent tells the cluster: Events on policies that it cannot enforce.
//!
//! An Event's name follows from the policy's uid and generation and from the reason, so thousands of nodes with the same
//! trouble make one Event: the first creates it, the others learn that it is there. Nobody counts on it, and nobody deletes
//! it: it expires by itself (an hour, `--event-ttl`), and is made anew if the trouble still stands then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::core::Request;
use kube::core::params::PostParams;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::backoff::between;
use super::config::Connection;
use super::failure::Failure;
use super::object::Identity;
use super::store::Store;
use crate::model::{ObjectKey, PolicyId};

/// What the cluster should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Everything that is asked for is in force: pods may come.
    pub enforced: bool,
    /// Policies that could be read and are not in force here, each with the reason.
    pub unenforced: BTreeMap<PolicyId, String>,
}

/// What is told, and where it comes from.
#[derive(Clone, Debug)]
pub struct Feedback {
    /// Policies that are not enforced get Events.
    pub events: bool,
    /// The own node loses its taint once everything is enforced.
    pub untaint: bool,
    /// What the cluster should know now.
    pub wishes: watch::Receiver<Wishes>,
}

/// Policies that are told of at once for what concerns the whole node.
const MOST: usize = 32;
/// Events that wait to be made. What has no room is made later.
const QUEUE: usize = 64;
/// How soon a standing trouble is told again: when the Event has expired.
const AGAIN: Duration = Duration::from_secs(65 * 60);
/// Time between two Events, at least and at most: however many policies are wrong, and on however many nodes.
const PACE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// How often an Event is tried.
const TRIES: u32 = 3;
/// A note may have 1 kB (ValidateEvent of events.k8s.io).
const NOTE: usize = 900;

/// An Event that is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    namespace: String,
    name: String,
    object: Value,
}

/// Which Events were ordered.
#[derive(Debug)]
pub(super) struct Orders {
    sender: mpsc::Sender<Order>,
    ordered: BTreeMap<String, Instant>,
    instance: String,
}

impl Orders {
    /// Starts what makes the Events.
    pub(super) fn new(connection: Connection) -> (Self, impl Future<Output = ()>) {
        let (sender, orders) = mpsc::channel(QUEUE);
        let instance = connection.node.clone().unwrap_or_else(|| "unknown".into());
        (Self { sender, ordered: BTreeMap::new(), instance }, deliver(connection, orders))
    }

    /// Orders Events for what is not enforced now and has none yet.
    pub(super) fn renew(&mut self, store: &Store, unenforced: &BTreeMap<PolicyId, String>) {
        let refused = store.refused().filter_map(|(key, reasons)| match key {
            ObjectKey::Policy(id) => Some((id, "PolicyRefused", reasons.join("; "))),
            _ => None,
        });
        // A table that is full may keep every policy out: some are enough to tell.
        let others = unenforced.iter().take(MOST).map(|(id, reason)| (id, "PolicyNotEnforced", reason.clone()));
        let mut standing = BTreeMap::new();
        for (id, reason, note) in refused.chain(others) {
            let Some(identity) = store.policies.get(id) else { continue };
            let order = order(id, identity, reason, &note, &self.instance);
            let last = self.ordered.get(&order.name).copied();
            let due = last.is_none_or(|last| last.elapsed() >= AGAIN);
            let name = order.name.clone();
            if !due || self.sender.try_send(order).is_ok() {
                standing.insert(name, last.filter(|_| !due).unwrap_or_else(Instant::now));
            }
        }
        // What stands no more may be told at once when it stands again.
        self.ordered = standing;
    }
}

fn order(id: &PolicyId, identity: &Identity, reason: &str, note: &str, instance: &str) -> Order {
    let namespace = id.namespace.as_deref().unwrap_or("default").to_owned();
    let digest = Sha1::digest(format!("{}/{}/{reason}", identity.uid, identity.generation));
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    // A DNS subdomain of at most 253 characters, as the policy's name is.
    let stem: String = id.name.chars().take(200).collect();
    let name = format!("{}.{hash}", stem.trim_end_matches(['.', '-']));
    let mut note = note.to_owned();
    if note.len() > NOTE {
        let end = (0..=NOTE).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
        note.push_str("...");
    }
    let regarding = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": namespace, "name": id.name.as_ref(),
        "uid": identity.uid,
    });
    let object = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
        "eventTime": format!("{:.6}", Timestamp::now()), "reportingController": "portcullis.io/agent",
        "reportingInstance": instance.chars().take(128).collect::<String>(), "action": "Enforce", "reason": reason,
        "type": "Warning", "regarding": regarding, "note": note,
    });
    Order { namespace, name, object }
}

async fn deliver(connection: Connection, mut orders: mpsc::Receiver<Order>) {
    let mut refused = false;
    while let Some(order) = orders.recv().await {
        for attempt in 1..=TRIES {
            // Before the first, too: nodes find the same trouble at the same moment, and one of them is enough.
            tokio::time::sleep(between(PACE[0] * attempt, PACE[1] * attempt)).await;
            match create(&connection, &order).await {
                Ok(()) => {
                    refused = false;
                    break;
                }
                Err(Failure::Refused(reason)) => {
                    if !std::mem::replace(&mut refused, true) {
                        tracing::error!("cannot make Events: {reason}");
                    }
                    break;
                }
                Err(failure) => tracing::debug!(event = order.name, attempt, "cannot be made: {}", failure.reason()),
            }
        }
    }
}

async fn create(connection: &Connection, order: &Order) -> Result<(), Failure> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", order.namespace);
    let body = order.object.to_string().into_bytes();
    let request = Request::new(path).create(&PostParams::default(), body);
    let request = request.map_err(|error| Failure::other(error.to_string()))?;
    let limit = Duration::from_secs(30);
    let answer = timeout(limit, connection.client.request_text(request)).await;
    match answer.map_err(|_| Failure::timed_out(limit))? {
        Ok(_) => Ok(()),
        // Another node was first; or the namespace is going, and nobody looks there any more.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("being terminated") => Ok(()),
        Err(error) => Err(Failure::of(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PolicyKind;

    #[test]
    fn an_events_name_tells_trouble_apart_and_nodes_not() {
        let id =
            |name: &str| PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("x".into()), name: name.into() };
        let identity = |uid: &str, generation| Identity { uid: uid.into(), generation };
        let name = |id: &PolicyId, identity: &Identity, reason: &str, node: &str| {
            order(id, identity, reason, "why", node).name
        };
        let first = name(&id("guard"), &identity("u", 1), "PolicyRefused", "n1");
        assert_eq!(first, name(&id("guard"), &identity("u", 1), "PolicyRefused", "n2"), "another node");
        let others = [
            ("another object", identity("v", 1), "PolicyRefused"),
            ("another version", identity("u", 2), "PolicyRefused"),
            ("another reason", identity("u", 1), "PolicyNotEnforced"),
        ];
        for (message, identity, reason) in others {
            assert_ne!(first, name(&id("guard"), &identity, reason, "n1"), "{message}");
        }
        let long = format!("{}.{}", "a".repeat(199), "b".repeat(53));
        let long = name(&id(&long), &identity("u", 1), "PolicyRefused", "n1");
        assert!(long.len() <= 253 && !long.contains(".."), "{long}");
    }

    #[test]
    fn notes_fit() {
        let id = PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("x".into()), name: "p".into() };
        let order = order(&id, &Identity::default(), "PolicyRefused", &"\u{e9}".repeat(2000), "n1");
        let note = order.object["note"].as_str().unwrap();
        assert!(note.len() <= 1024 && note.ends_with("..."), "{} bytes", note.len());
    }
}
