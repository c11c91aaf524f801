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

use super::ask;
use super::backoff::{Backoff, between};
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
/// Events that a node orders at once, and the time after which it may order one more: ten thousand policies that are wrong
/// must not become ten thousand requests of each of five thousand nodes.
const BURST: u32 = 32;
const REFILL: Duration = Duration::from_secs(30);
/// Events that wait to be made: all that may be ordered at once find room.
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
    trouble: Trouble,
    namespace: String,
    name: String,
    object: Value,
}

/// What an Event tells of: a version of a policy, and the reason in one word.
type Trouble = (PolicyId, Identity, &'static str);

/// How many Events may be ordered now.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    const fn full(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        while self.tokens < BURST && now.duration_since(self.filled) >= REFILL {
            self.tokens += 1;
            self.filled += REFILL;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
    }
}

/// Which Events were ordered.
#[derive(Debug)]
pub(super) struct Orders {
    sender: mpsc::Sender<Order>,
    /// Those that could not be made.
    failed: mpsc::UnboundedReceiver<Trouble>,
    ordered: BTreeMap<Trouble, Instant>,
    bucket: Bucket,
    /// Policies that wait for their Events.
    waiting: usize,
    instance: String,
}

impl Orders {
    /// Starts what makes the Events.
    pub(super) fn new(connection: Connection) -> (Self, impl Future<Output = ()>) {
        let (sender, orders) = mpsc::channel(QUEUE);
        let (fails, failed) = mpsc::unbounded_channel();
        let instance = connection.node.clone().unwrap_or_else(|| "unknown".into());
        let bucket = Bucket::full(Instant::now());
        let orders_made = Self { sender, failed, ordered: BTreeMap::new(), bucket, waiting: 0, instance };
        (orders_made, deliver(connection, orders, fails))
    }

    /// Orders Events for what is not enforced now and has none yet.
    pub(super) fn renew(&mut self, store: &Store, unenforced: &BTreeMap<PolicyId, String>) {
        self.renew_at(Instant::now(), store, unenforced);
    }

    fn renew_at(&mut self, now: Instant, store: &Store, unenforced: &BTreeMap<PolicyId, String>) {
        while let Ok(trouble) = self.failed.try_recv() {
            self.ordered.remove(&trouble);
        }
        self.bucket.fill(now);
        let refused = store.refused().filter_map(|(key, reasons)| match key {
            ObjectKey::Policy(id) => Some((id, "PolicyRefused", reasons)),
            _ => None,
        });
        // A table that is full may keep every policy out: some are enough to tell.
        let others = unenforced.iter().take(MOST);
        let others = others.map(|(id, reason)| (id, "PolicyNotEnforced", std::slice::from_ref(reason)));
        let (mut standing, mut waiting) = (BTreeMap::new(), 0);
        for (id, reason, notes) in refused.chain(others) {
            let Some(identity) = store.policies.get(id) else { continue };
            let trouble = (id.clone(), identity.clone(), reason);
            let last = self.ordered.get(&trouble).copied();
            if let Some(last) = last.filter(|last| now.duration_since(*last) < AGAIN) {
                standing.insert(trouble, last);
            } else if self.bucket.tokens > 0
                && self.sender.try_send(order(id, identity, reason, &notes.join("; "), &self.instance)).is_ok()
            {
                self.bucket.tokens -= 1;
                standing.insert(trouble, now);
            } else {
                waiting += 1;
            }
        }
        // What stands no more may be told at once when it stands again.
        self.ordered = standing;
        self.tell(waiting);
    }

    /// Says that Events wait, when that begins and when it ends.
    fn tell(&mut self, waiting: usize) {
        let before = std::mem::replace(&mut self.waiting, waiting);
        let seconds = REFILL.as_secs();
        match (before, waiting) {
            (0, 1..) => tracing::warn!(
                "{waiting} policies are not in force and wait for their Events, of which this node makes {BURST} at once and \
                 then one in {seconds} s; `portcullis status` and this log name them all"
            ),
            (1.., 0) => tracing::info!("no policy waits for its Event any more"),
            _ => {}
        }
    }
}

fn order(id: &PolicyId, identity: &Identity, reason: &'static str, note: &str, instance: &str) -> Order {
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
    Order { trouble: (id.clone(), identity.clone(), reason), namespace, name, object }
}

async fn deliver(connection: Connection, mut orders: mpsc::Receiver<Order>, fails: mpsc::UnboundedSender<Trouble>) {
    let mut told = None;
    let mut backoff = Backoff::new(PACE[1], REFILL);
    while let Some(order) = orders.recv().await {
        // Before the first, too: nodes find the same trouble at the same moment, and one of them is enough.
        let mut wait = between(PACE[0], PACE[1]);
        let mut made = Err(Failure::other("not tried"));
        for _ in 0..TRIES {
            tokio::time::sleep(wait).await;
            made = create(&connection, &order).await;
            match &made {
                Ok(()) | Err(Failure::Refused(_)) => break,
                Err(failure) => wait = backoff.wait(failure.retry_after()),
            }
        }
        match made {
            Ok(()) => {
                backoff.reset();
                if told.take().is_some() {
                    tracing::info!("Events can be made again");
                }
            }
            Err(failure) => {
                let reason = failure.reason();
                if told.as_deref() != Some(reason) {
                    tracing::error!("cannot make Events: {reason}; trying again later");
                    told = Some(reason.to_owned());
                }
                // Who orders is gone: then nobody minds.
                drop(fails.send(order.trouble));
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
    let answer = timeout(limit, ask::text(&connection.client, request)).await;
    match answer.map_err(|_| Failure::timed_out(limit))? {
        Ok(_) => Ok(()),
        // Another node was first; or the namespace is going, and nobody looks there any more.
        Err(Failure::Other { code: 404 | 409, .. }) => Ok(()),
        Err(Failure::Refused(reason)) if reason.contains("being terminated") => Ok(()),
        Err(failure) => Err(failure),
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
        let name = |id: &PolicyId, identity: &Identity, reason: &'static str, node: &str| {
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

    #[test]
    fn ten_thousand_policies_that_are_wrong_make_few_events_and_all_in_the_end() {
        let mut store = Store::default();
        let wrong = |index: usize| {
            let metadata = json!({"name": format!("p-{index:05}"), "namespace": "x", "uid": index.to_string()});
            let text = json!({"metadata": metadata, "spec": {"ingress": 7}}).to_string();
            super::super::object::read(super::super::kind::Kind::NetworkPolicy, &text).1
        };
        let kind = super::super::kind::Kind::NetworkPolicy;
        store.take(super::super::store::Told::There(kind, (0..10_000).map(wrong).collect()));
        let (sender, mut made) = mpsc::channel(QUEUE);
        let (fails, failed) = mpsc::unbounded_channel();
        let now = Instant::now();
        let mut orders = Orders {
            sender,
            failed,
            ordered: BTreeMap::new(),
            bucket: Bucket::full(now),
            waiting: 0,
            instance: "n1".into(),
        };
        let mut taken = std::collections::BTreeSet::new();
        let mut take = |made: &mut mpsc::Receiver<Order>| {
            let before = taken.len();
            let mut last = None;
            while let Ok(order) = made.try_recv() {
                taken.insert(order.name.clone());
                last = Some(order);
            }
            (taken.len() - before, last)
        };
        for look in 0..20 {
            orders.renew_at(now, &store, &BTreeMap::new());
            let (ordered, _) = take(&mut made);
            assert_eq!(ordered, if look == 0 { BURST as usize } else { 0 }, "look {look} at one moment");
        }
        assert_eq!(orders.waiting, 10_000 - BURST as usize, "the others are counted");
        orders.renew_at(now + REFILL, &store, &BTreeMap::new());
        let (ordered, last) = take(&mut made);
        assert_eq!(ordered, 1, "one more in its time");
        orders.renew_at(now + 3 * REFILL, &store, &BTreeMap::new());
        assert_eq!(take(&mut made).0, 2, "two more in theirs");
        // One that could not be made is ordered anew.
        fails.send(last.unwrap().trouble).unwrap();
        orders.renew_at(now + 4 * REFILL, &store, &BTreeMap::new());
        let (new, again) = take(&mut made);
        assert_eq!((new, again.is_some()), (0, true), "the one that failed, and no other");
    }
}
