//! Peer classes: kinds of addresses, and one class for all kinds of which the same atoms hold.
//!
//! A *kind* is what decides which atoms hold for an address: its group of pods, the longest range around it, and whether
//! it is the own node. Addresses are of a kind, kinds are of a class; so a new atom costs a look at each kind.

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use std::net::IpAddr;

use super::atoms::{self, AtomId, Signature};
use super::numbers::Allocator;
use crate::state::ClassId;

/// A group of pods with the same namespace, labels and declared ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GroupId(pub(super) u32);

/// Numbers a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KindId(pub(super) u32);

/// What decides which atoms hold for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KindKey {
    pub(super) group: Option<GroupId>,
    pub(super) range: Option<IpNet>,
    pub(super) own_node: bool,
}

impl KindKey {
    /// The kind of all addresses of a range (or of none) that have nothing else to them.
    pub(super) const fn bare(range: Option<IpNet>) -> Self {
        Self { group: None, range, own_node: false }
    }
}

/// A kind and the addresses of it that are known.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) key: KindKey,
    signature: Signature,
    class: Option<ClassId>,
    pub(super) addresses: FxHashSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Class {
    signature: Signature,
    kinds: u32,
}

/// All kinds and classes.
#[derive(Debug)]
pub(super) struct Classes {
    kinds: FxHashMap<KindId, Kind>,
    kind_ids: FxHashMap<KindKey, KindId>,
    next_kind: u32,
    by_group: FxHashMap<GroupId, Vec<KindId>>,
    by_range: FxHashMap<Option<IpNet>, Vec<KindId>>,
    classes: FxHashMap<ClassId, Class>,
    known: FxHashMap<Signature, ClassId>,
    by_atom: FxHashMap<AtomId, FxHashSet<ClassId>>,
    /// Without kinds; their rows stay until the tables have settled.
    retired: FxHashSet<ClassId>,
    /// Classes of addresses on their way, see [`Self::add_transit`].
    transits: FxHashSet<ClassId>,
    numbers: Allocator,
    unsettled: FxHashSet<KindId>,
}

impl Classes {
    pub(super) fn new(first: u32) -> Self {
        let nothing = ClassId(0);
        let mut classes = Self {
            kinds: FxHashMap::default(),
            kind_ids: FxHashMap::default(),
            next_kind: 0,
            by_group: FxHashMap::default(),
            by_range: FxHashMap::default(),
            classes: FxHashMap::from_iter([(nothing, Class { signature: Vec::new(), kinds: 1 })]),
            known: FxHashMap::from_iter([(Vec::new(), nothing)]),
            by_atom: FxHashMap::default(),
            retired: FxHashSet::default(),
            transits: FxHashSet::default(),
            numbers: Allocator::new(first.max(1), u32::MAX, 1 << 16),
            unsettled: FxHashSet::default(),
        };
        let bare = classes.kind(KindKey::bare(None));
        if let Some(kind) = classes.kinds.get_mut(&bare) {
            kind.class = Some(nothing);
        }
        classes.unsettled.clear();
        classes
    }

    /// The kind of this key, made if need be. A new kind is of no class until [`Self::settle_kinds`].
    pub(super) fn kind(&mut self, key: KindKey) -> KindId {
        if let Some(id) = self.kind_ids.get(&key) {
            return *id;
        }
        let id = KindId(self.next_kind);
        self.next_kind += 1;
        self.kind_ids.insert(key, id);
        self.kinds.insert(id, Kind { key, signature: Vec::new(), class: None, addresses: FxHashSet::default() });
        if let Some(group) = key.group {
            self.by_group.entry(group).or_default().push(id);
        }
        self.by_range.entry(key.range).or_default().push(id);
        self.unsettled.insert(id);
        id
    }

    pub(super) fn get(&self, id: KindId) -> Option<&Kind> {
        self.kinds.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: KindId) -> Option<&mut Kind> {
        self.kinds.get_mut(&id)
    }

    /// The class of a kind; class 0 before it has one.
    pub(super) fn class_of(&self, id: KindId) -> ClassId {
        self.kinds.get(&id).and_then(|kind| kind.class).unwrap_or_default()
    }

    /// The class of the addresses of a range that have nothing else to them.
    pub(super) fn bare_class(&self, range: Option<IpNet>) -> ClassId {
        self.kind_ids.get(&KindKey::bare(range)).map(|id| self.class_of(*id)).unwrap_or_default()
    }

    pub(super) fn kinds_of_range(&self, range: Option<IpNet>) -> &[KindId] {
        self.by_range.get(&range).map_or(&[], Vec::as_slice)
    }

    /// Marks kinds whose atoms may have changed.
    pub(super) fn unsettle_group(&mut self, group: GroupId) {
        self.unsettled.extend(self.by_group.get(&group).into_iter().flatten());
    }

    /// Marks kinds whose atoms may have changed.
    pub(super) fn unsettle_range(&mut self, range: Option<IpNet>) {
        self.unsettled.extend(self.by_range.get(&range).into_iter().flatten());
    }

    /// Marks the kinds of the own node.
    pub(super) fn unsettle_own_node(&mut self) {
        self.unsettled.extend(self.kinds.iter().filter(|(_, kind)| kind.key.own_node).map(|(id, _)| *id));
    }

    /// Gives every marked kind the class of its atoms. `atoms_of` tells the atoms of a kind, `passing` whether an atom was
    /// born or died since the last call, so that no set that is in force asks it.
    ///
    /// Gives the kinds that are of another class now, and the classes that are new.
    ///
    /// A class all of whose kinds go the same way, and differ from before in passing atoms only, keeps its number.
    pub(super) fn settle_kinds(
        &mut self,
        atoms_of: impl Fn(&KindKey) -> Signature,
        passing: &FxHashSet<AtomId>,
        now: u64,
    ) -> (Vec<KindId>, Vec<ClassId>) {
        let mut changed: Vec<(KindId, Signature)> = Vec::new();
        let mut leaving: FxHashMap<ClassId, Vec<usize>> = FxHashMap::default();
        let mut unsettled: Vec<KindId> = std::mem::take(&mut self.unsettled).into_iter().collect();
        unsettled.sort_unstable();
        for id in unsettled {
            let Some(kind) = self.kinds.get(&id) else { continue };
            let signature = atoms_of(&kind.key);
            if kind.class.is_some() && kind.signature == signature {
                continue;
            }
            if let Some(class) = kind.class {
                leaving.entry(class).or_default().push(changed.len());
            }
            changed.push((id, signature));
        }

        for (class, indexes) in leaving {
            let Some((_, signature)) = indexes.first().and_then(|index| changed.get(*index)) else { continue };
            let together = indexes.iter().all(|index| changed.get(*index).is_some_and(|other| other.1 == *signature));
            let all = self.classes.get(&class).is_some_and(|old| old.kinds as usize == indexes.len());
            let passes = self.classes.get(&class).is_some_and(|old| {
                let gained = signature.iter().filter(|id| old.signature.binary_search(id).is_err());
                let lost = old.signature.iter().filter(|id| signature.binary_search(id).is_err());
                gained.chain(lost).all(|id| passing.contains(id))
            });
            if class != ClassId(0) && together && all && passes && !self.known.contains_key(signature) {
                let signature = signature.clone();
                self.rename(class, signature);
            }
        }

        let mut moves = Vec::new();
        let mut fresh = Vec::new();
        for (id, signature) in changed {
            let to = self.known.get(&signature).copied().unwrap_or_else(|| {
                let class = ClassId(self.numbers.take(now));
                self.classes.insert(class, Class { signature: signature.clone(), kinds: 0 });
                self.link(class, &signature);
                fresh.push(class);
                class
            });
            let Some(kind) = self.kinds.get_mut(&id) else { continue };
            kind.signature = signature;
            let from = kind.class.replace(to);
            if from != Some(to) {
                if let Some(from) = from {
                    self.leave(from);
                }
                if let Some(class) = self.classes.get_mut(&to) {
                    class.kinds += 1;
                    self.retired.remove(&to);
                }
                moves.push(id);
            }
        }
        (moves, fresh)
    }

    fn rename(&mut self, class: ClassId, signature: Signature) {
        let Some(entry) = self.classes.get_mut(&class) else { return };
        let old = std::mem::replace(&mut entry.signature, signature.clone());
        self.unlink(class, &old);
        self.link(class, &signature);
    }

    fn link(&mut self, class: ClassId, signature: &Signature) {
        for atom in signature {
            self.by_atom.entry(*atom).or_default().insert(class);
        }
        self.known.insert(signature.clone(), class);
    }

    fn unlink(&mut self, class: ClassId, signature: &Signature) {
        for atom in signature {
            if let Some(classes) = self.by_atom.get_mut(atom) {
                classes.remove(&class);
                if classes.is_empty() {
                    self.by_atom.remove(atom);
                }
            }
        }
        if self.known.get(signature) == Some(&class) {
            self.known.remove(signature);
        }
    }

    fn leave(&mut self, class: ClassId) {
        if let Some(old) = self.classes.get_mut(&class) {
            old.kinds -= 1;
            if old.kinds == 0 {
                self.retired.insert(class);
            }
        }
    }

    /// Forgets a kind that no address has any more.
    pub(super) fn drop_kind(&mut self, id: KindId) {
        let Some(kind) = self.kinds.remove(&id) else { return };
        self.kind_ids.remove(&kind.key);
        if let Some(group) = kind.key.group
            && let Some(kinds) = self.by_group.get_mut(&group)
        {
            kinds.retain(|other| *other != id);
            if kinds.is_empty() {
                self.by_group.remove(&group);
            }
        }
        if let Some(kinds) = self.by_range.get_mut(&kind.key.range) {
            kinds.retain(|other| *other != id);
            if kinds.is_empty() {
                self.by_range.remove(&kind.key.range);
            }
        }
        self.unsettled.remove(&id);
        if let Some(class) = kind.class {
            self.leave(class);
        }
    }

    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.transits.is_empty()
    }

    /// A class of its own for addresses that come to a class while endpoints flip. The same atoms hold as in the class that
    /// they come to, but sets that endpoints flip from go on seeing the class that they come from.
    pub(super) fn add_transit(&mut self, to: ClassId, now: u64) -> ClassId {
        let class = ClassId(self.numbers.take(now));
        let signature = self.signature(to).to_vec();
        for atom in &signature {
            self.by_atom.entry(*atom).or_default().insert(class);
        }
        self.classes.insert(class, Class { signature, kinds: 0 });
        self.transits.insert(class);
        class
    }

    /// Whether an address that goes to a class may stay in a class of its own on the way.
    pub(super) fn is_on_way(&self, transit: ClassId, to: ClassId) -> bool {
        self.transits.contains(&transit) && self.signature(transit) == self.signature(to)
    }

    pub(super) fn is_transit(&self, class: ClassId) -> bool {
        self.transits.contains(&class)
    }

    /// No endpoint is on the way any more.
    pub(super) fn end_transits(&mut self) {
        self.retired.extend(self.transits.drain());
    }

    /// Lets go of the classes that no kind has any more. Gives them with their atoms.
    pub(super) fn drop_retired(&mut self, now: u64) -> Vec<(ClassId, Signature)> {
        let mut gone = Vec::new();
        for class in std::mem::take(&mut self.retired) {
            if let Some(entry) = self.classes.remove(&class) {
                self.unlink(class, &entry.signature);
                self.numbers.release(class.0, now);
                gone.push((class, entry.signature));
            }
        }
        gone
    }

    /// How many classes there are, retired ones and class 0 too.
    pub(super) fn count(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = ClassId> {
        self.classes.keys().copied()
    }

    pub(super) fn signature(&self, class: ClassId) -> &[AtomId] {
        self.classes.get(&class).map_or(&[], |class| class.signature.as_slice())
    }

    /// For each class for which at least one of these atoms holds: which of them.
    pub(super) fn concerned(&self, asked: &[AtomId]) -> FxHashMap<ClassId, Signature> {
        let mut concerned: FxHashMap<ClassId, Signature> = FxHashMap::default();
        for atom in asked {
            for class in self.by_atom.get(atom).into_iter().flatten() {
                atoms::insert(concerned.entry(*class).or_default(), *atom);
            }
        }
        concerned
    }
}
