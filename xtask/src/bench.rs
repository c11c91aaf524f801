//! `cargo xtask bench`: what the programs cost per packet.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::workspace::{self, Metadata};
use crate::{build_ebpf, process};

/// What may be asked of the benchmarks.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the figures go as JSON; target/bench.json otherwise
    #[arg(long)]
    json: Option<PathBuf>,
    /// Samples of each case; the least counts
    #[arg(long)]
    rounds: Option<u32>,
    /// Only cases with this in their name
    #[arg(long)]
    only: Option<String>,
}

/// Runs the benchmarks: as root, since they load programs. No packet leaves the kernel's test runs.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    build_ebpf::run()?;
    let json = match &arguments.json {
        Some(path) => env::current_dir().context("no current directory")?.join(path),
        None => Metadata::read()?.target_directory()?.join("bench.json"),
    };
    let mut command = workspace::cargo();
    command.args(["bench", "--quiet", "--package", "portcullis", "--features", "live", "--bench", "packet", "--"]);
    command.arg("--json").arg(&json);
    if let Some(rounds) = arguments.rounds {
        command.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(only) = &arguments.only {
        command.arg("--only").arg(only);
    }
    process::run(&mut command)?;
    eprintln!("{}: written", json.display());
    Ok(())
}
