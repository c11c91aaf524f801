//! The metric families: names, types, help texts, and the figures behind them.

use std::fmt;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::{Bounded, Error, Figures, OtherFigures, RuleFigures, series};
use crate::status::{EndpointState, Repair, SourceStatus, UpdateResult};

/// The media type of what [`render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const LAST_SYNC: &str = "portcullis_last_sync_timestamp";

/// Writes the figures as OpenMetrics text, version 1.0.0.
///
/// # Errors
/// When the encoder refuses a value.
pub fn render(figures: Figures) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Families { encoder, absent: Vec::new() }.all(self).map(drop)
    }
}

/// Writes one family after the other.
pub(super) struct Families<'a> {
    pub(super) encoder: DescriptorEncoder<'a>,
    /// Families that were left out, since they have no series now.
    pub(super) absent: Vec<String>,
}

impl Families<'_> {
    /// Writes all of them; tells which were left out.
    pub(super) fn all(mut self, figures: &Figures) -> Result<Vec<String>, fmt::Error> {
        self.policies(figures)?;
        self.datapath(figures)?;
        self.hooks(figures)?;
        self.agent(figures)?;
        Ok(self.absent)
    }

    fn policies(&mut self, figures: &Figures) -> fmt::Result {
        let Bounded { rules, others, folded } = &figures.rules;
        let own = |count: fn(&RuleFigures) -> u64| rules.iter().map(move |f| (series::labels(&f.rule), count(f)));
        let other = |count: fn(&OtherFigures) -> u64| others.iter().map(move |f| (series::other_labels(f), count(f)));
        self.counters(
            "portcullis_policy_packets",
            "Packets that a policy decided, by the rule that did: its index, isolation, self or own-node; other for all rules \
             beyond the setting max-policy-series. A packet that becomes several segments counts as those.",
            None,
            own(|figures| figures.packets).chain(other(|figures| figures.packets)),
        )?;
        self.counters(
            "portcullis_policy",
            "Bytes of the packets that a policy decided, link-layer headers included.",
            Some(&Unit::Bytes),
            own(|figures| figures.bytes).chain(other(|figures| figures.bytes)),
        )?;
        self.family(
            "portcullis_policy_rules_folded",
            "Rules without series of their own, which are counted as other: more than the setting max-policy-series.",
            None,
            &ConstGauge::new(*folded),
        )
    }

    fn datapath(&mut self, figures: &Figures) -> fmt::Result {
        self.counters(
            "portcullis_drops",
            "Packets dropped on this node, by reason; those that policy denies are in portcullis_policy_packets too.",
            None,
            figures.drops().map(|(reason, count)| ([("reason", reason)], count)),
        )?;
        self.counters(
            "portcullis_flow_events",
            "What happened to flows and packets beside verdicts: evicted (its bucket was full), rejudged (policy \
             changed), row_missing (a table is inconsistent), unstamped (judged in full), \
             taken_up and not_taken_up (a packet in the middle of an unknown flow), established_evicted (of evicted).",
            None,
            figures.events().map(|(event, count)| ([("event", event)], count)),
        )?;
        let table = |name: &str| [("table", name.to_owned())];
        self.gauges(
            "portcullis_table_entries",
            "Entries in use in each table of the packet programs.",
            None,
            figures.tables.iter().map(|fill| (table(&fill.name), fill.used)),
        )?;
        self.gauges(
            "portcullis_table_capacity",
            "Entries that each table of the packet programs has room for.",
            None,
            figures.tables.iter().map(|fill| (table(&fill.name), fill.capacity)),
        )
    }

    fn hooks(&mut self, figures: &Figures) -> fmt::Result {
        self.counters(
            "portcullis_hook_repairs",
            "What was put right after others had changed it: missing (a program was gone from its hook), displaced (it was \
             not first any more), pin (a pin was gone).",
            None,
            Repair::ALL
                .into_iter()
                .map(|repair| ([("what", repair.name())], figures.repairs.get(&repair).copied().unwrap_or(0))),
        )?;
        self.family(
            "portcullis_unenforced_devices",
            "Devices that should have programs and have none.",
            None,
            &ConstGauge::new(figures.unenforced_devices),
        )?;
        self.family(
            "portcullis_foreign_filters",
            "Filters of others that may overwrite the stamp on packets; the status names them.",
            None,
            &ConstGauge::new(figures.foreign_filters),
        )
    }

    fn agent(&mut self, figures: &Figures) -> fmt::Result {
        self.gauges(
            "portcullis_endpoints",
            "Pods' interfaces on this node, by how they are treated.",
            None,
            EndpointState::ALL
                .into_iter()
                .map(|state| ([("state", state.name())], figures.endpoints.get(&state).copied().unwrap_or(0))),
        )?;
        self.counters(
            "portcullis_updates",
            "Changes of the tables, by what came of them; when one is not applied, what was in force stays.",
            None,
            UpdateResult::ALL
                .into_iter()
                .map(|result| ([("result", result.name())], figures.updates.get(&result).copied().unwrap_or(0))),
        )?;
        self.counters(
            "portcullis_table_repairs",
            "Rows of tables that somebody else had changed and that were put right.",
            None,
            figures.table_repairs.iter().map(|(table, count)| ([("table", *table)], *count)),
        )?;
        self.family(
            "portcullis_update_duration",
            "Time from the first event of an update to its last write into a table.",
            Some(&Unit::Seconds),
            &figures.update_durations.0,
        )?;
        self.counters(
            "portcullis_manifest_problems",
            "Problems found in manifests: an error is refused and its last good version stays, a warning is accepted.",
            None,
            [("error", figures.manifest_errors), ("warning", figures.manifest_warnings)]
                .map(|(severity, count)| ([("severity", severity)], count)),
        )?;
        self.sources(figures)?;
        self.sync(figures)?;
        self.family(
            "portcullis_build",
            "The version of the agent.",
            None,
            &Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        )
    }

    fn sources(&mut self, figures: &Figures) -> fmt::Result {
        let by_kind = |source: &SourceStatus| [("kind", source.kind.clone())];
        let sources = &figures.sources;
        self.gauges(
            "portcullis_source_in_sync",
            "1 while what is known of a kind of objects is what the API server has, else 0.",
            None,
            sources.iter().map(|source| (by_kind(source), u32::from(source.in_sync))),
        )?;
        self.gauges(
            "portcullis_source_heard_timestamp",
            "When the API server last told anything of a kind, be it that nothing has changed, in Unix time.",
            Some(&Unit::Seconds),
            sources.iter().filter_map(|source| Some((by_kind(source), source.heard?.as_second()))),
        )?;
        self.gauges(
            "portcullis_source_objects",
            "Objects of a kind that are known.",
            None,
            sources.iter().map(|source| (by_kind(source), source.objects)),
        )?;
        self.counters(
            "portcullis_source_lists",
            "How often all objects of a kind were read.",
            None,
            sources.iter().map(|source| (by_kind(source), source.lists)),
        )?;
        self.counters(
            "portcullis_source_failures",
            "How often asking the API server for a kind failed.",
            None,
            sources.iter().map(|source| (by_kind(source), source.failures)),
        )
    }

    fn sync(&mut self, figures: &Figures) -> fmt::Result {
        self.family(
            "portcullis_synced",
            "1 while the tables are what the sources ask for, else 0.",
            None,
            &ConstGauge::new(u32::from(figures.synced)),
        )?;
        // A moment before 1970 is a clock that is wrong: no time is better than one that looks right.
        let Some(at) = figures.last_sync.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) else {
            self.absent.push(LAST_SYNC.to_owned());
            return Ok(());
        };
        self.family(
            LAST_SYNC,
            "When the tables last were what the sources ask for, in Unix time.",
            Some(&Unit::Seconds),
            &ConstGauge::new(at.as_secs_f64()),
        )
    }

    /// A family of one metric without labels of its own.
    fn family(&mut self, name: &str, help: &str, unit: Option<&Unit>, metric: &impl EncodeMetric) -> fmt::Result {
        metric.encode(self.encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
    }

    /// A family of counters; without a series there is no family.
    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        self.labelled(name, help, unit, series.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    /// A family of gauges; without a series there is no family.
    fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        self.labelled(name, help, unit, series.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    fn labelled<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl Iterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut series = series.peekable();
        let Some((_, first)) = series.peek() else {
            self.absent.push(name.to_owned());
            return Ok(());
        };
        let mut family = self.encoder.encode_descriptor(name, help, unit, first.metric_type())?;
        for (labels, metric) in series {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
