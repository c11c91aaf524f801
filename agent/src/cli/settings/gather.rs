//! What the environment and the file say, as further arguments.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::file::{self, Entry};
use super::print::{Effective, Line};
use super::{CONFIG, Environment, Origin, SOURCES, Setting, SettingsError};

/// What was found, setting by setting.
#[derive(Debug)]
pub(in crate::cli) struct Found {
    settings: Vec<(Setting, Option<Given>)>,
    warnings: Vec<String>,
}

/// What a place other than the command line says of a setting.
#[derive(Debug)]
struct Given {
    origin: Origin,
    values: Vec<OsString>,
}

/// Looks in every place; `first` is what the command line says alone.
pub(in crate::cli) fn gather(
    command: &Command,
    first: &ArgMatches,
    environment: &Environment,
) -> Result<Found, SettingsError> {
    let all = Setting::all(command);
    let Some((name, matches)) = first.subcommand() else {
        return Ok(Found { settings: Vec::new(), warnings: Vec::new() });
    };
    let runs = name == "run";
    let ids: BTreeSet<&str> = matches.ids().map(clap::Id::as_str).collect();
    let has = |setting: &Setting| {
        let arguments = command.find_subcommand(name).into_iter().flat_map(Command::get_arguments);
        let own = arguments.map(|arg| arg.get_id().as_str()).any(|id| id == setting.id());
        (own || setting.0.is_global_set()) && (runs || !SOURCES.contains(&setting.key()))
    };
    let mut warnings = if runs { strange_variables(&all, environment) } else { Vec::new() };
    let file = match read_file(matches, environment, &all) {
        Ok(file) => file,
        // What is in the usual place is for the agent; other commands need it only where they are told so.
        Err((false, error)) if !runs => {
            warnings.push(format!("{error}; going on without it"));
            None
        }
        Err((_, error)) => return Err(error),
    };
    let (path, entries) = file.unwrap_or_default();
    let mut settings = Vec::new();
    for setting in all.into_iter().filter(has) {
        let on_line =
            ids.contains(setting.id()) && matches.value_source(setting.id()) == Some(ValueSource::CommandLine);
        let given = match on_line {
            true => None,
            false => match variable(&setting, environment)? {
                None => line(&setting, &path, &entries)?,
                given => given,
            },
        };
        settings.push((setting, given));
    }
    Ok(Found { settings, warnings })
}

impl Found {
    /// As arguments to go after those of the command line.
    pub(in crate::cli) fn arguments(&self) -> impl Iterator<Item = OsString> {
        self.settings.iter().flat_map(|(setting, given)| {
            let values = given.iter().flat_map(|given| &given.values);
            values.map(|value| {
                let mut argument = OsString::from(format!("--{}=", setting.key()));
                argument.push(value);
                argument
            })
        })
    }

    /// What holds in the end, by the matches of all arguments, and what should be told.
    pub(in crate::cli) fn settled(self, matches: &ArgMatches) -> (Effective, Vec<String>) {
        let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
        let line = |(setting, given): (Setting, Option<Given>)| {
            let values = matches.get_raw(setting.id()).into_iter().flatten();
            let origin = match (given, matches.value_source(setting.id())) {
                (Some(given), _) => given.origin,
                (None, Some(ValueSource::CommandLine)) => Origin::Flag(format!("--{}", setting.key())),
                (None, _) => Origin::Default,
            };
            Line {
                key: setting.key().to_owned(),
                values: values.map(|value| value.to_string_lossy().into_owned()).collect(),
                is_list: setting.is_list(),
                origin,
            }
        };
        (Effective(self.settings.into_iter().map(line).collect()), self.warnings)
    }
}

/// What the environment says. A variable that is empty is one that is not set, as a ConfigMap's optional keys are.
fn variable(setting: &Setting, environment: &Environment) -> Result<Option<Given>, SettingsError> {
    // The log's filter has a name of old beside its own.
    let names =
        std::iter::once(setting.variable()).chain((setting.key() == "log-level").then(|| "RUST_LOG".to_owned()));
    let set = |name: String| {
        let value = environment.get(OsStr::new(&name)).filter(|value| !value.is_empty())?.clone();
        Some((name, value))
    };
    let Some((name, value)) = names.into_iter().find_map(set) else { return Ok(None) };
    let values = match (setting.is_list(), value.to_str()) {
        (true, Some(text)) => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(OsString::from).collect()
        }
        _ => vec![value],
    };
    checked(setting, Origin::Variable(name), values).map(Some)
}

/// What the file says.
fn line(setting: &Setting, path: &Path, entries: &[Entry]) -> Result<Option<Given>, SettingsError> {
    let Some(entry) = entries.iter().find(|entry| entry.key == setting.key()) else { return Ok(None) };
    let values = entry.values.iter().map(OsString::from).collect();
    checked(setting, Origin::Line(path.to_owned(), entry.line), values).map(Some)
}

fn checked(setting: &Setting, origin: Origin, values: Vec<OsString>) -> Result<Given, SettingsError> {
    if values.len() > 1 && !setting.is_list() {
        return Err(SettingsError::Several { origin, key: setting.key().to_owned(), count: values.len() });
    }
    match values.iter().find_map(|value| Some((value, setting.objection(value)?))) {
        None => Ok(Given { origin, values }),
        Some((value, reason)) => {
            let value = value.to_string_lossy().into_owned();
            Err(SettingsError::Value { origin, key: setting.key().to_owned(), value, reason })
        }
    }
}

type File = Option<(PathBuf, Vec<Entry>)>;

/// The file's settings, each of which exists; an error tells whether somebody has named the file.
fn read_file(matches: &ArgMatches, environment: &Environment, all: &[Setting]) -> Result<File, (bool, SettingsError)> {
    let flag = matches.get_one::<PathBuf>("config").cloned();
    let variable =
        || environment.get(OsStr::new("PORTCULLIS_CONFIG")).filter(|path| !path.is_empty()).map(PathBuf::from);
    let named = flag.or_else(variable);
    let is_named = named.is_some();
    let path = named.unwrap_or_else(|| CONFIG.into());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && !is_named => return Ok(None),
        Err(source) => return Err((is_named, SettingsError::Unreadable { path, source })),
    };
    let entries = file::read(&path, &text).map_err(|error| (is_named, error))?;
    let known = |entry: &&Entry| all.iter().any(|setting| setting.key() == entry.key);
    match entries.iter().find(|entry| !known(entry)) {
        None => Ok(Some((path, entries))),
        Some(Entry { key, line, .. }) => {
            let nearest = nearest(key, all.iter().map(Setting::key));
            let origin = Origin::Line(path, *line);
            Err((is_named, SettingsError::Unknown { origin, key: key.clone(), nearest }))
        }
    }
}

/// The name that is most like a given one.
fn nearest<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> String {
    // How file keys are written elsewhere is no difference: maxEndpoints, max_endpoints.
    let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let given = plain(given);
    let alike = |name: &str| strsim::jaro_winkler(&given, &plain(name));
    names.max_by(|a, b| alike(a).total_cmp(&alike(b))).unwrap_or_default().to_owned()
}

/// Variables that look like settings and are none. The kubelet makes some for every Service of the namespace.
fn strange_variables(all: &[Setting], environment: &Environment) -> Vec<String> {
    let known: Vec<String> = all.iter().map(Setting::variable).chain(["PORTCULLIS_CONFIG".to_owned()]).collect();
    let names = environment.keys().filter_map(|name| name.to_str());
    let strange = names.filter(|name| name.starts_with("PORTCULLIS_") && !known.iter().any(|known| known == name));
    let of_services =
        |name: &str| name.ends_with("_PORT") || name.ends_with("_SERVICE_HOST") || name.contains("_PORT_");
    let told = strange.filter(|name| !of_services(name)).map(|name| {
        let nearest = nearest(name, known.iter().map(String::as_str));
        format!("environment variable {name} is no setting; the nearest is {nearest}")
    });
    told.collect()
}
