//! Running other programs: what is run is printed, and nothing waits for an answer on stdin.

use std::fmt::Write as _;
use std::io::{IsTerminal, stdin};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a command that was told to end may take to clean up before it is killed.
const GRACE: Duration = Duration::from_secs(15);

/// Prints the command, runs it with its output going where ours goes, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = announce(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{line}`"))?;
    succeeded(&line, status)
}

/// Runs a command of which only failure is news: then with what it printed.
pub(crate) fn run_silently(command: &mut Command) -> Result<()> {
    output_of(command).map(drop)
}

/// Like [`run`], but ends the command when it takes longer than `limit`.
///
/// At a terminal there is no limit: a person decides, and Ctrl-C must reach the command, which therefore stays in our
/// process group. Without one, the command gets a group of its own, so that nothing it started outlives it.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    if stdin().is_terminal() {
        return run(command);
    }
    let line = announce(command);
    let mut child =
        command.stdin(Stdio::null()).process_group(0).spawn().with_context(|| format!("cannot start `{line}`"))?;
    if let Some(status) = wait_until(&mut child, Instant::now() + limit)? {
        return succeeded(&line, status);
    }
    let group = Pid::from_raw(i32::try_from(child.id()).context("a process id beyond 31 bits")?);
    // The group may be gone by now; then there is nothing left to signal, and the wait below says so.
    let _ = killpg(group, Signal::SIGTERM);
    if wait_until(&mut child, Instant::now() + GRACE)?.is_none() {
        let _ = killpg(group, Signal::SIGKILL);
        child.wait()?;
    }
    bail!("`{line}` was ended after {} s, twice its time budget: it hangs, or the machine is too slow", limit.as_secs())
}

/// What the command prints on stdout, with surrounding blanks removed; fails unless it succeeds.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, complaint.trim());
    }
    let text =
        String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed something else than UTF-8"))?;
    Ok(text.trim().to_owned())
}

/// Whether the command can be started and succeeds; its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        sleep(Duration::from_millis(50));
    }
}

fn succeeded(line: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

fn announce(command: &Command) -> String {
    let line = describe(command);
    eprintln!("  $ {line}");
    line
}

/// The command as a person would type it, with the variables that were set for it.
fn describe(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            // Cargo separates encoded flags by the unit separator, which a terminal does not show.
            let value = value.to_string_lossy().replace('\u{1f}', " ");
            let _ = write!(line, "{}={} ", name.to_string_lossy(), quoted(&value));
        }
    }
    line.push_str(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        let _ = write!(line, " {}", quoted(&argument.to_string_lossy()));
    }
    line
}

fn quoted(word: &str) -> String {
    if word.contains([' ', '"', '*', '\'']) { format!("'{word}'") } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_as_typed() {
        let mut command = Command::new("cargo");
        command.args(["test", "two words"]).env("A", "x\u{1f}y");
        assert_eq!(describe(&command), "A='x y' cargo test 'two words'");
    }

    #[test]
    fn a_failure_names_the_command_and_its_status() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("the command fails");
        assert!(error.to_string().contains("exit 3") && error.to_string().contains("status: 3"), "{error}");
        let error = run(&mut Command::new("no-such-program-anywhere")).expect_err("the command is not there");
        assert!(error.to_string().contains("no-such-program-anywhere"), "{error}");
    }

    #[test]
    fn a_hanging_command_is_ended_with_all_that_it_started() {
        if stdin().is_terminal() {
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let note = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", note.display());
        let error = run_within(Command::new("sh").args(["-c", &script]), Duration::from_millis(300))
            .expect_err("the command hangs");
        assert!(error.to_string().contains("was ended"), "{error}");
        let pid = std::fs::read_to_string(&note).expect("the note was written");
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        assert!(!stat.is_ok_and(|stat| !stat.contains(") Z ")), "the grandchild still runs");
    }
}
