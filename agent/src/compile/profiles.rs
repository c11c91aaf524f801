//! Profiles: what is left of a policy set once it is known which of its atoms hold for the peer.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::numbers::{Allocator, NO_POLICY};
use super::ports::{Ports, Question};
use super::tables::Tables;
use crate::state::{PortClass, ProfileId, TableVerdict};

/// What a matching rule leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// This is the verdict.
    Final(TableVerdict),
    /// The next tier decides.
    Pass,
}

/// A rule whose peer matches: what it still asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    /// Any of these must hold; `None`: nothing is asked.
    pub(super) any_of: Option<Vec<Question>>,
    /// None of these may hold.
    pub(super) none_of: Vec<Question>,
    pub(super) outcome: Outcome,
}

impl Line {
    fn always(&self) -> bool {
        self.any_of.is_none() && self.none_of.is_empty()
    }

    fn holds(&self, signature: &[Question]) -> bool {
        let asked = |questions: &[Question]| questions.iter().any(|question| signature.binary_search(question).is_ok());
        self.any_of.as_deref().is_none_or(asked) && !asked(&self.none_of)
    }
}

/// The lines of one tier and its end; without an end the next tier decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Section {
    lines: Vec<Line>,
    end: Option<TableVerdict>,
}

/// A policy set for one peer, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Content {
    sections: Vec<Section>,
    closed: bool,
}

impl Content {
    /// Adds a tier. What can never be reached is left out, so that equal meaning more often gives equal content.
    pub(super) fn push(&mut self, lines: impl Iterator<Item = Line>, end: Option<TableVerdict>) {
        if self.closed {
            return;
        }
        let mut section = Section { lines: Vec::new(), end };
        for line in lines {
            let seen = |other: &Line| other.any_of == line.any_of && other.none_of == line.none_of;
            if section.lines.iter().any(seen) {
                continue;
            }
            let always = line.always();
            section.lines.push(line);
            if always {
                section.end = None;
                break;
            }
        }
        let finished = |line: &Line| line.always() && matches!(line.outcome, Outcome::Final(_));
        let passes = section.lines.iter().any(|line| line.outcome == Outcome::Pass);
        self.closed = !passes && (section.end.is_some() || section.lines.last().is_some_and(finished));
        if !section.lines.is_empty() || section.end.is_some() {
            self.sections.push(section);
        }
    }

    /// The verdict for traffic of which these questions hold (sorted).
    pub(super) fn decide(&self, signature: &[Question]) -> TableVerdict {
        for section in &self.sections {
            match section.lines.iter().find(|line| line.holds(signature)).map(|line| line.outcome) {
                Some(Outcome::Final(verdict)) => return verdict,
                Some(Outcome::Pass) => {}
                None => {
                    if let Some(verdict) = section.end {
                        return verdict;
                    }
                }
            }
        }
        NO_POLICY
    }

    fn questions(&self) -> impl Iterator<Item = &Question> {
        let lines = self.sections.iter().flat_map(|section| &section.lines);
        lines.flat_map(|line| line.any_of.iter().flatten().chain(&line.none_of))
    }
}

#[derive(Debug)]
struct Profile {
    content: Arc<Content>,
    default: TableVerdict,
    /// The verdict where none of the profile's questions hold.
    quiet: TableVerdict,
    rows: FxHashSet<PortClass>,
}

/// All live profiles, shared by content.
#[derive(Debug)]
pub(super) struct Profiles {
    known: FxHashMap<Arc<Content>, ProfileId>,
    profiles: FxHashMap<ProfileId, Profile>,
    numbers: Allocator,
}

impl Profiles {
    pub(super) fn new(first: u32) -> Self {
        Self {
            known: FxHashMap::default(),
            profiles: FxHashMap::default(),
            numbers: Allocator::new(first.max(1), 1 << 28, 1 << 16),
        }
    }

    /// The profile of this content, with its rows for every port class if it is new.
    pub(super) fn intern(&mut self, content: Content, ports: &Ports, tables: &mut Tables, now: u64) -> ProfileId {
        if let Some(id) = self.known.get(&content) {
            return *id;
        }
        let id = ProfileId(self.numbers.take(now));
        let quiet = content.decide(&[]);
        let concerned = ports.concerned(content.questions());
        let verdicts: Vec<(PortClass, TableVerdict)> =
            concerned.into_iter().map(|class| (class, content.decide(ports.signature(class)))).collect();

        let mut votes: FxHashMap<TableVerdict, usize> = FxHashMap::default();
        for (_, verdict) in &verdicts {
            *votes.entry(*verdict).or_default() += 1;
        }
        *votes.entry(quiet).or_default() += ports.count() - verdicts.len();
        let most = votes.into_iter().max_by_key(|(verdict, count)| (*count, *verdict == quiet, verdict.rule));
        let default = most.map_or(quiet, |(verdict, _)| verdict);

        tables.profile_defaults(id, Some(default));
        let mut rows = FxHashSet::default();
        if default != quiet {
            let loud: FxHashSet<PortClass> = verdicts.iter().map(|(class, _)| *class).collect();
            for (class, _) in ports.classes().filter(|(class, _)| !loud.contains(class)) {
                tables.verdicts((id, class), Some(quiet));
                rows.insert(class);
            }
        }
        for (class, verdict) in verdicts.into_iter().filter(|(_, verdict)| *verdict != default) {
            tables.verdicts((id, class), Some(verdict));
            rows.insert(class);
        }
        let content = Arc::new(content);
        self.known.insert(Arc::clone(&content), id);
        self.profiles.insert(id, Profile { content, default, quiet, rows });
        id
    }

    /// Writes the rows of every profile for new port classes.
    pub(super) fn add_port_classes(&mut self, fresh: &[PortClass], ports: &Ports, tables: &mut Tables) {
        for (id, profile) in &mut self.profiles {
            for class in fresh {
                let verdict = profile.content.decide(ports.signature(*class));
                if verdict != profile.default {
                    tables.verdicts((*id, *class), Some(verdict));
                    profile.rows.insert(*class);
                }
            }
        }
    }

    /// Takes the rows of port classes away that are gone.
    pub(super) fn drop_port_classes(&mut self, gone: &[PortClass], tables: &mut Tables) {
        for (id, profile) in &mut self.profiles {
            for class in gone.iter().filter(|class| profile.rows.remove(class)) {
                tables.verdicts((*id, *class), None);
            }
        }
    }

    /// Takes every profile away that is not in use.
    pub(super) fn retain(&mut self, used: &FxHashSet<ProfileId>, tables: &mut Tables, now: u64) {
        let gone: Vec<ProfileId> = self.profiles.keys().copied().filter(|id| !used.contains(id)).collect();
        for id in gone {
            let Some(profile) = self.profiles.remove(&id) else { continue };
            self.known.remove(&profile.content);
            tables.profile_defaults(id, None);
            for class in profile.rows {
                tables.verdicts((id, class), None);
            }
            self.numbers.release(id.0, now);
        }
    }

    /// The verdict for a port class.
    pub(super) fn verdict(&self, id: ProfileId, class: PortClass, ports: &Ports) -> TableVerdict {
        self.profiles.get(&id).map_or(NO_POLICY, |profile| {
            if class == PortClass(0) { profile.quiet } else { profile.content.decide(ports.signature(class)) }
        })
    }
}
