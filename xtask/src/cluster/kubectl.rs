//! Talking to the API server, as its users do.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::state::{State, kubeconfig};

/// Kubernetes' command line, for the cluster's administrator.
#[derive(Clone, Debug)]
pub(super) struct Kubectl {
    program: PathBuf,
}

impl Kubectl {
    pub(super) fn of(state: &State) -> Self {
        Self { program: state.binaries.join("kubectl") }
    }

    /// The command, without what is asked.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Proxies of the environment do not know the nodes' network.
        command.env_clear().env("PATH", super::supervise::PATH).env("HOME", "/root").env("KUBECONFIG", kubeconfig());
        command
    }

    /// What it prints; an error holds its complaint.
    pub(super) fn output(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).stdin(Stdio::null()).output().context("cannot start kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One object, or a list.
    pub(super) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.output(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("cannot read what kubectl printed")
    }

    /// Makes an object, or a list of them, as given.
    pub(super) fn apply(&self, object: &Value) -> Result<()> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "--filename=-"];
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(&serde_json::to_vec(object)?)?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
