//! The settings of the agent: the options of `run` and those that every command has. The options are the only list; what
//! the environment and a file may say follows from it.
//!
//! What is said in several places holds in this order: the command line, the environment (`PORTCULLIS_` and the option's
//! name in capitals), the file of settings (the option's name), the default. A list is taken whole from the first place
//! that names it.

#[cfg(test)]
mod document;
mod file;
mod gather;
mod print;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{StyledStr, ValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

pub(super) use gather::gather;
pub use print::Effective;

/// Where settings are, unless told otherwise.
pub const CONFIG: &str = "/etc/portcullis/config.yaml";

/// The variables of a process.
pub type Environment = BTreeMap<OsString, OsString>;

/// What is asked of one call, and no setting.
const QUESTIONS: [&str; 4] = ["help", "version", "config", "print-config"];

/// Where an agent gets its objects from is not where another command does, unless it is told so.
const SOURCES: [&str; 3] = ["manifests", "kubeconfig", "context"];

/// Why settings cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings in {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no YAML, or not the form that settings have.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        message: String,
    },
    /// A key that no setting has.
    #[error(
        "{origin}: {key:?} is no setting; the nearest is {nearest:?} (`portcullis run --print-config` names all of them)"
    )]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// The setting whose name is most like it.
        nearest: String,
    },
    /// A value that its setting cannot have.
    #[error("{origin}: {key} cannot be {value:?}: {reason}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The setting.
        key: String,
        /// What was given.
        value: String,
        /// Why not, and what is allowed.
        reason: String,
    },
    /// Several values for a setting that has one.
    #[error("{origin}: {key} has {count} values and takes one")]
    Several {
        /// Where they stand.
        origin: Origin,
        /// The setting.
        key: String,
        /// How many there are.
        count: usize,
    },
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(String),
    /// A variable of the environment.
    Variable(String),
    /// A line of a file.
    Line(PathBuf, u64),
    /// Nobody has said anything.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Line(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One setting.
#[derive(Clone, Debug)]
struct Setting(Arg);

impl Setting {
    /// Every setting of a command line that [`prepared`] has seen.
    fn all(command: &Command) -> Vec<Self> {
        let run = command.find_subcommand("run").into_iter().flat_map(Command::get_arguments);
        let common = command.get_arguments().filter(|arg| arg.is_global_set());
        let is_setting = |arg: &&Arg| arg.get_long().is_some_and(|long| !QUESTIONS.contains(&long));
        run.chain(common).filter(is_setting).cloned().map(Self).collect()
    }

    /// Its name on the command line and in the file.
    fn key(&self) -> &str {
        self.0.get_long().unwrap_or_default()
    }

    fn id(&self) -> &str {
        self.0.get_id().as_str()
    }

    /// Its name in the environment.
    fn variable(&self) -> String {
        format!("PORTCULLIS_{}", self.key().replace('-', "_").to_ascii_uppercase())
    }

    fn is_list(&self) -> bool {
        matches!(self.0.get_action(), ArgAction::Append)
    }

    /// The unit or form of a value, as help shows it.
    fn form(&self) -> String {
        let names = self.0.get_value_names().unwrap_or_default();
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Why it cannot have a value; what is allowed instead is part of the answer.
    fn objection(&self, value: &OsString) -> Option<String> {
        let error = try_value(self.0.get_value_parser(), value)?;
        let allowed = self.allowed();
        let reason = match error.kind() {
            ErrorKind::InvalidValue => String::new(),
            _ => reason(&error),
        };
        Some(match reason.is_empty() || reason.contains(&allowed) {
            true if reason.is_empty() => format!("allowed: {allowed}"),
            true => reason,
            false => format!("{reason}; allowed: {allowed}"),
        })
    }

    /// What is allowed: names, a range of numbers, or a form.
    fn allowed(&self) -> String {
        let values: Vec<String> = self
            .0
            .get_value_parser()
            .possible_values()
            .into_iter()
            .flatten()
            .filter(|value| !value.is_hide_set())
            .map(|value| value.get_name().to_owned())
            .collect();
        if !values.is_empty() {
            return values.join(", ");
        }
        match self.range() {
            Some((first, last)) => format!("{first} to {last}"),
            None => self.form(),
        }
    }

    /// The numbers that it may be. Parsers do not tell their ranges, but each names it when it refuses a number.
    fn range(&self) -> Option<(String, String)> {
        let error = try_value(self.0.get_value_parser(), &i64::MAX.to_string().into())?;
        let told = reason(&error);
        let (_, range) = told.split_once(" is not in ")?;
        let (first, last) = range.split_once("..=")?;
        Some((first.to_owned(), last.to_owned()))
    }
}

/// What a parser says of a value that it refuses.
fn try_value(parser: &ValueParser, value: &OsString) -> Option<clap::Error> {
    let arg = Arg::new("value").value_parser(parser.clone()).allow_hyphen_values(true).required(true);
    // After `--` nothing is taken for an option, whatever it looks like.
    let line = ["value".into(), "--".into(), value.clone()];
    Command::new("value").arg(arg).try_get_matches_from(line).err()
}

fn reason(error: &clap::Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// The command line with settings made alike: a switch can be switched off (`--switch=false`), and clap reads no
/// environment, since it would not say where a bad value stands.
pub(super) fn prepared(command: Command) -> Command {
    let each = |arg: Arg| {
        let arg = arg.env(None::<&'static str>);
        let is_question = arg.get_long().is_some_and(|long| QUESTIONS.contains(&long));
        match arg.get_action() {
            ArgAction::SetTrue if !is_question => arg
                .action(ArgAction::Set)
                .value_parser(clap::value_parser!(bool))
                .value_name("true|false")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .default_value("false")
                .hide_possible_values(true),
            _ => arg,
        }
    };
    everywhere(command, each)
}

/// The command line where nothing is required: what is missing may come from elsewhere.
pub(super) fn without_requirements(command: Command) -> Command {
    let settings: Vec<String> = Setting::all(&command).iter().map(|setting| setting.id().to_owned()).collect();
    everywhere(command, |arg| match settings.iter().any(|id| *id == arg.get_id().as_str()) {
        true => arg.required(false),
        false => arg,
    })
}

/// The command line as help shows it: with the variables of the environment.
pub(super) fn with_variables(command: Command) -> Command {
    let names: BTreeMap<String, String> =
        Setting::all(&command).iter().map(|setting| (setting.id().to_owned(), setting.variable())).collect();
    let add = move |arg: Arg| match names.get(arg.get_id().as_str()) {
        // Names of arguments live as long as the program does; this is called once, to print help.
        Some(name) => arg.env(&*name.clone().leak()).hide_env_values(true),
        None => arg,
    };
    let command = command.mut_args(&add);
    command.mut_subcommand("run", |run| run.mut_args(&add))
}

/// Each argument of each command.
fn everywhere(command: Command, each: impl Fn(Arg) -> Arg + Copy) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = command.mut_args(each);
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| sub.mut_args(each)))
}

/// A complaint about a flag's value, with what is allowed.
pub(super) fn with_allowed(mut error: clap::Error, command: &Command) -> clap::Error {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) if error.kind() == ErrorKind::ValueValidation => arg.clone(),
        _ => return error,
    };
    let flag = named.trim_start_matches("--").split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let setting = Setting::all(command).into_iter().find(|setting| setting.key() == flag);
    if let Some(allowed) = setting.map(|setting| setting.allowed()).filter(|text| !reason(&error).contains(text)) {
        let tip = StyledStr::from(format!("allowed: {allowed}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

#[cfg(test)]
mod tests;
