//! Port classes: runs of ports for which the same questions hold.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::{FxHashMap, FxHashSet};

use super::numbers::Allocator;
use super::tables::Tables;
use crate::model::{PortSpec, Protocol};
use crate::state::PortClass;

/// Whether a packet has this protocol and a port from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Question {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Question {
    /// What a port specification without a name asks; `None` if no packet can be so.
    pub(super) fn new(protocol: Protocol, spec: &PortSpec) -> Option<Self> {
        let (first, last) = match spec {
            PortSpec::Any => (0, u16::MAX),
            PortSpec::Range(first, last) => (*first, *last),
            PortSpec::Named(_) => return None,
        };
        // Protocols without ports carry the port 0 in a packet's description, so only that element exists.
        let numbered = protocol.has_ports() || matches!(protocol, Protocol::ICMP | Protocol::ICMPV6);
        let last = if numbered { last } else { 0 };
        (first <= last).then_some(Self { protocol, first, last })
    }
}

/// The questions of a port class, sorted.
pub(super) type PortSignature = Vec<Question>;

/// All questions that live policy sets ask about protocols and ports, and the classes that they make.
#[derive(Debug)]
pub(super) struct Ports {
    asked: FxHashMap<Question, u32>,
    changed: BTreeSet<Protocol>,
    known: FxHashMap<PortSignature, PortClass>,
    classes: FxHashMap<PortClass, PortSignature>,
    by_question: FxHashMap<Question, FxHashSet<PortClass>>,
    in_use: FxHashMap<PortClass, Protocol>,
    numbers: Allocator,
}

impl Ports {
    /// Questions beyond which no further set is compiled: each makes at most two runs, and both the old and the new
    /// classes need a number of 16 bits.
    pub(super) const MOST_QUESTIONS: usize = 16_000;

    pub(super) fn new(first: u16) -> Self {
        let nothing = PortClass(0);
        Self {
            asked: FxHashMap::default(),
            changed: BTreeSet::new(),
            known: FxHashMap::from_iter([(Vec::new(), nothing)]),
            classes: FxHashMap::from_iter([(nothing, Vec::new())]),
            by_question: FxHashMap::default(),
            in_use: FxHashMap::default(),
            numbers: Allocator::new(u32::from(first.max(1)), u32::from(u16::MAX) + 1, 256),
        }
    }

    /// How many different questions are asked.
    pub(super) fn questions(&self) -> usize {
        self.asked.len()
    }

    pub(super) fn ask(&mut self, question: Question) {
        let count = self.asked.entry(question).or_default();
        *count += 1;
        if *count == 1 {
            self.changed.insert(question.protocol);
        }
    }

    pub(super) fn forget(&mut self, question: Question) {
        if let Some(count) = self.asked.get_mut(&question) {
            *count -= 1;
            if *count == 0 {
                self.asked.remove(&question);
                self.changed.insert(question.protocol);
            }
        }
    }

    /// Every class, retired ones too, with what holds for it.
    pub(super) fn classes(&self) -> impl Iterator<Item = (PortClass, &PortSignature)> {
        self.classes.iter().map(|(class, signature)| (*class, signature))
    }

    /// How many classes there are, retired ones and class 0 too.
    pub(super) fn count(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn signature(&self, class: PortClass) -> &[Question] {
        self.classes.get(&class).map_or(&[], Vec::as_slice)
    }

    /// Classes for which at least one of these questions holds.
    pub(super) fn concerned<'a>(&'a self, questions: impl Iterator<Item = &'a Question>) -> FxHashSet<PortClass> {
        questions.filter_map(|question| self.by_question.get(question)).flatten().copied().collect()
    }

    /// Draws the runs of all protocols anew about which questions came or went. Gives the classes that are new.
    ///
    /// A class of which every port has the same new signature keeps its number: what changed in the signature are
    /// questions that no older profile asks, so that the rows under the number keep their meaning.
    pub(super) fn redraw(&mut self, tables: &mut Tables, now: u64) -> Vec<PortClass> {
        let mut fresh = Vec::new();
        for protocol in std::mem::take(&mut self.changed) {
            self.redraw_protocol(protocol, tables, now, &mut fresh);
        }
        fresh
    }

    fn redraw_protocol(&mut self, protocol: Protocol, tables: &mut Tables, now: u64, fresh: &mut Vec<PortClass>) {
        let old: Vec<(u16, u16, PortClass)> = (tables.desired.ports.range((protocol, 0)..=(protocol, u16::MAX)))
            .map(|((_, first), (last, class))| (*first, *last, *class))
            .collect();
        let pieces = self.pieces(protocol, &old);

        let mut wanted: BTreeMap<PortClass, FxHashSet<&PortSignature>> = BTreeMap::new();
        for (_, _, class, signature) in &pieces {
            wanted.entry(*class).or_default().insert(signature);
        }
        let renamed: Vec<(PortClass, PortSignature)> = (wanted.into_iter())
            .filter(|(class, signatures)| *class != PortClass(0) && signatures.len() == 1)
            .filter_map(|(class, signatures)| Some((class, (*signatures.iter().next()?).clone())))
            .collect();
        for (class, signature) in renamed {
            if !signature.is_empty() && !self.known.contains_key(&signature) {
                self.unlink(class);
                self.link(class, signature);
            }
        }

        let mut runs: Vec<(u16, u16, PortClass)> = Vec::new();
        for (first, last, _, signature) in pieces {
            if signature.is_empty() {
                continue;
            }
            let class = self.known.get(&signature).copied().unwrap_or_else(|| {
                let class = PortClass(u16::try_from(self.numbers.take(now)).unwrap_or(u16::MAX));
                self.link(class, signature);
                fresh.push(class);
                class
            });
            match runs.last_mut() {
                Some(run) if run.2 == class && run.1.checked_add(1) == Some(first) => run.1 = last,
                _ => runs.push((first, last, class)),
            }
        }

        self.in_use.retain(|_, used_by| *used_by != protocol);
        self.in_use.extend(runs.iter().map(|run| (run.2, protocol)));
        let kept: FxHashSet<u16> = runs.iter().map(|run| run.0).collect();
        for (first, ..) in old.iter().filter(|run| !kept.contains(&run.0)) {
            tables.ports((protocol, *first), None);
        }
        for (first, last, class) in runs {
            tables.ports((protocol, first), Some((last, class)));
        }
    }

    /// Runs so short that neither an old run nor a question begins or ends inside one: (first, last, old class, what
    /// holds now), in order and without gaps.
    fn pieces(&self, protocol: Protocol, old: &[(u16, u16, PortClass)]) -> Vec<(u16, u16, PortClass, PortSignature)> {
        let questions = self.asked.keys().filter(|question| question.protocol == protocol);
        let mut opens: BTreeMap<u32, Vec<Question>> = BTreeMap::new();
        let mut closes: BTreeMap<u32, Vec<Question>> = BTreeMap::new();
        let mut cuts = BTreeSet::from([0]);
        for question in questions {
            opens.entry(u32::from(question.first)).or_default().push(*question);
            closes.entry(u32::from(question.last) + 1).or_default().push(*question);
        }
        cuts.extend(opens.keys().chain(closes.keys()));
        cuts.extend(old.iter().flat_map(|run| [u32::from(run.0), u32::from(run.1) + 1]));
        let cuts: Vec<u32> = cuts.into_iter().filter(|cut| *cut <= u32::from(u16::MAX)).collect();

        let mut holding: BTreeSet<Question> = BTreeSet::new();
        let mut old = old.iter().peekable();
        let mut pieces = Vec::with_capacity(cuts.len());
        for (at, cut) in cuts.iter().enumerate() {
            for question in closes.get(cut).into_iter().flatten() {
                holding.remove(question);
            }
            holding.extend(opens.get(cut).into_iter().flatten());
            while old.peek().is_some_and(|run| u32::from(run.1) < *cut) {
                old.next();
            }
            let class = old.peek().filter(|run| u32::from(run.0) <= *cut).map_or(PortClass(0), |run| run.2);
            let last = cuts.get(at + 1).map_or(u32::from(u16::MAX), |next| next - 1);
            if let (Ok(first), Ok(last)) = (u16::try_from(*cut), u16::try_from(last)) {
                pieces.push((first, last, class, holding.iter().copied().collect()));
            }
        }
        pieces
    }

    /// Whether there are classes that no port has any more.
    pub(super) fn has_retired(&self) -> bool {
        self.classes.len() > self.in_use.len() + 1
    }

    /// Lets go of the classes that no port has any more. Gives them.
    pub(super) fn drop_retired(&mut self, now: u64) -> Vec<PortClass> {
        let gone: Vec<PortClass> = (self.classes.keys().copied())
            .filter(|class| *class != PortClass(0) && !self.in_use.contains_key(class))
            .collect();
        for class in &gone {
            self.unlink(*class);
            self.numbers.release(u32::from(class.0), now);
        }
        gone
    }

    fn link(&mut self, class: PortClass, signature: PortSignature) {
        for question in &signature {
            self.by_question.entry(*question).or_default().insert(class);
        }
        self.known.insert(signature.clone(), class);
        self.classes.insert(class, signature);
    }

    fn unlink(&mut self, class: PortClass) {
        let Some(signature) = self.classes.remove(&class) else { return };
        for question in &signature {
            if let Some(classes) = self.by_question.get_mut(question) {
                classes.remove(&class);
                if classes.is_empty() {
                    self.by_question.remove(question);
                }
            }
        }
        if self.known.get(&signature) == Some(&class) {
            self.known.remove(&signature);
        }
    }
}

/// The class of a protocol and port, as the tables say.
pub(super) fn class_of(tables: &Tables, protocol: Protocol, port: u16) -> PortClass {
    (tables.desired.ports.range((protocol, 0)..=(protocol, port)).next_back())
        .filter(|(_, (last, _))| *last >= port)
        .map_or(PortClass(0), |(_, (_, class))| *class)
}
