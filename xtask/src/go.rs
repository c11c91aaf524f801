//! Programs in Go that tests and demos run, built from their modules.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write as _, stderr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// How many lines of a failed build are shown.
const LAST: usize = 5;

/// A program that is built once, from a package of a module.
pub(crate) struct Program<'a> {
    /// The folder of the module, whose `go.sum` decides what is taken.
    pub(crate) module: &'a Path,
    pub(crate) package: &'a str,
    /// Variables that the linker sets, beside leaving out what only debuggers read.
    pub(crate) variables: &'a str,
}

impl Program<'_> {
    /// Builds it unless it is there. It comes to its place whole or not at all.
    pub(crate) fn ensure(&self, place: &Path) -> Result<()> {
        if place.exists() {
            return Ok(());
        }
        ensure()?;
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // Not `with_extension`, which would take a version's last number for one.
        let mut draft = place.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let mut build = command();
        build
            .current_dir(self.module)
            .args(["build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"])
            .arg(format!("-ldflags=-s -w {}", self.variables).trim_end())
            .arg("-o")
            .arg(&draft)
            .arg(self.package);
        let kept = run(&mut build).and_then(|()| fs::rename(&draft, place).context("cannot keep what was built"));
        if kept.is_err() {
            let _ = fs::remove_file(&draft);
        }
        kept.with_context(|| format!("cannot build {}", self.package))
    }
}

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
fn run(command: &mut Command) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_built_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("tools/program-v1.2");
        let program = Program { module: folder.path(), package: "./none", variables: "" };
        let error = program.ensure(&place).expect_err("there is no module");
        let said = format!("{error:#}");
        assert!(said.contains("./none") || said.contains("not installed"), "{said}");
        let left = fs::read_dir(folder.path().join("tools")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "a draft is left");

        fs::create_dir_all(folder.path().join("tools")).expect("a folder");
        fs::write(&place, "built before").expect("a file");
        program.ensure(&place).expect("what is there is not built again");
    }
}
