//! What the agent tells of itself: its own counts joined with the reconciler's figures, answered over a channel.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::cli;
use crate::index::Cluster;
use crate::logging::{Control, Filter, FilterError};
use crate::metrics::{Figures, UpdateDurations};
use crate::reconcile::Reconciler;
use crate::server::{Answers, Refusal, Unavailable};
use crate::status::{EndpointState, LastUpdate, SourceStatus, Status, Told, UpdateResult};

/// What the main loop is asked.
#[derive(Debug)]
pub(super) enum Question {
    /// All that is counted.
    Figures(oneshot::Sender<Figures>),
    /// The state.
    Status(oneshot::Sender<Status>),
    /// The cluster as it is known, and how much of it could not be understood.
    Cluster(oneshot::Sender<(Cluster, usize)>),
}

/// Where the server asks.
pub(super) struct Desk {
    questions: mpsc::Sender<Question>,
    log: Control,
    /// Held while a question about the cluster is answered: each takes a copy of all names.
    cluster: Mutex<()>,
}

impl Desk {
    pub(super) fn new(questions: mpsc::Sender<Question>, log: Control) -> Self {
        Self { questions, log, cluster: Mutex::default() }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Unavailable> {
        let (to, answer) = oneshot::channel();
        let gone = || Unavailable("the agent is stopping".into());
        self.questions.send(question(to)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

impl Answers for Desk {
    async fn figures(&self) -> Result<Figures, Unavailable> {
        self.ask(Question::Figures).await
    }

    async fn status(&self) -> Result<Status, Unavailable> {
        self.ask(Question::Status).await
    }

    async fn cluster(&self, question: String) -> Result<Told, Refusal> {
        let _one_at_a_time = self.cluster.lock().await;
        let (cluster, refused) = self.ask(Question::Cluster).await?;
        // It may take seconds, which are not the main loop's nor this one's to spend.
        let answer = tokio::task::spawn_blocking(move || {
            cli::told(&question, &cluster, refused).map_err(|error| Refusal::Question(error.to_string()))
        });
        answer.await.unwrap_or_else(|_| Err(Unavailable("the answer was interrupted".into()).into()))
    }

    async fn log_level(&self, to: Option<String>) -> Result<String, Refusal> {
        if let Some(to) = to {
            let filter: Filter = to.parse().map_err(|error: FilterError| Refusal::Question(error.to_string()))?;
            self.log.set(&filter).map_err(|error| Unavailable(error.to_string()))?;
            tracing::info!(%filter, "logging by another filter");
        }
        Ok(self.log.filter().map_err(|error| Unavailable(error.to_string()))?)
    }
}

/// What the agent counts itself.
pub(super) struct Tally {
    started: Timestamp,
    updates: BTreeMap<UpdateResult, u64>,
    durations: UpdateDurations,
    last_update: Option<LastUpdate>,
    last_sync: Option<SystemTime>,
    /// Where objects come from.
    pub(super) source: SourceStatus,
    /// Objects and files that cannot be understood now.
    pub(super) unread: usize,
    /// Objects or files refused.
    pub(super) manifest_errors: u64,
    /// Objects taken with a warning.
    pub(super) manifest_warnings: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            started: Timestamp::now(),
            updates: BTreeMap::new(),
            durations: UpdateDurations::default(),
            last_update: None,
            last_sync: None,
            source: SourceStatus::default(),
            unread: 0,
            manifest_errors: 0,
            manifest_warnings: 0,
        }
    }
}

impl Tally {
    /// An update has ended.
    pub(super) fn update(&mut self, took: Duration, result: UpdateResult) {
        *self.updates.entry(result).or_default() += 1;
        self.durations.observe(took);
        self.last_update = Some(LastUpdate { at: Timestamp::now(), took_ms: took.as_secs_f64() * 1000.0, result });
        if result == UpdateResult::Applied {
            self.last_sync = Some(SystemTime::now());
        }
    }

    /// For a scrape.
    pub(super) fn figures(&self, reconciler: &Reconciler) -> Figures {
        let mut endpoints: BTreeMap<EndpointState, u64> = EndpointState::ALL.map(|state| (state, 0)).into();
        for endpoint in reconciler.endpoint_statuses() {
            *endpoints.entry(endpoint.state).or_default() += 1;
        }
        let mut updates: BTreeMap<UpdateResult, u64> = UpdateResult::ALL.map(|result| (result, 0)).into();
        updates.extend(&self.updates);
        Figures {
            rules: reconciler.rule_figures(),
            notes: reconciler.notes(),
            endpoints,
            tables: reconciler.tables(),
            repairs: reconciler.repairs(),
            table_repairs: reconciler.health().repairs.clone(),
            unenforced_devices: reconciler.unenforced_devices(),
            foreign_filters: reconciler.foreign_filters(),
            updates,
            update_durations: self.durations.clone(),
            manifest_errors: self.manifest_errors,
            manifest_warnings: self.manifest_warnings,
            synced: reconciler.health().synced && reconciler.health().last_error.is_none(),
            last_sync: self.last_sync,
        }
    }

    /// For `portcullis status`.
    pub(super) fn status(&self, reconciler: &Reconciler) -> Status {
        let health = reconciler.health();
        let synced = health.synced && health.last_error.is_none();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started: self.started,
            revision: reconciler.revision(),
            source: self.source.clone(),
            synced,
            not_synced_because: health.last_error.clone(),
            last_update: self.last_update.clone(),
            endpoints: reconciler.endpoint_statuses(),
            exits: reconciler.exit_statuses(),
            tables: reconciler.tables(),
            problems: reconciler.problems(),
        }
    }
}
