//! What the verifier had to do: the number of instructions that it followed, of which a program may have a million.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use aya::VerifierLogLevel;
use aya::programs::ProgramError;

use super::host::call;
use super::load::{self, PROGRAMS, Settings, program};
use super::{Dataplane, DataplaneError};

impl Dataplane {
    /// How many instructions the verifier followed in each program until it let it pass.
    ///
    /// Kernels tell it of a loaded program from 5.16 on (aba64c7da983). Before, only the verifier's log has it, which the
    /// loader gets to see when loading fails: so every program is loaded once more, with no file descriptor left for it,
    /// which the kernel finds out after verifying. For that moment the whole process can open nothing, so this is for
    /// tests and tools.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn verified_instructions(&mut self, settings: &Settings) -> Result<Vec<(&'static str, u32)>, DataplaneError> {
        let mut counts = Vec::new();
        for name in PROGRAMS {
            let info = self.program(name)?.info();
            let info = info.map_err(|source| DataplaneError::Program { name, source })?;
            counts.extend(info.verified_instruction_count().map(|count| (name, count)));
        }
        if counts.len() == PROGRAMS.len() { Ok(counts) } else { self.count_by_logs(settings) }
    }

    fn count_by_logs(&self, settings: &Settings) -> Result<Vec<(&'static str, u32)>, DataplaneError> {
        let maps = self.dir.join("maps");
        let sizes = load::sizes_of(&maps, settings.sizes)?;
        let mut ebpf = load::load(settings, &sizes, &maps, VerifierLogLevel::STATS)?;
        let mut counts = Vec::new();
        for name in PROGRAMS {
            let program = program(&mut ebpf, name)?;
            let outcome = without_descriptors(|| program.load())?;
            match outcome {
                Err(ProgramError::LoadError { io_error, verifier_log }) => {
                    let count = processed(&verifier_log.to_string());
                    let error =
                        || DataplaneError::Program { name, source: ProgramError::LoadError { io_error, verifier_log } };
                    counts.push((name, count.ok_or_else(error)?));
                }
                Err(source) => return Err(DataplaneError::Program { name, source }),
                Ok(()) => return Err(call("setrlimit", io::Error::other("a descriptor was given in spite of it"))),
            }
        }
        Ok(counts)
    }
}

/// Does something while this process cannot get another file descriptor.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> Result<T, DataplaneError> {
    // The kernel hands out the lowest free number, and none that is not below the limit.
    let lowest = File::open("/dev/null").map_err(|error| call("open", error))?;
    let mut usual = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure to write to.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut usual) })?;
    let number = lowest.as_raw_fd();
    let none = libc::rlimit { rlim_cur: number.unsigned_abs().into(), ..usual };
    drop(lowest);
    // SAFETY: a valid structure.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) })?;
    let outcome = work();
    // SAFETY: a valid structure.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const usual) })?;
    Ok(outcome)
}

fn check(status: libc::c_int) -> Result<(), DataplaneError> {
    if status == 0 { Ok(()) } else { Err(call("setrlimit", io::Error::last_os_error())) }
}

/// Reads `processed 1234 insns (limit 1000000) ...`, the last line of the verifier's log (kernel/bpf/verifier.c,
/// `print_verification_stats`).
fn processed(log: &str) -> Option<u32> {
    let (_, rest) = log.rsplit_once("processed ")?;
    let (number, rest) = rest.split_once(' ')?;
    if rest.starts_with("insns") { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_log_is_read() {
        let line =
            "processed 1234 insns (limit 1000000) max_states_per_insn 4 total_states 9 peak_states 9 mark_read 3";
        let rows = [
            (line.to_owned(), Some(1234), "alone"),
            (format!("func#0 @0\nprocessed by hand\n{line}\n"), Some(1234), "after other lines"),
            ("R1 invalid mem access".to_owned(), None, "no such line"),
            ("processed 12 packets".to_owned(), None, "something else was processed"),
        ];
        for (log, expected, message) in rows {
            assert_eq!(processed(&log), expected, "{message}");
        }
    }
}
