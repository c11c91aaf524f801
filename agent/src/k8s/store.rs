//! What the server has told, and what follows for the cluster: nothing is asked here.
//!
//! A list marks: what it tells is there, and what it has not told when it ends is gone, deleted while nobody watched.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::kind::Kind;
use super::object::{Found, Identity, Outcome};
use crate::convert::{Invalid, Warning};
use crate::model::{Change, Object, ObjectKey, PolicyId};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// An object was refused.
    Error,
    /// An object was accepted, but may not mean what its author thinks.
    Warning,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Kind and name; the kind alone where the name cannot be read.
    pub object: String,
    /// What is wrong, with the field, in one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// All objects of a kind follow.
    Begin(Kind),
    /// These are there, or have become this. Where the name cannot be read, why.
    There(Kind, Vec<Result<Found, Invalid>>),
    /// This one is gone.
    Gone(Kind, ObjectKey),
    /// All that are there have been told.
    End(Kind),
}

/// What is known of a kind.
#[derive(Debug, Default)]
struct Known {
    /// The list that is told, or was last.
    list: u32,
    objects: FxHashMap<ObjectKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The list that last told it.
    list: u32,
    /// Some version of it was accepted.
    good: bool,
}

/// Everything that was told.
#[derive(Debug, Default)]
pub(super) struct Store {
    kinds: BTreeMap<Kind, Known>,
    /// Why objects are refused now.
    refused: BTreeMap<ObjectKey, Vec<String>>,
    /// What authors of policies were warned of.
    warned: BTreeMap<PolicyId, Vec<String>>,
    /// Policies that are refused and of which no version was ever good.
    pub(super) unread: BTreeMap<PolicyId, String>,
    /// How the server tells policies' versions apart.
    pub(super) policies: BTreeMap<PolicyId, Identity>,
    /// The own node bears the taint, perhaps.
    pub(super) tainted: bool,
    changes: Vec<Change>,
    problems: Vec<Problem>,
    /// Namespaces' names, once.
    texts: FxHashSet<Arc<str>>,
}

impl Store {
    /// Takes in what was told.
    pub(super) fn take(&mut self, told: Told) {
        match told {
            Told::Begin(kind) => {
                let known = self.kinds.entry(kind).or_default();
                known.list = known.list.wrapping_add(1);
            }
            Told::There(kind, objects) => {
                for found in objects {
                    match found {
                        Ok(found) => self.there(kind, found),
                        Err(invalid) => self.problems.push(Problem {
                            severity: Severity::Error,
                            object: format!("a {kind} whose name cannot be read"),
                            message: one_line(&invalid.to_string()),
                        }),
                    }
                }
            }
            Told::Gone(kind, key) => {
                if let Some(known) = self.kinds.get_mut(&kind)
                    && let Some(entry) = known.objects.remove(&key)
                {
                    self.forget(key, &entry);
                }
            }
            Told::End(kind) => self.sweep(kind),
        }
    }

    fn sweep(&mut self, kind: Kind) {
        let Some(known) = self.kinds.get_mut(&kind) else { return };
        let list = known.list;
        let gone: Vec<(ObjectKey, Entry)> = known.objects.extract_if(|_, entry| entry.list != list).collect();
        for (key, entry) in gone {
            self.forget(key, &entry);
        }
    }

    fn forget(&mut self, key: ObjectKey, entry: &Entry) {
        self.refused.remove(&key);
        match &key {
            ObjectKey::Policy(id) => {
                self.unread.remove(id);
                self.policies.remove(id);
                self.warned.remove(id);
            }
            ObjectKey::Node(_) => self.tainted = false,
            _ => {}
        }
        if entry.good {
            self.changes.push(Change::Gone(key));
        }
    }

    fn there(&mut self, kind: Kind, found: Found) {
        let Found { key, identity, tainted, outcome } = found;
        if kind == Kind::Node {
            self.tainted = tainted;
        }
        let key = self.shared(key);
        let known = self.kinds.entry(kind).or_default();
        let list = known.list;
        let entry = known.objects.entry(key.clone()).or_insert(Entry { list, good: false });
        entry.list = list;
        if let ObjectKey::Policy(id) = &key {
            self.policies.insert(id.clone(), identity);
        }
        match outcome {
            Outcome::Accepted(object, warnings) => {
                let was_good = std::mem::replace(&mut entry.good, object.is_some());
                if self.refused.remove(&key).is_some() {
                    tracing::info!("{key}: can be read again");
                }
                if let ObjectKey::Policy(id) = &key {
                    self.unread.remove(id);
                    self.warn(id, &warnings);
                }
                match object {
                    Some(object) => self.changes.push(Change::Set(renamed(object, &key))),
                    None if was_good => self.changes.push(Change::Gone(key)),
                    None => {}
                }
            }
            Outcome::Refused(invalid) => {
                let good = entry.good;
                self.refuse(key, good, &invalid);
            }
        }
    }

    /// Of other kinds the server's own defaults give rise to warnings, which no author could heed.
    /// The same again, of a later version or by another list, is no news.
    fn warn(&mut self, id: &PolicyId, warnings: &[Warning]) {
        let texts: Vec<String> = warnings.iter().map(|warning| one_line(&warning.to_string())).collect();
        let before = match texts.is_empty() {
            true => self.warned.remove(id),
            false => self.warned.insert(id.clone(), texts.clone()),
        };
        let before = before.unwrap_or_default();
        let news = texts.into_iter().filter(|text| !before.contains(text));
        self.problems.extend(news.map(|message| Problem {
            severity: Severity::Warning,
            object: id.to_string(),
            message,
        }));
    }

    fn refuse(&mut self, key: ObjectKey, good: bool, invalid: &[Invalid]) {
        let reasons: Vec<String> = invalid.iter().map(|invalid| one_line(&invalid.to_string())).collect();
        if let (ObjectKey::Policy(id), false) = (&key, good) {
            let reason = format!("no valid version of {id} has been read ({})", reasons.join("; "));
            self.unread.insert(id.clone(), reason);
        }
        if self.refused.get(&key) == Some(&reasons) {
            return;
        }
        let stays = match (&key, good) {
            (_, true) => "its last good version stays in force",
            (ObjectKey::Policy(_), false) => "no version of it has been valid, so it is not enforced",
            (_, false) => "it is left out",
        };
        self.problems.extend(reasons.iter().map(|reason| Problem {
            severity: Severity::Error,
            object: key.to_string(),
            message: format!("{reason}; {stays}"),
        }));
        self.refused.insert(key, reasons);
    }

    /// The same key, with its namespace's text kept once.
    fn shared(&mut self, key: ObjectKey) -> ObjectKey {
        let mut share = |mut name: crate::model::Name| {
            match self.texts.get(&name.namespace) {
                Some(known) => name.namespace = Arc::clone(known),
                None => drop(self.texts.insert(Arc::clone(&name.namespace))),
            }
            name
        };
        match key {
            ObjectKey::Pod(name) => ObjectKey::Pod(share(name)),
            ObjectKey::Service(name) => ObjectKey::Service(share(name)),
            ObjectKey::EndpointSlice(name) => ObjectKey::EndpointSlice(share(name)),
            other => other,
        }
    }

    /// What is to be applied to the cluster, and what is wrong, since this was last asked.
    pub(super) fn changes(&mut self) -> (Vec<Change>, Vec<Problem>) {
        (std::mem::take(&mut self.changes), std::mem::take(&mut self.problems))
    }

    /// The cluster has no Node of the name that this node is said to have.
    pub(super) fn no_node(&mut self, node: &Option<String>) {
        self.problems.extend(node.iter().map(|node| Problem {
            severity: Severity::Error,
            object: format!("Node {node}"),
            message: "the cluster has no node of this name, and pods that name another are not this node's: see to --node-name"
                .into(),
        }));
    }

    /// Objects that are refused now, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&ObjectKey, &[String])> {
        self.refused.iter().map(|(key, reasons)| (key, reasons.as_slice()))
    }

    /// How many changes wait.
    pub(super) fn waiting(&self) -> usize {
        self.changes.len() + self.problems.len()
    }

    /// How many objects of a kind are there.
    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.kinds.get(&kind).map_or(0, |known| known.objects.len() as u64)
    }
}

/// The object under the key that is kept anyway, so that names are kept once.
fn renamed(mut object: Object, key: &ObjectKey) -> Object {
    match (&mut object, key) {
        (Object::Pod(pod), ObjectKey::Pod(name)) => pod.key = name.clone(),
        (Object::Service(service), ObjectKey::Service(name)) => service.key = name.clone(),
        (Object::EndpointSlice(slice), ObjectKey::EndpointSlice(name)) => slice.key = name.clone(),
        _ => {}
    }
    object
}

/// What authors wrote must not look like another line of the log.
fn one_line(text: &str) -> String {
    let breaks = |character: char| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
    let parts: Vec<&str> = text.split(breaks).filter(|part| !part.is_empty()).collect();
    let mut line = parts.join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// Characters of a message: a value of a megabyte belongs into no log.
const LONGEST: usize = 500;
