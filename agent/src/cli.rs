//! The answers of the command line: what `matrix` and `explain` print.
//!
//! Both take a cluster that a source has read and the number of objects that it refused. They print their answer, and
//! nothing else, on stdout; what goes wrong goes to the log. Neither needs root, BPF or a cluster.

mod arguments;
pub mod command_line;
#[cfg(test)]
pub(crate) mod documents;
mod engine;
mod explain;
pub mod generate;
mod listen;
mod matrix;
mod question;
pub mod run;
mod settings;
mod side;
mod status;
mod words;

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::process::ExitCode;

pub use arguments::{
    Asked, EngineName, ExplainArgs, ExplainOutput, MatrixArgs, MatrixOutput, PartyName, Source, SourceArgs,
};
pub use engine::{Engine, EvaluatorEngine, TablesEngine};
pub use question::{Question, told};
pub use settings::{CONFIG, Effective, Environment, Origin, SettingsError};
pub use status::{write_cluster, write_json, write_text};

use crate::index::Cluster;
use crate::model::{PodKey, ServiceKey};
use crate::status::Told;

/// Every object was understood and the question answered.
pub const ANSWERED: u8 = 0;
/// No answer.
pub const FAILED: u8 = 1;
/// The question was answered, without some object that was refused: the answer may not hold.
pub const ANSWERED_IN_PART: u8 = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Stdout cannot be written to.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    /// A pod is asked about that is not there.
    #[error("there is no pod {pod} in the cluster; {hint}")]
    UnknownPod {
        /// The pod.
        pod: PodKey,
        /// What there is instead.
        hint: String,
    },
    /// A pod is asked about that has ended.
    #[error("pod {0} has finished: it neither sends nor receives, and its address may be another pod's by now")]
    FinishedPod(PodKey),
    /// Neither side is a pod.
    #[error("neither {from} nor {to} is a pod of the cluster: policy is about pods, so there is nothing to judge")]
    NoPod {
        /// The source.
        from: String,
        /// The destination.
        to: String,
    },
    /// The two sides cannot talk.
    #[error("{from} and {to} have no address of the same family (IPv4, IPv6), so they cannot talk")]
    NoCommonFamily {
        /// The source.
        from: String,
        /// The destination.
        to: String,
    },
    /// The destination is a Service.
    #[error(
        "{address} is an address of Service {service}, and policy judges a connection to a Service on the backend that it \
         is sent on to: ask about that pod and its own port ({backends})"
    )]
    Service {
        /// The address that was asked about.
        address: IpAddr,
        /// Whose it is.
        service: ServiceKey,
        /// Where it may lead, in words.
        backends: String,
    },
    /// A namespace without pods.
    #[error("there is no pod in namespace {0}")]
    NoPodsIn(String),
    /// More than an agent should spend its memory on.
    #[error(
        "the answer would have {entries} entries, and an agent gives at most {most}: narrow it with --namespace or --port, \
         or ask with --kubeconfig or --manifests, where this command itself does the work"
    )]
    TooLarge {
        /// As many as it would have.
        entries: u64,
        /// As many as there may be.
        most: u64,
    },
    /// Not what this program asks.
    #[error("the question is not understood: {0}")]
    Question(String),
    /// The tables could not be made.
    #[error(transparent)]
    Tables(#[from] crate::state::image::Full),
}

impl CliError {
    /// Whoever reads the answer has read enough, as `| head` does: no failure.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}

/// `portcullis matrix`: who reaches whom.
#[must_use]
pub fn matrix(args: &MatrixArgs, cluster: &Cluster, refused: usize) -> ExitCode {
    answer(refused, |out| question::write_matrix(args, &seen(cluster, args.own_node), u64::MAX, out))
}

/// `portcullis matrix`, answered by an engine that the caller made.
#[must_use]
pub fn matrix_by(args: &MatrixArgs, cluster: &Cluster, refused: usize, engine: &dyn Engine) -> ExitCode {
    answer(refused, |out| matrix::write(args, cluster, engine, u64::MAX, out))
}

/// `portcullis explain`: why a connection is allowed or denied.
#[must_use]
pub fn explain(args: &ExplainArgs, cluster: &Cluster, refused: usize) -> ExitCode {
    answer(refused, |out| explain::write(args, &seen(cluster, args.own_node), out).map(|()| Vec::new()))
}

/// An agent's answer to a question.
#[must_use]
pub fn repeat(told: &Told) -> ExitCode {
    let refused = usize::try_from(told.refused).unwrap_or(usize::MAX);
    answer(refused, |out| {
        out.write_all(told.text.as_bytes())?;
        Ok(told.notes.clone())
    })
}

/// The cluster as agents of this setting see it.
fn seen(cluster: &Cluster, own_node: run::OwnNode) -> Cow<'_, Cluster> {
    match own_node {
        run::OwnNode::Allow => Cow::Borrowed(cluster),
        run::OwnNode::Policy => Cow::Owned(cluster.clone().judging_own_node()),
    }
}

/// Writes an answer to stdout and tells how it went by the exit code.
fn answer(refused: usize, write: impl FnOnce(&mut dyn Write) -> Result<Vec<String>, CliError>) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = write(&mut out).and_then(|notes| {
        out.flush()?;
        for note in notes {
            tracing::warn!("{note}");
        }
        Ok(())
    });
    // What a failed write left in the buffer must not be tried again when it is dropped.
    let _parts = out.into_parts();
    ExitCode::from(exit_code(&written, refused))
}

fn exit_code(written: &Result<(), CliError>, refused: usize) -> u8 {
    match written {
        Err(error) if !error.is_broken_pipe() => {
            tracing::error!("{error}");
            FAILED
        }
        _ if refused > 0 => {
            tracing::warn!(refused, "objects were refused (see above); the answer leaves them out and may not hold");
            ANSWERED_IN_PART
        }
        _ => ANSWERED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let full = || Err(CliError::Tables(crate::state::image::Full { table: "rows", used: 8, capacity: 8 }));
        let broken = |kind: io::ErrorKind| Err(CliError::Output(kind.into()));
        let rows = [
            ("answered", Ok(()), 0, 0),
            ("answered, something refused", Ok(()), 2, 3),
            ("failed", full(), 0, 1),
            ("failed, something refused too", full(), 2, 1),
            ("the reader has gone", broken(io::ErrorKind::BrokenPipe), 0, 0),
            (
                "the reader has gone, by way of JSON",
                {
                    let error = serde_json::Error::io(io::ErrorKind::BrokenPipe.into());
                    Err(CliError::from(error))
                },
                0,
                0,
            ),
            ("the disk is full", broken(io::ErrorKind::StorageFull), 0, 1),
        ];
        for (why, written, refused, expected) in rows {
            assert_eq!(exit_code(&written, refused), expected, "{why}");
        }
    }
}
