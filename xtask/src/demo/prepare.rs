//! What the demo needs before it can run: programs that are built or installed once.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Arguments, dgraph, pydgraph};
use crate::workspace::{self, Metadata};
use crate::{build_ebpf, live, process};

/// The programs that the demo runs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) database: Database,
}

/// What serves and asks on Dgraph's ports.
#[derive(Clone, Debug)]
pub(super) enum Database {
    /// Dgraph's program, and a Python interpreter that has pydgraph.
    Real { dgraph: PathBuf, python: PathBuf },
    /// Listeners that only accept connections; the text says why.
    Listeners(String),
}

impl Programs {
    /// Builds and installs what is missing.
    pub(super) fn ensure(arguments: &Arguments) -> Result<Self> {
        live::ensure_tools()?;
        let target = Metadata::read()?.target_directory()?;
        let agent = match &arguments.agent {
            Some(agent) => std::path::absolute(agent)?,
            None => build_agent(&target)?,
        };
        let database = match (&arguments.dgraph, &arguments.python) {
            (Some(dgraph), Some(python)) => Database::Real { dgraph: dgraph.clone(), python: python.clone() },
            _ if arguments.listeners => Database::Listeners("as you asked".into()),
            _ => database(&target.join("demo")),
        };
        Ok(Self { agent, database })
    }

    /// The arguments by which another process of this program finds the same programs.
    pub(super) fn as_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec!["--agent".into(), self.agent.clone().into()];
        match &self.database {
            Database::Real { dgraph, python } => {
                arguments.extend(["--dgraph".into(), dgraph.into(), "--python".into(), python.into()]);
            }
            Database::Listeners(_) => arguments.push("--listeners".into()),
        }
        arguments
    }
}

fn build_agent(target: &Path) -> Result<PathBuf> {
    build_ebpf::run()?;
    process::run(workspace::cargo().args(["build", "--release", "--package", "portcullis", "--bin", "portcullis"]))
        .context("cannot build the agent")?;
    Ok(target.join("release/portcullis"))
}

/// The real thing where it can be had. Where not, the demo still shows what it is about, on plain connections.
fn database(folder: &Path) -> Database {
    let real = dgraph::ensure(folder).and_then(|dgraph| Ok((dgraph, pydgraph::ensure(folder)?)));
    match real {
        Ok((dgraph, python)) => Database::Real { dgraph, python },
        Err(error) => Database::Listeners(format!("{error:#}")),
    }
}
