//! Programs in Go that tests and demos run, built from their modules.

use std::io::{BufRead, BufReader, IsTerminal, Write as _, stderr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// How many lines of a failed build are shown.
const LAST: usize = 5;

/// Fails, with where to get it, if Go is not installed.
pub(crate) fn ensure() -> Result<()> {
    if !process::succeeds(Command::new("go").arg("version")) {
        bail!("Go is not installed (no go in the PATH): https://go.dev/dl");
    }
    Ok(())
}

/// Go, at a priority that leaves the machine usable; `nice` is in every system's coreutils. What it builds is static.
pub(crate) fn command() -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "go"]).env("CGO_ENABLED", "0").env("GOWORK", "off");
    command
}

/// Runs a `go build -v`, and shows how far it is.
pub(crate) fn build(command: &mut Command) -> Result<()> {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start `go build`")?;
    let mut last = Vec::new();
    if let Some(lines) = child.stderr.take() {
        let mut packages = 0_usize;
        for line in BufReader::new(lines).lines().map_while(std::io::Result::ok) {
            // `-v` names each package as it is compiled, and errors begin with `#`, a path with a line or `go:`.
            if !line.contains([' ', ':']) {
                packages += 1;
                show_progress(packages, &line);
            }
            last.push(line);
        }
        if packages > 0 && stderr().is_terminal() {
            eprintln!();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let from = last.len().saturating_sub(LAST);
        bail!("`go build` failed ({status}): {}", last[from..].join("\n"));
    }
    Ok(())
}

/// One line that changes at a terminal, a line now and then elsewhere.
fn show_progress(packages: usize, line: &str) {
    if stderr().is_terminal() {
        let mut name: String = line.chars().take(60).collect();
        name = format!("{name:60}");
        eprint!("\r  {packages:4} packages: {name}");
        let _ = stderr().flush();
    } else if packages.is_multiple_of(100) {
        eprintln!("  {packages} packages");
    }
}
