//! `portcullis matrix`: who reaches whom.

use std::collections::BTreeSet;
use std::io::Write;

use comfy_table::{Table, presets};
use serde::{Serialize, Serializer};

use super::side::{Side, both, verdict};
use super::words::listed;
use super::{CliError, Engine, MatrixArgs, MatrixOutput};
use crate::evaluate::{NodeView, Party};
use crate::index::Cluster;
use crate::model::{Direction, Family, Pod, Traffic};

/// One connection.
#[derive(Debug, Serialize)]
struct Entry {
    from: String,
    to: String,
    family: String,
    protocol: String,
    port: u16,
    verdict: &'static str,
    egress: Side,
    ingress: Side,
}

/// All questions of a matrix. Entries are made as they are written: there may be millions.
struct Matrix<'a> {
    pods: Vec<&'a Pod>,
    nodes: NodeView<'a>,
    ports: BTreeSet<Traffic>,
    /// Those that one pod of a pair must be in; empty for any.
    namespaces: BTreeSet<&'a str>,
    engine: &'a dyn Engine,
}

/// Writes the answer: every ordered pair of pods that have not finished, by name; in each the families that both have
/// (see [`Party::families`]), in each the ports.
///
/// Returns what should be told beside. An answer with more than `most` entries is refused.
pub(super) fn write(
    args: &MatrixArgs,
    cluster: &Cluster,
    engine: &dyn Engine,
    most: u64,
    out: &mut dyn Write,
) -> Result<Vec<String>, CliError> {
    let matrix = Matrix {
        pods: cluster.pods.values().map(AsRef::as_ref).filter(|pod| !pod.finished).collect(),
        nodes: NodeView::of(cluster),
        ports: args.ports.iter().copied().collect(),
        namespaces: args.namespaces.iter().map(String::as_str).collect(),
        engine,
    };
    if let Some(unknown) =
        args.namespaces.iter().find(|name| !matrix.pods.iter().any(|pod| *pod.key.namespace == ***name))
    {
        return Err(CliError::NoPodsIn(unknown.clone()));
    }
    let entries = matrix.size();
    if entries > most {
        return Err(CliError::TooLarge { entries, most });
    }
    match args.output {
        MatrixOutput::Json => {
            serde_json::to_writer(&mut *out, &matrix)?;
            writeln!(out)?;
        }
        MatrixOutput::Table => writeln!(out, "{}", matrix.table().trim_fmt())?,
    }
    Ok(matrix.pods_left_out().into_iter().collect())
}

impl<'a> Matrix<'a> {
    fn entries(&self) -> impl Iterator<Item = Entry> {
        let pairs = self.pods.iter().flat_map(|from| self.pods.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| self.concerns(from) || self.concerns(to)).flat_map(|(from, to)| self.pair(from, to))
    }

    fn concerns(&self, pod: &Pod) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(&*pod.key.namespace)
    }

    /// How many entries there are at most, if each pair has one family in common.
    fn size(&self) -> u64 {
        let inside = self.pods.iter().filter(|pod| self.concerns(pod)).count() as u64;
        let pods = self.pods.len() as u64;
        let sources = |to: &Pod| if self.concerns(to) { pods } else { inside };
        self.pods.iter().map(|to| sources(to).saturating_mul(self.ports_of(to).len() as u64)).sum()
    }

    fn pair(&self, from: &'a Pod, to: &'a Pod) -> impl Iterator<Item = Entry> {
        let ports = self.ports_of(to);
        let families = Party::Pod(from).families(&Party::Pod(to));
        families
            .into_iter()
            .flat_map(move |family| ports.clone().into_iter().map(move |traffic| self.entry(from, to, family, traffic)))
    }

    fn entry(&self, from: &'a Pod, to: &'a Pod, family: Family, traffic: Traffic) -> Entry {
        let destination = self.nodes.view(from, Direction::Egress, Party::Pod(to), family);
        let source = self.nodes.view(to, Direction::Ingress, Party::Pod(from), family);
        let egress = self.engine.decide(from, Direction::Egress, &destination, traffic);
        let ingress = self.engine.decide(to, Direction::Ingress, &source, traffic);
        Entry {
            from: from.key.to_string(),
            to: to.key.to_string(),
            family: family.to_string(),
            protocol: traffic.protocol.to_string(),
            port: traffic.port,
            verdict: verdict(both(&egress, &ingress)),
            egress: Side::of(&egress),
            ingress: Side::of(&ingress),
        }
    }

    /// The ports that were asked about, or those that the destination's containers declare.
    fn ports_of(&self, to: &Pod) -> BTreeSet<Traffic> {
        if !self.ports.is_empty() {
            return self.ports.clone();
        }
        to.ports.iter().map(|port| Traffic { protocol: port.protocol, port: port.number }).collect()
    }

    fn pods_left_out(&self) -> Option<String> {
        let silent = self.pods.iter().filter(|pod| self.ports_of(pod).is_empty());
        let silent: Vec<String> = silent.map(|pod| pod.key.to_string()).collect();
        (!silent.is_empty()).then(|| {
            let pods = listed(silent);
            format!("nothing is asked about pods that declare no container ports: {pods}; give --port to ask")
        })
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["FROM", "TO", "FAMILY", "PORT", "VERDICT", "EGRESS", "INGRESS"]);
        for entry in self.entries() {
            let port = format!("{}/{}", entry.port, entry.protocol);
            let verdict = entry.verdict.to_owned();
            table.add_row([
                entry.from,
                entry.to,
                entry.family,
                port,
                verdict,
                entry.egress.brief(),
                entry.ingress.brief(),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }
}

impl Serialize for Matrix<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Entries<'m, 'a>(&'m Matrix<'a>);
        impl Serialize for Entries<'_, '_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.entries())
            }
        }
        serializer.collect_map([("entries", Entries(self))])
    }
}

#[cfg(test)]
mod tests;
