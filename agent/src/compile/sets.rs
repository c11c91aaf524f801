//! Policy sets: the compiled policy of one direction, shared by endpoints with the same applicable rules.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::atoms::{self, AtomId, Atoms, Question as PeerQuestion, Signature};
use super::classes::Classes;
use super::numbers::Allocator;
use super::pods::Pods;
use super::ports::{Ports, Question};
use super::profiles::{Content, Profiles};
use super::rules::{Reader, RuleNumbers, SetRule, names_asked};
use super::tables::Tables;
use crate::model::{Direction, NamedPort, Policy, Protocol, Rule, Verdict};
use crate::state::{ClassId, LocalId, ProfileId, RuleCause, RuleNumber, SetId, TableVerdict};

/// Before a set's rows are written.
const NO_PROFILE: ProfileId = ProfileId(0);

/// The rules of one policy for one direction. The number is new whenever the rules are. The policy is the cluster's own
/// object: most select no pod of this node, and a copy of each would be half of what all of them take.
#[derive(Debug)]
pub(super) struct PolicyRules {
    pub(super) id: u32,
    pub(super) policy: Arc<Policy>,
    pub(super) direction: Direction,
}

impl PolicyRules {
    pub(super) fn rules(&self) -> &[Rule] {
        self.policy.rules(self.direction).unwrap_or_default()
    }
}

/// A tier: the policies of it that apply, in order, and whether it ends with a denial.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) policies: Vec<Arc<PolicyRules>>,
    pub(super) denies: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SetKey {
    direction: Direction,
    tiers: Vec<(Vec<u32>, bool)>,
    own_ports: Vec<NamedPort>,
    /// The rules did not fit: only the tiers' ends are there.
    bare: bool,
}

#[derive(Debug)]
struct SetTier {
    rules: Vec<SetRule>,
    end: Option<TableVerdict>,
}

/// One policy set.
#[derive(Debug)]
pub(super) struct Set {
    key: SetKey,
    tiers: Vec<SetTier>,
    atoms: Signature,
    questions: BTreeSet<Question>,
    rules: BTreeSet<RuleNumber>,
    /// Names of peers' ports, and the atoms of the numbers that stand for them.
    named: Vec<(Arc<str>, Protocol)>,
    numbers: FxHashMap<AtomId, (usize, u16)>,
    /// Endpoints that use the set now, and those that did since the tables last settled.
    pub(super) users: BTreeSet<LocalId>,
    pub(super) past_users: BTreeSet<LocalId>,
    default: ProfileId,
    /// The profile of peers of which no atom holds.
    quiet: ProfileId,
    rows: FxHashMap<ClassId, ProfileId>,
    itself: FxHashMap<ClassId, ProfileId>,
    /// Classes on the way of which the rows say what holds for the class that the addresses come from.
    frozen_rows: FxHashSet<ClassId>,
    memo: FxHashMap<(Signature, bool), ProfileId>,
}

impl Set {
    pub(super) fn direction(&self) -> Direction {
        self.key.direction
    }

    /// What the rules say of a peer of which exactly these atoms of the set hold.
    fn content(&self, holding: &[AtomId], itself: bool) -> Content {
        let numbers = |name: usize| -> Vec<u16> {
            let declared = holding.iter().filter_map(|id| self.numbers.get(id));
            declared.filter(|(index, _)| *index == name).map(|(_, number)| *number).collect()
        };
        let mut content = Content::default();
        for tier in &self.tiers {
            let matching = tier.rules.iter().filter(|rule| rule.peer.matches(holding, itself));
            content.push(matching.filter_map(|rule| rule.line(&numbers)), tier.end);
        }
        content
    }
}

/// What is needed to write profiles.
pub(super) struct Writing<'a> {
    pub(super) profiles: &'a mut Profiles,
    pub(super) ports: &'a Ports,
    pub(super) tables: &'a mut Tables,
    pub(super) now: u64,
}

/// What is needed to read rules.
pub(super) struct Reading<'a> {
    pub(super) atoms: &'a mut Atoms,
    pub(super) ports: &'a mut Ports,
    pub(super) pods: &'a Pods,
    pub(super) rules: &'a mut RuleNumbers,
    pub(super) tables: &'a mut Tables,
    pub(super) now: u64,
}

/// All live sets, retired ones (without users, but perhaps still in force) among them.
#[derive(Debug)]
pub(super) struct Sets {
    known: FxHashMap<SetKey, SetId>,
    sets: FxHashMap<SetId, Set>,
    by_atom: FxHashMap<AtomId, FxHashSet<SetId>>,
    by_name: FxHashMap<(Arc<str>, Protocol), FxHashSet<SetId>>,
    /// Sets whose default is not the profile of peers of which no atom holds: each class needs a look.
    irregular: FxHashSet<SetId>,
    /// Sets that some endpoint has flipped from since the tables last settled.
    frozen: BTreeSet<SetId>,
    /// Made since the last [`Self::write_fresh`].
    fresh: Vec<SetId>,
    /// Made since endpoints last flipped: in force for none.
    untaken: BTreeSet<SetId>,
    numbers: Allocator,
}

impl Sets {
    pub(super) fn new(first: u32) -> Self {
        Self {
            known: FxHashMap::default(),
            sets: FxHashMap::default(),
            by_atom: FxHashMap::default(),
            by_name: FxHashMap::default(),
            irregular: FxHashSet::default(),
            frozen: BTreeSet::new(),
            fresh: Vec::new(),
            untaken: BTreeSet::new(),
            numbers: Allocator::new(first.max(1), 1 << 28, 1 << 12),
        }
    }

    /// The set of these rules, read if it is new. The second value is false where the rules ask about more ports than the
    /// tables can tell apart, so that only the tiers' ends are in the set.
    pub(super) fn intern(
        &mut self,
        direction: Direction,
        tiers: &[Tier],
        own_ports: &[NamedPort],
        reading: &mut Reading<'_>,
    ) -> (SetId, bool) {
        let mut relevant = Vec::new();
        if direction == Direction::Ingress {
            let rules = tiers.iter().flat_map(|tier| &tier.policies).flat_map(|policy| policy.rules());
            let names = names_asked(rules);
            relevant.extend(own_ports.iter().filter(|port| names.contains(&(&port.name, port.protocol))).cloned());
            relevant.sort_unstable();
            relevant.dedup();
        }
        let numbers = |tier: &Tier| (tier.policies.iter().map(|policy| policy.id).collect(), tier.denies);
        let mut key =
            SetKey { direction, tiers: tiers.iter().map(numbers).collect(), own_ports: relevant, bare: false };
        if let Some(id) = self.known.get(&key) {
            return (*id, true);
        }
        key.bare = reading.ports.questions() >= Ports::MOST_QUESTIONS;
        if key.bare
            && let Some(id) = self.known.get(&key)
        {
            return (*id, false);
        }
        let fits = !key.bare;
        (self.read(key, tiers, reading), fits)
    }

    fn read(&mut self, key: SetKey, tiers: &[Tier], reading: &mut Reading<'_>) -> SetId {
        let id = SetId(self.numbers.take(reading.now));
        let mut reader = Reader {
            atoms: reading.atoms,
            numbers: reading.rules,
            tables: reading.tables,
            now: reading.now,
            direction: key.direction,
            own_ports: &key.own_ports,
            asked: super::rules::Asked::default(),
        };
        let mut set_tiers = Vec::with_capacity(tiers.len());
        for tier in tiers {
            let mut rules = Vec::new();
            for policy in tier.policies.iter().filter(|_| !key.bare) {
                rules.extend(policy.rules().iter().filter_map(|rule| reader.rule(&policy.policy.id, rule)));
            }
            let first = tier.policies.first().filter(|_| tier.denies);
            let end = first.map(|first| reader.verdict(Verdict::Deny, &first.policy.id, RuleCause::Isolation));
            set_tiers.push(SetTier { rules, end });
        }
        let asked = reader.asked;
        for question in &asked.questions {
            reading.ports.ask(*question);
        }
        let set = Set {
            key: key.clone(),
            tiers: set_tiers,
            atoms: asked.atoms.iter().copied().collect(),
            questions: asked.questions,
            rules: asked.rules,
            named: asked.named,
            numbers: FxHashMap::default(),
            users: BTreeSet::new(),
            past_users: BTreeSet::new(),
            default: NO_PROFILE,
            quiet: NO_PROFILE,
            rows: FxHashMap::default(),
            itself: FxHashMap::default(),
            frozen_rows: FxHashSet::default(),
            memo: FxHashMap::default(),
        };
        for atom in &set.atoms {
            self.by_atom.entry(*atom).or_default().insert(id);
        }
        for name in &set.named {
            self.by_name.entry(name.clone()).or_default().insert(id);
        }
        let named = set.named.clone();
        self.known.insert(key, id);
        self.sets.insert(id, set);
        for (name, protocol) in named {
            for number in reading.pods.numbers(&name, protocol) {
                self.add_number_to(id, &name, protocol, number, reading);
            }
        }
        self.fresh.push(id);
        self.untaken.insert(id);
        id
    }

    /// Pods declare a number under a name for the first time: every set that asks for the name learns it.
    pub(super) fn add_number(&mut self, name: &Arc<str>, protocol: Protocol, number: u16, reading: &mut Reading<'_>) {
        let sets: Vec<SetId> = self.by_name.get(&(Arc::clone(name), protocol)).into_iter().flatten().copied().collect();
        for id in sets {
            self.add_number_to(id, name, protocol, number, reading);
        }
    }

    fn add_number_to(
        &mut self,
        id: SetId,
        name: &Arc<str>,
        protocol: Protocol,
        number: u16,
        reading: &mut Reading<'_>,
    ) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        let question = PeerQuestion::Port(Arc::clone(name), protocol, number);
        if reading.atoms.find(&question).is_some_and(|atom| set.numbers.contains_key(&atom)) {
            return;
        }
        let Some(index) = set.named.iter().position(|known| known.0 == *name && known.1 == protocol) else { return };
        let atom = reading.atoms.ask(question);
        atoms::insert(&mut set.atoms, atom);
        set.numbers.insert(atom, (index, number));
        let question = Question { protocol, first: number, last: number };
        if set.questions.insert(question) {
            reading.ports.ask(question);
        }
        self.by_atom.entry(atom).or_default().insert(id);
    }

    /// No pod declares a number any more under a name that stood for it: it is taken away from the sets that ask for the
    /// name. The question about the port stays while the set lives.
    pub(super) fn drop_number(&mut self, name: &Arc<str>, protocol: Protocol, number: u16, atoms: &mut Atoms) {
        let Some(atom) = atoms.find(&PeerQuestion::Port(Arc::clone(name), protocol, number)) else { return };
        for id in self.by_atom.get(&atom).cloned().unwrap_or_default() {
            let Some(set) = self.sets.get_mut(&id) else { continue };
            set.numbers.remove(&atom);
            atoms::remove(&mut set.atoms, atom);
            set.memo.retain(|(holding, _), _| holding.binary_search(&atom).is_err());
            atoms.forget(atom);
            unlink(&mut self.by_atom, &atom, id);
        }
    }

    /// Writes the rows of sets made since the last call, for every class. Gives the sets.
    pub(super) fn write_fresh(&mut self, classes: &Classes, writing: &mut Writing<'_>) -> Vec<SetId> {
        let fresh = std::mem::take(&mut self.fresh);
        for id in &fresh {
            let Some(set) = self.sets.get_mut(id) else { continue };
            let quiet = profile(set, Vec::new(), false, writing);
            let mut votes: FxHashMap<ProfileId, usize> = FxHashMap::default();
            let mut rows = Vec::new();
            for (class, holding) in classes.concerned(&set.atoms) {
                let profile = profile(set, holding, false, writing);
                *votes.entry(profile).or_default() += 1;
                rows.push((class, profile));
            }
            *votes.entry(quiet).or_default() += classes.count() - rows.len();
            let most = votes.into_iter().max_by_key(|(profile, count)| (*count, *profile == quiet, profile.0));
            set.quiet = quiet;
            set.default = most.map_or(quiet, |(profile, _)| profile);
            writing.tables.set_defaults(*id, Some(set.default));
            if set.default != quiet {
                self.irregular.insert(*id);
                let loud: FxHashSet<ClassId> = rows.iter().map(|(class, _)| *class).collect();
                rows.extend(classes.all().filter(|class| !loud.contains(class)).map(|class| (class, quiet)));
            }
            for (class, profile) in rows.into_iter().filter(|(_, profile)| *profile != set.default) {
                writing.tables.profiles((*id, class, false), Some(profile));
                set.rows.insert(class, profile);
            }
        }
        fresh
    }

    /// Writes the rows of new classes in all sets.
    pub(super) fn add_classes(&mut self, fresh: &[ClassId], classes: &Classes, writing: &mut Writing<'_>) {
        for class in fresh {
            let signature = classes.signature(*class);
            let asking = signature.iter().filter_map(|atom| self.by_atom.get(atom)).flatten();
            let concerned: BTreeSet<SetId> = asking.chain(&self.irregular).copied().collect();
            for id in concerned {
                // Sets that are new themselves get the rows of all classes later.
                let done = |set: &&mut Set| !set.frozen_rows.contains(class) && set.default != NO_PROFILE;
                let Some(set) = self.sets.get_mut(&id).filter(done) else { continue };
                let profile = profile(set, atoms::common(&set.atoms, signature), false, writing);
                if profile != set.default {
                    writing.tables.profiles((id, *class, false), Some(profile));
                    set.rows.insert(*class, profile);
                }
            }
        }
    }

    /// Takes the rows of classes away that are gone.
    pub(super) fn drop_classes(&mut self, gone: &[(ClassId, Signature)], tables: &mut Tables) {
        for (class, _) in gone {
            for (id, set) in &mut self.sets {
                set.frozen_rows.remove(class);
                if set.rows.remove(class).is_some() {
                    tables.profiles((*id, *class, false), None);
                }
                if set.itself.remove(class).is_some() {
                    tables.profiles((*id, *class, true), None);
                }
            }
        }
    }

    /// Writes the rows for the classes that an endpoint's own addresses have; the others go where `only` says so.
    pub(super) fn write_itself(
        &mut self,
        id: SetId,
        own: &FxHashSet<ClassId>,
        only: bool,
        classes: &Classes,
        writing: &mut Writing<'_>,
    ) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        if only {
            set.itself.retain(|class, _| {
                let stays = own.contains(class) || set.frozen_rows.contains(class);
                if !stays {
                    writing.tables.profiles((id, *class, true), None);
                }
                stays
            });
        }
        for class in own {
            if set.itself.contains_key(class) || set.frozen_rows.contains(class) {
                continue;
            }
            let holding = atoms::common(&set.atoms, classes.signature(*class));
            let profile = profile(set, holding, true, writing);
            if profile != set.default {
                writing.tables.profiles((id, *class, true), Some(profile));
                set.itself.insert(*class, profile);
            }
        }
    }

    /// The profile of a class; `itself`: seen by the endpoint that has the address.
    pub(super) fn profile(
        &mut self,
        id: SetId,
        class: ClassId,
        itself: bool,
        classes: &Classes,
        writing: &mut Writing<'_>,
    ) -> Option<ProfileId> {
        let set = self.sets.get_mut(&id)?;
        if !itself {
            return Some(set.rows.get(&class).copied().unwrap_or(set.default));
        }
        if set.frozen_rows.contains(&class) {
            return Some(set.itself.get(&class).copied().unwrap_or(set.default));
        }
        let holding = atoms::common(&set.atoms, classes.signature(class));
        Some(profile(set, holding, true, writing))
    }

    /// An endpoint flips from a set to another: until the tables have settled it may still be in force for it.
    pub(super) fn flip_from(&mut self, id: SetId, endpoint: &LocalId) {
        self.leave(id, endpoint);
        self.frozen.insert(id);
    }

    /// An endpoint uses a set no more.
    pub(super) fn leave(&mut self, id: SetId, endpoint: &LocalId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users.remove(endpoint);
            set.past_users.insert(endpoint.clone());
        }
    }

    pub(super) fn has_frozen(&self) -> bool {
        !self.frozen.is_empty()
    }

    /// Finds the sets that endpoints flip from and that tell two classes apart, with what they say of the first (for others,
    /// and for the endpoint that has the address).
    pub(super) fn frozen_apart(
        &mut self,
        (from, to): (ClassId, ClassId),
        classes: &Classes,
        writing: &mut Writing<'_>,
    ) -> Vec<(SetId, ProfileId, ProfileId)> {
        let asking = self.telling_apart(classes.signature(from), classes.signature(to));
        // Rows of a class on the way may differ from what its atoms say.
        let candidates = self.frozen.iter().filter(|id| classes.is_transit(from) || asking.contains(id));
        let mut apart = Vec::new();
        for id in candidates.copied().collect::<Vec<SetId>>() {
            let Some(set) = self.sets.get_mut(&id) else { continue };
            // By their atoms, not by their rows: the first class may itself be new, and without rows yet.
            let mut said = |itself| {
                if set.frozen_rows.contains(&from) {
                    let rows = if itself { &set.itself } else { &set.rows };
                    return rows.get(&from).copied().unwrap_or(set.default);
                }
                profile(set, atoms::common(&set.atoms, classes.signature(from)), itself, writing)
            };
            let (old, old_itself) = (said(false), said(true));
            let holding = atoms::common(&set.atoms, classes.signature(to));
            let new = profile(set, holding.clone(), false, writing);
            if old != new || old_itself != profile(set, holding, true, writing) {
                apart.push((id, old, old_itself));
            }
        }
        apart
    }

    /// Lets a set go on saying this of a class on the way.
    pub(super) fn freeze_row(
        &mut self,
        (id, old, old_itself): (SetId, ProfileId, ProfileId),
        class: ClassId,
        tables: &mut Tables,
    ) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        set.frozen_rows.insert(class);
        if old != set.default {
            tables.profiles((id, class, false), Some(old));
            set.rows.insert(class, old);
        }
        if old_itself != set.default {
            tables.profiles((id, class, true), Some(old_itself));
            set.itself.insert(class, old_itself);
        }
    }

    /// Takes a set out of use for new endpoints; gives the endpoints that use it, which are to flip to a new one.
    pub(super) fn supersede(&mut self, id: SetId) -> Vec<LocalId> {
        let Some(set) = self.sets.get(&id) else { return Vec::new() };
        if self.known.get(&set.key) == Some(&id) {
            self.known.remove(&set.key);
        }
        set.users.iter().cloned().collect()
    }

    /// Sets that ask one of the atoms in which two signatures differ.
    pub(super) fn telling_apart(&self, one: &[AtomId], other: &[AtomId]) -> BTreeSet<SetId> {
        let left = one.iter().filter(|id| other.binary_search(id).is_err());
        let right = other.iter().filter(|id| one.binary_search(id).is_err());
        left.chain(right).filter_map(|atom| self.by_atom.get(atom)).flatten().copied().collect()
    }

    pub(super) fn get(&self, id: SetId) -> Option<&Set> {
        self.sets.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SetId) -> Option<&mut Set> {
        self.sets.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SetId, &Set)> {
        self.sets.iter().map(|(id, set)| (*id, set))
    }

    /// Whether there are sets that nobody uses, or that somebody left.
    pub(super) fn has_retired(&self) -> bool {
        self.sets.values().any(|set| set.users.is_empty() || !set.past_users.is_empty())
    }

    /// Endpoints flip to the sets that they use: any of them may be in force from now on.
    pub(super) fn taken(&mut self) {
        self.untaken.clear();
    }

    /// Sets that never were in force.
    pub(super) fn untaken(&self) -> &BTreeSet<SetId> {
        &self.untaken
    }

    /// Lets go of the sets that nobody uses and that never were in force. Gives them.
    pub(super) fn drop_untaken(&mut self, reading: &mut Reading<'_>) -> Vec<SetId> {
        let unused = |id: &SetId| self.sets.get(id).is_some_and(|set| set.users.is_empty());
        let gone: Vec<SetId> = self.untaken.iter().copied().filter(unused).collect();
        self.drop_sets(&gone, reading);
        gone
    }

    /// Lets go of the sets that nobody uses. Gives them.
    pub(super) fn drop_retired(&mut self, reading: &mut Reading<'_>) -> Vec<SetId> {
        let gone: Vec<SetId> = self.iter().filter(|(_, set)| set.users.is_empty()).map(|(id, _)| id).collect();
        self.drop_sets(&gone, reading);
        for set in self.sets.values_mut() {
            set.past_users.clear();
        }
        self.frozen.clear();
        gone
    }

    fn drop_sets(&mut self, gone: &[SetId], reading: &mut Reading<'_>) {
        for id in gone {
            let Some(set) = self.sets.remove(id) else { continue };
            for atom in set.atoms {
                reading.atoms.forget(atom);
                unlink(&mut self.by_atom, &atom, *id);
            }
            for name in set.named {
                unlink(&mut self.by_name, &name, *id);
            }
            for question in set.questions {
                reading.ports.forget(question);
            }
            for rule in set.rules {
                reading.rules.release(rule);
            }
            for class in set.rows.into_keys() {
                reading.tables.profiles((*id, class, false), None);
            }
            for class in set.itself.into_keys() {
                reading.tables.profiles((*id, class, true), None);
            }
            reading.tables.set_defaults(*id, None);
            if self.known.get(&set.key) == Some(id) {
                self.known.remove(&set.key);
            }
            self.irregular.remove(id);
            self.frozen.remove(id);
            self.untaken.remove(id);
            self.numbers.release(id.0, reading.now);
        }
    }

    /// The profiles that some row names; what sets remember of others is forgotten.
    pub(super) fn profiles_in_use(&mut self) -> FxHashSet<ProfileId> {
        let mut used = FxHashSet::default();
        for set in self.sets.values() {
            used.extend([set.default, set.quiet]);
            used.extend(set.rows.values().chain(set.itself.values()));
        }
        for set in self.sets.values_mut() {
            set.memo.retain(|_, profile| used.contains(profile));
        }
        used
    }
}

fn profile(set: &mut Set, holding: Signature, itself: bool, writing: &mut Writing<'_>) -> ProfileId {
    let key = (holding, itself);
    if let Some(profile) = set.memo.get(&key) {
        return *profile;
    }
    let content = set.content(&key.0, itself);
    let profile = writing.profiles.intern(content, writing.ports, writing.tables, writing.now);
    set.memo.insert(key, profile);
    profile
}

fn unlink<K: Eq + std::hash::Hash>(index: &mut FxHashMap<K, FxHashSet<SetId>>, key: &K, id: SetId) {
    if let Some(sets) = index.get_mut(key) {
        sets.remove(&id);
        if sets.is_empty() {
            index.remove(key);
        }
    }
}
