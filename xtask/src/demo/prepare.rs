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
        let agent = match &arguments.agent {
            Some(agent) => std::path::absolute(agent)?,
            None => build_agent()?,
        };
        let database = match (&arguments.dgraph, &arguments.python) {
            (Some(dgraph), Some(python)) => {
                Database::Real { dgraph: std::path::absolute(dgraph)?, python: std::path::absolute(python)? }
            }
            _ if arguments.listeners => {
                Database::Listeners(arguments.because.clone().unwrap_or_else(|| "as was asked for".into()))
            }
            _ => database(&Metadata::read()?.target_directory()?.join("demo")),
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
            Database::Listeners(why) => arguments.extend(["--listeners".into(), "--because".into(), why.into()]),
        }
        arguments
    }
}

fn build_agent() -> Result<PathBuf> {
    build_ebpf::run()?;
    process::run(workspace::cargo().args(["build", "--release", "--package", "portcullis", "--bin", "portcullis"]))
        .context("cannot build the agent")?;
    Ok(Metadata::read()?.target_directory()?.join("release/portcullis"))
}

/// The real thing where it can be had. Where not, the demo still shows what it is about, on plain connections.
fn database(folder: &Path) -> Database {
    let real = dgraph::ensure(folder).and_then(|dgraph| Ok((dgraph, pydgraph::ensure(folder)?)));
    match real {
        Ok((dgraph, python)) => Database::Real { dgraph, python },
        Err(error) => Database::Listeners(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn another_process_is_told_of_the_same_programs() {
        let rows = [
            Database::Real { dgraph: "/a/dgraph".into(), python: "/b/python".into() },
            Database::Listeners("Go is not installed".into()),
        ];
        for database in rows {
            let programs = Programs { agent: "/c/portcullis".into(), database: database.clone() };
            let line = std::iter::once("demo".into()).chain(programs.as_arguments());
            let told = CommandLine::try_parse_from(line).expect("arguments that are understood").arguments;
            assert_eq!(told.agent, Some("/c/portcullis".into()), "{database:?}");
            match database {
                Database::Real { dgraph, python } => {
                    assert_eq!((told.dgraph, told.python), (Some(dgraph), Some(python)));
                }
                Database::Listeners(why) => assert_eq!((told.listeners, told.because), (true, Some(why))),
            }
        }
    }
}
