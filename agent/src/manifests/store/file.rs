//! One file: what it says, and what it still provides of what it said before.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use super::super::document::split;
use super::super::object::{Fault, Found, Outcome, describe, objects};
use super::super::problem::{Problem, Severity};
use crate::model::{Object, ObjectKey, Subject};

/// What a file provides.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Length and hash of its text; `None` where it could not be read.
    text: Option<(usize, u64)>,
    problems: Vec<Problem>,
    claims: BTreeMap<ObjectKey, Claim>,
    /// Something in it has never been understood, nor has a version of the file in which all of it was: nobody knows what
    /// it provides.
    hides: bool,
}

/// A file's word on one object.
#[derive(Clone, Debug)]
struct Claim {
    /// Where it stands; `None` where it stood before and now nobody can tell.
    document: Option<usize>,
    /// Its last good version.
    good: Option<Arc<Object>>,
    /// The pods of a policy that is refused now.
    subject: Option<Subject>,
}

fn fingerprint(text: &str) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    (text.len(), hasher.finish())
}

impl File {
    pub(super) fn read(path: &Path, text: &str, before: Option<&Self>) -> Self {
        let mut reader =
            Reader { path, before, file: Self { text: Some(fingerprint(text)), ..Self::default() }, unknown: false };
        for document in split(text) {
            match document.parse() {
                Ok(value) => {
                    for found in objects(value) {
                        reader.take(document.number, found);
                    }
                }
                Err(message) => reader.take(document.number, Found::Unknown(Fault { field: None, message })),
            }
        }
        reader.finish()
    }

    pub(super) fn unreadable(path: &Path, reason: &str, before: Option<&Self>) -> Self {
        let problem = Problem::of_file(
            path,
            Severity::Error,
            format!("cannot be read: {reason}; what it provided stays in force"),
        );
        let hides = before.is_none_or(|before| before.hides);
        let mut file = Self { text: None, problems: vec![problem], claims: BTreeMap::new(), hides };
        file.keep_all(before);
        file
    }

    fn keep_all(&mut self, before: Option<&Self>) {
        for (key, claim) in before.iter().flat_map(|before| &before.claims) {
            self.claims.entry(key.clone()).or_insert_with(|| Claim { document: None, ..claim.clone() });
        }
    }

    pub(super) fn says(&self, text: &str) -> bool {
        self.text == Some(fingerprint(text))
    }

    /// Something in it was never understood: what that is, unless a good version of the file was seen.
    pub(super) fn hidden(&self) -> Option<&Problem> {
        self.problems
            .iter()
            .find(|problem| problem.severity == Severity::Error && problem.object.is_none())
            .filter(|_| self.hides)
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.claims.keys()
    }

    pub(super) fn provides(&self, key: &ObjectKey) -> bool {
        self.claims.contains_key(key)
    }

    pub(super) fn good(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.claims.get(key)?.good.as_ref()
    }

    pub(super) fn document(&self, key: &ObjectKey) -> Option<usize> {
        self.claims.get(key)?.document
    }

    pub(super) fn subject(&self, key: &ObjectKey) -> Option<&Subject> {
        self.claims.get(key)?.subject.as_ref()
    }
}

struct Reader<'a> {
    path: &'a Path,
    before: Option<&'a File>,
    file: File,
    /// Some object could not even be named.
    unknown: bool,
}

impl Reader<'_> {
    fn problem(&mut self, document: usize, object: Option<String>, severity: Severity, fault: Fault) {
        let Fault { field, message } = fault;
        let file = self.path.to_owned();
        self.file.problems.push(Problem { file, document: Some(document), object, field, severity, message });
    }

    fn take(&mut self, document: usize, found: Found) {
        let (key, prefix, outcome) = match found {
            Found::Unknown(fault) => {
                self.unknown = true;
                return self.problem(document, None, Severity::Error, fault);
            }
            Found::Known { key, prefix, outcome } => (key, prefix, outcome),
        };
        let object = describe(&key);
        let (severity, faults, good, subject) = match outcome {
            Outcome::Accepted(None, warnings) => (Severity::Warning, warnings, None, None),
            Outcome::Accepted(Some(object), warnings) => (Severity::Warning, warnings, Some(object), None),
            Outcome::Refused(faults, subject) => (Severity::Error, faults, None, subject),
        };
        for Fault { field, message } in faults {
            let field = field.map(|field| format!("{prefix}{field}"));
            self.problem(document, Some(object.clone()), severity, Fault { field, message });
        }
        if severity == Severity::Warning && good.is_none() {
            return;
        }
        if let Some(known) = self.file.claims.get_mut(&key) {
            known.good = known.good.take().or(good);
            let first = known.document.unwrap_or(document);
            let message = format!(
                "the same object is in document {first} of this file, which comes first and wins; remove one of the two"
            );
            return self.problem(document, Some(object), Severity::Error, Fault { field: None, message });
        }
        self.file.claims.insert(key, Claim { document: Some(document), good, subject });
    }

    fn finish(mut self) -> File {
        for (key, claim) in &mut self.file.claims {
            if claim.good.is_none() {
                claim.good = self.before.and_then(|before| before.good(key)).cloned();
            }
        }
        if self.unknown {
            self.file.keep_all(self.before);
            self.file.hides = self.before.is_none_or(|before| before.hides);
        }
        self.file
    }
}
