//! The figures as a table and as JSON.

use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::Result;
use crate::bed::{Bed, Means, Place};
use crate::traffic::Kind;

/// At least this share of the rate without policy, for the agent with any number of rules.
const fn goal(kind: Kind) -> Option<f64> {
    match kind {
        Kind::Requests => Some(0.98),
        Kind::Connections => Some(0.95),
        Kind::Bulk => None,
    }
}

/// Prints the tables and writes the JSON.
pub(crate) fn print(beds: &[Bed], file: &Path) -> Result<()> {
    let mut figures = Vec::new();
    for place in [Place::OneNode, Place::TwoNodes] {
        let here: Vec<&Bed> = beds.iter().filter(|bed| bed.place == place).collect();
        let Some(plain) = here.iter().find(|bed| bed.means == Means::Nothing) else { continue };
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut header = vec!["configuration".to_owned(), "rules".to_owned()];
        header.extend(Kind::ALL.iter().flat_map(|kind| [kind.name().to_owned(), "ratio".to_owned(), String::new()]));
        table.set_header(header);
        for column in 1..=10 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for bed in &here {
            let rules = if bed.means.rules() == 0 { String::new() } else { bed.means.rules().to_string() };
            let mut cells = vec![bed.means.name().to_owned(), rules];
            for kind in Kind::ALL {
                let (own, base) = (&bed.samples[kind as usize], &plain.samples[kind as usize]);
                let ratio = median(own) / median(base);
                let met = goal(kind).filter(|_| matches!(bed.means, Means::Agent(_))).map(|goal| ratio >= goal);
                let mark = met.map_or("", |met| if met { "met" } else { "MISSED" });
                let ratio_text = if ratio < 0.095 { format!("{ratio:.3}") } else { format!("{ratio:.2}") };
                cells.extend([format!("{:.0}", median(own)), ratio_text, mark.to_owned()]);
                figures.push(json!({
                    "place": place.name(), "configuration": bed.means.name(), "rules": bed.means.rules(),
                    "unit": kind.name(), "median": median(own), "ratio": ratio, "spread": spread(own, base),
                    "ratio_of_the_best": best(own) / best(base),
                    "goal": goal(kind).filter(|_| matches!(bed.means, Means::Agent(_))), "met": met,
                }));
            }
            table.add_row(cells);
        }
        println!("\n{}: medians of {} samples, and ratios of medians to the first line.", place.name(), plain.len());
        println!("{table}");
        let again = here.iter().skip(1).find(|bed| bed.means == Means::Nothing);
        for kind in Kind::ALL {
            let Some(again) = again else { continue };
            let (own, base) = (&again.samples[kind as usize], &plain.samples[kind as usize]);
            println!(
                "Noise of {}: the same without policy again {:.3}; half of the rounds within {:.3} around it.",
                kind.name(),
                median(own) / median(base),
                spread(own, base)
            );
        }
    }
    let document: Value = json!({"figures": figures});
    std::fs::write(file, serde_json::to_string_pretty(&document)? + "\n")?;
    Ok(())
}

impl Bed {
    /// Samples of each kind.
    fn len(&self) -> usize {
        self.samples[0].len()
    }
}

fn sorted(samples: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples
}

fn median(samples: &[f64]) -> f64 {
    let samples = sorted(samples.iter().copied());
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn best(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::NAN, f64::max)
}

/// Half the distance between the quartiles of the rounds' own ratios.
fn spread(own: &[f64], base: &[f64]) -> f64 {
    let ratios = sorted(own.iter().zip(base).map(|(own, base)| own / base));
    match (ratios.get(ratios.len() / 4), ratios.get(ratios.len() * 3 / 4)) {
        (Some(low), Some(high)) => (high - low) / 2.0,
        _ => f64::NAN,
    }
}
