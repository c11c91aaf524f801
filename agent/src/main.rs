//! The `portcullis` command.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portcullis::cli::run::{RunArgs, StatusArgs, UninstallArgs};
use portcullis::cli::{self, ExplainArgs, MatrixArgs};
use portcullis::index::Cluster;
use portcullis::manifests::{self, Severity};
use portcullis::{app, dataplane};

/// Network policy for Kubernetes pods, enforced by BPF programs on their host veths.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<RunArgs>),
    Status(StatusArgs),
    Uninstall(UninstallArgs),
    Matrix(MatrixArgs),
    Explain(ExplainArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            drop(error.print());
            return ExitCode::from(if failed { cli::FAILED } else { cli::ANSWERED });
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false).init();
    match cli.command {
        Command::Run(args) => run(*args),
        Command::Status(args) => portcullis::app::status(&args),
        Command::Uninstall(args) => uninstall(&args),
        Command::Matrix(args) => match load(&args.manifests) {
            Some((cluster, refused)) => cli::matrix(&args, &cluster, refused),
            None => ExitCode::from(cli::FAILED),
        },
        Command::Explain(args) => match load(&args.manifests) {
            Some((cluster, refused)) => cli::explain(&args, &cluster, refused),
            None => ExitCode::from(cli::FAILED),
        },
    }
}

fn run(args: RunArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(app::run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn uninstall(args: &UninstallArgs) -> ExitCode {
    match dataplane::uninstall(&args.pin_dir) {
        Ok(removed) => {
            let text = format!("removed {} links and {} maps\n", removed.links, removed.maps);
            drop(io::stdout().write_all(text.as_bytes()));
            if args.stay { stay() } else { ExitCode::SUCCESS }
        }
        Err(error) => fail(&error),
    }
}

/// Does nothing until SIGTERM or SIGINT. The first process of a container gets neither unless it asks for them.
fn stay() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(app::told_to_end()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// What a folder holds, and how many of its objects were refused.
fn load(folder: &Path) -> Option<(Cluster, usize)> {
    match manifests::load(folder) {
        Ok(loaded) => {
            for problem in &loaded.problems {
                match problem.severity {
                    Severity::Error => tracing::error!("{problem}"),
                    Severity::Warning => tracing::warn!("{problem}"),
                }
            }
            let refused = loaded.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
            Some((loaded.cluster, refused))
        }
        Err(error) => {
            tracing::error!("{error}");
            None
        }
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::from(cli::FAILED)
}
