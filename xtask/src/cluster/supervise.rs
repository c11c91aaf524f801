//! A machine's services, kept running by its first process as systemd would: what ends is started again.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Between two looks at what is awaited.
const LOOK: Duration = Duration::from_millis(50);
/// How long a service that has ended stays down.
const PAUSE: Duration = Duration::from_secs(1);
/// Where programs of a machine look for others.
pub(super) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that runs as long as the machine.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Files that must exist before it is started for the first time.
    pub(super) after: Vec<PathBuf>,
}

impl Service {
    pub(super) fn new(name: &'static str, program: impl Into<PathBuf>) -> Self {
        Self { name, program: program.into(), arguments: Vec::new(), after: Vec::new() }
    }

    pub(super) fn arguments<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(super) fn after(mut self, file: impl Into<PathBuf>) -> Self {
        self.after.push(file.into());
        self
    }

    fn start(&self, folder: &Path) -> Result<Pid> {
        let log = OpenOptions::new().create(true).append(true).open(folder.join(format!("{}.log", self.name)))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            // Proxies and settings of whoever brings the cluster up are not the cluster's.
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let id = child.id();
        fs::write(process_file(folder, self.name), id.to_string())?;
        Ok(Pid::from_raw(id.cast_signed()))
    }
}

/// Where a service's process id, inside the machine, is written down.
pub(super) fn process_file(folder: &Path, service: &str) -> PathBuf {
    folder.join(format!("{service}.pid"))
}

/// Runs the services for ever, and waits for orphans, which come to a namespace's first process.
pub(super) fn run(folder: &Path, services: &[Service]) -> ! {
    let mut running: BTreeMap<Pid, usize> = BTreeMap::new();
    let mut due: BTreeMap<usize, Instant> = (0..services.len()).map(|index| (index, Instant::now())).collect();
    loop {
        let ready: Vec<usize> = due
            .iter()
            .filter(|(index, time)| {
                **time <= Instant::now() && services[**index].after.iter().all(|file| file.exists())
            })
            .map(|(index, _)| *index)
            .collect();
        for index in ready {
            match services[index].start(folder) {
                Ok(id) => {
                    running.insert(id, index);
                    due.remove(&index);
                }
                Err(error) => {
                    eprintln!("{error:#}");
                    due.insert(index, Instant::now() + PAUSE);
                }
            }
        }
        // With all of them running there is nothing to look at until one ends.
        let flags = if due.is_empty() { WaitPidFlag::empty() } else { WaitPidFlag::WNOHANG };
        match waitpid(None, Some(flags)) {
            Ok(status) => match status.pid() {
                Some(id) => {
                    if let Some(index) = running.remove(&id) {
                        eprintln!("{} has ended: {status:?}", services[index].name);
                        due.insert(index, Instant::now() + PAUSE);
                    }
                }
                None => sleep(LOOK),
            },
            Err(Errno::EINTR) => {}
            Err(_) => sleep(LOOK),
        }
    }
}
