//! Waiting for a program to be ready.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use portcullis_testbed::{Host, Process};

/// Lines of a program's log that are shown when it fails.
const LAST_WORDS: usize = 10;

/// Between two questions; there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until the program that runs on `host` answers `GET path` with 200.
///
/// # Errors
/// As soon as it has ended, or when it is not ready within `limit`: with its state and the end of its log.
pub(super) fn await_ready(
    host: &Host,
    process: &Process,
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = host.http_get(address, path);
        if matches!(answer, Ok((200, _))) {
            return Ok(());
        }
        let ended = process.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            let state = match (ended, answer) {
                (Some(status), _) => format!("has ended ({status}) before it was ready"),
                (None, Ok((status, body))) => {
                    format!("is not ready after {} s: {path} answers {status}, {}", limit.as_secs(), body.trim_end())
                }
                (None, Err(error)) => format!("is not ready after {} s: {path}: {error:#}", limit.as_secs()),
            };
            bail!("{state}; its log ends with\n{}", last_words(process));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The end of a program's log.
pub(super) fn last_words(process: &Process) -> String {
    let lines = process.stderr();
    if lines.is_empty() {
        return "(it has written nothing)".to_owned();
    }
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}
