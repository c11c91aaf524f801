//! The watches alone, in the test's own process, with times that suit a test.

use std::time::{Duration, Instant};

use portcullis::index::Cluster;
use portcullis::k8s::{self, Batch, Feedback, SyncReport, Timing, Wishes};
use tokio::sync::{mpsc, watch};

use crate::server::{ApiServer, PATIENCE};

/// A cluster as the watches tell it.
pub(crate) struct Followed<'a> {
    server: &'a ApiServer,
    pub(crate) report: SyncReport,
    batches: mpsc::Receiver<Batch>,
    pub(crate) cluster: Cluster,
    pub(crate) complete: bool,
    pub(crate) problems: Vec<String>,
    task: tokio::task::JoinHandle<Result<(), k8s::Error>>,
}

/// Short, and long enough for a busy machine.
pub(crate) fn timing() -> Timing {
    Timing {
        answer: Duration::from_secs(5),
        silence: Duration::from_secs(300),
        backoff: [Duration::from_millis(100), Duration::from_secs(2)],
        watch_seconds: 300,
    }
}

impl<'a> Followed<'a> {
    pub(crate) fn new(server: &'a ApiServer, timing: Timing) -> Self {
        let settings = k8s::Settings {
            kubeconfig: Some(server.kubeconfig("admin")),
            context: Some("test".into()),
            node: Some("n1".into()),
        };
        let (sender, batches) = mpsc::channel(4);
        let report = SyncReport::default();
        let shared = report.clone();
        let task = server.handle.spawn(async move {
            let connection = k8s::connect(&settings).await?;
            let wishes = watch::Sender::new(Wishes::default());
            let feedback = Feedback { events: false, untaint: false, wishes: wishes.subscribe() };
            k8s::follow(connection, timing, shared, feedback, sender).await
        });
        let (cluster, problems) = (Cluster::default(), Vec::new());
        Self { server, report, batches, cluster, complete: false, problems, task }
    }

    /// Takes in batches until something holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(
                Instant::now() < deadline && !self.task.is_finished(),
                "{what} has not come: {:?}\n{:?}\n{:?}",
                self.report.trouble(),
                self.report.states(),
                self.problems
            );
            self.take(Duration::from_millis(50));
        }
    }

    /// Takes in what comes within a time.
    pub(crate) fn take(&mut self, patience: Duration) {
        let batch = self.server.handle.block_on(async { tokio::time::timeout(patience, self.batches.recv()).await });
        let Ok(Some(batch)) = batch else { return };
        self.complete |= batch.complete;
        self.problems.extend(batch.problems.iter().map(ToString::to_string));
        for change in batch.changes {
            self.cluster.apply(change);
        }
    }

    pub(crate) fn in_sync(server: &'a ApiServer) -> Self {
        let mut followed = Self::new(server, timing());
        followed.until("the first sync", |seen| seen.complete && seen.report.trouble().is_none());
        followed
    }

    /// The names of a kind's objects outside the server's own namespaces, as `namespace/name`.
    pub(crate) fn pods(&self) -> Vec<String> {
        self.cluster.pods.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn policies(&self) -> Vec<String> {
        self.cluster.policies.keys().map(|id| id.name.to_string()).collect()
    }

    /// How often all objects of a kind were listed.
    pub(crate) fn lists(&self, kind: k8s::Kind) -> u64 {
        self.report.states().iter().find(|state| state.kind == kind).unwrap().lists
    }
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
