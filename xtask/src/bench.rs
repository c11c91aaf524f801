//! `cargo xtask bench`: what policy costs, per packet and over real veths.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::workspace::{self, Metadata};
use crate::{apt, build_ebpf, live, process};

/// What may be asked of the benchmarks.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure: single packets in the kernel's test runs, connections over veths, or both
    #[arg(value_enum, default_value_t)]
    section: Section,
    /// Two minutes instead of ten: fewer rounds
    #[arg(long)]
    quick: bool,
    /// Where the figures go as JSON; target/bench.json otherwise
    #[arg(long)]
    json: Option<PathBuf>,
    /// Samples of each case
    #[arg(long)]
    rounds: Option<u32>,
    /// Only cases with this in their name
    #[arg(long)]
    only: Option<String>,
}

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Nanoseconds of the programs per packet
    Packets,
    /// Requests, connections and bytes a second between pods
    Veth,
    /// Both
    #[default]
    All,
}

impl Section {
    /// The targets, and their names in the figures.
    const fn targets(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Packets => &[("packet", "packets")],
            Self::Veth => &[("veth", "veth")],
            Self::All => &[("packet", "packets"), ("veth", "veth")],
        }
    }
}

/// Runs the benchmarks: as root, since they load programs and make network namespaces. No packet leaves those.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    build_ebpf::run()?;
    let target = Metadata::read()?.target_directory()?;
    let json = match &arguments.json {
        Some(path) => env::current_dir().context("no current directory")?.join(path),
        None => target.join("bench.json"),
    };
    if arguments.section != Section::Packets {
        live::ensure_tools()?;
        // Without it, iptables with sets is left out, which is told.
        if let Err(error) = apt::ensure(&["ipset"], "comparing with iptables and ipset") {
            eprintln!("warning: {error:#}");
        }
    }
    let mut figures = Map::new();
    for (bench, name) in arguments.section.targets() {
        let part = target.join(format!("bench-{name}.json"));
        process::run(&mut command(bench, arguments, &part))?;
        let text = fs::read_to_string(&part).with_context(|| format!("{}: cannot be read", part.display()))?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{}: is no JSON", part.display()))?;
        figures.insert((*name).to_owned(), value);
        // Its content is in the one file.
        let _ = fs::remove_file(&part);
    }
    let text = serde_json::to_string_pretty(&Value::Object(figures))? + "\n";
    fs::write(&json, text).with_context(|| format!("{}: cannot be written", json.display()))?;
    eprintln!("{}: written", json.display());
    Ok(())
}

fn command(bench: &str, arguments: &Arguments, json: &Path) -> Command {
    let mut command = workspace::cargo();
    command.args(["bench", "--quiet", "--package", "portcullis", "--features", "live", "--bench", bench, "--"]);
    command.arg("--json").arg(json);
    if let Some(rounds) = arguments.rounds {
        command.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(only) = &arguments.only {
        command.arg("--only").arg(only);
    }
    if arguments.quick {
        command.arg("--quick");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_reaches_the_benchmark() {
        let arguments =
            Arguments { section: Section::Veth, quick: true, json: None, rounds: Some(3), only: Some("agent".into()) };
        let text = format!("{:?}", command("veth", &arguments, Path::new("figures.json")));
        for expected in
            ["\"--bench\" \"veth\"", "\"--rounds\" \"3\"", "\"--only\" \"agent\"", "\"--quick\"", "figures.json"]
        {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        let targets = |section: Section| section.targets().iter().map(|(target, _)| *target).collect::<Vec<_>>();
        assert_eq!(targets(Section::All), ["packet", "veth"]);
        assert_eq!(targets(Section::Packets), ["packet"]);
    }
}
