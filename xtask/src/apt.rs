//! Debian and Ubuntu packages that a task needs: found out, installed where that is allowed, named where it is not.

use std::io::{IsTerminal, stdin};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// How a command gets the rights of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    Sudo,
}

impl Privilege {
    /// The way that this process has, if it has any. `sudo` that would ask for a password counts only at a terminal.
    pub(crate) fn find() -> Option<Self> {
        // The owner of /proc/self is the effective user.
        if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            return Some(Self::Root);
        }
        let sudo = process::succeeds(Command::new("sudo").args(["-n", "true"]))
            || (stdin().is_terminal() && process::succeeds(Command::new("sudo").arg("--version")));
        sudo.then_some(Self::Sudo)
    }

    fn command(self, program: &str) -> Command {
        match self {
            Self::Root => Command::new(program),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg(program);
                command
            }
        }
    }
}

/// Makes sure that every package is installed; `purpose` says in an error what they are for.
///
/// Fails, with the command to type, where packages are missing and may not be installed from here.
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    if !process::succeeds(Command::new("apt-get").arg("--version")) {
        bail!(
            "{purpose} needs what Debian calls {}: there is no apt-get here, so install it by hand and try again",
            packages.join(", ")
        );
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let Some(privilege) = Privilege::find() else {
        bail!("{purpose} needs packages that only root may install: `sudo apt-get install {list}`");
    };
    eprintln!("  {purpose} needs packages that are missing: {list}");
    let mut updated = false;
    if missing.iter().any(|package| !has_candidate(package)) {
        update(privilege)?;
        updated = true;
    }
    let unknown: Vec<&str> = missing.iter().copied().filter(|package| !has_candidate(package)).collect();
    if !unknown.is_empty() {
        bail!(
            "{purpose} needs {}, which no package source of this machine has: add one that does (for LLVM: \
             https://apt.llvm.org) and try again",
            unknown.join(", ")
        );
    }
    match install(privilege, &missing) {
        Ok(()) => Ok(()),
        // The usual reason is an old index that names files which the mirror no longer has.
        Err(_) if !updated => {
            update(privilege)?;
            install(privilege, &missing)
        }
        Err(error) => Err(error),
    }
    .with_context(|| format!("cannot install what {purpose} needs ({list})"))
}

fn is_installed(package: &str) -> bool {
    process::output_of(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]))
        .is_ok_and(|status| status == "install ok installed")
}

fn has_candidate(package: &str) -> bool {
    process::output_of(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))
        .is_ok_and(|policy| names_candidate(&policy))
}

/// Reads `apt-cache policy`: nothing at all for an unknown name, `Candidate: (none)` for a known one without a source.
fn names_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|candidate| !matches!(candidate.trim(), "" | "(none)"))
}

fn update(privilege: Privilege) -> Result<()> {
    process::run(privilege.command("apt-get").args(["-o", "DPkg::Lock::Timeout=300", "update"]))
}

fn install(privilege: Privilege, packages: &[&str]) -> Result<()> {
    // Through `env`, since sudo drops variables.
    let mut command = privilege.command("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]);
    command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    process::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_read_from_apt_cache() {
        let rows = [
            ("llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8\n  Version table:\n", true, "a source has it"),
            ("llvm-99-dev:\n  Installed: (none)\n  Candidate: (none)\n", false, "known, but no source has it"),
            ("", false, "unknown name: apt-cache prints nothing"),
        ];
        for (policy, expected, message) in rows {
            assert_eq!(names_candidate(policy), expected, "{message}");
        }
    }
}
