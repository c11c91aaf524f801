//! `cargo xtask bench veth`: what policy costs two pods of one node, over real veths: with no policy, with the agent, and
//! with the same policy in iptables and nftables. docs/performance.md says what each line is.
//!
//! Every configuration is a testbed of its own; all stand at once and take turns, so that what else the machine does
//! hits all of them. Clients, servers and so the kernel's work for them stay on one CPU: what is measured is the CPU time
//! that a transaction takes.

#![expect(clippy::print_stdout, reason = "the table is the answer")]

mod agent;
mod bed;
mod netfilter;
mod report;
mod traffic;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bed::{Bed, Means, Place};
use clap::Parser;
use traffic::Kind;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Transactions a second over veths, with and without policy.
#[derive(Parser)]
struct Arguments {
    /// Where the figures go as JSON
    #[arg(long, default_value = "target/bench-veth.json")]
    json: PathBuf,
    /// Samples of each configuration; medians are compared
    #[arg(long, default_value_t = 25)]
    rounds: u32,
    /// Milliseconds of one sample
    #[arg(long, default_value_t = 120)]
    sample: u64,
    /// A few short rounds, without 10,000 rules in a line
    #[arg(long)]
    quick: bool,
    /// Only configurations with this in their name, and those without policy
    #[arg(long, default_value = "")]
    only: String,
    /// Only configurations of at most this many rules
    #[arg(long, default_value_t = 10_000)]
    most: u32,
    /// No round begins later than this many seconds after the first
    #[arg(long, default_value_t = 360)]
    limit: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        arguments.rounds = arguments.rounds.min(7);
        arguments.sample = arguments.sample.min(60);
        arguments.limit = arguments.limit.min(60);
    }
    let cpu = traffic::last_cpu()?;
    let mut beds = Vec::new();
    for (place, means) in wanted(&arguments) {
        let begun = Instant::now();
        match Bed::new(place, means, cpu) {
            Ok(bed) => {
                eprintln!("{}: ready after {:.1} s", bed.name(), begun.elapsed().as_secs_f64());
                beds.push(bed);
            }
            // A kernel without ipset, say, still compares the others.
            Err(error) if !matches!(means, Means::Nothing | Means::Agent(_)) => {
                eprintln!("{}: left out: {error:#}", means.name());
            }
            Err(error) => return Err(format!("{}: {error:#}", means.name()).into()),
        }
    }
    let begun = Instant::now();
    let sample = Duration::from_millis(arguments.sample);
    for round in 0..arguments.rounds as usize {
        if begun.elapsed() > Duration::from_secs(arguments.limit) {
            eprintln!("the time is up after {round} rounds");
            break;
        }
        for kind in Kind::ALL {
            for turn in 0..beds.len() {
                // Another configuration begins each round: none always follows the same one.
                let at = (turn + round) % beds.len();
                let bed = &mut beds[at];
                bed.measure(kind, sample).map_err(|error| format!("{}, {}: {error}", bed.name(), kind.name()))?;
            }
        }
    }
    report::print(&beds, &arguments.json)
}

/// The configurations that were asked for, those without policy always among them.
fn wanted(arguments: &Arguments) -> Vec<(Place, Means)> {
    let mut wanted: Vec<(Place, Means)> = vec![(Place::OneNode, Means::Nothing)];
    let mut add = |place, means: Means| {
        let bearable = !(arguments.quick && means.is_linear() && means.rules() == 10_000);
        if bearable && means.rules() <= arguments.most && means.name().contains(&arguments.only) {
            wanted.push((place, means));
        }
    };
    add(Place::OneNode, Means::Conntrack);
    for rules in [1, 1_000, 10_000] {
        let means = [Means::Agent, Means::IptablesSets, Means::Iptables, Means::Nftables, Means::NftablesMaps];
        for means in means {
            add(Place::OneNode, means(rules));
        }
    }
    wanted.push((Place::OneNode, Means::Nothing));
    let nodes: Vec<Means> =
        [1, 10_000].into_iter().filter(|rules| *rules <= arguments.most).map(Means::Agent).collect();
    let nodes: Vec<Means> = nodes.into_iter().filter(|means| means.name().contains(&arguments.only)).collect();
    if !nodes.is_empty() {
        wanted.push((Place::TwoNodes, Means::Nothing));
        wanted.extend(nodes.into_iter().map(|means| (Place::TwoNodes, means)));
        wanted.push((Place::TwoNodes, Means::Nothing));
    }
    wanted
}
