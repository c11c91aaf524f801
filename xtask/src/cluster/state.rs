//! What is on this machine because of the cluster: written down before it is made, so that it can be removed after
//! whatever happened.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::plan::{Machine, Plan};

/// Where everything of the cluster is kept while it is up. Not in memory: containers' files are there too.
pub(super) const FOLDER: &str = "/var/lib/portcullis-cluster";
/// How names of network namespaces and cgroups begin.
pub(super) const PREFIX: &str = "portcullis-cluster-";
/// This machine's interface in the nodes' network.
pub(super) const HOST_LINK: &str = "pcl-host";

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) plan: Plan,
    /// Whether it has come up whole; else `up` was interrupted, or has failed.
    pub(super) is_whole: bool,
    /// The folder of Kubernetes' programs.
    pub(super) binaries: PathBuf,
    /// Folders of cgroups that were made, parents first.
    pub(super) cgroups: Vec<PathBuf>,
    /// Other folders that were made, and go when they are empty.
    pub(super) folders: Vec<PathBuf>,
    /// The first process of each machine.
    pub(super) processes: BTreeMap<String, Process>,
    /// Tokens by user.
    pub(super) tokens: BTreeMap<String, String>,
}

/// A process that is told from a later one with the same number by the time when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) id: i32,
    /// In clock ticks since boot.
    pub(super) started: u64,
}

impl Process {
    /// The process that has this number now.
    pub(super) fn of(id: i32) -> Option<Self> {
        Some(Self { id, started: started(id)? })
    }

    pub(super) fn is_alive(self) -> bool {
        started(self.id) == Some(self.started)
    }
}

/// When a process started; `None` where there is none, or only its remains.
fn started(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name is in parentheses and may hold any; the fields after it are counted from the third.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first()?, &"Z" | &"X") {
        return None;
    }
    fields.get(22 - 3)?.parse().ok()
}

impl State {
    /// Reads it; `None` where there is no cluster.
    pub(super) fn read() -> Result<Option<Self>> {
        let path = file();
        match fs::read(&path) {
            Ok(text) => {
                Ok(Some(serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes it, so that at any moment either the old or the new is there.
    pub(super) fn write(&self) -> Result<()> {
        let (path, draft) = (file(), Path::new(FOLDER).join("state.draft"));
        fs::create_dir_all(FOLDER)?;
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn process(&self, machine: Machine) -> Option<Process> {
        self.processes.get(&machine.name()).copied().filter(|process| process.is_alive())
    }

    /// Whether it has come up, and every machine's first process is there.
    pub(super) fn is_up(&self) -> bool {
        self.is_whole && self.plan.machines().all(|machine| self.process(machine).is_some())
    }
}

/// Where a machine's own files are: configurations, logs, the standard folders of its programs.
pub(super) fn folder_of(machine: Machine) -> PathBuf {
    Path::new(FOLDER).join(machine.name())
}

fn file() -> PathBuf {
    Path::new(FOLDER).join("state.json")
}

/// The kubeconfig of the cluster's administrator.
pub(super) fn kubeconfig() -> PathBuf {
    Path::new(FOLDER).join("admin.conf")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::plan::{Cni, Proxy};
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("a process");
        let process = Process::of(child.id().cast_signed()).expect("it is there");
        assert!(process.is_alive());
        let later = Process { started: process.started + 1, ..process };
        assert!(!later.is_alive(), "another process with the same number");
        child.kill().expect("a signal");
        // Until it is waited for, its remains are still listed.
        while process.is_alive() {
            std::thread::yield_now();
        }
        child.wait().expect("its end");
        assert_eq!(Process::of(process.id), None);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let state = State {
            plan: Plan { nodes: 2, cni: Cni::Bridge, proxy: Proxy::Nftables },
            is_whole: true,
            binaries: "/b".into(),
            cgroups: vec!["/c".into()],
            folders: vec!["/f".into()],
            processes: BTreeMap::from([("node1".into(), Process { id: 7, started: 9 })]),
            tokens: BTreeMap::from([("admin".into(), "t".into())]),
        };
        let text = serde_json::to_string(&state).expect("text");
        assert_eq!(serde_json::from_str::<State>(&text).expect("the same"), state);
    }
}
