//! `cargo xtask walls`: each room of the agent knows only what it may know.
//!
//! The compiler cannot keep the rooms apart, since they are modules of one package. Here every source file is parsed,
//! every path that it mentions is resolved through the file's own imports, and held against the rules in [`rules`].
//! Code under `#[cfg(test)]` is held to them too; integration tests in `agent/tests` may join what the rooms keep apart.

mod mentions;
mod rules;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::workspace;

/// A mention that a rule forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Checks the repository, prints each violation, and fails if there is one.
pub(crate) fn run() -> Result<()> {
    let (files, violations) = check(workspace::root())?;
    for violation in &violations {
        eprintln!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} mention(s) go through a wall; ARCHITECTURE.md says which room is for what", violations.len());
    }
    eprintln!("  {files} files, all walls stand");
    Ok(())
}

/// The number of files read, and what is wrong in them.
fn check(root: &Path) -> Result<(usize, Vec<Violation>)> {
    let mut files = 0;
    let mut violations = Vec::new();
    for source in ["agent/src", "common/src"] {
        for entry in WalkDir::new(root.join(source)).sort_by_file_name() {
            let entry = entry.with_context(|| format!("cannot list {source}"))?;
            if entry.path().extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {}", path.display()))?;
            violations.extend(check_file(path, &text)?);
            files += 1;
        }
    }
    if files == 0 {
        bail!("there is no source file in agent/src and common/src of {}", root.display());
    }
    Ok((files, violations))
}

/// Holds one file, with its path in the repository, against the rules.
fn check_file(path: &Path, text: &str) -> Result<Vec<Violation>> {
    let syntax = syn::parse_file(text).with_context(|| format!("cannot parse {}", path.display()))?;
    let place = Place::of(path).with_context(|| format!("{} is in no crate with walls", path.display()))?;
    let mut violations = Vec::new();
    let mut add = |line, what| violations.push(Violation { file: path.to_owned(), line, what });
    if place.in_common && place.modules.is_empty() && !rules::declares_no_std(&syntax) {
        add(1, "`common` must be no_std: the BPF programs are built from it".to_owned());
    }
    for mention in mentions::of(&syntax, &place.modules) {
        if let Some(what) = rules::objection(&place, &mention) {
            add(mention.line, what);
        }
    }
    violations.sort_by(|a, b| (a.line, &a.what).cmp(&(b.line, &b.what)));
    violations.dedup();
    Ok(violations)
}

/// Where a file stands among the modules of its crate.
struct Place {
    in_common: bool,
    /// The file's module path, without the crate: empty for `lib.rs` and `main.rs`.
    modules: Vec<String>,
}

impl Place {
    fn of(path: &Path) -> Option<Self> {
        let (in_common, inner) = match path.strip_prefix("common/src") {
            Ok(inner) => (true, inner),
            Err(_) => (false, path.strip_prefix("agent/src").ok()?),
        };
        let mut modules: Vec<String> =
            inner.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let is_root = modules.len() == 1 && matches!(modules.last().map(String::as_str), Some("lib" | "main"));
        if is_root || modules.last().is_some_and(|last| last == "mod") {
            modules.pop();
        }
        Some(Self { in_common, modules })
    }

    /// The room: the outermost module, if the file is in one.
    fn room(&self) -> Option<&str> {
        self.modules.first().map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
