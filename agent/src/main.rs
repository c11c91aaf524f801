//! The `portcullis` command.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use portcullis::cli::command_line::{self, Command, CommandLineError, Invocation};
use portcullis::cli::run::{RunArgs, UninstallArgs, UnreadyNodes};
use portcullis::cli::{self, generate};
use portcullis::k8s::Patience;
use portcullis::logging::{self, Control};
use portcullis::model::Name;
use portcullis::{app, dataplane};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match command_line::parse(&arguments, &std::env::vars_os().collect()) {
        Ok(invocation) => act(invocation),
        Err(CommandLineError::Usage(error)) => {
            let failed = error.use_stderr();
            drop(error.print());
            ExitCode::from(if failed { cli::FAILED } else { cli::ANSWERED })
        }
        // Nobody has said yet how to log.
        Err(CommandLineError::Settings(error)) => {
            drop(writeln!(io::stderr(), "error: {error}"));
            ExitCode::from(cli::FAILED)
        }
    }
}

fn act(Invocation { cli, effective, warnings }: Invocation) -> ExitCode {
    let serves = matches!(cli.command, Command::Run(_));
    let log = logging::start(&cli.common.log_level, cli.common.log_format.form(serves, logging::is_watched()));
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    match cli.command {
        Command::Run(args) if args.print_config => print(|out| effective.write(out)),
        Command::Run(args) => run(*args, log),
        Command::Status(args) => app::status(&args),
        Command::Uninstall(args) => uninstall(&args),
        Command::Matrix(args) => app::matrix(&args),
        Command::Explain(args) => app::explain(&args),
        Command::LogLevel(args) => app::log_level(&args),
        Command::Completions(args) => print(|out| generate::write_completions(&args, out)),
        Command::Man(args) => print(|out| generate::write_manual(&args, out)),
    }
}

fn run(args: RunArgs, log: Control) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(app::run(args, log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn uninstall(args: &UninstallArgs) -> ExitCode {
    if let Some(daemon_set) = &args.daemon_set {
        let limit = Duration::from_secs(args.timeout.into());
        let leave_unready = args.unready_nodes == UnreadyNodes::Leave;
        return uninstall_everywhere(daemon_set, Patience { limit, leave_unready });
    }
    match dataplane::uninstall(&args.pin_dir) {
        Ok(removed) => {
            let said = print(|out| writeln!(out, "removed {} links and {} maps", removed.links, removed.maps));
            if args.stay { stay() } else { said }
        }
        Err(error) => fail(&error),
    }
}

/// Writes to stdout. Whoever reads it may have read enough.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> ExitCode {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error),
        _ => ExitCode::SUCCESS,
    }
}

fn uninstall_everywhere(daemon_set: &Name, patience: Patience) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(app::uninstall_everywhere(daemon_set, patience)) {
        Ok(cleaned) => {
            for left in &cleaned.left {
                tracing::warn!(node = left.node, "left as it is, and enforcing should it come back: {}", left.because);
            }
            if !cleaned.tainted.is_empty() {
                tracing::warn!(
                    nodes = cleaned.tainted.join(", "),
                    "no pod comes to these nodes any more, since no agent takes away the taint portcullis.io/agent-not-ready: \
                     end that new nodes get it (AKS: `az aks update --node-init-taints \"\"`), then `kubectl taint nodes --all \
                     portcullis.io/agent-not-ready-`"
                );
            }
            print(|out| writeln!(out, "{} nodes are clean", cleaned.nodes))
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

fn fail(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::from(cli::FAILED)
}
