//! The agent of one node: the real program, as a process of its own in the node's namespace, watching the API server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use portcullis_testbed::{Node, Process, SERVICE_RANGE_V4};
use serde_json::Value;

use crate::server::PATIENCE;

const LISTEN: &str = "127.0.0.1:9299";
const BPFFS: &str = "/sys/fs/bpf";

/// An agent and what it leaves behind; all of it goes when this is dropped.
pub(crate) struct Agent {
    node: Node,
    kubeconfig: PathBuf,
    pin_dir: PathBuf,
    socket: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Agent {
    /// An agent that does not run yet. Its socket is in `scratch`.
    pub(crate) fn new(node: &Node, kubeconfig: &Path, scratch: &Path, arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        if !mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
            let none = None::<&str>;
            nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), nix::mount::MsFlags::empty(), none).unwrap();
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = PathBuf::from(format!("{BPFFS}/portcullis-api-{}-{number}", std::process::id()));
        let socket = scratch.join(format!("{}-{number}.sock", node.name()));
        Self {
            node: node.clone(),
            kubeconfig: kubeconfig.to_owned(),
            pin_dir,
            socket,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            process: None,
        }
    }

    /// Starts it, and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        let mut command = self.node.command(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("run").arg("--kubeconfig").arg(&self.kubeconfig).arg("--pin-dir").arg(&self.pin_dir);
        command.arg("--socket").arg(&self.socket).args(["--node-name", self.node.name(), "--listen", LISTEN]);
        command.args(["--service-cidr", SERVICE_RANGE_V4, "--max-endpoints", "16"]);
        command.args(&self.arguments).env("RUST_BACKTRACE", "1").env("RUST_LOG", "portcullis=debug,info");
        self.process = Some(self.node.spawn(command).unwrap());
    }

    /// Starts it, and waits until it is in sync.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.await_ready("ready", |status, _| status == 200);
    }

    /// Asks `/readyz` until its answer is as wanted.
    pub(crate) fn await_ready(&self, what: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get("/readyz");
            if let Some((status, body)) = &answer
                && wanted(*status, body)
            {
                return body.clone();
            }
            let ended = self.process.as_ref().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{}: {what} has not come (ended: {ended:?}), but {answer:?}",
                self.node.name()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// What it serves; `None` before it does.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let listen: SocketAddr = LISTEN.parse().unwrap();
        self.node.http_get(listen, path).ok()
    }

    /// What `status -o json` says.
    pub(crate) fn status(&self) -> Value {
        let mut command = self.node.command(env!("CARGO_BIN_EXE_portcullis"));
        command
            .arg("status")
            .arg("--socket")
            .arg(&self.socket)
            .arg("--pin-dir")
            .arg(&self.pin_dir)
            .args(["-o", "json"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "status: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until its log says something.
    pub(crate) fn await_log(&self, wanted: &str) {
        let process = self.process.as_ref().unwrap();
        process.wait_for_line(|line| line.contains(wanted), PATIENCE).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(|process| process.stderr().join("\n")).unwrap_or_default()
    }

    /// SIGTERM, and its end.
    pub(crate) fn terminate(&mut self) {
        let process = self.process.take().unwrap();
        let status = process.terminate(PATIENCE).unwrap();
        assert!(status.success(), "the agent ended with {status}:\n{}", process.stderr().join("\n"));
    }

    /// Waits for an end that comes by itself, and gives what it said.
    pub(crate) fn await_end(&mut self) -> (bool, String) {
        let process = self.process.take().unwrap();
        let status = process.wait(PATIENCE).unwrap();
        (status.success(), process.stderr().join("\n"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("the last lines of {}'s agent:\n{shown}", self.node.name());
        }
        if let Some(process) = self.process.take() {
            process.kill();
        }
        let _ = std::fs::remove_dir_all(&self.pin_dir);
    }
}
