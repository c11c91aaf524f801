//! What the agent counts, as OpenMetrics text: the only room that knows `prometheus_client`.
//!
//! Nothing is kept here between scrapes. Whoever is scraped fills [`Figures`] from the kernel's counters and its own,
//! and [`render`] writes what they hold: a series exists as long as its figure does and no longer. The kernel's counters
//! outlive the agent and are exact; a counter falls back when its policy was deleted in between, which readers take for
//! a restart.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use portcullis_common::packet::Drop;
use portcullis_common::tables::Event;
use prometheus_client::metrics::histogram::Histogram;

use crate::state::RuleIdentity;
use crate::status::{EndpointState, Repair, SourceStatus, TableFill, UpdateResult};

mod bound;
mod families;
mod series;

pub use bound::{Bounded, OtherFigures, SeriesBound};
pub use families::{CONTENT_TYPE, render};

#[cfg(test)]
mod tests;

/// The metrics could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The encoder refused.
    #[error("cannot encode the metrics: a figure has no form in OpenMetrics text")]
    Encoding(#[from] std::fmt::Error),
}

/// Everything that is counted, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Packets and bytes that rules decided.
    pub rules: Bounded,
    /// What was counted beside rules, as the programs count it: the counter's number is that of a [`Drop`] or an
    /// [`Event`]. Missing numbers are 0.
    pub notes: BTreeMap<u32, u64>,
    /// Endpoints in each state. Missing states are 0.
    pub endpoints: BTreeMap<EndpointState, u64>,
    /// How full each table is.
    pub tables: Vec<TableFill>,
    /// Rows that somebody else had changed and that were put right, by table.
    pub table_repairs: BTreeMap<&'static str, u64>,
    /// Updates by what came of them. Missing results are 0.
    pub updates: BTreeMap<UpdateResult, u64>,
    /// How long updates took.
    pub update_durations: UpdateDurations,
    /// What was put right after others had changed it. Missing kinds are 0.
    pub repairs: BTreeMap<Repair, u64>,
    /// Devices that should have programs and have none.
    pub unenforced_devices: u64,
    /// Others' filters that may overwrite the stamp.
    pub foreign_filters: u64,
    /// Objects and documents that were refused.
    pub manifest_errors: u64,
    /// Objects and documents that were accepted but are perhaps not as meant.
    pub manifest_warnings: u64,
    /// What is known of each kind of a cluster's objects; nothing where there is no cluster.
    pub sources: Vec<SourceStatus>,
    /// Whether the kernel holds what the sources ask for.
    pub synced: bool,
    /// When that was last so; `None` if it never was.
    pub last_sync: Option<SystemTime>,
}

/// What a rule decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleFigures {
    /// The rule.
    pub rule: RuleIdentity,
    /// Packets.
    pub packets: u64,
    /// Their bytes, link-layer header included.
    pub bytes: u64,
}

/// How long updates took, from the first input event to the last map write. A clone counts on with the original: keep
/// one, and give a clone to each [`Figures`].
#[derive(Clone, Debug)]
pub struct UpdateDurations(Histogram);

/// Seconds: from half a millisecond, dense around the goals of 5 and 20 ms.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

impl UpdateDurations {
    /// Counts an update.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl Default for UpdateDurations {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS))
    }
}

/// What the programs count beside rules and drops, with the name in metrics.
const EVENTS: [(Event, &str); 7] = [
    (Event::FlowEvicted, "evicted"),
    (Event::Rejudged, "rejudged"),
    (Event::RowMissing, "row_missing"),
    (Event::Unstamped, "unstamped"),
    (Event::TakenUp, "taken_up"),
    (Event::NotTakenUp, "not_taken_up"),
    (Event::EstablishedEvicted, "established_evicted"),
];

impl Figures {
    fn note(&self, number: u32) -> u64 {
        self.notes.get(&number).copied().unwrap_or(0)
    }

    fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Drop::ALL.into_iter().map(|(reason, name)| (name, self.note(reason.0)))
    }

    fn events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        EVENTS.into_iter().map(|(event, name)| (name, self.note(event as u32)))
    }
}
