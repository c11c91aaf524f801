//! What every file says, and what follows for the cluster: no files are touched here.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::object::describe;
use super::problem::{Problem, Severity};
use crate::model::{Change, NamespaceScope, Object, ObjectKey, PolicyId, Subject};
use file::File;

/// What a look at a file gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// Its text.
    Text(&'a str),
    /// It is there, but cannot be read, for this reason. What it provided stays.
    Unreadable(&'a str),
    /// Somebody is writing it. What it provided stays until they are done.
    BeingWritten,
    /// It is not there.
    Gone,
}

/// What a round of files changed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be applied to the cluster.
    pub changes: Vec<Change>,
    /// Problems that are new, or that stand again in a file that was read again; by file.
    pub problems: Vec<Problem>,
}

/// What nobody knows since this store was made: what is in it may have been in force before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Files and folders of which something could never be read, each with the reason: anything may be in them.
    pub places: BTreeMap<PathBuf, String>,
    /// Policies that are refused and of which no valid version was seen, each with the reason.
    pub policies: BTreeMap<PolicyId, String>,
}

/// The files of a folder and the objects that they put into force.
///
/// Of an object that several files provide, the first file by path provides it. A file keeps providing the last good
/// version of an object while what it says now is refused; while some document of a file cannot be understood at all,
/// the file keeps providing everything that it provided.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<PathBuf, File>,
    /// Which files name an object.
    sources: BTreeMap<ObjectKey, BTreeSet<PathBuf>>,
    in_force: BTreeMap<ObjectKey, Arc<Object>>,
    /// Objects to look at again.
    touched: BTreeSet<ObjectKey>,
    duplicates: BTreeMap<ObjectKey, Vec<Problem>>,
    /// Policies that some file names and of which no version was ever valid.
    unenforced: BTreeSet<ObjectKey>,
    /// Problems of folders and of files that cannot be looked at.
    places: BTreeMap<PathBuf, Problem>,
    told: BTreeSet<Problem>,
}

impl Store {
    /// Takes in what a file says now. Nothing happens where that is what it said before.
    pub fn set(&mut self, path: &Path, contents: Contents<'_>) {
        let known = self.files.get(path);
        let next = match contents {
            Contents::BeingWritten => return,
            Contents::Text(text) => {
                if known.is_some_and(|file| file.says(text)) {
                    return;
                }
                Some(File::read(path, text, known))
            }
            Contents::Unreadable(reason) => Some(File::unreadable(path, reason, known)),
            Contents::Gone => None,
        };
        let Some(before) = self.replace(path, next) else { return };
        if matches!(contents, Contents::Text(_)) {
            for problem in before.problems() {
                self.told.remove(problem);
            }
        }
    }

    fn replace(&mut self, path: &Path, next: Option<File>) -> Option<File> {
        for key in next.iter().flat_map(File::keys) {
            self.sources.entry(key.clone()).or_default().insert(path.to_owned());
            self.touched.insert(key.clone());
        }
        let before = match next {
            Some(next) => self.files.insert(path.to_owned(), next),
            None => self.files.remove(path),
        }?;
        for key in before.keys() {
            let still = self.files.get(path).is_some_and(|file| file.provides(key));
            if let Some(sources) = self.sources.get_mut(key).filter(|_| !still) {
                sources.remove(path);
                if sources.is_empty() {
                    self.sources.remove(key);
                }
            }
            self.touched.insert(key.clone());
        }
        Some(before)
    }

    /// Notes what is wrong with a place in the folder that is no readable file, or that nothing is any more.
    pub fn set_problem(&mut self, path: &Path, problem: Option<Problem>) {
        match problem {
            Some(problem) => self.places.insert(path.to_owned(), problem),
            None => self.places.remove(path),
        };
    }

    /// The files under a path that it has, itself included.
    pub fn files_under<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.files.keys().map(PathBuf::as_path).filter(move |file| file.starts_with(path))
    }

    /// Places under a path that have problems, itself included.
    pub fn problems_under<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.places.keys().map(PathBuf::as_path).filter(move |place| place.starts_with(path))
    }

    /// Ends a round: what is different now. Files that were renamed or split within a round change nothing.
    pub fn commit(&mut self) -> Outcome {
        let mut changes = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            changes.extend(self.resolve(&key));
        }
        let standing = self.standing();
        let problems = standing.difference(&self.told).cloned().collect();
        self.told = standing;
        Outcome { changes, problems }
    }

    /// Problems that stood when the last round ended.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.told.iter()
    }

    fn resolve(&mut self, key: &ObjectKey) -> Option<Change> {
        let sources: Vec<&Path> = self.sources.get(key).into_iter().flatten().map(PathBuf::as_path).collect();
        let good = sources.iter().find_map(|path| self.files.get(*path)?.good(key));
        let known = self.in_force.get(key);
        // An object that moved from a good file to one where it is bad had a good version all the same.
        let now = good.or_else(|| known.filter(|_| !sources.is_empty())).cloned();
        let duplicates = self.duplicates_of(key, &sources);
        let unenforced = matches!(key, ObjectKey::Policy(_)) && !sources.is_empty() && now.is_none();
        let same = now.as_deref() == known.map(AsRef::as_ref);
        if duplicates.is_empty() {
            self.duplicates.remove(key);
        } else {
            self.duplicates.insert(key.clone(), duplicates);
        }
        if unenforced {
            self.unenforced.insert(key.clone());
        } else {
            self.unenforced.remove(key);
        }
        if same {
            return None;
        }
        match now {
            Some(object) => {
                self.in_force.insert(key.clone(), Arc::clone(&object));
                Some(Change::Set(object.as_ref().clone()))
            }
            None => self.in_force.remove(key).map(|_| Change::Gone(key.clone())),
        }
    }

    fn duplicates_of(&self, key: &ObjectKey, sources: &[&Path]) -> Vec<Problem> {
        let place = |path: &Path| self.files.get(path).and_then(|file| file.document(key));
        let Some((first, others)) = sources.split_first() else { return Vec::new() };
        let first_document = place(first).map(|number| format!(" (document {number})")).unwrap_or_default();
        let problem = |path: &&Path| Problem {
            file: path.to_path_buf(),
            document: place(path),
            object: Some(describe(key)),
            field: None,
            severity: Severity::Error,
            message: format!(
                "the same object is in {}{first_document}, which comes first by path and wins; remove one of the two",
                first.display()
            ),
        };
        others.iter().map(problem).collect()
    }

    /// What was never read.
    pub fn unread(&self) -> Unread {
        let files = self.files.iter().filter_map(|(path, file)| Some((path, file.hidden()?)));
        let places = self.places.iter().filter(|(_, problem)| problem.severity == Severity::Error);
        let policies = self.unenforced.iter().filter_map(|key| match key {
            ObjectKey::Policy(id) => {
                let places = self.sources.get(key).into_iter().flatten().map(|path| path.display().to_string());
                let places = places.collect::<Vec<_>>().join(", ");
                Some((id.clone(), format!("{}: no valid version of {} has been read", places, describe(key))))
            }
            _ => None,
        });
        Unread {
            places: files.chain(places).map(|(path, problem)| (path.clone(), problem.to_string())).collect(),
            policies: policies.collect(),
        }
    }

    /// Whether it has taken in a file.
    pub fn knows(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    fn standing(&self) -> BTreeSet<Problem> {
        let files = self.files.values().flat_map(File::problems);
        let duplicates = self.duplicates.values().flatten();
        let unenforced = self.unenforced.iter().filter_map(|key| self.unenforced_problem(key));
        files.chain(duplicates).chain(self.places.values()).cloned().chain(unenforced).collect()
    }

    /// A policy that was never valid leaves the pods that it selects open: its author must know.
    fn unenforced_problem(&self, key: &ObjectKey) -> Option<Problem> {
        let path = self.sources.get(key)?.first()?;
        let file = self.files.get(path)?;
        let selects = match file.subject(key) {
            Some(subject) if !self.selects_a_pod(subject) => return None,
            Some(_) => "it selects pods",
            None => "it may select pods",
        };
        Some(Problem {
            file: path.clone(),
            document: file.document(key),
            object: Some(describe(key)),
            field: None,
            severity: Severity::Error,
            message: format!(
                "no version of this policy has been valid, so it is not enforced; {selects}, \
                 and it does not protect them until it is corrected"
            ),
        })
    }

    fn selects_a_pod(&self, subject: &Subject) -> bool {
        self.in_force.values().any(|object| match object.as_ref() {
            Object::Pod(pod) => {
                pod.is_member()
                    && matches!(&subject.namespaces, NamespaceScope::Named(name) if *name == pod.key.namespace)
                    && subject.pods.matches(&pod.labels)
            }
            _ => false,
        })
    }
}
