//! One agent for each pin directory.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::DataplaneError;

/// The right to write what is pinned in a directory, until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _directory: Flock<File>,
}

/// Takes the right to write what is pinned in a directory that exists. `flock` is the file system's common part, so it
/// works on a BPF file system's directories; the kernel gives it back however the process ends.
///
/// # Errors
/// Another process has it, or the directory cannot be opened.
pub(super) fn take(directory: &Path) -> Result<Lock, DataplaneError> {
    loop {
        let file = File::open(directory).map_err(DataplaneError::file(directory))?;
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => DataplaneError::InUse { path: directory.to_owned() },
            other => DataplaneError::File { path: directory.to_owned(), source: other.into() },
        })?;
        let inode = |metadata: std::io::Result<std::fs::Metadata>| metadata.map(|metadata| metadata.ino());
        // Whoever had it may have removed the directory, and another may stand in its place.
        match (inode(locked.metadata()), inode(directory.metadata())) {
            (Ok(ours), Ok(there)) if ours == there => return Ok(Lock { _directory: locked }),
            (Ok(_), Ok(_)) => {}
            (Err(source), _) | (_, Err(source)) => {
                return Err(DataplaneError::File { path: directory.to_owned(), source });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_until_that_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let first = take(directory.path()).unwrap();
        let refused = take(directory.path()).unwrap_err();
        assert!(matches!(refused, DataplaneError::InUse { .. }), "{refused}");
        drop(first);
        take(directory.path()).unwrap();
        assert!(take(&directory.path().join("none")).is_err(), "there is no such directory");
    }
}
