//! The figures as a table and as JSON.

use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::Result;
use crate::agent::Memory;
use crate::measure::{Changes, Figures};

/// A line of the table.
struct Line {
    name: String,
    unit: &'static str,
    value: f64,
    /// At most this.
    goal: Option<f64>,
}

fn line(name: impl Into<String>, unit: &'static str, value: f64, goal: Option<f64>) -> Line {
    Line { name: name.into(), unit, value, goal }
}

/// Prints the tables and writes the JSON.
pub(crate) fn print(all: &[Figures], file: &Path) -> Result<()> {
    let mut clusters = Vec::new();
    for figures in all {
        let size = figures.size;
        let lines = lines(figures);
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["figure", "", "unit", "goal", ""]);
        for column in [1, 3] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in &lines {
            let met = line.goal.map_or("", |goal| if line.value <= goal { "met" } else { "MISSED" });
            let goal = line.goal.map(|goal| goal.to_string()).unwrap_or_default();
            table.add_row([line.name.as_str(), &shown(line.value), line.unit, &goal, met]);
        }
        println!(
            "\n{} pods, {} of them here, {} policies, {} nodes, {} namespaces, {} Services (written in {:.0} s).",
            size.pods,
            size.local,
            size.policies,
            size.nodes,
            size.namespaces(),
            size.services(),
            figures.written_seconds
        );
        println!("{table}");
        let figure = |line: &Line| {
            let met = line.goal.map(|goal| line.value <= goal);
            json!({"figure": line.name, "unit": line.unit, "value": line.value, "goal": line.goal, "met": met})
        };
        clusters.push(json!({
            "pods": size.pods, "local": size.local, "policies": size.policies, "nodes": size.nodes,
            "namespaces": size.namespaces(), "services": size.services(), "written_seconds": figures.written_seconds,
            "table_entries": figures.entries, "figures": lines.iter().map(figure).collect::<Vec<Value>>(),
        }));
    }
    let document: Value = json!({"clusters": clusters});
    std::fs::write(file, serde_json::to_string_pretty(&document)? + "\n")?;
    Ok(())
}

fn lines(figures: &Figures) -> Vec<Line> {
    let mebi = |kib: u64| kib as f64 / 1024.0;
    let mut lines = vec![
        line("first sync, start to ready", "s", figures.sync_seconds, None),
        line("first sync, CPU in all", "s", figures.sync_cpu, None),
        line("first compile, CPU of one core", "s", figures.compile_cpu, Some(3.0)),
    ];
    let memory = |when: &str, memory: Memory, goal| {
        [
            line(format!("resident {when}, without maps"), "MiB", mebi(memory.own), goal),
            line(format!("  of that, heap and stacks {when}"), "MiB", mebi(memory.anonymous), None),
        ]
    };
    lines.extend(memory("at its greatest during first sync", figures.greatest, None));
    lines.extend(memory("in sync", figures.synced, Some(150.0)));
    lines.extend(memory("after all changes", figures.churned, Some(150.0)));
    lines.push(line("BPF maps that are mapped, resident", "MiB", mebi(figures.churned.maps), None));
    lines.push(line("BPF maps, all that the kernel holds", "MiB", mebi(figures.map_kib), None));
    lines.push(line("idle, CPU of one core", "%", figures.idle_cpu * 100.0, None));
    for changes in &figures.changes {
        lines.extend(of_changes(changes, figures.size.pods <= 10_000));
    }
    let churn = &figures.churn;
    lines.push(line(
        format!("{} pods come and go in {:.0} s, CPU for 1,000", churn.pods, churn.seconds),
        "s",
        churn.cpu * 1000.0,
        None,
    ));
    for (name, share) in [("median", 0.5), ("p99", 0.99)] {
        let value = quantile(&churn.passes, share);
        lines.push(line(
            format!("  event to last write meanwhile, {name} of {}", churn.passes.len()),
            "ms",
            value,
            None,
        ));
    }
    lines
}

/// Goals of latency are for clusters of up to 10,000 pods.
fn of_changes(changes: &Changes, has_goals: bool) -> Vec<Line> {
    let goal = |goal: f64| has_goals.then_some(goal);
    let count = changes.since_acknowledged.len();
    let mut lines = vec![line(format!("{} {}, CPU for 1,000", count, changes.what), "s", changes.cpu * 1000.0, None)];
    for (name, share, most) in [("median", 0.5, 5.0), ("p99", 0.99, 20.0)] {
        let switched = quantile(&changes.switched, share);
        lines.push(line(format!("  acknowledged to switched, {name}"), "ms", switched, goal(most)));
        let since = quantile(&changes.since_acknowledged, share);
        lines.push(line(format!("  acknowledged to last write, {name}"), "ms", since, goal(most)));
        lines.push(line(format!("  event to last write, {name}"), "ms", quantile(&changes.since_heard, share), None));
    }
    if changes.missed > 0 {
        lines.push(line("  not in force within ten seconds", "", changes.missed as f64, Some(0.0)));
    }
    lines
}

/// The least sample that this share of all does not exceed.
fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * share).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn shown(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
