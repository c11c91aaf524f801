//! Atoms: the questions that live policy sets ask about a peer, each with a number.

use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::model::{NamespaceScope, Protocol, Selector};

/// One question about a peer. Numbers are never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AtomId(pub(super) u32);

/// What is asked. "The endpoint itself" is no atom of addresses: it depends on who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// A member pod of these namespaces with these labels.
    Pods(NamespaceScope, Selector),
    /// An address in this range.
    Cidr(IpNet),
    /// The own node.
    OwnNode,
    /// A member pod that declares this number under this name and protocol.
    Port(Arc<str>, Protocol, u16),
}

/// The atoms that hold for something, sorted.
pub(super) type Signature = Vec<AtomId>;

#[derive(Debug)]
struct Atom {
    question: Question,
    askers: u32,
}

/// Every atom that some live policy set asks.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    known: FxHashMap<Question, AtomId>,
    atoms: FxHashMap<AtomId, Atom>,
    next: u32,
    born: Vec<AtomId>,
    unasked: Vec<AtomId>,
}

impl Atoms {
    /// The number of a question that one more set asks.
    pub(super) fn ask(&mut self, question: Question) -> AtomId {
        if let Some(id) = self.known.get(&question) {
            if let Some(atom) = self.atoms.get_mut(id) {
                atom.askers += 1;
            }
            return *id;
        }
        let id = AtomId(self.next);
        self.next += 1;
        self.known.insert(question.clone(), id);
        self.atoms.insert(id, Atom { question, askers: 1 });
        self.born.push(id);
        id
    }

    /// One set less asks. The atom dies with [`Self::bury`], unless another set asks by then.
    pub(super) fn forget(&mut self, id: AtomId) {
        if let Some(atom) = self.atoms.get_mut(&id) {
            atom.askers -= 1;
            if atom.askers == 0 {
                self.unasked.push(id);
            }
        }
    }

    /// Takes the atoms away that nobody asks any more.
    pub(super) fn bury(&mut self) -> Vec<(AtomId, Question)> {
        let mut dead = Vec::new();
        for id in std::mem::take(&mut self.unasked) {
            if self.atoms.get(&id).is_some_and(|atom| atom.askers == 0)
                && let Some(atom) = self.atoms.remove(&id)
            {
                self.known.remove(&atom.question);
                dead.push((id, atom.question));
            }
        }
        dead
    }

    /// Atoms asked for the first time since the last call.
    pub(super) fn take_born(&mut self) -> Vec<(AtomId, Question)> {
        let born = std::mem::take(&mut self.born);
        born.into_iter().filter_map(|id| Some((id, self.atoms.get(&id)?.question.clone()))).collect()
    }

    /// The number of a question, if some set asks it.
    pub(super) fn find(&self, question: &Question) -> Option<AtomId> {
        self.known.get(question).copied()
    }
}

/// Puts an atom into a signature; tells whether it was not there.
pub(super) fn insert(signature: &mut Signature, id: AtomId) -> bool {
    match signature.binary_search(&id) {
        Ok(_) => false,
        Err(at) => {
            signature.insert(at, id);
            true
        }
    }
}

/// Takes an atom out of a signature; tells whether it was there.
pub(super) fn remove(signature: &mut Signature, id: AtomId) -> bool {
    match signature.binary_search(&id) {
        Ok(at) => {
            signature.remove(at);
            true
        }
        Err(_) => false,
    }
}

/// What two signatures have in common.
pub(super) fn common(one: &[AtomId], other: &[AtomId]) -> Signature {
    let (few, many) = if one.len() < other.len() { (one, other) } else { (other, one) };
    few.iter().copied().filter(|id| many.binary_search(id).is_ok()).collect()
}
