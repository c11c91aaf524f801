//! All watches together: batches of changes, first everything that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Error;
use super::config::Connection;
use super::feedback::{Feedback, Orders};
use super::kind::Kind;
use super::store::{Problem, Store, Told};
use super::sync::SyncReport;
use super::taint;
use super::watch::Watcher;
use crate::model::{Change, PolicyId};

/// How long to gather further changes after one was told: a burst gives a batch at once and one per this time.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Changes that are handed on at once: while everything is read for the first time, no more than these stand beside what is
/// kept of them.
const AT_ONCE: usize = 2000;

/// How often what the cluster is told is looked over though nothing happens.
const LOOK: Duration = Duration::from_secs(60);

/// How patient the watches are.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For the first byte of an answer, and for a page of a list.
    pub answer: Duration,
    /// A watch that is silent for longer is taken for dead. API servers send a bookmark each minute (`bookmarkFrequency` of
    /// apiserver's cacher).
    pub silence: Duration,
    /// The first wait after a failure, and the longest.
    pub backoff: [Duration; 2],
    /// How long the server keeps a watch open, in seconds; up to twice that, at random.
    pub watch_seconds: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(60),
            silence: Duration::from_secs(150),
            backoff: [Duration::from_millis(500), Duration::from_secs(30)],
            watch_seconds: 300,
        }
    }
}

/// What changed in a cluster.
#[derive(Debug)]
pub struct Batch {
    /// To be applied to the cluster, all before it is compiled.
    pub changes: Vec<Change>,
    /// What is wrong with objects, when it is new.
    pub problems: Vec<Problem>,
    /// Policies of which no valid version was seen, each with the reason.
    pub unread: BTreeMap<PolicyId, String>,
    /// Every kind has been read once. Before that changes are part of what is there.
    pub complete: bool,
}

/// Watches a cluster and tells all that is there, then every change, until nobody listens any more.
///
/// The first change is told at once; those that follow within [`PAUSE`] come together. Failures to reach the server end
/// nothing: `report` tells of them. `feedback` is what the cluster is told.
///
/// # Errors
/// A task has ended before its time.
pub async fn follow(
    connection: Connection,
    timing: Timing,
    report: SyncReport,
    feedback: Feedback,
    sender: Sender<Batch>,
) -> Result<(), Error> {
    let (told, mut tales) = mpsc::channel(32);
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        let watcher = Watcher::new(kind, connection.clone(), timing.clone(), report.clone(), told.clone());
        tasks.spawn(watcher.run());
    }
    drop(told);
    let untaint = watch::Sender::new(false);
    if feedback.untaint {
        tasks.spawn(taint::remove(connection.clone(), untaint.subscribe()));
    }
    let node = connection.node.clone();
    let (orders, deliveries) = Orders::new(connection);
    tasks.spawn(deliveries);
    let mut collector = Collector { store: Store::default(), report, feedback, orders, node, untaint, complete: false };
    let mut looks = tokio::time::interval(LOOK);
    loop {
        let first = tokio::select! {
            first = tales.recv() => first,
            () = sender.closed() => return Ok(()),
            Ok(()) = collector.feedback.wishes.changed() => {
                collector.feed_back();
                continue;
            }
            _ = looks.tick() => {
                collector.feed_back();
                continue;
            }
        };
        let Some(first) = first else { return Err(Error::Interrupted) };
        let was_complete = collector.complete;
        collector.take(first);
        while collector.store.waiting() < AT_ONCE
            && let Ok(more) = tales.try_recv()
        {
            collector.take(more);
        }
        collector.feed_back();
        let Some(batch) = collector.batch(was_complete) else { continue };
        let complete = batch.complete;
        if sender.send(batch).await.is_err() {
            return Ok(());
        }
        if complete {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

struct Collector {
    store: Store,
    report: SyncReport,
    feedback: Feedback,
    orders: Orders,
    /// This node.
    node: Option<String>,
    /// Whether the own node is to lose its taint.
    untaint: watch::Sender<bool>,
    complete: bool,
}

impl Collector {
    fn take(&mut self, told: Told) {
        let (kind, ends) = match &told {
            Told::Begin(kind) | Told::There(kind, _) | Told::Gone(kind, _) => (*kind, false),
            Told::End(kind) => (*kind, true),
        };
        self.store.take(told);
        self.report.count(kind, self.store.count(kind));
        if ends {
            if kind == Kind::Node && self.store.count(kind) == 0 {
                self.store.no_node(&self.node);
            }
            self.report.listed(kind);
            self.complete = self.complete || self.report.all_listed();
        }
    }

    /// Tells the cluster what it should know.
    fn feed_back(&mut self) {
        let wishes = self.feedback.wishes.borrow_and_update().clone();
        if self.feedback.events {
            self.orders.renew(&self.store, &wishes.unenforced);
        }
        let untaint = wishes.enforced && self.store.tainted;
        self.untaint.send_if_modified(|wanted| std::mem::replace(wanted, untaint) != untaint);
    }

    fn batch(&mut self, was_complete: bool) -> Option<Batch> {
        let (changes, problems) = self.store.changes();
        if changes.is_empty() && problems.is_empty() && self.complete == was_complete {
            return None;
        }
        let unread = self.store.unread.clone();
        Some(Batch { changes, problems, unread, complete: self.complete })
    }
}
