//! The commands that ask: an agent over its socket, a folder of manifests or a cluster.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::run::{LogLevelArgs, StatusArgs, StatusOutput};
use crate::cli::{self, ExplainArgs, MatrixArgs, Source, SourceArgs};
use crate::dataplane::{self, DataplaneError};
use crate::index::Cluster;
use crate::k8s;
use crate::manifests::{self, ManifestError, Severity};
use crate::server::{self, FetchError};
use crate::status::ClusterStatus;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum QuestionError {
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error(transparent)]
    Agent(#[from] FetchError),
    #[error("{0}; without an agent, --manifests DIR answers for a folder and --kubeconfig FILE for a cluster")]
    NoAgent(FetchError),
    #[error(transparent)]
    Cluster(#[from] k8s::Error),
    #[error("cannot ask: {0}")]
    Form(#[from] serde_json::Error),
    #[error("cannot wait for an answer: {0}")]
    Runtime(io::Error),
    #[error("cannot write the answer: {0}")]
    Output(io::Error),
}

/// `portcullis status`.
#[must_use]
pub fn status(args: &StatusArgs) -> ExitCode {
    if args.plugin || args.kubeconfig.is_some() || args.context.is_some() {
        return exit(cluster_status(args));
    }
    let status = agent(&args.pin_dir, server::fetch_status(&args.socket));
    exit(status.and_then(|status| {
        let now = jiff::Timestamp::now();
        print(|out| match args.output {
            StatusOutput::Text => cli::write_text(&status, now, out),
            StatusOutput::Json => cli::write_json(&status, out),
        })
    }))
}

/// The agents of a cluster.
fn cluster_status(args: &StatusArgs) -> Result<(), QuestionError> {
    let settings = cluster(args.kubeconfig.as_ref(), args.context.as_ref());
    let status = runtime()?.block_on(async {
        let connection = k8s::connect(&settings).await?;
        Ok::<_, k8s::Error>(ClusterStatus { nodes: k8s::agents(&connection).await?, server: connection.server })
    })?;
    let now = jiff::Timestamp::now();
    print(|out| match args.output {
        StatusOutput::Text => cli::write_cluster(&status, now, out),
        StatusOutput::Json => cli::write_json(&status, out),
    })
}

/// `portcullis log-level`.
#[must_use]
pub fn log_level(args: &LogLevelArgs) -> ExitCode {
    let to = args.filter.as_ref().map(ToString::to_string);
    let now = agent(&args.pin_dir, server::log_level(&args.socket, to));
    exit(now.and_then(|filter| print(|out| writeln!(out, "{filter}"))))
}

/// `portcullis explain`.
#[must_use]
pub fn explain(args: &ExplainArgs) -> ExitCode {
    let question = || cli::Question::Explain(args.clone());
    answer(&args.source, question, |cluster, refused| cli::explain(args, cluster, refused))
}

/// `portcullis matrix`.
#[must_use]
pub fn matrix(args: &MatrixArgs) -> ExitCode {
    let question = || cli::Question::Matrix(args.clone());
    answer(&args.source, question, |cluster, refused| cli::matrix(args, cluster, refused))
}

/// From the agent, or by own work on objects from elsewhere.
fn answer(
    from: &SourceArgs,
    question: impl FnOnce() -> cli::Question,
    work: impl FnOnce(&Cluster, usize) -> ExitCode,
) -> ExitCode {
    let answered = match from.source() {
        Source::Manifests(folder) => load(folder).map(|(cluster, refused)| work(&cluster, refused)),
        Source::Cluster => list(from).map(|(cluster, refused)| work(&cluster, refused)),
        Source::Agent => ask(from, &question()),
    };
    answered.unwrap_or_else(|error| exit(Err(error)))
}

fn ask(from: &SourceArgs, question: &cli::Question) -> Result<ExitCode, QuestionError> {
    let question = serde_json::to_string(question)?;
    let told = agent(&from.pin_dir, server::ask_cluster(&from.socket, question));
    match told {
        Ok(told) => Ok(cli::repeat(&told)),
        Err(QuestionError::Agent(error @ FetchError::NoAgent { .. })) => Err(QuestionError::NoAgent(error)),
        Err(error) => Err(error),
    }
}

/// What a folder holds, and how many of its objects were refused.
fn load(folder: &Path) -> Result<(Cluster, usize), QuestionError> {
    let loaded = manifests::load(folder)?;
    for problem in &loaded.problems {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    let refused = loaded.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    Ok((loaded.cluster, refused))
}

/// What a cluster's API server has, and how many of its objects were refused.
fn list(from: &SourceArgs) -> Result<(Cluster, usize), QuestionError> {
    let settings = cluster(from.kubeconfig.as_ref(), from.context.as_ref());
    let loaded = runtime()?.block_on(async { k8s::load(&k8s::connect(&settings).await?).await })?;
    let mut refused = 0;
    for problem in &loaded.problems {
        match problem.severity {
            k8s::Severity::Error => {
                refused += 1;
                tracing::error!("{problem}");
            }
            k8s::Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    Ok((loaded.cluster, refused))
}

/// Which cluster is asked about.
fn cluster(kubeconfig: Option<&PathBuf>, context: Option<&String>) -> k8s::Settings {
    let kubeconfig = kubeconfig.cloned().or_else(usual_kubeconfig);
    k8s::Settings { kubeconfig, context: context.cloned(), node: None }
}

/// Where kubectl looks when KUBECONFIG names nothing.
fn usual_kubeconfig() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|names| !names.is_empty());
    let usual = PathBuf::from(std::env::var_os("HOME")?).join(".kube/config");
    (!named && usual.exists()).then_some(usual)
}

/// Waits for an agent's answer, if the agent is of this network namespace.
fn agent<T>(pin_dir: &Path, asked: impl Future<Output = Result<T, FetchError>>) -> Result<T, QuestionError> {
    dataplane::check_owner(pin_dir)?;
    Ok(runtime()?.block_on(asked)?)
}

fn runtime() -> Result<tokio::runtime::Runtime, QuestionError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(QuestionError::Runtime)
}

/// Writes to stdout. Whoever reads it may have read enough.
fn print(write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) -> Result<(), QuestionError> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(QuestionError::Output(error)),
        _ => Ok(()),
    }
}

fn exit(outcome: Result<(), QuestionError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(cli::FAILED)
        }
    }
}
