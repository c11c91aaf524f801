//! What must not be left behind: pins of BPF objects and temporary folders. Namespaces and processes are the kernel's
//! to remove, which the testbed checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The BPF file system.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// How names of the demo begin; the id of the process that runs it follows.
pub(super) const PREFIX: &str = "portcullis-demo-";

/// Where the agent on `node` pins what is its own. Not where an agent that is no part of the demo does.
pub(super) fn pins_of(node: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("{PREFIX}{}-{node}", std::process::id()))
}

/// Removes what demos left that were killed before they could clean up, and returns what that was.
pub(super) fn remove_remains_of_others() -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for folder in [Path::new(BPFFS), &std::env::temp_dir()] {
        for remains in remains_in(folder, |process| !Path::new(&format!("/proc/{process}")).exists()) {
            remove(&remains)?;
            removed.push(remains);
        }
    }
    Ok(removed)
}

/// What this process has left, after it has cleaned up.
pub(super) fn own_remains() -> Vec<PathBuf> {
    let own = std::process::id();
    [Path::new(BPFFS), &std::env::temp_dir()]
        .into_iter()
        .flat_map(|folder| remains_in(folder, |process| process == own))
        .collect()
}

/// Removes a file or folder with all that is in it. Unpinning the last pin of a program detaches it.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// The entries of `folder` that belong to a demo whose process id is `wanted`.
fn remains_in(folder: &Path, wanted: impl Fn(u32) -> bool) -> Vec<PathBuf> {
    // A folder that is not there, or may not be read, holds nothing of ours.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| process_of(&entry.file_name().to_string_lossy()).is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect()
}

/// The process id in `portcullis-demo-ID-...`.
fn process_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remains_are_told_by_their_process() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["portcullis-demo-17-node0", "portcullis-demo-18-node0", "portcullis", "portcullis-demo-", "other"]
        {
            fs::create_dir(folder.path().join(name)).expect("an entry");
        }
        assert_eq!(remains_in(folder.path(), |id| id == 17), [folder.path().join("portcullis-demo-17-node0")]);
        assert_eq!(remains_in(folder.path(), |id| id == 19), [] as [PathBuf; 0]);
        assert_eq!(remains_in(folder.path(), |_| true).len(), 2, "only what a demo made");
        assert_eq!(remains_in(&folder.path().join("absent"), |_| true), [] as [PathBuf; 0]);
    }
}
