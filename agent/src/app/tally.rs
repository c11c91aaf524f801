//! What the agent tells of itself: its own counts joined with the reconciler's figures, answered over a channel.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::cli;
use crate::index::Cluster;
use crate::k8s::{KindState, SyncReport};
use crate::logging::{Control, Filter, FilterError};
use crate::metrics::{Figures, SeriesBound, UpdateDurations};
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
    /// The cluster as it is known.
    Cluster(oneshot::Sender<Known>),
}

/// The cluster as it is known.
#[derive(Debug)]
pub(super) struct Known {
    /// Its objects.
    cluster: Cluster,
    /// How many could not be understood.
    refused: usize,
    /// Why it may not be what it is now.
    trouble: Option<String>,
    /// Everything has been read once.
    complete: bool,
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
        let Known { cluster, refused, trouble, complete } = self.ask(Question::Cluster).await?;
        if !complete {
            return Err(Unavailable(trouble.unwrap_or_else(|| "nothing has been read yet".into())).into());
        }
        // It may take seconds, which are not the main loop's nor this one's to spend.
        let answer = tokio::task::spawn_blocking(move || {
            let mut told =
                cli::told(&question, &cluster, refused).map_err(|error| Refusal::Question(error.to_string()))?;
            told.notes.extend(trouble);
            Ok(told)
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
    source: String,
    /// Objects and files that cannot be understood now.
    pub(super) unread: usize,
    /// Everything that was there at the start has been read.
    pub(super) complete: bool,
    /// Which rules have series of their own.
    bound: SeriesBound,
    /// Objects or files refused.
    pub(super) manifest_errors: u64,
    /// Objects taken with a warning.
    pub(super) manifest_warnings: u64,
    /// How far the source knows what there is.
    report: Option<SyncReport>,
}

impl Tally {
    /// Nothing has happened yet.
    /// `source` is where objects come from, in words; `most_series` rules have series of their own.
    pub(super) fn new(source: String, report: Option<SyncReport>, most_series: usize) -> Self {
        Self {
            report,
            started: Timestamp::now(),
            updates: BTreeMap::new(),
            durations: UpdateDurations::default(),
            last_update: None,
            last_sync: None,
            source,
            complete: false,
            bound: SeriesBound::new(most_series),
            unread: 0,
            manifest_errors: 0,
            manifest_warnings: 0,
        }
    }

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
    pub(super) fn figures(&mut self, reconciler: &Reconciler) -> Figures {
        let mut endpoints: BTreeMap<EndpointState, u64> = EndpointState::ALL.map(|state| (state, 0)).into();
        for state in reconciler.endpoint_states() {
            *endpoints.entry(state).or_default() += 1;
        }
        let mut updates: BTreeMap<UpdateResult, u64> = UpdateResult::ALL.map(|result| (result, 0)).into();
        updates.extend(&self.updates);
        Figures {
            rules: self.bound.apply(reconciler.rule_figures()),
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
            sources: self.sources(),
            synced: self.not_synced(reconciler).is_none(),
            last_sync: self.last_sync,
        }
    }

    /// For `portcullis status`.
    pub(super) fn status(&self, reconciler: &Reconciler) -> Status {
        let not_synced = self.not_synced(reconciler);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started: self.started,
            revision: reconciler.revision(),
            source: self.source.clone(),
            synced: not_synced.is_none(),
            not_synced_because: not_synced,
            sources: self.sources(),
            last_update: self.last_update.clone(),
            endpoints: reconciler.endpoint_statuses(),
            exits: reconciler.exit_statuses(),
            tables: reconciler.tables(),
            problems: reconciler.problems(),
        }
    }

    /// For questions about the cluster.
    pub(super) fn known(&self, reconciler: &Reconciler) -> Known {
        let trouble = self.report.as_ref().and_then(SyncReport::trouble);
        Known { cluster: reconciler.cluster().clone(), refused: self.unread, trouble, complete: self.complete }
    }

    fn sources(&self) -> Vec<SourceStatus> {
        let states = self.report.as_ref().map(SyncReport::states).unwrap_or_default();
        let status = |state: KindState| SourceStatus {
            kind: state.kind.to_string(),
            in_sync: state.in_sync(),
            listed: state.listed,
            lost_since: state.loss.as_ref().map(|loss| loss.since),
            because: state.loss.map(|loss| loss.reason),
            heard: state.heard,
            objects: state.objects,
            lists: state.lists,
            failures: state.failures,
        };
        states.into_iter().map(status).collect()
    }

    /// Why what is in force may not be what is asked for.
    fn not_synced(&self, reconciler: &Reconciler) -> Option<String> {
        let health = reconciler.health();
        let trouble = || self.report.as_ref().and_then(SyncReport::trouble);
        let first = || (!health.synced).then(|| "nothing has been enforced yet".to_owned());
        health.last_error.clone().or_else(trouble).or_else(first)
    }
}
