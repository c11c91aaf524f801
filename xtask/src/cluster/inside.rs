//! Running commands inside a machine.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::plan::Machine;
use super::state::{State, folder_of};
use super::supervise::{self, PATH};

/// A command that runs in all of a machine's namespaces.
pub(super) fn command(state: &State, machine: Machine) -> Result<Command> {
    // It may have been started again since the state was read.
    let process = state.process(machine).or_else(|| State::read().ok().flatten()?.process(machine));
    let process = process.with_context(|| format!("{} is not up", machine.name()))?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &process.id.to_string(), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"]);
    command.args(["--wd=/", "--", "env", "-i", "HOME=/root", &format!("PATH={PATH}")]);
    if let Some(terminal) = std::env::var_os("TERM") {
        let mut setting = std::ffi::OsString::from("TERM=");
        setting.push(terminal);
        command.arg(setting);
    }
    Ok(command)
}

/// What a command prints; an error holds its complaint.
pub(super) fn output(state: &State, machine: Machine, words: &[&str]) -> Result<String> {
    let mut command = command(state, machine)?;
    let output = command.args(words).stdin(Stdio::null()).output().context("cannot start nsenter")?;
    if !output.status.success() {
        bail!("{} on {}: {}", words.join(" "), machine.name(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ends a service at once; the machine's first process starts it again.
pub(super) fn kill(state: &State, machine: Machine, service: &str) -> Result<()> {
    signal(state, machine, service, "KILL")
}

/// Sends a service a signal by its name.
pub(super) fn signal(state: &State, machine: Machine, service: &str, signal: &str) -> Result<()> {
    let id = read_id(&supervise::process_file(&folder_of(machine), service))?;
    output(state, machine, &["kill", &format!("-{signal}"), &id.to_string()]).map(drop)
}

/// The id of a service's process, inside the machine.
fn read_id(file: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no number", file.display()))
}
