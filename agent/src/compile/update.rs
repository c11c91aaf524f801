//! The second half of a compile: from what changed in the input to the rows of the tables.

use std::collections::BTreeSet;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Compiler;
use super::addresses::Shown;
use super::atoms::{AtomId, Question, Signature, insert};
use super::local::Outcome;
use super::reach::View;
use super::sets::{Reading, Writing};
use crate::state::{ClassId, LocalId, PortClass, SetId};

/// What changed in classes of peers and ports.
#[derive(Debug)]
pub(super) struct Changes {
    shown: Shown,
    classes: Vec<ClassId>,
    ports: Vec<PortClass>,
    /// Some range has another class, or ranges came or went.
    ranges: bool,
}

impl Compiler {
    /// Takes dead atoms out and asks new ones everywhere. Gives the ranges that came, went or changed.
    pub(super) fn settle_atoms(&mut self) -> Vec<IpNet> {
        let dead = self.atoms.bury();
        let born = self.atoms.take_born();
        self.passing = dead.iter().chain(&born).map(|(id, _)| *id).collect();
        for group in self.pods.remove_atoms(&dead) {
            self.classes.unsettle_group(group);
        }
        for (_, question) in &dead {
            match question {
                Question::Cidr(net) => self.ranges.set_atom(*net, None),
                Question::OwnNode => {
                    self.own_node_atom = None;
                    self.classes.unsettle_own_node();
                }
                Question::Pods(..) | Question::Port(..) => {}
            }
        }
        for (id, question) in &born {
            match question {
                Question::Cidr(net) => self.ranges.set_atom(*net, Some(*id)),
                Question::OwnNode => {
                    self.own_node_atom = Some(*id);
                    self.classes.unsettle_own_node();
                }
                Question::Pods(..) | Question::Port(..) => {
                    for group in self.pods.add_atom(*id, question) {
                        self.classes.unsettle_group(group);
                    }
                }
            }
        }
        let changed = self.ranges.take_changed();
        for net in changed.iter().flat_map(|net| self.ranges.within(*net)).collect::<BTreeSet<IpNet>>() {
            self.classes.kind(super::classes::KindKey::bare(Some(net)));
            self.classes.unsettle_range(Some(net));
        }
        self.addresses.ranges_changed(&changed);
        changed
    }

    /// Finds the class of every address, range and port that may have another, and writes them.
    pub(super) fn classify(&mut self, changed_ranges: &[IpNet], outcome: &mut Outcome) -> Changes {
        let changed = self.addresses.find_kinds(&self.pods, &self.ranges, &mut self.classes);
        let (pods, ranges, own_node) = (&self.pods, &self.ranges, self.own_node_atom);
        let atoms_of = |key: &super::classes::KindKey| -> Signature {
            let group = key.group.and_then(|group| pods.group_of(group));
            let mut signature = group.map(|group| group.atoms.clone()).unwrap_or_default();
            for atom in ranges.atoms(key.range) {
                insert(&mut signature, *atom);
            }
            if let Some(atom) = own_node.filter(|_| key.own_node) {
                insert(&mut signature, atom);
            }
            signature
        };
        let (moves, mut classes) = self.classes.settle_kinds(atoms_of, &self.passing, self.now);
        let bare = |kind: super::classes::KindId| {
            let key = self.classes.get(kind).map(|kind| kind.key);
            key.is_some_and(|key| key == super::classes::KindKey::bare(key.range))
        };
        let ranges = !changed_ranges.is_empty() || moves.iter().any(|kind| bare(*kind));
        let ports = self.ports.redraw(&mut self.tables, self.now);
        let concerned = self.addresses.concerned(changed, changed_ranges, &moves, &self.ranges, &self.classes);
        let mut transits = FxHashMap::default();
        let mut superseded = BTreeSet::new();
        let flips = self.sets.has_frozen() && !self.after_refusal;
        if flips {
            let pairs = self.addresses.pairs(&concerned, &self.ranges, &self.classes, &self.tables);
            for pair in pairs {
                self.add_transit(pair, &mut transits, &mut superseded);
            }
            classes.extend(transits.values());
        }
        let shown = self.addresses.show(
            concerned,
            &transits,
            flips && !self.after_refusal,
            &self.ranges,
            &self.classes,
            &mut self.tables,
        );
        self.supersede(superseded, outcome);
        Changes { shown, classes, ports, ranges }
    }

    /// Where addresses go to another class while endpoints flip from sets that tell the two apart, a packet would meet an old
    /// set and a new class, which is neither what was nor what will be. Such addresses go through a class of their own, of
    /// which old sets say what was and all others what will be.
    fn add_transit(
        &mut self,
        pair: (ClassId, ClassId),
        transits: &mut FxHashMap<(ClassId, ClassId), ClassId>,
        superseded: &mut BTreeSet<SetId>,
    ) {
        let mut writing =
            Writing { profiles: &mut self.profiles, ports: &self.ports, tables: &mut self.tables, now: self.now };
        let apart = self.sets.frozen_apart(pair, &self.classes, &mut writing);
        if apart.is_empty() {
            return;
        }
        let class = self.classes.add_transit(pair.1, self.now);
        transits.insert(pair, class);
        for row in apart {
            superseded.insert(row.0);
            self.sets.freeze_row(row, class, &mut self.tables);
        }
    }

    /// A set that one endpoint flips from while others stay cannot say both what was and what will be: those that stay flip
    /// to a new set of the same rules.
    fn supersede(&mut self, sets: BTreeSet<SetId>, outcome: &mut Outcome) {
        let mut reading = Reading {
            atoms: &mut self.atoms,
            ports: &mut self.ports,
            pods: &self.pods,
            rules: &mut self.rules,
            tables: &mut self.tables,
            now: self.now,
        };
        for set in sets {
            for endpoint in self.sets.supersede(set) {
                self.locals.find_sets(&endpoint, &self.policies, &mut self.sets, &mut reading, outcome);
            }
        }
    }

    /// Writes the rows of everything that is new, and names the endpoints whose flows are to be judged again.
    pub(super) fn write_rows(&mut self, changes: Changes, outcome: &Outcome, own_rows_left: bool) {
        let Changes { shown, classes, ports, ranges } = changes;
        self.profiles.add_port_classes(&ports, &self.ports, &mut self.tables);
        let mut writing =
            Writing { profiles: &mut self.profiles, ports: &self.ports, tables: &mut self.tables, now: self.now };
        self.sets.add_classes(&classes, &self.classes, &mut writing);
        let fresh = self.sets.write_fresh(&self.classes, &mut writing);
        let anything = !fresh.is_empty() || !classes.is_empty() || !shown.moved.is_empty() || ranges;
        if anything || own_rows_left || !outcome.addresses.is_empty() || !outcome.flipped.is_empty() {
            self.write_own_classes(own_rows_left);
        }
        let own_moved = shown.moved.keys().any(|address| self.locals.owners(*address).next().is_some());
        self.own_rows_left |= own_moved || ranges || !outcome.addresses.is_empty();
        let differing = self.update_reaches(&shown, !ports.is_empty(), ranges, outcome, &fresh);
        self.tables.desired.rejudge = self.find_rejudged(&shown, outcome, &differing);
    }

    /// Rows for the classes that endpoints' own addresses have, or may have on the way: that of the address, of every range
    /// around it, and of no range.
    fn write_own_classes(&mut self, only: bool) {
        let mut wanted: FxHashMap<SetId, FxHashSet<ClassId>> = FxHashMap::default();
        let mut own_classes: FxHashMap<LocalId, FxHashSet<ClassId>> = FxHashMap::default();
        for (id, set) in self.sets.iter() {
            let wanted = wanted.entry(id).or_default();
            for user in set.users.iter().chain(&set.past_users) {
                let own = own_classes.entry(user.clone()).or_insert_with(|| {
                    let mut own = FxHashSet::default();
                    for address in self.locals.own(user) {
                        own.insert(ClassId(0));
                        own.insert(self.addresses.class_of(address, &self.ranges, &self.classes));
                        let around = self.ranges.around(address, u8::MAX);
                        own.extend(around.map(|net| self.classes.bare_class(Some(net))));
                    }
                    own
                });
                wanted.extend(own.iter());
            }
        }
        let mut writing =
            Writing { profiles: &mut self.profiles, ports: &self.ports, tables: &mut self.tables, now: self.now };
        for (set, own) in wanted {
            self.sets.write_itself(set, &own, only, &self.classes, &mut writing);
        }
    }

    fn update_reaches(
        &mut self,
        shown: &Shown,
        ports_moved: bool,
        ranges_moved: bool,
        outcome: &Outcome,
        fresh: &[SetId],
    ) -> FxHashSet<SetId> {
        let addresses = shown.moved.keys().chain(&outcome.addresses);
        let changed: BTreeSet<_> = addresses.flat_map(|address| self.services.leading_to(*address)).collect();
        self.services.changed.extend(changed);
        let (addresses, ranges, classes, locals) = (&self.addresses, &self.ranges, &self.classes, &self.locals);
        let node = &self.node;
        let view = View {
            classes,
            class_of: &|address| addresses.class_of(address, ranges, classes),
            owners: &|address| locals.owners(address).cloned().collect(),
            is_own: &|address| node.addresses.contains(&address),
        };
        let mut writing =
            Writing { profiles: &mut self.profiles, ports: &self.ports, tables: &mut self.tables, now: self.now };
        if ports_moved || ranges_moved {
            self.reaches.find_changed(&mut self.services, &view, &writing);
        }
        self.reaches.update(&mut self.services, &mut self.sets, fresh, &view, &mut writing)
    }

    /// Endpoints for which some packet of an established flow may be judged otherwise than before.
    fn find_rejudged(&mut self, shown: &Shown, outcome: &Outcome, differing: &FxHashSet<SetId>) -> BTreeSet<LocalId> {
        let mut rejudge: BTreeSet<LocalId> = outcome.flipped.iter().cloned().collect();
        let mut sets: BTreeSet<SetId> = differing.iter().copied().collect();
        let mut writing =
            Writing { profiles: &mut self.profiles, ports: &self.ports, tables: &mut self.tables, now: self.now };
        for (from, to) in &shown.moves {
            let (one, other) = (self.classes.signature(*from), self.classes.signature(*to));
            for set in self.sets.telling_apart(one, other) {
                let mut profile = |class| self.sets.profile(set, class, false, &self.classes, &mut writing);
                if profile(*from) != profile(*to) {
                    sets.insert(set);
                }
            }
        }
        for (address, (from, to)) in &shown.moved {
            for owner in self.locals.owners(*address) {
                let using = self.sets.iter().filter(|(_, set)| set.users.contains(owner)).map(|(id, _)| id);
                for set in using.collect::<Vec<_>>() {
                    let mut profile = |class| self.sets.profile(set, class, true, &self.classes, &mut writing);
                    if profile(*from) != profile(*to) {
                        rejudge.insert(owner.clone());
                    }
                }
            }
        }
        for set in sets.into_iter().filter_map(|set| self.sets.get(set)) {
            rejudge.extend(set.users.iter().cloned());
        }
        if shown.flags_changed {
            let egress = self.locals.iter().filter(|(_, local)| local.egress.is_some());
            rejudge.extend(egress.map(|(id, _)| id.clone()));
        }
        if shown.own_node_changed {
            rejudge.extend(self.locals.ids().cloned());
        }
        rejudge
    }
}

/// Atoms that no set in force asks.
pub(super) type Passing = FxHashSet<AtomId>;
