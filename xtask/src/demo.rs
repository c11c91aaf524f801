//! `cargo xtask demo`: network policy at work on real packets.
//!
//! A Dgraph database and a client of it run in pods made of network namespaces, on two nodes with an agent each, and a
//! NetworkPolicy comes between them.

mod agent;
mod cluster;
pub(crate) mod counters;
pub(crate) mod dgraph;
mod manifests;
mod prepare;
pub(crate) mod pydgraph;
mod ready;
mod report;
mod scenario;
mod tidy;
mod traffic;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Privilege;
use prepare::Programs;

/// How to run the demo.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Put plain listeners in the place of Dgraph, which takes minutes to build the first time
    #[arg(long)]
    listeners: bool,
    /// Run this agent instead of building one
    #[arg(long, value_name = "PROGRAM")]
    agent: Option<PathBuf>,
    /// Run this Dgraph instead of building one
    #[arg(long, value_name = "PROGRAM", requires = "python")]
    dgraph: Option<PathBuf>,
    /// Run the client by this Python, which has pydgraph
    #[arg(long, value_name = "PROGRAM", requires = "dgraph")]
    python: Option<PathBuf>,
    /// Why there are only listeners, in the words of the process that found out
    #[arg(long, hide = true)]
    because: Option<String>,
}

/// Builds and installs what is missing, then runs the demo, as root.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let privilege = Privilege::find();
    let Some(privilege) = privilege else {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root or with sudo");
    };
    let programs = Programs::ensure(arguments)?;
    match privilege {
        Privilege::Root => scenario::run(&programs),
        Privilege::Sudo => run_by_sudo(&programs),
    }
}

/// Only the demo itself runs as root, so that nothing in the target directory comes to belong to it. It is told where
/// everything is, since sudo drops the variables by which cargo could be found.
fn run_by_sudo(programs: &Programs) -> Result<()> {
    let own = std::env::current_exe().context("cannot find the own program")?;
    let status = Command::new("sudo")
        .arg("--")
        .arg(own)
        .arg("demo")
        .args(programs.as_arguments())
        .status()
        .context("cannot start sudo")?;
    if !status.success() {
        bail!("the demo, run by sudo, has failed ({status})");
    }
    Ok(())
}
