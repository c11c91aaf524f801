//! The agent, as the process that it is on a node.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use portcullis_testbed::{Node, Process};

use super::counters::{self, Counter};
use super::ready;

/// Where the agent serves metrics and health, in its node's namespace.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9470);

/// How long the agent may take until policies are enforced.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end when asked.
const STOP: Duration = Duration::from_secs(10);

/// An agent that runs on a node.
pub(super) struct Agent {
    program: PathBuf,
    node: Node,
    pins: PathBuf,
    process: Process,
}

impl Agent {
    /// Starts it. `sockets` is a folder for its command socket.
    pub(super) fn start(program: &Path, node: &Node, manifests: &Path, pins: PathBuf, sockets: &Path) -> Result<Self> {
        let mut command = node.command(program);
        without_settings(&mut command)
            .arg("run")
            .args([OsStr::new("--manifests"), manifests.as_os_str()])
            .args(["--node-name", node.name()])
            .args([OsStr::new("--pin-dir"), pins.as_os_str()])
            .args(["--listen", &LISTEN.to_string()])
            .args(["--log-format", "text"])
            .arg("--socket")
            .arg(sockets.join(format!("{}.sock", node.name())));
        let process = node.spawn(command)?;
        Ok(Self { program: program.to_owned(), node: node.clone(), pins, process })
    }

    /// Waits until it says that policies are enforced.
    pub(super) fn await_ready(&self) -> Result<()> {
        ready::await_ready(&self.node, &self.process, LISTEN, "/readyz", START)
            .with_context(|| format!("the agent on {}", self.node.name()))
    }

    /// What it has counted for each rule of each policy.
    pub(super) fn counters(&self) -> Result<Vec<Counter>> {
        let (status, text) = self.node.http_get(LISTEN, "/metrics")?;
        if status != 200 {
            bail!("/metrics on {} answers with status {status}", self.node.name());
        }
        Ok(counters::read(&text))
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        ready::last_words(&self.process)
    }

    /// Ends it. What it has pinned goes on.
    ///
    /// # Errors
    /// When it had ended before, or does not end well; it has ended then, too.
    pub(super) fn stop(&self) -> Result<()> {
        let stopped = match self.process.terminate(STOP) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(anyhow!("it ended with {status}; its log ends with\n{}", self.last_words())),
            Err(error) => {
                self.process.kill();
                Err(error)
            }
        };
        stopped.with_context(|| format!("the agent on {} did not stop as asked", self.node.name()))
    }

    /// Ends what goes on without it: programs and maps that are pinned.
    pub(super) fn uninstall(&self) -> Result<()> {
        let mut command = self.node.command(&self.program);
        command.arg("uninstall").args([OsStr::new("--pin-dir"), self.pins.as_os_str()]);
        output_of(&mut command).with_context(|| format!("cannot uninstall on {}", self.node.name()))?;
        Ok(())
    }
}

/// `portcullis explain`: why a connection is allowed or denied, in words.
pub(super) fn explain(program: &Path, manifests: &Path, from: &str, to: &str, port: u16) -> Result<String> {
    output_of(Command::new(program).arg("explain").args([OsStr::new("--manifests"), manifests.as_os_str()]).args([
        "--from",
        from,
        "--to",
        to,
        "--port",
        &format!("{port}/TCP"),
    ]))
}

/// Settings of the caller's environment are meant for another agent.
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PORTCULLIS_")) {
        command.env_remove(name);
    }
    command
}

fn output_of(command: &mut Command) -> Result<String> {
    let output =
        without_settings(command).stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
