//! What the agent tells of itself: its own counts joined with the reconciler's figures, answered over a channel.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::k8s::{KindState, SyncReport};
use crate::metrics::{Figures, UpdateDurations};
use crate::reconcile::Reconciler;
use crate::server::{Answers, Unavailable};
use crate::status::{EndpointState, LastUpdate, SourceStatus, Status, UpdateResult};

/// What the main loop is asked.
#[derive(Debug)]
pub(super) enum Question {
    /// All that is counted.
    Figures(oneshot::Sender<Figures>),
    /// The state.
    Status(oneshot::Sender<Status>),
}

/// Where the server asks.
pub(super) struct Desk(pub(super) mpsc::Sender<Question>);

impl Desk {
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Unavailable> {
        let (to, answer) = oneshot::channel();
        let gone = || Unavailable("the agent is stopping".into());
        self.0.send(question(to)).await.map_err(|_| gone())?;
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
}

/// What the agent counts itself.
pub(super) struct Tally {
    started: Timestamp,
    updates: BTreeMap<UpdateResult, u64>,
    durations: UpdateDurations,
    last_update: Option<LastUpdate>,
    last_sync: Option<SystemTime>,
    /// Objects or files refused.
    pub(super) manifest_errors: u64,
    /// Objects taken with a warning.
    pub(super) manifest_warnings: u64,
    /// How far the source knows what there is.
    report: Option<SyncReport>,
}

impl Tally {
    /// Nothing has happened yet.
    pub(super) fn new(report: Option<SyncReport>) -> Self {
        Self {
            report,
            started: Timestamp::now(),
            updates: BTreeMap::new(),
            durations: UpdateDurations::default(),
            last_update: None,
            last_sync: None,
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
