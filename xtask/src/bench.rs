//! `cargo xtask bench`: what policy costs, per packet, over real veths, and in a large cluster.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::workspace::{self, Metadata};
use crate::{apt, build_ebpf, cluster, live, process};

/// What may be asked of the benchmarks.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure: single packets in the kernel's test runs, connections over veths, or both; or an agent in a large cluster
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
    #[command(flatten)]
    scale: Scale,
}

/// What `scale` may be told besides.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Options of `scale`")]
struct Scale {
    /// One cluster of so many pods, instead of one of 10,000 and one of 100,000
    #[arg(long)]
    pods: Option<u32>,
    /// Policies of that cluster; a tenth of its pods if not given
    #[arg(long)]
    policies: Option<u32>,
    /// Its nodes; a twentieth of its pods if not given
    #[arg(long)]
    nodes: Option<u32>,
    /// Pods of the node under test, at most 250, which have veths
    #[arg(long)]
    local: Option<u32>,
    /// Keep what was written in this folder, and take it from there the next time
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

impl Scale {
    /// As the benchmark takes them.
    fn options(&self) -> Vec<(&'static str, String)> {
        let numbers =
            [("--pods", self.pods), ("--policies", self.policies), ("--nodes", self.nodes), ("--local", self.local)];
        let mut options: Vec<_> =
            numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string()))).collect();
        options.extend(self.keep.as_ref().map(|keep| ("--keep", keep.display().to_string())));
        options
    }
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
    /// Time, memory and latency of an agent that watches a cluster of 100,000 pods on a real API server
    Scale,
}

impl Section {
    /// The targets, and their names in the figures.
    const fn targets(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Packets => &[("packet", "packets")],
            Self::Veth => &[("veth", "veth")],
            Self::All => &[("packet", "packets"), ("veth", "veth")],
            Self::Scale => &[("scale", "scale")],
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
    let mut binaries = None;
    if arguments.section == Section::Scale {
        live::ensure_tools()?;
        let cache = env::var_os(cluster::binaries::CACHE_VARIABLE).map(PathBuf::from);
        binaries = Some(cluster::binaries::ensure(cache.as_deref(), true)?);
    } else if arguments.section != Section::Packets {
        live::ensure_tools()?;
        // Without it, iptables with sets is left out, which is told.
        if let Err(error) = apt::ensure(&["ipset"], "comparing with iptables and ipset") {
            eprintln!("warning: {error:#}");
        }
    }
    let mut figures = Map::new();
    for (bench, name) in arguments.section.targets() {
        let part = target.join(format!("bench-{name}.json"));
        let mut command = command(bench, arguments, &part);
        if let Some(binaries) = &binaries {
            command.arg("--binaries").arg(binaries);
            for (name, value) in arguments.scale.options() {
                command.arg(name).arg(value);
            }
        }
        process::run(&mut command)?;
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
        let arguments = Arguments {
            section: Section::Veth,
            quick: true,
            json: None,
            rounds: Some(3),
            only: Some("agent".into()),
            scale: Scale::default(),
        };
        let text = format!("{:?}", command("veth", &arguments, Path::new("figures.json")));
        for expected in
            ["\"--bench\" \"veth\"", "\"--rounds\" \"3\"", "\"--only\" \"agent\"", "\"--quick\"", "figures.json"]
        {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        let targets = |section: Section| section.targets().iter().map(|(target, _)| *target).collect::<Vec<_>>();
        assert_eq!(targets(Section::All), ["packet", "veth"]);
        assert_eq!(targets(Section::Packets), ["packet"]);
        assert_eq!(targets(Section::Scale), ["scale"], "which takes minutes, and is asked for by its name");
        let scale = Scale { pods: Some(5), local: Some(2), keep: Some("kept".into()), ..Scale::default() };
        let expected = [("--pods", "5"), ("--local", "2"), ("--keep", "kept")];
        assert_eq!(scale.options(), expected.map(|(name, value)| (name, value.to_owned())));
    }
}
