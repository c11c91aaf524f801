//! What guests say on their consoles, and the table of it.

use std::time::Duration;

use comfy_table::{Table, presets};

use super::parts;

/// What became of one guest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Guest {
    pub(crate) series: &'static str,
    /// The parts that were to run.
    pub(crate) expected: Vec<&'static str>,
    /// `uname -r`, if it came so far.
    pub(crate) release: Option<String>,
    /// Parts that ended, in their order.
    pub(crate) parts: Vec<Ended>,
    /// Whether it came to the end.
    pub(crate) finished: bool,
    pub(crate) took: Duration,
    /// What it printed besides.
    pub(crate) output: String,
}

/// A part that ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) name: String,
    pub(crate) passed: bool,
    pub(crate) seconds: f64,
}

/// Reads a console: lines of ours begin with `@@`, all others are output.
pub(crate) fn read(series: &'static str, expected: Vec<&'static str>, said: &str, took: Duration) -> Guest {
    let (release, output) = (None, String::new());
    let mut guest = Guest { series, expected, release, parts: Vec::new(), finished: false, took, output };
    for line in said.lines() {
        let Some((_, ours)) = line.split_once("@@ ") else {
            guest.output.push_str(line.trim_end());
            guest.output.push('\n');
            continue;
        };
        match ours.split_whitespace().collect::<Vec<_>>()[..] {
            ["kernel", release, ..] => guest.release = Some(release.to_owned()),
            ["part", name, status, start, end] => {
                let number = |text: &str| text.parse::<f64>().unwrap_or(0.0);
                let seconds = number(end) - number(start);
                guest.parts.push(Ended { name: name.replace('_', " "), passed: status == "0", seconds });
            }
            ["end", ..] => guest.finished = true,
            _ => {}
        }
    }
    guest
}

/// What is printed as soon as a guest has ended.
pub(crate) fn summary(guest: &Guest) -> String {
    let release = guest.release.as_deref().unwrap_or("did not start");
    let facts: Vec<&str> =
        guest.output.lines().filter(|line| line.contains("verified ") || line.contains("attached ")).collect();
    let shown = if failure(guest).is_some() { guest.output.clone() } else { facts.join("\n") };
    let shown: Vec<String> = shown.lines().map(|line| format!("    {line}")).collect();
    format!("  kernel {} ({release}), {:.0} s\n{}", guest.series, guest.took.as_secs_f64(), shown.join("\n"))
}

fn failure(guest: &Guest) -> Option<String> {
    let failed: Vec<&str> = guest.parts.iter().filter(|part| !part.passed).map(|part| part.name.as_str()).collect();
    if !failed.is_empty() {
        return Some(format!("kernel {}: {} failed", guest.series, failed.join(", ")));
    }
    if guest.finished && guest.parts.len() == guest.expected.len() {
        return None;
    }
    let next = guest.expected.get(guest.parts.len()).unwrap_or(&"its end");
    Some(format!("kernel {}: it did not come past `{next}`", guest.series))
}

/// One line for each guest that failed.
pub(crate) fn failures(guests: &[Guest]) -> Vec<String> {
    guests.iter().filter_map(failure).collect()
}

/// Kernels by parts, in seconds.
pub(crate) fn table(guests: &[Guest]) -> Table {
    let mut table = Table::new();
    let is_shown = |name: &&str| guests.iter().any(|guest| guest.expected.contains(name));
    let names: Vec<&str> = parts::names().filter(is_shown).collect();
    table
        .load_style(presets::NOTHING)
        .set_header(["kernel"].into_iter().chain(names.iter().copied()).chain(["in all"]));
    for guest in guests {
        let cells = names.iter().map(|name| match guest.parts.iter().find(|part| part.name == *name) {
            None => "-".to_owned(),
            Some(part) if part.passed => format!("{:.0} s", part.seconds),
            Some(part) => format!("FAILED {:.0} s", part.seconds),
        });
        let name = guest.release.clone().unwrap_or_else(|| guest.series.to_owned());
        table.add_row([name].into_iter().chain(cells).chain([format!("{:.0} s", guest.took.as_secs_f64())]));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [&str; 2] = ["load", "two words"];

    fn console(status: u32, end: bool) -> String {
        let mut said = "SeaBIOS\r\n\u{1b}[2J@@ kernel 5.10.0-46 4.00\r\nverified 5.10 from_pod 24933\r\n".to_owned();
        for part in PARTS {
            said.push_str(&format!("@@ part {} {status} 4.00 9.50\r\n", part.replace(' ', "_")));
        }
        if end {
            said.push_str("@@ end 9.60\r\n");
        }
        said
    }

    #[test]
    fn only_a_guest_whose_parts_all_passed_and_that_ended_has_passed() {
        let took = Duration::from_secs(10);
        let whole = read("5.10", PARTS.to_vec(), &console(0, true), took);
        assert_eq!((whole.release.as_deref(), whole.parts.len()), (Some("5.10.0-46"), PARTS.len()));
        assert_eq!(whole.parts[1].name, PARTS[1]);
        assert_eq!(whole.parts[0].seconds, 5.5);
        assert!(summary(&whole).contains("from_pod 24933"), "{}", summary(&whole));
        let cut = console(0, true).lines().take(4).collect::<Vec<_>>().join("\n");
        let rows = [
            (console(0, true), None, "all passed"),
            (console(1, true), Some(PARTS[0]), "parts failed"),
            (console(0, false), Some("its end"), "it stopped before its end"),
            (cut, Some(PARTS[1]), "it stopped after the first part"),
            (String::new(), Some(PARTS[0]), "it said nothing"),
        ];
        for (said, expected, message) in rows {
            let failures = failures(&[read("5.10", PARTS.to_vec(), &said, took)]);
            match expected {
                None => assert!(failures.is_empty(), "{message}: {failures:?}"),
                Some(expected) => assert!(failures.concat().contains(expected), "{message}: {failures:?}"),
            }
        }
    }
}
