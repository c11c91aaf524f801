//! The agent of one node: the real program, as a process of its own in the node's namespace.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use portcullis_testbed::{Node, Process, SERVICE_RANGE_V4, SERVICE_RANGE_V6};
use serde_json::Value;

/// How long the agent may take for anything: the machine may be busy, or emulated on a busy one. Only failures cost it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Sizes of tables that have room for what tests do. Where everything is emulated, the default's pages take longer to clear
/// and to read than the rest of an agent's start, but for what the verifier does.
const SMALL: [&str; 10] = [
    "--max-addresses",
    "2000",
    "--max-rows",
    "4000",
    "--max-ranges",
    "500",
    "--max-rules",
    "1000",
    "--max-endpoints",
    "32",
];

const LISTEN: &str = "127.0.0.1:9299";
const BPFFS: &str = "/sys/fs/bpf";
/// Pin directories are named with it and the process's id, so that those of a killed test can be told and removed.
const PIN_PREFIX: &str = "portcullis-live-";

/// An agent and what it leaves behind; all of it goes when this is dropped.
pub(crate) struct Agent {
    node: Node,
    manifests: PathBuf,
    pin_dir: PathBuf,
    socket: PathBuf,
    /// Further arguments of `run`.
    arguments: Vec<String>,
    /// All that it has, if not all that there are.
    capabilities: Option<Vec<String>>,
    process: Option<Process>,
}

/// One line of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Sample {
    /// Whether it has these labels, among others.
    pub(crate) fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|have| have == value))
    }
}

impl Agent {
    /// An agent that does not run yet. Its socket is in `scratch`.
    pub(crate) fn new(node: &Node, manifests: &Path, scratch: &Path, arguments: &[String]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure_bpffs();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = PathBuf::from(format!("{BPFFS}/{PIN_PREFIX}{}-{number}-{}", std::process::id(), node.name()));
        let socket = scratch.join(format!("{}.sock", node.name()));
        let (node, manifests, arguments) = (node.clone(), manifests.to_owned(), arguments.to_vec());
        Self { node, manifests, pin_dir, socket, arguments, capabilities: None, process: None }
    }

    /// Gives it these capabilities alone when it is started.
    pub(crate) fn confine(&mut self, capabilities: Vec<String>) {
        self.capabilities = Some(capabilities);
    }

    /// Starts it, and waits until what it read first is enforced.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.await_ready();
    }

    /// Waits until what it read first is enforced.
    pub(crate) fn await_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let moment = Duration::from_millis(100);
            let Err(error) = self.node.wait_http_200(LISTEN.parse().unwrap(), "/readyz", moment) else { return };
            let ended = self.process().try_wait().unwrap();
            if ended.is_some() || Instant::now() >= deadline {
                panic!("{} is not ready (ended: {ended:?}): {error:#}", self.node.name());
            }
        }
    }

    /// Waits until it answers at all, ready or not.
    pub(crate) fn await_serving(&self) {
        let deadline = Instant::now() + PATIENCE;
        let listen: SocketAddr = LISTEN.parse().unwrap();
        while let Err(error) = self.node.http_get(listen, "/healthz") {
            let ended = self.process().try_wait().unwrap();
            if ended.is_some() || Instant::now() >= deadline {
                panic!("{} does not answer (ended: {ended:?}): {error:#}", self.node.name());
            }
            pause(Duration::from_millis(20));
        }
    }

    /// Starts it, and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        let mut command = self.node.command(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("run").arg("--manifests").arg(&self.manifests).arg("--pin-dir").arg(&self.pin_dir);
        command.arg("--socket").arg(&self.socket).args(["--node-name", self.node.name(), "--listen", LISTEN]);
        command.args(["--service-cidr", SERVICE_RANGE_V4, "--service-cidr", SERVICE_RANGE_V6]);
        if std::env::var_os("PORTCULLIS_GUEST").is_some() {
            command.args(SMALL);
        }
        command.args(&self.arguments).env("RUST_BACKTRACE", "1").env("PORTCULLIS_LOG_FORMAT", "text");
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "portcullis=debug");
        }
        if let Some(capabilities) = &self.capabilities {
            crate::confine::confine(&mut command, capabilities);
        }
        self.process = Some(self.node.spawn(command).unwrap());
    }

    /// Waits for an end that comes by itself, and gives whether it was meant, and what was said.
    pub(crate) fn await_end(&mut self) -> (bool, String) {
        let process = self.process.take().unwrap();
        let status = process.wait(PATIENCE).unwrap();
        (status.success(), process.stderr().join("\n"))
    }

    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    pub(crate) fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Keeps its pins elsewhere.
    pub(crate) fn pin_at(&mut self, pin_dir: PathBuf) {
        self.pin_dir = pin_dir;
    }

    /// Asks `/metrics` until one of these counters is above what it was.
    pub(crate) fn await_above(&self, what: &str, name: &str, labels: &[(&str, &str)], before: f64) {
        self.await_metrics(what, |samples| {
            let matching = samples.iter().filter(|sample| sample.name == name && sample.has(labels));
            matching.map(|sample| sample.value).sum::<f64>() > before
        });
    }

    /// SIGTERM, and its end.
    pub(crate) fn terminate(&mut self) {
        let process = self.process.take().unwrap();
        let status = process.terminate(PATIENCE).unwrap();
        assert!(status.success(), "the agent ended with {status}:\n{}", process.stderr().join("\n"));
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Its stderr so far.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(|process| process.stderr().join("\n")).unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let listen: SocketAddr = LISTEN.parse().unwrap();
        self.node.http_get(listen, path).unwrap()
    }

    /// What `/metrics` says now.
    pub(crate) fn metrics(&self) -> Vec<Sample> {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200, "{body}");
        body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(parse_sample).collect()
    }

    /// The sum of a metric's samples with these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.metrics();
        samples.iter().filter(|sample| sample.name == name && sample.has(labels)).map(|sample| sample.value).sum()
    }

    /// What its programs have dropped so far, by reason.
    pub(crate) fn drops(&self) -> Vec<(String, f64)> {
        let drops =
            self.metrics().into_iter().filter(|sample| sample.name == "portcullis_drops_total" && sample.value > 0.0);
        drops.map(|sample| (sample.labels["reason"].clone(), sample.value)).collect()
    }

    /// Asks `/metrics` until something holds.
    pub(crate) fn await_metrics(&self, what: &str, wanted: impl Fn(&[Sample]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let samples = self.metrics();
            if wanted(&samples) {
                return;
            }
            if Instant::now() >= deadline {
                let shown: Vec<String> = samples
                    .iter()
                    .map(|sample| format!("{} {:?} {}", sample.name, sample.labels, sample.value))
                    .collect();
                panic!("{}: {what} has not come:\n{}\n{}", self.node.name(), shown.join("\n"), self.log());
            }
            pause(Duration::from_millis(5));
        }
    }

    /// Runs another of its commands in its node's namespace and returns the exit status and stdout.
    pub(crate) fn run_command(&self, arguments: &[&str]) -> std::process::Output {
        self.node.command(env!("CARGO_BIN_EXE_portcullis")).args(arguments).output().unwrap()
    }

    /// What `status -o json` says.
    pub(crate) fn status(&self) -> Value {
        let (socket, pins) = (self.socket.to_str().unwrap(), self.pin_dir.to_str().unwrap());
        let output = self.run_command(&["status", "--socket", socket, "--pin-dir", pins, "-o", "json"]);
        assert!(output.status.success(), "status: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs `uninstall`, which must succeed.
    pub(crate) fn uninstall(&self) {
        let output = self.run_command(&["uninstall", "--pin-dir", self.pin_dir.to_str().unwrap()]);
        assert!(output.status.success(), "uninstall: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the last lines of {}'s agent:\n{}",
                self.node.name(),
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        if let Some(process) = self.process.take() {
            process.kill();
        }
        // Programs are attached to links of namespaces that end too; only pins would stay.
        let _ = std::fs::remove_dir_all(&self.pin_dir);
    }
}

/// Waits before something is asked again. Where everything is emulated, by one CPU, to ask is to keep others from their
/// work: an answer of `/metrics` takes as long as the change that is waited for.
pub(crate) fn pause(usual: Duration) {
    let in_guests = Duration::from_millis(300);
    std::thread::sleep(if std::env::var_os("PORTCULLIS_GUEST").is_some() { in_guests } else { usual });
}

/// Mounts bpffs where it is missing, and removes pins of test processes that are no more.
fn ensure_bpffs() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    if !mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        let none = None::<&str>;
        nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), nix::mount::MsFlags::empty(), none).unwrap();
    }
    for entry in std::fs::read_dir(BPFFS).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PIN_PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Reads `name{key="value",...} number`; no value in these tests holds a quote.
fn parse_sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let mut words = labels.trim_end_matches('}').split('"');
    let mut pairs = BTreeMap::new();
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        pairs.insert(key.trim_matches([',', '=']).to_owned(), value.to_owned());
    }
    Sample { name: name.to_owned(), labels: pairs, value: value.parse().unwrap() }
}
