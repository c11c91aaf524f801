//! The command line as a whole, and how what is asked becomes what is done.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::generate::{CompletionsArgs, ManArgs};
use super::run::{LogLevelArgs, RunArgs, StatusArgs, UninstallArgs};
use super::settings::{self, Effective, Environment, SettingsError};
use super::{ExplainArgs, MatrixArgs};
use crate::logging::{Filter, Form};

/// Network policy for Kubernetes pods, enforced by BPF programs on their host veths.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, propagate_version = true)]
pub struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
    /// What every command may be told.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What every command may be told.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// A file of settings, in YAML: each key is the long name of an option of `run`. Default: /etc/portcullis/config.yaml,
    /// if it exists.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// What is logged: off, error, warn, info, debug or trace, for everything or for parts by name, such as
    /// info,portcullis::netlink=debug. `portcullis log-level` changes it while the agent runs.
    #[arg(long, value_name = "FILTER", global = true, default_value = "info")]
    pub log_level: Filter,
    /// How logs are written to stderr. `auto` is text for people, but JSON where `run` does not write to a terminal.
    #[arg(long, value_enum, global = true, default_value_t)]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// As text, but as JSON where an agent's log goes elsewhere than to a terminal.
    #[default]
    Auto,
    /// For people.
    Text,
    /// An object on each line.
    Json,
}

impl LogFormat {
    /// The form of a log. `serves`: the process is an agent; `watched`: somebody reads the log as it is written.
    #[must_use]
    pub const fn form(self, serves: bool, watched: bool) -> Form {
        match self {
            Self::Auto if serves && !watched => Form::Json,
            Self::Json => Form::Json,
            Self::Auto | Self::Text => Form::Text,
        }
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<RunArgs>),
    Status(StatusArgs),
    Uninstall(UninstallArgs),
    Matrix(MatrixArgs),
    Explain(ExplainArgs),
    LogLevel(LogLevelArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// What was asked, with the settings from all places.
#[derive(Debug)]
pub struct Invocation {
    /// What was asked.
    pub cli: Cli,
    /// Which settings hold, and where each comes from.
    pub effective: Effective,
    /// What should be told as soon as there is a log.
    pub warnings: Vec<String>,
}

/// Why nothing is done.
#[derive(Debug, thiserror::Error)]
pub enum CommandLineError {
    /// The command line is not understood, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A setting from elsewhere is not understood.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// Under which name the program was called: as a plugin of kubectl it is `kubectl-portcullis`.
pub(super) fn command_named(program: Option<&OsStr>) -> clap::Command {
    let command = Cli::command();
    let name = program.and_then(|program| Path::new(program).file_name());
    match is_plugin(name) {
        true => command.bin_name("kubectl portcullis").display_name("kubectl portcullis"),
        false => command,
    }
}

/// Whether a program of this name was called by kubectl.
#[must_use]
pub fn is_plugin(program: Option<&OsStr>) -> bool {
    // kubectl runs `kubectl-foo_bar` for `kubectl foo-bar`; on some systems programs have an extension.
    program.and_then(|name| Path::new(name).file_stem()).is_some_and(|stem| stem == "kubectl-portcullis")
}

/// What is asked by `arguments` (the program's name first), with settings from the environment and the file of settings.
///
/// # Errors
/// When something is not understood, and when help is asked for.
pub fn parse(arguments: &[OsString], environment: &Environment) -> Result<Invocation, CommandLineError> {
    let bare = command_named(arguments.first().map(OsString::as_os_str));
    let command = settings::prepared(bare);
    let usage = |error: clap::Error| match error.kind() {
        // Asked for anew, so that it names the variables of the environment, which no parsing may read.
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            settings::with_variables(command.clone()).try_get_matches_from(arguments).err().unwrap_or(error)
        }
        _ => settings::with_allowed(error, &command),
    };
    let first = settings::without_requirements(command.clone()).try_get_matches_from(arguments).map_err(usage)?;
    let found = settings::gather(&command, &first, environment)?;
    let all = arguments.iter().cloned().chain(found.arguments());
    let matches = command.clone().try_get_matches_from(all).map_err(usage)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command.clone()))?;
    let plugin = is_plugin(arguments.first().and_then(|program| Path::new(program).file_name()));
    match &mut cli.command {
        Command::Explain(ExplainArgs { source, .. }) | Command::Matrix(MatrixArgs { source, .. }) => {
            source.plugin = plugin
        }
        Command::Status(args) => args.plugin = plugin,
        _ => {}
    }
    let (effective, warnings) = found.settled(&matches);
    Ok(Invocation { cli, effective, warnings })
}

#[cfg(test)]
mod tests;
