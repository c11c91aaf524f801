//! A cluster from its API server: the door to Kubernetes.
//!
//! [`follow()`] watches the kinds that policy asks about and tells every change; [`load`] lists them once. Objects are
//! reduced where they are read: no whole object of Kubernetes is kept, and one that cannot be understood is one problem
//! with its name and field, while its last good version stays.
//!
//! The watches are made from kube's client and its requests, not from `kube::runtime`: that hides bookmarks and whether a
//! watch stands again, on which rests what the agent says of its own state, and it asks for whole, well-formed objects.

mod agents;
mod ask;
mod backoff;
mod config;
mod failure;
mod feedback;
mod follow;
mod kind;
mod light;
mod list;
mod object;
mod pace;
mod removal;
mod store;
mod sync;
mod taint;
mod watch;

use std::path::PathBuf;

use crate::model::Name;

pub use agents::agents;
pub use config::{Connection, Settings, connect};
pub use feedback::{Feedback, Wishes};
pub use follow::{Batch, PAUSE, Timing, follow};
pub use kind::Kind;
pub use list::{Loaded, load};
pub use removal::{Cleaned, Left, Patience, uninstall_everywhere};
pub use store::{Problem, Severity};
pub use sync::{KindState, Loss, SyncReport};

/// Why a cluster cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in a cluster, and no kubeconfig.
    #[error(
        "there is no cluster to watch: {reason}. Run in a pod with a service account, give --kubeconfig FILE (or \
         KUBECONFIG), or --manifests DIR for a cluster that is described by files"
    )]
    NoCluster {
        /// What is missing in the pod.
        reason: String,
    },
    /// The kubeconfig is of no use.
    #[error("cannot use the kubeconfig {}: {reason}; give another by --kubeconfig or --context", path.display())]
    Kubeconfig {
        /// The file; where several were named, those names.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection cannot be set up, before any packet is sent.
    #[error("cannot prepare the connection to {server}: {reason}")]
    Client {
        /// The API server's URL.
        server: String,
        /// What is wrong.
        reason: String,
    },
    /// Objects could not be listed.
    #[error("cannot list {}: {reason}", kind.plural())]
    List {
        /// The kind.
        kind: Kind,
        /// What went wrong.
        reason: String,
    },
    /// A task that watches has ended before its time.
    #[error("watching the cluster was interrupted")]
    Interrupted,
    /// The agents' DaemonSet cannot be changed.
    #[error("cannot have DaemonSet {name} uninstall: {reason}")]
    Removal {
        /// The DaemonSet.
        name: Name,
        /// What went wrong.
        reason: String,
    },
    /// Some nodes are not clean.
    #[error(
        "{clean} of {nodes} nodes were clean after {seconds} s; {}. What uninstalls stays in place of the agents, so that the \
         others follow when they can: then, or when Nodes that are gone for good are deleted, try again. `--unready-nodes \
         leave` (Helm: uninstall.unreadyNodes) leaves those behind that are not Ready",
        not_clean(left, name)
    )]
    NotClean {
        /// The DaemonSet.
        name: Name,
        /// Clean nodes.
        clean: u64,
        /// All nodes that it stands on.
        nodes: u64,
        /// How long was waited.
        seconds: u64,
        /// The others, as far as they are known.
        left: Vec<Left>,
    },
}

/// How many nodes are named: one line should do.
const NAMED: usize = 10;

/// The nodes that are not clean, in words.
fn not_clean(left: &[Left], name: &Name) -> String {
    if left.is_empty() {
        return format!("`kubectl --namespace {} get pods --output wide` shows the others", name.namespace);
    }
    let words: Vec<String> = left.iter().take(NAMED).map(|left| format!("{} ({})", left.node, left.because)).collect();
    let more = if left.len() > NAMED { format!(" and {} more", left.len() - NAMED) } else { String::new() };
    format!("not clean: {}{more}", words.join(", "))
}

#[cfg(test)]
mod tests;
