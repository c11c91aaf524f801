//! Where objects come from: a cluster's API server or a folder of manifests, told in the same words.

use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::AppError;
use crate::cli::run::{NodeTaint, PolicyEvents, RunArgs};
use crate::k8s::{self, Feedback, SyncReport, Wishes};
use crate::manifests::{self, ManifestError};
use crate::model::Change;
use crate::reconcile::Unread;

/// What a source tells at once.
pub(super) struct News {
    /// To be applied to the cluster, all before it is compiled.
    pub(super) changes: Vec<Change>,
    /// What was refused, for people.
    pub(super) errors: Vec<String>,
    /// What was accepted, but may not mean what its author thinks.
    pub(super) warnings: Vec<String>,
    /// What could not be read since the start.
    pub(super) unread: Unread,
    /// All that was there at the start has been told. Before that nothing may be concluded from what is missing.
    pub(super) complete: bool,
}

/// A source that is being followed.
pub(super) enum Source {
    /// A folder.
    Manifests { batches: mpsc::Receiver<manifests::Batch>, follower: JoinHandle<Result<(), ManifestError>> },
    /// An API server.
    Cluster {
        /// The API server's URL.
        server: String,
        batches: mpsc::Receiver<k8s::Batch>,
        follower: JoinHandle<Result<(), k8s::Error>>,
        report: SyncReport,
        /// What the cluster is told.
        wishes: watch::Sender<Wishes>,
    },
}

/// A source that was found.
pub(super) enum Origin {
    /// A folder.
    Folder(PathBuf),
    /// An API server.
    Cluster(k8s::Connection),
}

impl Origin {
    /// Finds what the operator has chosen. Nothing is asked yet.
    pub(super) async fn find(args: &RunArgs) -> Result<Self, AppError> {
        if let Some(folder) = args.manifests.clone() {
            return Ok(Self::Folder(folder));
        }
        let node = node_of(args)?;
        let settings = k8s::Settings { kubeconfig: args.kubeconfig.clone(), context: args.context.clone(), node };
        Ok(Self::Cluster(k8s::connect(&settings).await?))
    }

    /// Begins to follow it.
    pub(super) fn follow(self, args: &RunArgs) -> Source {
        let connection = match self {
            Self::Folder(folder) => {
                let (sender, batches) = mpsc::channel(16);
                let follower = tokio::spawn(async move { manifests::follow(&folder, manifests::PAUSE, sender).await });
                return Source::Manifests { batches, follower };
            }
            Self::Cluster(connection) => connection,
        };
        tracing::info!(server = connection.server, "watching the cluster");
        let server = connection.server.clone();
        let (sender, batches) = mpsc::channel(16);
        let report = SyncReport::default();
        let wishes = watch::Sender::default();
        let feedback = Feedback {
            events: args.policy_events == PolicyEvents::On,
            untaint: args.node_taint == NodeTaint::Remove,
            wishes: wishes.subscribe(),
        };
        let timing = k8s::Timing::default();
        let follower = tokio::spawn(k8s::follow(connection, timing, report.clone(), feedback, sender));
        Source::Cluster { server, batches, follower, report, wishes }
    }
}

impl Source {
    /// What it is, in words.
    pub(super) fn name(&self, args: &RunArgs) -> String {
        match self {
            Self::Manifests { .. } => {
                format!("manifests in {}", args.manifests.as_deref().unwrap_or_else(|| Path::new("")).display())
            }
            Self::Cluster { server, .. } => format!("cluster {server}"),
        }
    }

    /// Waits for what it tells next. Nothing is lost if nobody waits to the end.
    pub(super) async fn next(&mut self) -> Result<News, AppError> {
        match self {
            Self::Manifests { batches, follower } => match batches.recv().await {
                Some(batch) => Ok(batch.into()),
                None => Err(match follower.await {
                    Ok(Err(error)) => error.into(),
                    _ => ManifestError::Interrupted.into(),
                }),
            },
            Self::Cluster { batches, follower, .. } => match batches.recv().await {
                Some(batch) => Ok(batch.into()),
                None => Err(match follower.await {
                    Ok(Err(error)) => error.into(),
                    _ => k8s::Error::Interrupted.into(),
                }),
            },
        }
    }

    /// What it has told already.
    pub(super) fn waiting(&mut self) -> Option<News> {
        match self {
            Self::Manifests { batches, .. } => batches.try_recv().ok().map(Into::into),
            Self::Cluster { batches, .. } => batches.try_recv().ok().map(Into::into),
        }
    }

    /// Tells the cluster what it should know, if there is one.
    pub(super) fn tell(&self, wish: impl FnOnce() -> Wishes) {
        if let Self::Cluster { wishes, .. } = self {
            let wish = wish();
            wishes.send_if_modified(|known| {
                let different = *known != wish;
                *known = wish;
                different
            });
        }
    }

    /// How far it knows what there is; `None` for one that always does.
    pub(super) fn report(&self) -> Option<SyncReport> {
        match self {
            Self::Manifests { .. } => None,
            Self::Cluster { report, .. } => Some(report.clone()),
        }
    }
}

/// The node's name in the cluster.
pub(super) fn node_of(args: &RunArgs) -> Result<Option<String>, AppError> {
    let given = args.node_name.clone().filter(|name| !name.is_empty());
    if args.manifests.is_some() {
        return Ok(given);
    }
    let by_environment = || std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    given.or_else(by_environment).map(Some).ok_or(AppError::NoNodeName)
}

impl From<manifests::Batch> for News {
    fn from(batch: manifests::Batch) -> Self {
        let (errors, warnings): (Vec<_>, Vec<_>) =
            batch.problems.into_iter().partition(|problem| problem.severity == manifests::Severity::Error);
        let texts = |problems: Vec<manifests::Problem>| problems.iter().map(ToString::to_string).collect();
        let manifests::Unread { places, policies } = batch.unread;
        Self {
            changes: batch.changes,
            errors: texts(errors),
            warnings: texts(warnings),
            unread: Unread { anything: places.into_values().collect(), policies },
            complete: true,
        }
    }
}

impl From<k8s::Batch> for News {
    fn from(batch: k8s::Batch) -> Self {
        let (errors, warnings): (Vec<_>, Vec<_>) =
            batch.problems.into_iter().partition(|problem| problem.severity == k8s::Severity::Error);
        let texts = |problems: Vec<k8s::Problem>| problems.iter().map(ToString::to_string).collect();
        Self {
            changes: batch.changes,
            errors: texts(errors),
            warnings: texts(warnings),
            unread: Unread { anything: Vec::new(), policies: batch.unread },
            complete: batch.complete,
        }
    }
}
