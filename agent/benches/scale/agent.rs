//! The agent of the node under test: the real program, as a process of its own, and what can be seen of it from outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_testbed::{Node, Process, SERVICE_RANGE_V4};
use serde_json::Value;

use crate::Result;

const BPFFS: &str = "/sys/fs/bpf";
const LISTEN: &str = "127.0.0.1:9299";
const PATIENCE: Duration = Duration::from_secs(600);
/// Jiffies of user space in a second: sysconf(_SC_CLK_TCK), which is 100 wherever Linux runs.
const TICKS: f64 = 100.0;

/// An agent, its socket and its pins; all of it goes when this is dropped.
pub(crate) struct Agent {
    node: Node,
    process: Process,
    pins: PathBuf,
    /// Holds the socket.
    _folder: tempfile::TempDir,
}

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident, without maps.
    pub(crate) own: u64,
    /// Of that, what the allocator and stacks hold.
    pub(crate) anonymous: u64,
    /// BPF maps that are mapped, as far as they were touched.
    pub(crate) maps: u64,
}

/// What the log says of one pass.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) at: Timestamp,
    pub(crate) fields: Value,
}

impl Agent {
    /// Starts it, and waits for nothing.
    pub(crate) fn spawn(node: &Node, kubeconfig: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("portcullis-bench-scale-").tempdir()?;
        let pins = Path::new(BPFFS).join(format!("portcullis-bench-scale-{}", std::process::id()));
        let mut command = node.command(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("run").arg("--kubeconfig").arg(kubeconfig).arg("--pin-dir").arg(&pins);
        command.arg("--socket").arg(folder.path().join("socket")).args(["--node-name", node.name()]);
        command.args(["--listen", LISTEN, "--service-cidr", SERVICE_RANGE_V4]);
        // What is measured from its log: the first compile, and when a change is in force.
        command.args(["--log-format", "json", "--log-level", "info,portcullis::app=debug,portcullis::reconcile=debug"]);
        let process = node.spawn(command)?;
        Ok(Self { node: node.clone(), process, pins, _folder: folder })
    }

    /// Waits until it is in sync, and gives the greatest memory that was seen on the way.
    pub(crate) fn await_ready(&self) -> Result<Memory> {
        let deadline = Instant::now() + PATIENCE;
        let mut greatest = Memory::default();
        loop {
            if let Some(ended) = self.process.try_wait()? {
                return Err(format!("the agent has ended ({ended}):\n{}", self.last_lines()).into());
            }
            if let Ok(memory) = self.memory()
                && memory.own > greatest.own
            {
                greatest = memory;
            }
            let answer = self.node.http_get(LISTEN.parse()?, "/readyz");
            match answer {
                Ok((200, _)) => return Ok(greatest),
                _ if Instant::now() > deadline => {
                    return Err(format!("the agent is not ready ({answer:?}):\n{}", self.last_lines()).into());
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn last_lines(&self) -> String {
        let log = self.process.stderr();
        log[log.len().saturating_sub(20)..].join("\n")
    }

    /// Seconds of CPU that it has used.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name in brackets may hold blanks; user and system time are the 12th and 13th fields behind it.
        let after = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / TICKS)
    }

    /// What of it is resident now: each mapping is asked, since maps of BPF that are mapped count as resident.
    pub(crate) fn memory(&self) -> Result<Memory> {
        Ok(read_smaps(&fs::read_to_string(format!("/proc/{}/smaps", self.process.id()))?))
    }

    /// Memory that the kernel holds for its maps, in KiB, each map once.
    pub(crate) fn map_memory(&self) -> Result<u64> {
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.process.id()))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let number = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            if let (Some(id), Some(bytes)) = (number("map_id:"), number("memlock:")) {
                maps.insert(id, bytes / 1024);
            }
        }
        Ok(maps.values().sum())
    }

    /// What it has said with this message after a moment, in order.
    pub(crate) fn said(&self, message: &str, after: Timestamp) -> Vec<Said> {
        self.process
            .stderr()
            .iter()
            .rev()
            .map_while(|line| parse(line, after))
            .filter(|said| is(said, message))
            .collect()
    }

    /// Waits until it says something after a moment; `None` when it does not for ten seconds.
    pub(crate) fn await_said(&self, message: &str, after: Timestamp) -> Option<Said> {
        let wanted = |line: &str| parse(line, after).is_some_and(|said| is(&said, message));
        let line = self.process.wait_for_line(wanted, Duration::from_secs(10)).ok()?;
        parse(&line, after)
    }

    /// Values of a metric, by its labels as they are written.
    pub(crate) fn metric(&self, name: &str) -> Result<BTreeMap<String, f64>> {
        let (_, text) = self.node.http_get(LISTEN.parse()?, "/metrics")?;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let is_whole = series.is_empty() || series.starts_with('{');
            Some((series.to_owned(), value.parse().ok().filter(|_| is_whole)?))
        });
        Ok(values.collect())
    }

    /// Errors and warnings of its log.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.process.stderr();
        log.into_iter().filter(|line| line.contains("\"ERROR\"") || line.contains("\"WARN\"")).collect()
    }
}

fn is(said: &Said, message: &str) -> bool {
    said.fields["message"] == message
}

/// A line of the log, unless it is from before `after`.
fn parse(line: &str, after: Timestamp) -> Option<Said> {
    let fields: Value = serde_json::from_str(line).ok()?;
    let at: Timestamp = fields["timestamp"].as_str()?.parse().ok()?;
    (at >= after).then_some(Said { at, fields })
}

fn read_smaps(text: &str) -> Memory {
    let mut memory = Memory::default();
    let mut is_map = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            is_map = line.contains("bpf-map");
            continue;
        }
        let kib: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match (first, is_map) {
            ("Rss:", true) => memory.maps += kib,
            ("Rss:", false) => memory.own += kib,
            ("Anonymous:", false) => memory.anonymous += kib,
            _ => {}
        }
    }
    memory
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill();
        let _ = fs::remove_dir_all(&self.pins);
    }
}
