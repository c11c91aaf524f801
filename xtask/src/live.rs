//! The live tests: integration tests that load BPF programs, make network namespaces and send packets between them.
//!
//! A test is live when its target has `required-features = ["live"]` in its package's manifest. Plain `cargo test`
//! therefore neither builds nor runs it, and here every such target is found, whatever package it belongs to.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::apt::{self, Privilege};
use crate::process;
use crate::stages::Outcome;
use crate::workspace::{self, Metadata};

/// The feature of a package that its live tests require.
pub(crate) const FEATURE: &str = "live";

/// What the tests call, and the package that it comes from.
const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ping", "iputils-ping"),
];

/// Installs the tools that live tests call.
pub(crate) fn ensure_tools() -> Result<()> {
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !is_there(tool)).map(|&(_, package)| package).collect();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { apt::ensure(&packages, "testing on real packets") }
}

/// Whether a program can be found. Debian keeps the tools of root out of other users' PATH.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|folder| folder.join(program).exists())
}

/// Runs every live test, one at a time: they share the node's routes, netfilter tables and connection table.
pub(crate) fn run(limit: Duration) -> Result<Outcome> {
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for test in Metadata::read()?.tests_requiring(FEATURE) {
        packages.entry(test.package).or_default().push(test.name);
    }
    if packages.is_empty() {
        return Ok(Outcome::PassedExcept("there are no live tests".into()));
    }
    let Some(privilege) = Privilege::find() else {
        bail!("live tests need root: run as root or with sudo, or leave them out with `--skip live`");
    };
    for (package, tests) in packages {
        process::run_within(&mut command(&package, &tests, privilege), limit)?;
    }
    Ok(Outcome::Passed)
}

fn command(package: &str, tests: &[String], privilege: Privilege) -> Command {
    let mut command = workspace::cargo();
    workspace::repeatably(&mut command);
    command.args(["test", "--package", package, "--features", FEATURE]);
    for test in tests {
        command.args(["--test", test]);
    }
    if privilege == Privilege::Sudo {
        // Only the tests run as root, so that nothing in the target directory comes to belong to it.
        for triple in ["X86_64_UNKNOWN_LINUX_GNU", "AARCH64_UNKNOWN_LINUX_GNU"] {
            command.env(format!("CARGO_TARGET_{triple}_RUNNER"), "sudo --preserve-env");
        }
    }
    command.args(["--", "--test-threads=1"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_tests_run_one_at_a_time_and_as_root() {
        let tests = ["policy".to_owned(), "restart".to_owned()];
        let plain = format!("{:?}", command("portcullis", &tests, Privilege::Root));
        for expected in ["\"live\"", "\"policy\"", "\"restart\"", "\"--test-threads=1\""] {
            assert!(plain.contains(expected), "{expected} is not in {plain}");
        }
        assert!(!plain.contains("sudo"), "{plain}");
        let with_sudo = format!("{:?}", command("portcullis", &tests, Privilege::Sudo));
        assert!(with_sudo.contains("_RUNNER=\"sudo --preserve-env\""), "{with_sudo}");
    }
}
