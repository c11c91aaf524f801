//! Pins: what makes enforcement outlive the agent. While it runs, the agent holds a descriptor of everything that it
//! pins, so that whoever removes a pin removes no enforcement; it puts the pin back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::lock::{self, Lock};
use super::{DataplaneError, bpf, host};

/// What is pinned, by its path below the layout's directory.
#[derive(Debug)]
pub(super) struct Pins {
    /// The pin directory.
    root: PathBuf,
    /// The layout's directory in it.
    dir: PathBuf,
    held: BTreeMap<PathBuf, Held>,
    /// Tells an `uninstall`, and a second agent, that this one runs.
    lock: Option<Lock>,
}

/// One pin.
#[derive(Debug)]
struct Held {
    fd: OwnedFd,
    /// The pin's inode in its file system.
    inode: u64,
}

impl Pins {
    /// Those of an agent that has the lock of its pin directory.
    pub(super) fn new(root: &Path, dir: &Path, lock: Lock) -> Self {
        Self { root: root.to_owned(), dir: dir.to_owned(), held: BTreeMap::new(), lock: Some(lock) }
    }

    /// Whether something is held under a name.
    pub(super) fn holds(&self, name: &Path) -> bool {
        self.held.contains_key(name)
    }

    /// A pin's place.
    pub(super) fn path(&self, name: &Path) -> PathBuf {
        self.dir.join(name)
    }

    /// Holds what is pinned under a name.
    pub(super) fn hold(&mut self, name: PathBuf) -> Result<(), DataplaneError> {
        let path = self.path(&name);
        let held = bpf::pinned(&path).and_then(|fd| Ok(Held { fd, inode: std::fs::metadata(&path)?.ino() }));
        self.held.insert(name, held.map_err(DataplaneError::file(&path))?);
        Ok(())
    }

    /// Ends the link of a name, and removes its pin.
    pub(super) fn release(&mut self, name: &Path) {
        let path = self.path(name);
        if let Some(Held { fd, .. }) = self.held.remove(name) {
            // A link of a device that is gone is detached already.
            drop(bpf::detach(fd.as_fd()));
        }
        end_link(&path);
    }

    /// Puts back every pin that is gone or is another's, mounting the file system where that is gone. Gives their number.
    pub(super) fn restore(&mut self) -> Result<usize, DataplaneError> {
        let folders: BTreeSet<PathBuf> = self.held.keys().filter_map(|name| Some(name.parent()?.to_owned())).collect();
        let mut restored = 0;
        for folder in folders {
            let path = self.dir.join(&folder);
            if !host::is_bpffs(&path) {
                host::ensure_bpffs(&path)?;
                // Another file system, or none any more: the lock was on what is gone.
                self.lock = None;
            }
            let found = inodes(&path).map_err(DataplaneError::file(&path))?;
            for (name, held) in self.held.iter_mut().filter(|(name, _)| name.parent() == Some(&folder)) {
                let inode = name.file_name().and_then(|name| found.get(name));
                if inode == Some(&held.inode) {
                    continue;
                }
                let path = self.dir.join(name);
                let failed = DataplaneError::file(&path);
                if inode.is_some() {
                    std::fs::remove_file(&path).map_err(DataplaneError::file(&path))?;
                }
                held.inode = bpf::pin(held.fd.as_fd(), &path)
                    .and_then(|()| Ok(std::fs::metadata(&path)?.ino()))
                    .map_err(failed)?;
                restored += 1;
            }
        }
        if restored > 0 {
            // The directory may be another one under the same name.
            self.lock = None;
        }
        if self.lock.is_none() {
            self.lock = Some(lock::take(&self.root)?);
        }
        Ok(restored)
    }
}

/// Ends a pinned link, if it is one, and removes the pin, if there is one.
pub(super) fn end_link(pin: &Path) {
    if let Ok(link) = bpf::pinned(pin) {
        drop(bpf::detach(link.as_fd()));
    }
    drop(std::fs::remove_file(pin));
}

fn inodes(folder: &Path) -> io::Result<BTreeMap<std::ffi::OsString, u64>> {
    std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| (entry.file_name(), entry.ino()))).collect()
}
