//! `cargo xtask bench scale`: what a large cluster costs the agent of one node: a real API server with a hundred thousand
//! pods, and the real program, watching. docs/performance.md says what each line is.

#![expect(clippy::print_stdout, reason = "the table is the answer")]

mod agent;
mod api;
mod measure;
mod objects;
mod report;

use std::path::PathBuf;

use clap::Parser;
use objects::Size;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Time, memory and latency of an agent in a large cluster.
#[derive(Parser)]
struct Arguments {
    /// Where the figures go as JSON
    #[arg(long, default_value = "target/bench-scale.json")]
    json: PathBuf,
    /// The folder with kube-apiserver and etcd
    #[arg(long, env = "PORTCULLIS_API_SERVER")]
    binaries: PathBuf,
    /// One cluster of so many pods, instead of one of 10,000 and one of 100,000
    #[arg(long)]
    pods: Option<u32>,
    /// Policies of that cluster, a tenth of its pods if not given
    #[arg(long)]
    policies: Option<u32>,
    /// Its nodes, a twentieth of its pods if not given
    #[arg(long)]
    nodes: Option<u32>,
    /// Pods of the node under test, which have veths
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=250))]
    local: u32,
    /// Changes of each kind, of which each is waited for
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// Seconds for which pods come and go
    #[arg(long, default_value_t = 60)]
    churn: u64,
    /// Keep what etcd holds of a written cluster in this folder, and take it from there the next time
    #[arg(long)]
    keep: Option<PathBuf>,
    /// The smaller cluster alone, and fewer changes
    #[arg(long)]
    quick: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn sizes(&self) -> Vec<Size> {
        let size = |pods: u32| Size {
            pods,
            policies: self.policies.unwrap_or(pods / 10),
            nodes: self.nodes.unwrap_or(pods / 20),
            local: self.local.min(pods),
        };
        match self.pods {
            Some(pods) => vec![size(pods)],
            None if self.quick => vec![size(10_000)],
            None => vec![size(10_000), size(100_000)],
        }
    }
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        arguments.changes = arguments.changes.min(20);
        arguments.churn = arguments.churn.min(10);
    }
    let mut all = Vec::new();
    for size in arguments.sizes() {
        eprintln!("{} pods, {} policies, {} nodes", size.pods, size.policies, size.nodes);
        all.push(measure::run(size, &arguments, &arguments.binaries)?);
        report::print(&all[all.len() - 1..], &arguments.json)?;
    }
    report::print(&all, &arguments.json)
}
