//! The running agent: events in, passes out.

mod beside;
mod questions;
mod source;
mod standing;
mod tally;

pub use questions::{explain, log_level, matrix, status};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use source::{News, Origin};
use standing::Standing;
use tally::{Desk, Question, Tally};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::cli::run::{
    Attach, Established, MasqueradedClients, OwnNode, Pending, RunArgs, SecondInterfaces, SourceMac, SourceValidation,
};
use crate::dataplane::{self, Dataplane, DataplaneError};
use crate::k8s::{self, SyncReport, Wishes};
use crate::logging::Control;
use crate::manifests::ManifestError;
use crate::model::{Name, PolicyId};
use crate::netlink;
use crate::reconcile::{self, ReconcileError, Reconciler, Scope};
use crate::server::{self, Readiness, Server, Views};
use crate::state::image::Sizes;
use crate::status::UpdateResult;

/// Why the agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The kernel cannot be used.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// There is no cluster to watch.
    #[error(transparent)]
    Cluster(#[from] k8s::Error),
    /// Cilium enforces policy here.
    #[error(
        "Cilium runs on this node ({sign}): its programs stand on the same hooks and hand packets past them, so both cannot \
         enforce policy. Keep this agent from the node (by an affinity away from Cilium's nodes), or remove Cilium and what \
         it leaves behind; --beside-cilium starts all the same"
    )]
    Cilium {
        /// How it was noticed.
        sign: String,
    },
    /// A cluster has many nodes, and this may be any.
    #[error(
        "which node of the cluster is this? Give its name by --node-name, PORTCULLIS_NODE_NAME or NODE_NAME (a DaemonSet \
         sets it from spec.nodeName)"
    )]
    NoNodeName,
    /// Devices cannot be watched.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Metrics, health and status cannot be served.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(std::io::Error),
}

/// How soon a pass that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the tables rest before what was kept for an update's way goes.
const SETTLE: Duration = Duration::from_millis(200);

/// How often the programs' counts tell whether flows must be looked up in the kernel's connection table.
const COUNTS: Duration = Duration::from_millis(250);
/// How often links and pins are asked for: within a second they are as they should be.
const LOOK: Duration = Duration::from_millis(500);
/// How often the main loop says that it lives, and how long it may be silent.
const BEAT: Duration = Duration::from_secs(5);
const BEAT_LIMIT: Duration = Duration::from_secs(30);

/// Runs until SIGTERM or SIGINT. Enforcement stays.
///
/// # Errors
/// Something that the agent cannot do without is missing.
pub async fn run(args: RunArgs, log: Control) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let node_name = source::node_of(&args)?;
    if let Some(sign) = beside::cilium() {
        if !args.beside_cilium {
            return Err(AppError::Cilium { sign });
        }
        tracing::warn!("Cilium runs on this node ({sign}), and the agent starts all the same, as it was told");
    }
    // What is wrong with the settings is said before anything is touched.
    let origin = Origin::find(&args).await?;
    let (dataplane, image) = Dataplane::open(&dataplane::Settings {
        pin_dir: args.pin_dir.clone(),
        sizes: Sizes {
            endpoints: args.max_endpoints,
            wide_buckets: Sizes::buckets_for(args.sizes.max_addresses),
            narrow_buckets: Sizes::buckets_for(args.sizes.max_rows),
            ranges: 2 * args.sizes.max_ranges,
            rules: args.sizes.max_rules,
            ..Sizes::default()
        },
        clsact: args.attach == Attach::Clsact,
        mark_shift: args.stamp.shift(),
        test: false,
    })?;
    let settings = reconcile::Settings {
        node_name,
        uplinks: args.uplinks.iter().cloned().collect(),
        service_ranges: args.service_cidrs.clone(),
        pod_ranges: args.pod_cidrs.clone(),
        any_source: args.source_validation == SourceValidation::Off,
        allow_tunnels: args.allow_tunnels,
        masqueraded_clients: args.masqueraded_clients == MasqueradedClients::Allow,
        second_networks: args.second_interfaces == SecondInterfaces::Network,
        pin_source_mac: args.source_mac == SourceMac::Pinned,
        keep_established: args.established == Established::Keep,
        judge_own_node: args.own_node == OwnNode::Policy,
        open_pending: args.pending == Pending::Open,
        lifetimes: args.flow_lifetimes.iter().copied().collect(),
        replace_ingress_qdisc: args.replace_ingress_qdisc,
        stamp_in_mark: args.stamp.shift().is_some(),
    };
    let server = Server::bind(args.listen, &args.socket).await?;
    let (questions, mut asked) = mpsc::channel(16);
    let (ready, readiness) = watch::channel(Readiness::NotReady("nothing has been read yet".into()));
    let (beat, beats) = watch::channel(Instant::now());
    let views = Views { readiness, beat: beats, beat_limit: BEAT_LIMIT, answers: Desk::new(questions, log) };
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(views, async {
        // Whatever ends this side ends the other.
        drop(stopped.await);
    }));

    let mut source = origin.follow(&args);
    let mut agent = Agent {
        reconciler: Reconciler::new(settings, dataplane, image),
        tally: Tally::new(source.name(&args), source.report(), args.max_policy_series as usize),
        report: source.report(),
        told: 0,
        unenforced: Default::default(),
        failing: Standing::default(),
    };
    let mut snapshots = netlink::watch(netlink::Settings::default()).await?;
    let mut filters = netlink::watch_filters()?;
    // Until everything that is there has been read, nothing is known to be missing: what an agent before has left in force
    // stays, and no other pod is closed or opened.
    loop {
        ready.send_replace(agent.readiness());
        beat.send_replace(Instant::now());
        tokio::select! {
            news = source.next() => {
                let news = news?;
                let complete = news.complete;
                agent.take(news);
                if complete {
                    break;
                }
            }
            Some(question) = asked.recv() => agent.answer(question),
            () = tokio::time::sleep(LOOK) => {}
            _ = terminate.recv() => {
                end(stop, serving).await;
                return Ok(());
            }
            _ = interrupt.recv() => {
                end(stop, serving).await;
                return Ok(());
            }
        }
    }
    let begun = Instant::now();
    agent.reconciler.devices(snapshots.borrow_and_update().clone());
    agent.reconciler.settle_adoption();
    agent.reconciler.forget_stale_pins();
    // A moment, not a pause: questions come more often than some pauses last, and must not begin them anew.
    let mut again = agent.pass(Some(begun)).map(|pause| Instant::now() + pause);
    let mut audits = tokio::time::interval(Duration::from_secs(args.audit_interval.into()));
    audits.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut counts = tokio::time::interval(COUNTS);
    counts.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let readiness = agent.readiness();
        source.tell(|| agent.wishes(&readiness));
        ready.send_replace(readiness);
        beat.send_replace(Instant::now());
        let mut begun = None;
        tokio::select! {
            news = source.next() => {
                begun = Some(Instant::now());
                let mut changed = agent.take(news?);
                while let Some(news) = source.waiting() {
                    changed |= agent.take(news);
                }
                if !changed {
                    continue;
                }
            }
            changed = snapshots.changed() => {
                if changed.is_err() {
                    break;
                }
                begun = Some(Instant::now());
                agent.reconciler.devices(snapshots.borrow_and_update().clone());
            }
            question = asked.recv() => {
                if let Some(question) = question {
                    agent.answer(question);
                }
                continue;
            }
            () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now).into()), if again.is_some() => {}
            () = tokio::time::sleep(BEAT) => continue,
            _ = looks.tick() => {
                agent.look(&Scope::Links, &mut again);
                continue;
            }
            _ = counts.tick() => {
                agent.reconciler.look_after_flows();
                continue;
            }
            Some(changed) = filters.recv() => {
                let scope = changed.map_or(Scope::All, Scope::Devices);
                agent.look(&scope, &mut again);
                continue;
            }
            _ = audits.tick() => {
                agent.look(&Scope::All, &mut again);
                match agent.reconciler.audit() {
                    Ok(0) => continue,
                    // What flowed meanwhile is judged again.
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!("the tables differ from what they should be: {error}");
                        continue;
                    }
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        again = agent.pass(begun).map(|pause| Instant::now() + pause);
    }
    end(stop, serving).await;
    Ok(())
}

/// Ends the server. Nothing else ends: what is in force stays.
async fn end(stop: oneshot::Sender<()>, serving: JoinHandle<()>) {
    tracing::info!("stopping; enforcement stays in place, `portcullis uninstall` removes it");
    drop(stop);
    drop(serving.await);
}

/// Has every node cleaned in the agents' place.
///
/// # Errors
/// There is no cluster, no such DaemonSet, or not every node was clean in time.
pub async fn uninstall_everywhere(daemon_set: &Name, patience: k8s::Patience) -> Result<k8s::Cleaned, k8s::Error> {
    let connection = k8s::connect(&k8s::Settings::default()).await?;
    k8s::uninstall_everywhere(&connection, daemon_set, patience).await
}

/// Completes at SIGTERM or SIGINT.
///
/// # Errors
/// Signals cannot be received.
pub async fn told_to_end() -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

/// The reconciler, and what the agent counts itself.
struct Agent {
    reconciler: Reconciler,
    tally: Tally,
    /// How far the source knows what there is, if that can be in doubt.
    report: Option<SyncReport>,
    /// The changes that the log knows of.
    told: u64,
    /// Policies that are not in force, as of a number of passes.
    unenforced: ((u64, u64, bool), BTreeMap<PolicyId, String>),
    /// Why passes fail, as far as the log knows.
    failing: Standing,
}

impl Agent {
    /// Takes in what the source tells. Whether that may change anything.
    fn take(&mut self, news: News) -> bool {
        for error in &news.errors {
            tracing::error!("{error}");
        }
        for warning in &news.warnings {
            tracing::warn!("{warning}");
        }
        self.tally.manifest_errors += news.errors.len() as u64;
        self.tally.manifest_warnings += news.warnings.len() as u64;
        self.tally.complete |= news.complete;
        self.tally.unread = news.unread.anything.len() + news.unread.policies.len();
        let changed = self.reconciler.objects(news.changes);
        self.reconciler.unread(news.unread) || changed
    }

    /// One pass; tells when to make another though nothing happens.
    fn pass(&mut self, begun: Option<Instant>) -> Option<Duration> {
        let outcome = self.reconciler.pass();
        let result = match &outcome {
            Ok(()) => UpdateResult::Applied,
            Err(ReconcileError::Full(_)) => UpdateResult::TableFull,
            Err(ReconcileError::Dataplane(_)) => UpdateResult::Failed,
        };
        if let Some(begun) = begun {
            self.tally.update(begun.elapsed(), result);
            tracing::debug!(took_ms = milliseconds(begun), "passed");
        }
        match outcome {
            Ok(()) => {
                if self.failing.ends() {
                    tracing::info!("the tables are up to date again");
                }
                self.tell(begun);
                let retry = self.reconciler.unattached().map(|_| RETRY);
                self.reconciler.wants_another().then_some(SETTLE).or(retry)
            }
            Err(error) => {
                // Each pass tries again and fails again: the metrics count that.
                let reason = match &error {
                    // How full the others' rows make it changes all the time.
                    ReconcileError::Full(full) => format!("{} is full", full.table),
                    ReconcileError::Dataplane(error) => error.to_string(),
                };
                if self.failing.is_news(reason) {
                    tracing::error!("the tables could not be brought up to date, what was in force stays: {error}");
                }
                Some(RETRY)
            }
        }
    }

    /// Looks after the hooks; what could not be put right is tried again.
    fn look(&mut self, scope: &Scope, again: &mut Option<Instant>) {
        self.reconciler.check_hooks(scope);
        if self.reconciler.unattached().is_some() {
            again.get_or_insert_with(|| Instant::now() + RETRY);
        }
    }

    /// Says what a pass has changed, if anything.
    fn tell(&mut self, begun: Option<Instant>) {
        let changes = self.reconciler.health().changes;
        if std::mem::replace(&mut self.told, changes) == changes {
            return;
        }
        let endpoints = self.reconciler.endpoint_count();
        let revision = self.reconciler.revision();
        match begun {
            Some(begun) => tracing::info!(endpoints, revision, took_ms = milliseconds(begun), "in force"),
            None => tracing::debug!(endpoints, revision, "settled"),
        }
    }

    fn readiness(&self) -> Readiness {
        let health = self.reconciler.health();
        if let Some(trouble) = self.report.as_ref().and_then(SyncReport::trouble) {
            return Readiness::NotReady(trouble);
        }
        match &health.last_error {
            None if health.synced => match self.reconciler.unattached() {
                Some(reason) => Readiness::NotReady(reason.clone()),
                None => self.reconciler.kept_because().map_or(Readiness::Ready, Readiness::NotReady),
            },
            None => Readiness::NotReady("nothing has been enforced yet".into()),
            Some(error) => Readiness::NotReady(error.clone()),
        }
    }

    /// What the cluster should know.
    fn wishes(&mut self, readiness: &Readiness) -> Wishes {
        let health = self.reconciler.health();
        let passes = (health.changes, health.failures, health.last_error.is_some());
        if std::mem::replace(&mut self.unenforced.0, passes) != passes {
            self.unenforced.1 = self.reconciler.unenforced_policies();
        }
        Wishes { enforced: *readiness == Readiness::Ready, unenforced: self.unenforced.1.clone() }
    }

    fn answer(&mut self, question: Question) {
        // Who asked may be gone; then nobody minds.
        match question {
            Question::Figures(to) => drop(to.send(self.tally.figures(&self.reconciler))),
            Question::Status(to) => drop(to.send(self.tally.status(&self.reconciler))),
            Question::Cluster(to) => drop(to.send(self.tally.known(&self.reconciler))),
        }
    }
}
