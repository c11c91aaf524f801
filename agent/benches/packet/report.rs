//! The figures as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::cases::Group;
use crate::{Measured, Result};

/// Figures of one line by number of rules: net and the width of its noise.
type Line = BTreeMap<u32, (i64, i64)>;

/// Prints the table and writes the JSON.
pub(crate) fn print(measured: &[Measured], plain: &[u32], rotated: &[u32], file: &Path) -> Result<()> {
    let (least_plain, least_rotated) = (least(plain), least(rotated));
    let mut lines: Vec<(Group, &'static str, Line)> = Vec::new();
    let mut figures = Vec::new();
    for Measured { case, samples } in measured {
        let empty = if case.rotates { least_rotated } else { least_plain };
        let net = least(samples) - empty;
        let noise = median(samples) - least(samples);
        let place = lines.iter_mut().find(|(group, name, _)| *group == case.group && *name == case.name);
        match place {
            Some((_, _, line)) => drop(line.insert(case.rules, (net, noise))),
            None => lines.push((case.group, case.name, Line::from([(case.rules, (net, noise))]))),
        }
        figures.push(json!({
            "group": case.group.name(), "case": case.name, "rules": case.rules, "net_ns": net,
            "median_ns": median(samples) - empty, "goal_ns": case.group.goal(),
            "met": case.group.goal().map(|goal| net <= goal),
        }));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["packet", "1 rule", "100", "10,000", "10,000 : 1", "noise", "goal", ""]);
    for column in 1..=6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines.sort_by_key(|(group, ..)| *group as u8);
    let mut group_before = None;
    for (group, name, line) in &lines {
        if group_before != Some(*group) {
            table.add_row([group.name()]);
            group_before = Some(*group);
        }
        let cell = |rules| line.get(&rules).map_or(String::new(), |(net, _)| net.to_string());
        let ratio = match (line.get(&1), line.get(&10_000)) {
            (Some((one, _)), Some((many, _))) if *one > 0 => format!("{:.2}", *many as f64 / *one as f64),
            _ => String::new(),
        };
        let noise = line.values().map(|(_, noise)| *noise).max().unwrap_or(0);
        let worst = line.values().map(|(net, _)| *net).max().unwrap_or(0);
        let (goal, met) = match group.goal() {
            Some(goal) => (format!("{goal}"), if worst <= goal { "met" } else { "MISSED" }),
            None => (String::new(), ""),
        };
        table.add_row([
            format!("  {name}"),
            cell(1),
            cell(100),
            cell(10_000),
            ratio,
            format!("+{noise}"),
            goal,
            met.to_owned(),
        ]);
    }
    println!("Nanoseconds per packet, net of the empty program: the least of {} samples of each.", plain.len());
    println!("{table}");
    println!("The empty program itself: {least_plain} ns (behind the rotating program: {least_rotated} ns).");
    println!("Noise: how far the median of the samples lies above the least.");
    let document: Value = json!({
        "unit": "ns per packet, net of the empty program, least of the samples",
        "empty_ns": least_plain, "empty_rotating_ns": least_rotated, "samples": plain.len(), "figures": figures,
    });
    std::fs::write(file, serde_json::to_string_pretty(&document)? + "\n")?;
    Ok(())
}

fn least(samples: &[u32]) -> i64 {
    samples.iter().min().copied().unwrap_or(0).into()
}

fn median(samples: &[u32]) -> i64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0).into()
}
