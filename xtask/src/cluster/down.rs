//! Taking a cluster away, in whatever state it is.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::{FOLDER, Process, State};
use super::{cgroups, network};

/// How long processes that were killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends every process of the cluster and removes what was made for it. Where there is none, nothing happens.
pub(super) fn remove() -> Result<()> {
    let state = State::read().unwrap_or_else(|error| {
        eprintln!("warning: {error:#}");
        None
    });
    if let Some(state) = &state {
        end_processes(&state.processes.values().copied().collect::<Vec<_>>(), &state.cgroups)?;
    }
    network::remove()?;
    if let Some(state) = &state {
        cgroups::remove(&state.cgroups)?;
    }
    remove_folder()?;
    for folder in state.iter().flat_map(|state| &state.folders) {
        // What has something in it is somebody else's by now.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// Ends machines, by their first processes, which take all others with them. One that was started in the moment in which
/// `up` was killed is in no book yet, but in its cgroup.
pub(super) fn end_processes(first: &[Process], cgroups: &[PathBuf]) -> Result<()> {
    for process in first.iter().filter(|process| process.is_alive()) {
        end(process.id)?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = cgroups::processes(cgroups);
        if left.is_empty() && !first.iter().any(|process| process.is_alive()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("these processes of the cluster do not end: {left:?}");
        }
        for id in left {
            end(id)?;
        }
        sleep(Duration::from_millis(20));
    }
}

fn end(id: i32) -> Result<()> {
    // A group's list may hold 0 for processes of namespaces that cannot be seen from here.
    if id <= 1 || id.cast_unsigned() == std::process::id() {
        return Ok(());
    }
    match kill(Pid::from_raw(id), Signal::SIGKILL) {
        Err(error) if error != nix::errno::Errno::ESRCH => Err(error).context("cannot end a process of the cluster"),
        _ => Ok(()),
    }
}

fn remove_folder() -> Result<()> {
    // Mounts are the machines' own and have gone with them; a removal must never reach into one.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let inside = |path: &&str| Path::new(path).starts_with(FOLDER);
    if let Some(path) = mounts.lines().filter_map(|line| line.split(' ').nth(1)).find(inside) {
        bail!("something is mounted on {path}: unmount it and try again");
    }
    match fs::remove_dir_all(FOLDER) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {FOLDER}"))
        }
        _ => Ok(()),
    }
}
