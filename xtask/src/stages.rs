//! A run of named stages, each with a time budget, and the table that it ends with.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};

/// One step of a run.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    /// What the stage may take on a cold machine of two cores. A stage past it is marked, one past twice of it ended.
    pub(crate) budget: Duration,
    pub(crate) run: fn(limit: Duration) -> Result<Outcome>,
}

/// How a stage ended, unless it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// Passed what could be done; the text says what could not, and why.
    PassedExcept(String),
}

struct Row {
    name: &'static str,
    budget: Duration,
    took: Option<Duration>,
    verdict: String,
}

/// Runs the stages in order up to the first that fails, then prints the table, whatever happened.
pub(crate) fn run(stages: &[Stage]) -> Result<()> {
    let started = Instant::now();
    let mut rows = Vec::with_capacity(stages.len());
    let mut failure = None;
    for (number, stage) in (1_usize..).zip(stages) {
        if failure.is_some() {
            rows.push(Row { name: stage.name, budget: stage.budget, took: None, verdict: "not run".into() });
            continue;
        }
        eprintln!("\n== stage {number} of {}: {}", stages.len(), stage.name);
        let begun = Instant::now();
        let result = (stage.run)(stage.budget * 2);
        let took = begun.elapsed();
        let late = if took > stage.budget { ", over its budget" } else { "" };
        let verdict = match result {
            Ok(Outcome::Passed) => format!("passed{late}"),
            Ok(Outcome::PassedExcept(what)) => format!("passed{late}; {what}"),
            Err(error) => {
                eprintln!("== stage {number}, {}, failed: {error:#}", stage.name);
                failure = Some(stage.name);
                format!("FAILED{late}")
            }
        };
        rows.push(Row { name: stage.name, budget: stage.budget, took: Some(took), verdict });
    }
    eprintln!("\n{}", table(&rows));
    eprintln!("in all {}", seconds(started.elapsed()));
    match failure {
        Some(name) => bail!("stage `{name}` failed; its output is above the table"),
        None => Ok(()),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["stage", "time", "budget", "result"]);
    for row in rows {
        let took = row.took.map_or_else(|| "-".to_owned(), seconds);
        table.add_row([row.name, &took, &seconds(row.budget), &row.verdict]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &'static str, run: fn(Duration) -> Result<Outcome>) -> Stage {
        Stage { name, budget: Duration::from_secs(60), run }
    }

    #[test]
    fn the_first_failure_ends_the_run_and_is_named() {
        assert!(run(&[stage("one", |_| Ok(Outcome::Passed))]).is_ok());
        let stages = [
            stage("one", |_| Ok(Outcome::PassedExcept("something".into()))),
            stage("two", |_| bail!("broken")),
            stage("three", |_| panic!("a stage after the failure runs")),
        ];
        let error = run(&stages).expect_err("the second stage fails");
        assert!(error.to_string().contains("`two`"), "{error}");
    }

    #[test]
    fn the_table_names_every_stage() {
        let took = Some(Duration::from_millis(1_250));
        let rows = [
            Row { name: "quick", budget: Duration::from_secs(60), took, verdict: "passed".into() },
            Row { name: "never", budget: Duration::from_secs(5), took: None, verdict: "not run".into() },
        ];
        let text = table(&rows).to_string();
        for expected in ["quick", "1.2 s", "60.0 s", "passed", "never", "not run"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
