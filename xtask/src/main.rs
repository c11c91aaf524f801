//! The project's own commands. `cargo xtask --help` lists them; each has its file here.

mod apt;
mod bench;
mod build_ebpf;
mod demo;
mod process;
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
    /// Show network policy at work on real packets
    Demo,
    /// Measure what the programs cost per packet
    Bench,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::BuildEbpf => build_ebpf::run(),
        Task::Demo => demo::run(),
        Task::Bench => bench::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
