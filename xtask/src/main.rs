//! The project's own commands. `cargo xtask --help` lists them; each has its file here.

mod apt;
mod bench;
mod build_ebpf;
mod cluster;
mod demo;
mod deny;
mod deploy;
mod fuzz;
mod go;
mod image;
mod kernels;
mod live;
mod process;
mod stages;
mod test;
mod walls;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF programs into target/portcullis-ebpf.o, installing what is missing for that
    BuildEbpf,
    /// Run every check and test there is, with their set-up
    #[command(alias = "ci")]
    Test(test::Arguments),
    /// Check that each room of the agent knows only what it may know
    Walls,
    /// Check licences, sources, versions and advisories of the dependencies
    Deny,
    /// Render, lint and compare what `deploy/` holds
    Deploy(deploy::Arguments),
    /// Show network policy at work on real packets
    Demo(demo::Arguments),
    /// Search for inputs that break the parser or the decision
    Fuzz(fuzz::Arguments),
    /// Measure what policy costs: per packet, and between pods
    Bench(bench::Arguments),
    /// Write the agent as a container image
    Image(image::Arguments),
    /// A real Kubernetes cluster on this machine
    Cluster(cluster::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::BuildEbpf => build_ebpf::run(),
        Task::Test(arguments) => test::run(&arguments),
        Task::Walls => walls::run(),
        Task::Deny => deny::run().map(|_| ()),
        Task::Deploy(arguments) => deploy::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Cluster(arguments) => cluster::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
