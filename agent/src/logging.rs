//! The log: on stderr, as text or JSON, of a level that can be changed while the program runs. The only room that knows
//! `tracing_subscriber`.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// What is logged: a level for everything, or for parts of the program by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

/// What is not logged unless it is asked for by name.
const QUIET: &str = "kube_client=off";

/// Why a filter is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?} is neither a level (off, error, warn, info, debug, trace) nor NAME=LEVEL, such as portcullis::netlink=debug"
)]
pub struct FilterError {
    part: String,
}

/// The level cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("the log's level cannot be changed: {0}")]
pub struct ReloadError(#[from] reload::Error);

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        for part in &parts {
            // A word alone would be taken for the name of a part, of which everything is logged: `debgu` must not be.
            let (name, level) = part.rsplit_once('=').unwrap_or(("all", part));
            let is_level = ["off", "error", "warn", "info", "debug", "trace"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(level));
            if name.is_empty() || !is_level || EnvFilter::try_new(part).is_err() {
                return Err(FilterError { part: (*part).to_owned() });
            }
        }
        Ok(Self(parts.join(",")))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Filter {
    fn directives(&self) -> EnvFilter {
        // Each part was parsed when the filter was made. kube's client says each failed request again, as an error, though the
        // agent tells of it once and in its own words; who asks for it by name gets it.
        EnvFilter::new(format!("{QUIET},{}", self.0))
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// An object on each line.
    Json,
}

/// What the level is, and how it is changed. Clones are of one log.
#[derive(Clone, Debug)]
pub struct Control(reload::Handle<EnvFilter, Registry>);

impl Control {
    /// What is logged now.
    ///
    /// # Errors
    /// When the log is gone.
    pub fn filter(&self) -> Result<String, ReloadError> {
        let filter = self.0.with_current(ToString::to_string)?;
        let given = filter.split(',').filter(|part| *part != QUIET).collect::<Vec<_>>();
        Ok(given.join(","))
    }

    /// Logs by another filter from now on.
    ///
    /// # Errors
    /// When the log is gone.
    pub fn set(&self, filter: &Filter) -> Result<(), ReloadError> {
        Ok(self.0.reload(filter.directives())?)
    }
}

/// Whether stderr is a terminal, so that people read the log as it is written.
#[must_use]
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Starts the log of this process, on stderr.
#[must_use]
pub fn start(filter: &Filter, form: Form) -> Control {
    let (layer, control) = layers(filter, form, is_watched(), io::stderr);
    // A log that is there already stays: it is another's, such as a test's.
    drop(tracing_subscriber::registry().with(layer).try_init());
    control
}

fn layers<W>(filter: &Filter, form: Form, color: bool, writer: W) -> (Box<dyn Layer<Registry> + Send + Sync>, Control)
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter.directives());
    let events = tracing_subscriber::fmt::layer().with_writer(writer);
    let events: Box<dyn Layer<_> + Send + Sync> = match form {
        Form::Json => Box::new(events.json().flatten_event(true).with_current_span(false).with_span_list(false)),
        Form::Text => Box::new(events.with_target(false).with_ansi(color)),
    };
    (Box::new(filter.and_then(events)), Control(handle))
}

#[cfg(test)]
mod tests;
