//! The one way by which this crate runs a tool: its exit status is always looked at, and its stderr is in the error.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end and returns its stdout.
///
/// # Errors
/// When it cannot be started or does not exit with 0; the message holds the command, its stderr and its input.
pub(crate) fn checked(command: &mut Command) -> Result<String> {
    checked_with_input(command, "")
}

/// Like [`checked`], with `input` on the command's stdin.
///
/// # Errors
/// As [`checked`].
pub(crate) fn checked_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}: is its package installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that fails early closes its stdin; its exit status tells more than the broken pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let shown = if input.is_empty() { String::new() } else { format!("\nits input was:\n{}", numbered(input)) };
        bail!("{command:?} failed with {}: {}{shown}", output.status, stderr.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `text` with line numbers, since `ip -batch` and `nft -f` name the line that they refuse.
fn numbered(text: &str) -> String {
    text.lines().enumerate().map(|(at, line)| format!("{:4} {line}\n", at + 1)).collect()
}
