//! The running agent: events in, passes out.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::run::{Attach, Pending, RunArgs};
use crate::dataplane::{self, Dataplane, DataplaneError};
use crate::manifests::{self, Batch, ManifestError, Severity};
use crate::netlink;
use crate::reconcile::{self, Reconciler};
use crate::state::image::Sizes;

/// Why the agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The kernel cannot be used.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// Devices cannot be watched.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(std::io::Error),
}

/// How soon a pass that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the tables rest before what was kept for an update's way goes.
const SETTLE: Duration = Duration::from_millis(200);

/// Runs until SIGTERM or SIGINT. Enforcement stays.
///
/// # Errors
/// Something that the agent cannot do without is missing.
pub async fn run(args: RunArgs) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let (dataplane, image) = Dataplane::open(&dataplane::Settings {
        pin_dir: args.pin_dir.clone(),
        sizes: Sizes { endpoints: args.max_endpoints, ..Sizes::default() },
        clsact: args.attach == Attach::Clsact,
        mark_shift: None,
        test: false,
    })?;
    let settings = reconcile::Settings {
        node_name: args.node_name.clone(),
        uplinks: args.uplinks.iter().cloned().collect(),
        service_ranges: args.service_cidrs.clone(),
        pod_ranges: args.pod_cidrs.clone(),
        any_source: args.allow_any_source,
        open_pending: args.pending == Pending::Open,
    };
    let mut reconciler = Reconciler::new(settings, dataplane, image);
    let mut snapshots = netlink::watch(netlink::Settings::default()).await?;
    let (sender, mut batches) = mpsc::channel(16);
    let folder = args.manifests.clone();
    let mut follower = tokio::spawn(async move { manifests::follow(&folder, manifests::PAUSE, sender).await });

    let Some(first) = batches.recv().await else {
        return match follower.await {
            Ok(Err(error)) => Err(error.into()),
            _ => Err(ManifestError::Interrupted.into()),
        };
    };
    take(&mut reconciler, first);
    reconciler.devices(snapshots.borrow_and_update().clone());
    reconciler.settle_adoption();
    reconciler.forget_stale_pins();
    let mut again = pass(&mut reconciler);
    loop {
        tokio::select! {
            batch = batches.recv() => match batch {
                Some(batch) => {
                    take(&mut reconciler, batch);
                    while let Ok(batch) = batches.try_recv() {
                        take(&mut reconciler, batch);
                    }
                }
                None => return match (&mut follower).await {
                    Ok(Err(error)) => Err(error.into()),
                    _ => Err(ManifestError::Interrupted.into()),
                },
            },
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                reconciler.devices(snapshots.borrow_and_update().clone());
            }
            () = tokio::time::sleep(again.unwrap_or(RETRY)), if again.is_some() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        again = pass(&mut reconciler);
    }
    tracing::info!("stopping; enforcement stays in place, `portcullis uninstall` removes it");
    Ok(())
}

fn take(reconciler: &mut Reconciler, batch: Batch) {
    for problem in &batch.problems {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    reconciler.objects(batch.changes);
}

/// One pass; tells when to make another though nothing happens.
fn pass(reconciler: &mut Reconciler) -> Option<Duration> {
    match reconciler.pass() {
        Ok(()) => reconciler.wants_another().then_some(SETTLE),
        Err(error) => {
            tracing::error!("the tables could not be brought up to date, what was in force stays: {error}");
            Some(RETRY)
        }
    }
}

/// Answers `portcullis status`.
#[must_use]
pub fn status(_args: &crate::cli::run::StatusArgs) -> std::process::ExitCode {
    tracing::error!("status is not wired yet");
    std::process::ExitCode::FAILURE
}
