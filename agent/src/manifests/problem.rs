//! What is wrong with manifests, one line for each.

use std::fmt;
use std::path::PathBuf;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something was refused.
    Error,
    /// Everything was accepted, but may not mean what its author thinks.
    Warning,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The file or folder.
    pub file: PathBuf,
    /// The document in it, counted from 1.
    pub document: Option<usize>,
    /// Kind and name of the object, where they could be read.
    pub object: Option<String>,
    /// The field, such as `spec.ingress[0].from[1].ipBlock.cidr`; in a list it begins with `items[2].`.
    pub field: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl Problem {
    pub(super) fn of_file(file: impl Into<PathBuf>, severity: Severity, message: impl Into<String>) -> Self {
        Self { file: file.into(), document: None, object: None, field: None, severity, message: message.into() }
    }
}

/// `file: document 2: NetworkPolicy shop/web: spec.podSelector: message`, always one line: what authors and the system
/// wrote is shown with its line breaks and control characters replaced.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.file.display().to_string();
        if let Some(document) = self.document {
            line.push_str(&format!(": document {document}"));
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            line.push_str(": ");
            line.push_str(part);
        }
        line.push_str(": ");
        line.push_str(&self.message);
        for (index, part) in line.split(is_line_break).filter(|part| !part.is_empty()).enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            f.write_str(part)?;
        }
        Ok(())
    }
}

fn is_line_break(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

/// How many problems stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProblemCounts {
    /// Of [`Severity::Error`].
    pub errors: usize,
    /// Of [`Severity::Warning`].
    pub warnings: usize,
}

impl ProblemCounts {
    /// Counts.
    pub fn of<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> Self {
        let mut counts = Self::default();
        for problem in problems {
            match problem.severity {
                Severity::Error => counts.errors += 1,
                Severity::Warning => counts.warnings += 1,
            }
        }
        counts
    }
}
