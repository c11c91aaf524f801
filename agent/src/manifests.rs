//! A cluster from a folder of manifests: the door to files.
//!
//! [`load`] reads a folder once; [`follow()`] reads it and then tells every change. Both read each `*.yaml`, `*.yml` and
//! `*.json` under the folder, names with a leading dot left out, links followed. What a file says is kept apart from how
//! it was learned: [`Store`] turns texts of files into changes of the cluster without touching a file.

mod document;
mod folder;
mod follow;
mod object;
mod problem;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::{Path, PathBuf};

pub use follow::{Batch, PAUSE, follow};
pub use problem::{Problem, ProblemCounts, Severity};
pub use store::{Contents, Outcome, Store, Unread};

use crate::index::Cluster;

/// Why a folder cannot be read or followed at all.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be opened.
    #[error("cannot read the manifests' folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no folder: give the folder that holds the manifests", path.display())]
    NoFolder {
        /// What was given.
        path: PathBuf,
    },
    /// The kernel gives no notifications.
    #[error("cannot be told about changed files: {source}; raise the sysctl fs.inotify.max_user_instances")]
    Inotify {
        /// What the system says.
        #[from]
        source: io::Error,
    },
    /// The task that reads files ended before its time.
    #[error("reading manifests was interrupted")]
    Interrupted,
}

/// A folder read once.
#[derive(Debug)]
pub struct Loaded {
    /// What its valid objects make up.
    pub cluster: Cluster,
    /// What is wrong with it, by file.
    pub problems: Vec<Problem>,
}

/// Reads a folder once.
///
/// # Errors
/// Only where the folder itself cannot be read; everything inside it that is wrong is in [`Loaded::problems`].
pub fn load(dir: &Path) -> Result<Loaded, ManifestError> {
    folder::check(dir)?;
    let scan = folder::scan(dir);
    let mut store = Store::default();
    for (path, problem) in scan.problems {
        store.set_problem(&path, Some(problem));
    }
    for path in &scan.files {
        // Nothing tells later when somebody who is writing now is done, so what is there is taken.
        store.set(path, folder::read(path, folder::Writers::Ignored).as_ref());
    }
    let mut cluster = Cluster::default();
    let outcome = store.commit();
    for change in outcome.changes {
        cluster.apply(change);
    }
    Ok(Loaded { cluster, problems: outcome.problems })
}
