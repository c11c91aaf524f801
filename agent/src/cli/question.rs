//! Questions that an agent is asked over its socket, and answers from the cluster as it knows it.

use std::io::Write;

use serde::{Deserialize, Serialize};

use super::{CliError, EngineName, EvaluatorEngine, ExplainArgs, MatrixArgs, TablesEngine, explain, matrix, seen};
use crate::index::Cluster;
use crate::status::Told;

/// A matrix with more entries takes an agent memory that it needs for its work: each is some hundred bytes of text.
const MOST_ENTRIES: u64 = 100_000;

/// What can be asked about a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Why a connection is allowed or denied.
    Explain(ExplainArgs),
    /// Who reaches whom.
    Matrix(MatrixArgs),
}

/// Answers a question, as it came over the socket, from a cluster of which so many objects were refused.
///
/// # Errors
/// When there is no answer.
pub fn told(question: &str, cluster: &Cluster, refused: usize) -> Result<Told, CliError> {
    let question = serde_json::from_str(question).map_err(|error| CliError::Question(error.to_string()))?;
    let mut text = Vec::new();
    let notes = match question {
        Question::Explain(args) => explain::write(&args, &seen(cluster, args.own_node), &mut text).map(|()| Vec::new()),
        Question::Matrix(args) => write_matrix(&args, &seen(cluster, args.own_node), MOST_ENTRIES, &mut text),
    }?;
    // Both write text alone.
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Told { text, notes, refused: refused as u64 })
}

pub(super) fn write_matrix(
    args: &MatrixArgs,
    cluster: &Cluster,
    most: u64,
    out: &mut dyn Write,
) -> Result<Vec<String>, CliError> {
    match args.engine {
        EngineName::Evaluator => matrix::write(args, cluster, &EvaluatorEngine::new(cluster), most, out),
        EngineName::Tables => matrix::write(args, cluster, &TablesEngine::new(cluster)?, most, out),
    }
}

#[cfg(test)]
mod tests;
