//! `cargo xtask deny`: licences, sources, versions and advisories of the dependencies, judged by `deny.toml`.

use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::stages::Outcome;
use crate::workspace;

/// What is known to build with Rust 1.95; a later one is installed when this line moves.
const VERSION: &str = "0.20.2";

/// Runs every check; advisories only where their database can be fetched.
pub(crate) fn run() -> Result<Outcome> {
    ensure()?;
    process::run(deny().args(["--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]))
        .context("the dependencies break a rule of deny.toml")?;
    if !process::succeeds(deny().args(["fetch", "db"])) {
        let reason = "advisories skipped: their database on github.com cannot be fetched from here";
        eprintln!("  {reason}");
        return Ok(Outcome::PassedExcept(reason.to_owned()));
    }
    process::run(deny().args(["--locked", "check", "--hide-inclusion-graph", "--disable-fetch", "advisories"]))
        .context("a dependency has an advisory, or was yanked")?;
    Ok(Outcome::Passed)
}

fn deny() -> Command {
    let mut command = Command::new("cargo-deny");
    command.current_dir(workspace::root());
    command
}

fn ensure() -> Result<()> {
    if process::succeeds(deny().arg("--version")) {
        return Ok(());
    }
    eprintln!("cargo-deny is missing: building it takes a few minutes, once");
    let mut install = workspace::cargo();
    install.args(["install", "cargo-deny", "--locked", "--version", VERSION]);
    // It runs for a second: a quick build is worth more than whole-program optimization, its release profile's choice.
    for (name, value) in [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("OPT_LEVEL", "1"), ("DEBUG", "0")] {
        install.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    install.env_remove("CARGO_TARGET_DIR");
    process::run(&mut install).context("cannot install cargo-deny: try `cargo install cargo-deny --locked` by hand")
}
