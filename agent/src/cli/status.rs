//! A [`Status`] as the command line prints it.

use std::borrow::Cow;
use std::io::{self, Write};

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::status::{ClusterStatus, DirectionStatus, EndpointState, EndpointStatus, NodeStatus, SourceStatus, Status};

#[cfg(test)]
mod tests;

/// Writes a status for people, as of `now`: what holds for the node, then a table for each kind of thing, one line for
/// each thing so that `grep` finds it, and at the end what is wrong.
///
/// # Errors
/// Those of the writer.
pub fn write_text(status: &Status, now: Timestamp, out: &mut impl Write) -> io::Result<()> {
    write_summary(status, now, out)?;
    let kinds = status.sources.iter().map(|kind| kind_row(kind, now));
    write_table(out, "Watched", &["KIND", "STATE", "OBJECTS", "LAST HEARD OF", "BECAUSE"], kinds)?;
    write_table(out, "Endpoints", &ENDPOINT_HEADER, status.endpoints.iter().map(endpoint_row))?;
    let exits = status.exits.iter().map(|exit| [printable(&exit.name).into_owned(), list(&exit.hooks)]);
    write_table(out, "Exits", &["DEVICE", "HOOKS"], exits)?;
    let tables = status.tables.iter().map(|table| {
        let (used, capacity) = (table.used.to_string(), table.capacity.to_string());
        [printable(&table.name).into_owned(), used, capacity, percentage(table.used, table.capacity)]
    });
    write_table(out, "Tables", &["TABLE", "USED", "CAPACITY", "FULL"], tables)?;
    if !status.problems.is_empty() {
        writeln!(out, "\nProblems ({}):", status.problems.len())?;
    }
    for problem in &status.problems {
        writeln!(out, "  - {}", printable(problem))?;
    }
    Ok(())
}

/// Writes the agents of a cluster for people, as of `now`: how many nodes are enforced, and a line for each.
///
/// # Errors
/// Those of the writer.
pub fn write_cluster(status: &ClusterStatus, now: Timestamp, out: &mut impl Write) -> io::Result<()> {
    let agents = status.nodes.iter().filter_map(|node| node.agent.as_ref());
    let (count, ready) = (agents.clone().count(), agents.filter(|agent| agent.ready).count());
    writeln!(out, "cluster {}", printable(&status.server))?;
    writeln!(out, "nodes: {}, with an agent: {count}, of which ready: {ready}", status.nodes.len())?;
    let rows = status.nodes.iter().map(|node| node_row(node, now));
    write_table(out, "Nodes", &["NODE", "AGENT", "STATE", "SINCE", "IMAGE", "PODS MAY COME"], rows)
}

fn node_row(node: &NodeStatus, now: Timestamp) -> [String; 6] {
    let come = if node.held { "no: tainted" } else { "yes" }.to_owned();
    let name = printable(&node.name).into_owned();
    let Some(agent) = &node.agent else {
        return [name, "-".into(), "no agent".into(), "-".into(), "-".into(), come];
    };
    let state = match &agent.because {
        _ if agent.ready => "ready".to_owned(),
        Some(because) => format!("NOT ready: {}", printable(because)),
        None => "NOT ready".to_owned(),
    };
    let since = agent.since.map_or_else(|| "-".to_owned(), |since| ago(since, now));
    [name, printable(&agent.pod).into_owned(), state, since, printable(&agent.image).into_owned(), come]
}

/// Writes a status as indented JSON.
///
/// # Errors
/// Those of the writer.
pub fn write_json(status: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, status)?;
    writeln!(out)
}

fn write_summary(status: &Status, now: Timestamp, out: &mut impl Write) -> io::Result<()> {
    let sync = match (&status.not_synced_because, status.synced) {
        (_, true) => "in sync".to_owned(),
        (Some(reason), false) => format!("NOT in sync: {}", printable(reason)),
        (None, false) => "NOT in sync".to_owned(),
    };
    let version = printable(&status.version);
    writeln!(out, "portcullis {version}, started {}", ago(status.started, now))?;
    writeln!(out, "{sync}; revision {}", status.revision)?;
    if !status.source.is_empty() {
        writeln!(out, "source: {}", printable(&status.source))?;
    }
    match &status.last_update {
        None => writeln!(out, "no update yet")?,
        Some(update) => {
            writeln!(out, "last update {}: {} in {:.1} ms", ago(update.at, now), update.result, update.took_ms)?;
        }
    }
    let counts = EndpointState::ALL.into_iter().filter_map(|state| {
        let count = status.endpoints.iter().filter(|endpoint| endpoint.state == state).count();
        (count > 0).then(|| format!("{count} {state}"))
    });
    let counts: Vec<String> = counts.collect();
    writeln!(out, "endpoints: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") })
}

fn kind_row(kind: &SourceStatus, now: Timestamp) -> [String; 5] {
    let state = match (kind.in_sync, kind.lost_since) {
        (true, _) => "in sync".to_owned(),
        (false, Some(since)) => format!("lost {}", ago(since, now)),
        (false, None) => "not read yet".to_owned(),
    };
    [
        printable(&kind.kind).into_owned(),
        state,
        kind.objects.to_string(),
        kind.heard.map_or_else(|| "never".to_owned(), |heard| ago(heard, now)),
        kind.because.as_deref().map_or_else(|| "-".to_owned(), |because| printable(because).into_owned()),
    ]
}

const ENDPOINT_HEADER: [&str; 8] =
    ["POD", "STATE", "VETH", "IFINDEX", "ADDRESSES", "INGRESS POLICIES", "EGRESS POLICIES", "REVISION"];

fn endpoint_row(endpoint: &EndpointStatus) -> [String; 8] {
    let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
    [
        endpoint.pod.as_deref().map_or_else(|| "-".to_owned(), |pod| printable(pod).into_owned()),
        endpoint.state.to_string(),
        printable(&endpoint.veth).into_owned(),
        endpoint.ifindex.to_string(),
        list(&addresses),
        direction(&endpoint.ingress),
        direction(&endpoint.egress),
        endpoint.revision.to_string(),
    ]
}

/// The policies of a direction with the set that they were compiled to; "not isolated" where there is none.
fn direction(direction: &DirectionStatus) -> String {
    match direction.policy_set {
        None => "not isolated".to_owned(),
        Some(set) => format!("{} (set {set})", list(&direction.policies)),
    }
}

fn write_table<const N: usize>(
    out: &mut impl Write,
    title: &str,
    header: &[&str; N],
    rows: impl ExactSizeIterator<Item = [String; N]>,
) -> io::Result<()> {
    if rows.len() == 0 {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    writeln!(out, "\n{title}:\n{}", table.trim_fmt())
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(|item| printable(item)).collect::<Vec<_>>().join(", ")
}

/// Names and messages come from manifests and devices that others wrote: nothing in them may move the cursor.
fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Rounded down, so that 100 % means full; "-" for a table without room.
fn percentage(used: u64, capacity: u64) -> String {
    let percent = (u128::from(used) * 100).checked_div(u128::from(capacity));
    percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"))
}

/// How long ago, in its two largest units; "just now" also when the clocks disagree.
fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => "just now".to_owned(),
        (0, 0, 0, s) => format!("{s}s ago"),
        (0, 0, m, s) => format!("{m}m{}s ago", s % 60),
        (0, h, m, _) => format!("{h}h{}m ago", m % 60),
        (d, h, _, _) => format!("{d}d{}h ago", h % 24),
    }
}
