//! The real client: pydgraph from PyPI, in a virtual environment of its own.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use portcullis_testbed::Host;
use serde_json::Value;

use super::traffic::{Answer, PATIENCE};
use crate::{apt, process};

const VERSION: &str = "25.2.0";
pub(crate) const PROGRAM: &str = include_str!("client.py");

/// What the client does by gRPC; by HTTP it always counts the films.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// Sets the schema and loads some films.
    Load,
    /// Adds one film of this title.
    Add(&'static str),
    /// Counts the films.
    Count,
}

/// How the client was answered on each of Dgraph's ports.
pub(super) struct Answers {
    pub(super) http: Answer,
    pub(super) grpc: Answer,
}

/// Makes the virtual environment in `folder` unless it is there, and returns its interpreter.
pub(crate) fn ensure(folder: &Path) -> Result<PathBuf> {
    let place = folder.join(format!("pydgraph-{VERSION}"));
    let python = place.join("bin/python");
    if works(&python) {
        return Ok(python);
    }
    if !process::succeeds(Command::new("python3").arg("--version")) {
        bail!("Python is not installed (no python3 in the PATH)");
    }
    // Debian keeps what the module `venv` needs in a package of its own.
    if !process::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
        apt::ensure(&["python3-venv"], "the Python client")?;
    }
    let made = make(&place, &python);
    if made.is_err() {
        // Half an environment would only be in the way the next time.
        let _ = fs::remove_dir_all(&place);
    }
    made?;
    Ok(python)
}

fn make(place: &Path, python: &Path) -> Result<()> {
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(place))?;
    process::run(Command::new(python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        &format!("pydgraph=={VERSION}"),
    ]))?;
    if !works(python) {
        bail!("pydgraph was installed into {} and cannot be imported", place.display());
    }
    Ok(())
}

fn works(python: &Path) -> bool {
    python.exists() && process::succeeds(Command::new(python).args(["-c", "import grpc, pydgraph"]))
}

/// Runs the client in the namespace of `from` against Dgraph alpha at `to`.
pub(super) fn run(python: &Path, from: &Host, to: IpAddr, action: Action) -> Answers {
    match try_run(python, from, to, action) {
        Ok(answers) => answers,
        Err(error) => {
            let failed = Answer::Failed(format!("{error:#}"));
            Answers { http: failed.clone(), grpc: failed }
        }
    }
}

fn try_run(python: &Path, from: &Host, to: IpAddr, action: Action) -> Result<Answers> {
    let mut command = from.command(python);
    // The environment may name proxies, which are not in this network; `-I` ignores what names other modules.
    command.env_clear().args(["-I", "-B", "-c", PROGRAM, &to.to_string(), &PATIENCE.as_secs().to_string()]);
    match action {
        Action::Load => command.arg("load"),
        Action::Add(title) => command.args(["add", title]),
        Action::Count => command.arg("count"),
    };
    let output = command.stdin(std::process::Stdio::null()).output().context("cannot start the Python client")?;
    let report = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success());
    let Some(report) = report else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("the Python client ended with {}: {}", output.status, complaint.trim().lines().last().unwrap_or(""));
    };
    Ok(Answers { http: read(&report, "http"), grpc: read(&report, "grpc") })
}

fn read(report: &Value, port: &str) -> Answer {
    let text = |name| report.get(port).and_then(|answer| answer.get(name)).and_then(Value::as_str).unwrap_or_default();
    match text("outcome") {
        "answered" => Answer::Answered(text("detail").to_owned()),
        "timeout" => Answer::Timeout,
        "refused" => Answer::Refused,
        _ => Answer::Failed(text("detail").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_report_is_read() {
        let report = serde_json::json!({
            "http": {"outcome": "answered", "detail": "3 films"},
            "grpc": {"outcome": "timeout", "detail": ""},
            "odd": {"outcome": "error", "detail": "UNKNOWN: odd"},
        });
        let rows = [
            ("http", Answer::Answered("3 films".into())),
            ("grpc", Answer::Timeout),
            ("odd", Answer::Failed("UNKNOWN: odd".into())),
            ("absent", Answer::Failed(String::new())),
        ];
        for (port, expected) in rows {
            assert_eq!(read(&report, port), expected, "{port}");
        }
    }
}
