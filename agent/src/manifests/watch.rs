//! Which folders and links are watched.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use inotify::{WatchDescriptor, WatchMask};

use super::folder::{self, Scan};
use super::problem::{Problem, Severity};

/// Watches for one folder and all below it.
pub(super) struct Watches {
    inotify: inotify::Watches,
    /// What each watch stands for: several paths where links lead to one place.
    paths: HashMap<WatchDescriptor, BTreeSet<PathBuf>>,
    /// The nearest folder above the root that exists, and the name in it that leads to the root.
    above: Option<(WatchDescriptor, OsString)>,
}

/// Changes of a folder's entries. No IN_MODIFY: a file counts when it is closed. IN_ATTRIB because permissions may let
/// a file be read that could not be.
fn folder_mask() -> WatchMask {
    WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::MASK_ADD
}

/// Coming and going of the root, in a folder where much else may happen.
fn above_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::MASK_ADD
}

/// What a link leads to, which may lie outside all watched folders.
fn target_mask() -> WatchMask {
    WatchMask::CLOSE_WRITE | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::MASK_ADD
}

impl Watches {
    pub(super) fn new(inotify: inotify::Watches) -> Self {
        Self { inotify, paths: HashMap::new(), above: None }
    }

    /// The paths that a watch stands for.
    pub(super) fn paths(&self, watch: &WatchDescriptor) -> Vec<PathBuf> {
        self.paths.get(watch).into_iter().flatten().cloned().collect()
    }

    /// Whether an event concerns the way to the root.
    pub(super) fn leads_to_root(&self, watch: &WatchDescriptor, name: Option<&OsStr>) -> bool {
        self.above.as_ref().is_some_and(|(above, step)| above == watch && name.is_none_or(|name| name == step))
    }

    /// Whether a path was a folder, or a link to one, when it was looked at last.
    pub(super) fn is_watched(&self, path: &Path) -> bool {
        self.paths.values().any(|paths| paths.contains(path))
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.paths.len()
    }

    /// The kernel has dropped a watch, because what it stood for is gone.
    pub(super) fn forget(&mut self, watch: &WatchDescriptor) {
        self.paths.remove(watch);
    }

    /// Watches the way to the root, so that its coming back is noticed.
    pub(super) fn watch_above(&mut self, root: &Path) -> io::Result<()> {
        let root = std::path::absolute(root)?;
        let nearest = || root.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned);
        loop {
            let Some(folder) = nearest() else { return Ok(()) };
            let watch = self.inotify.add(&folder, above_mask())?;
            let step = root.strip_prefix(&folder).ok().and_then(|rest| rest.components().next());
            let step = step.map(|step| step.as_os_str().to_owned()).unwrap_or_default();
            if let Some((old, _)) = self.above.replace((watch.clone(), step)).filter(|(old, _)| *old != watch) {
                self.drop_unused(old);
            }
            // Whatever appears from now on is notified. What appeared before the watch stood is seen here.
            if nearest().as_deref() == Some(&*folder) {
                return Ok(());
            }
        }
    }

    /// Watches everything under a path and lists it. The list is complete as of a moment when every watch stood, so
    /// whatever changes later is notified.
    pub(super) fn cover(&mut self, path: &Path) -> Scan {
        self.cover_by(path, folder::scan)
    }

    /// [`Watches::cover`] with its way of looking.
    pub(super) fn cover_by(&mut self, path: &Path, mut look: impl FnMut(&Path) -> Scan) -> Scan {
        let mut old = Vec::new();
        for (watch, paths) in &mut self.paths {
            let before = paths.len();
            paths.retain(|known| !known.starts_with(path));
            if paths.len() < before {
                old.push(watch.clone());
            }
        }
        let mut tried = BTreeSet::new();
        let mut problems = Vec::new();
        let mut scan = loop {
            let scan = look(path);
            let dirs = scan.dirs.iter().map(|dir| (dir, folder_mask()));
            let links = scan.links.iter().map(|link| (link, target_mask()));
            let fresh: Vec<(&PathBuf, WatchMask)> =
                dirs.chain(links).filter(|(path, _)| !tried.contains(*path)).collect();
            if fresh.is_empty() {
                break scan;
            }
            for (path, mask) in fresh {
                tried.insert(path.clone());
                match self.inotify.add(path, mask) {
                    Ok(watch) => {
                        self.paths.entry(watch).or_default().insert(path.clone());
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => problems.push((path.clone(), unwatched(path, &error))),
                }
            }
        };
        scan.problems.extend(problems);
        for watch in old {
            self.drop_unused(watch);
        }
        scan
    }

    fn drop_unused(&mut self, watch: WatchDescriptor) {
        let above = self.above.as_ref().is_some_and(|(above, _)| *above == watch);
        if above || self.paths.get(&watch).is_some_and(|paths| !paths.is_empty()) {
            return;
        }
        self.paths.remove(&watch);
        if let Err(error) = self.inotify.remove(watch) {
            // The kernel drops the watch of what is deleted by itself.
            tracing::trace!(%error, "the watch was gone already");
        }
    }
}

fn unwatched(path: &Path, error: &io::Error) -> Problem {
    let hint =
        if error.raw_os_error() == Some(libc::ENOSPC) { "; raise the sysctl fs.inotify.max_user_watches" } else { "" };
    Problem::of_file(path, Severity::Error, format!("changes here will not be noticed: {error}{hint}"))
}
