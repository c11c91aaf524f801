//! What a person reads: headings, checks and tables on stdout, in colour at a terminal only.

use anstream::println;
use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};

use super::counters::Counter;
use super::traffic::{Answer, Expected};

const HEADING: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const QUIET: Style = Style::new().dimmed();

/// The report so far: what was checked, and how much of it was not as expected.
#[derive(Debug, Default)]
pub(super) struct Report {
    checks: usize,
    failures: usize,
}

/// One question of a test, as it is shown.
pub(super) struct Row {
    pub(super) what: String,
    pub(super) expected: Expected,
    pub(super) answer: Answer,
}

impl Report {
    pub(super) fn heading(&self, text: &str) {
        println!("\n{HEADING}{text}{HEADING:#}");
    }

    pub(super) fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// Something to read that is longer than a line, such as an explanation or a log.
    pub(super) fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("  {line}");
        }
    }

    /// The questions of a test, in a table.
    pub(super) fn rows(&mut self, rows: &[Row]) {
        let width = |length: fn(&Row) -> usize| rows.iter().map(length).max().unwrap_or(0);
        let (what, expected) = (width(|row| row.what.len()), width(|row| row.expected.to_string().len()));
        for row in rows {
            let verdict = self.verdict(row.expected.is_met_by(&row.answer));
            println!(
                "  {verdict}  {:what$}  expected: {:expected$}  happened: {}",
                row.what,
                row.expected.to_string(),
                row.answer
            );
        }
    }

    /// One check beside the tests.
    pub(super) fn check(&mut self, as_expected: bool, text: &str) {
        println!("  {}  {text}", self.verdict(as_expected));
    }

    fn verdict(&mut self, as_expected: bool) -> String {
        self.checks += 1;
        let (style, word) = if as_expected { (GOOD, "ok    ") } else { (BAD, "FAILED") };
        self.failures += usize::from(!as_expected);
        format!("{style}{word}{style:#}")
    }

    /// The counters of each node's agent.
    pub(super) fn counters(&self, counters: &[(String, Counter)]) {
        if counters.is_empty() {
            self.say("(there are no counters)");
            return;
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["node", "policy", "direction", "rule", "verdict", "packets"]);
        for (node, counter) in counters {
            let packets = counter.packets.to_string();
            table.add_row([node, &counter.policy, &counter.direction, &counter.rule, &counter.verdict, &packets]);
        }
        if let Some(column) = table.column_mut(5) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for line in table.to_string().lines() {
            println!(" {}", line.trim_end());
        }
    }

    pub(super) fn has_failures(&self) -> bool {
        self.failures > 0
    }

    /// Something of less weight.
    pub(super) fn aside(&self, text: &str) {
        println!("  {QUIET}{text}{QUIET:#}");
    }

    /// The last line; returns whether everything was as expected.
    pub(super) fn conclude(&self, seconds: f64) -> bool {
        let (style, text) = match self.failures {
            0 => (GOOD, format!("all {} checks ok", self.checks)),
            failures => (BAD, format!("{failures} of {} checks FAILED", self.checks)),
        };
        println!("\n{style}{text}{style:#}, in {seconds:.0} s");
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_spoils_the_whole() {
        let mut report = Report::default();
        let row = |expected, answer| Row { what: "a to b".into(), expected, answer };
        report.rows(&[row(Expected::Timeout, Answer::Timeout), row(Expected::Answer, Answer::Answered(String::new()))]);
        report.check(true, "a check");
        assert!(report.conclude(1.0), "everything was as expected");
        report.rows(&[row(Expected::Timeout, Answer::Refused)]);
        assert!(!report.conclude(1.0), "a closed port is not what was expected");
        assert_eq!((report.checks, report.failures), (4, 1));
    }
}
