//! Takes everything of ours away, and nothing else.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{DataplaneError, LAYOUT, attach, bpf, host, load, lock};

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pins of links.
    pub links: usize,
    /// Pins of maps.
    pub maps: usize,
}

/// Removes the pins under a directory, and with them programs and tables: links end with their last reference.
///
/// A clsact qdisc stays, also one that an agent has made: nobody can tell who else counts on it, and empty it does nothing.
///
/// # Errors
/// The pins are another network namespace's or an agent's that runs, which would put everything back, or cannot be
/// removed.
pub fn uninstall(pin_dir: &Path) -> Result<Removed, DataplaneError> {
    let mut removed = Removed::default();
    check_owner(pin_dir)?;
    // A running agent would put back what is removed.
    let _lock = if pin_dir.exists() { Some(lock::take(pin_dir)?) } else { None };
    let dir = pin_dir.join(LAYOUT);
    // What comes up a bridge without a stamp is dropped only while every port stamps.
    load::disarm(pin_dir)?;
    removed.links = empty(&dir.join("links"))? + attach::remove_filters();
    removed.maps = empty(&dir.join("maps"))?;
    for folder in [dir.as_path(), pin_dir] {
        // Other layouts' pins, or a directory that is not ours alone, keep it.
        drop(std::fs::remove_dir(folder));
    }
    Ok(removed)
}

/// Checks that pins, if there are any, are this network namespace's.
///
/// # Errors
/// They are another's, or cannot be read.
pub fn check_owner(pin_dir: &Path) -> Result<(), DataplaneError> {
    match load::owner(pin_dir)? {
        Some(owner) if owner != host::namespace_of_this_thread()? => {
            Err(DataplaneError::OtherNamespace { path: pin_dir.to_owned() })
        }
        _ => Ok(()),
    }
}

fn empty(dir: &Path) -> Result<usize, DataplaneError> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(0) };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Programs on egress first ("egress" sorts before "ingress" behind the index): they judge by the others' stamps.
    files.sort_by_key(|file| file.to_string_lossy().ends_with("ingress"));
    for file in &files {
        if let Ok(pinned) = bpf::pinned(file) {
            // What is no link has nothing to detach.
            drop(bpf::detach(pinned.as_fd()));
        }
        std::fs::remove_file(file).map_err(DataplaneError::file(file))?;
    }
    std::fs::remove_dir(dir).map_err(DataplaneError::file(dir))?;
    Ok(files.len())
}
