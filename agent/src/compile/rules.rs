//! Rules of policies as policy sets hold them, and the numbers under which their packets are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::atoms::{AtomId, Atoms, Question as PeerQuestion};
use super::numbers::Allocator;
use super::ports::Question;
use super::profiles::{Line, Outcome};
use super::tables::Tables;
use crate::model::{
    Action, Direction, NamedPort, PeerAtom, PeerMatch, PolicyId, PortMatch, PortSpec, Protocol, Rule, Verdict,
};
use crate::state::{RuleCause, RuleIdentity, RuleNumber, TableVerdict};

/// What is asked of a peer, by atom numbers.
#[derive(Debug)]
pub(super) enum Peer {
    All(Vec<Peer>),
    Any(Vec<Peer>),
    Not(Box<Peer>),
    Atom(AtomId),
    Itself,
}

impl Peer {
    /// Whether a peer matches of which these atoms hold (sorted).
    pub(super) fn matches(&self, holding: &[AtomId], itself: bool) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(holding, itself)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(holding, itself)),
            Self::Not(part) => !part.matches(holding, itself),
            Self::Atom(id) => holding.binary_search(id).is_ok(),
            Self::Itself => itself,
        }
    }
}

/// What is asked of protocol and port.
#[derive(Debug)]
pub(super) enum Ask {
    /// Whatever the peer.
    Plain(Question),
    /// The numbers that the peer declares under this name (an index into [`Asked::named`]) and protocol.
    Named(usize, Protocol),
}

/// One rule.
#[derive(Debug)]
pub(super) struct SetRule {
    pub(super) peer: Peer,
    /// `None`: all traffic.
    any_of: Option<Vec<Ask>>,
    none_of: Vec<Ask>,
    outcome: Outcome,
}

impl SetRule {
    /// What the rule asks of the traffic, given the numbers that the peer declares under each name; `None` where no
    /// traffic can match.
    pub(super) fn line(&self, numbers: &impl Fn(usize) -> Vec<u16>) -> Option<Line> {
        let resolve = |asks: &Vec<Ask>| -> Vec<Question> {
            let resolved: BTreeSet<Question> = (asks.iter())
                .flat_map(|ask| match ask {
                    Ask::Plain(question) => vec![*question],
                    Ask::Named(name, protocol) => {
                        let number = |number| Question { protocol: *protocol, first: number, last: number };
                        numbers(*name).into_iter().map(number).collect()
                    }
                })
                .collect();
            resolved.into_iter().collect()
        };
        let any_of = self.any_of.as_ref().map(resolve);
        if any_of.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        Some(Line { any_of, none_of: resolve(&self.none_of), outcome: self.outcome })
    }
}

/// What the rules of a set ask, gathered while they are read. Each atom is asked once.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) atoms: BTreeSet<AtomId>,
    pub(super) questions: BTreeSet<Question>,
    pub(super) named: Vec<(Arc<str>, Protocol)>,
    pub(super) rules: BTreeSet<RuleNumber>,
}

/// Reads the rules of one set.
pub(super) struct Reader<'a> {
    pub(super) atoms: &'a mut Atoms,
    pub(super) numbers: &'a mut RuleNumbers,
    pub(super) tables: &'a mut Tables,
    pub(super) now: u64,
    pub(super) direction: Direction,
    /// The endpoint's own named ports, which ingress rules are about.
    pub(super) own_ports: &'a [NamedPort],
    pub(super) asked: Asked,
}

impl Reader<'_> {
    /// The number of what decides in a policy, counted once for each set.
    pub(super) fn verdict(&mut self, verdict: Verdict, policy: &PolicyId, cause: RuleCause) -> TableVerdict {
        let identity = RuleIdentity { direction: self.direction, verdict, policy: policy.clone(), cause };
        let rule = self.numbers.find(&identity).filter(|rule| self.asked.rules.contains(rule));
        let rule = rule.unwrap_or_else(|| self.numbers.acquire(identity, self.tables, self.now));
        self.asked.rules.insert(rule);
        TableVerdict { verdict, rule }
    }

    /// One rule; `None` where it can match no traffic, or changes none.
    pub(super) fn rule(&mut self, policy: &PolicyId, rule: &Rule) -> Option<SetRule> {
        let cause = RuleCause::Rule(rule.origin);
        let outcome = match rule.action {
            Action::Allow => Outcome::Final(self.verdict(Verdict::Allow, policy, cause)),
            Action::Deny => Outcome::Final(self.verdict(Verdict::Deny, policy, cause)),
            Action::Pass => Outcome::Pass,
            Action::Log => return None,
        };
        let any_of = (!rule.traffic.any_of.is_empty()).then(|| self.asks(&rule.traffic.any_of));
        if any_of.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let none_of = self.asks(&rule.traffic.none_of);
        Some(SetRule { peer: self.peer(&rule.peer), any_of, none_of, outcome })
    }

    fn asks(&mut self, matches: &[PortMatch]) -> Vec<Ask> {
        let mut asks = Vec::new();
        for PortMatch { protocol, port } in matches {
            let PortSpec::Named(name) = port else {
                if let Some(question) = Question::new(*protocol, port) {
                    self.asked.questions.insert(question);
                    asks.push(Ask::Plain(question));
                }
                continue;
            };
            if self.direction == Direction::Egress {
                let wanted = (Arc::clone(name), *protocol);
                let index = self.asked.named.iter().position(|known| *known == wanted).unwrap_or_else(|| {
                    self.asked.named.push(wanted);
                    self.asked.named.len() - 1
                });
                asks.push(Ask::Named(index, *protocol));
                continue;
            }
            for own in self.own_ports.iter().filter(|own| own.name == *name && own.protocol == *protocol) {
                let question = Question { protocol: *protocol, first: own.number, last: own.number };
                self.asked.questions.insert(question);
                asks.push(Ask::Plain(question));
            }
        }
        asks
    }

    fn peer(&mut self, peer: &PeerMatch) -> Peer {
        match peer {
            PeerMatch::All(parts) => Peer::All(parts.iter().map(|part| self.peer(part)).collect()),
            PeerMatch::Any(parts) => Peer::Any(parts.iter().map(|part| self.peer(part)).collect()),
            PeerMatch::Not(part) => Peer::Not(Box::new(self.peer(part))),
            PeerMatch::Atom(PeerAtom::Itself) => Peer::Itself,
            PeerMatch::Atom(PeerAtom::OwnNode) => Peer::Atom(self.atom(PeerQuestion::OwnNode)),
            PeerMatch::Atom(PeerAtom::Cidr(net)) => Peer::Atom(self.atom(PeerQuestion::Cidr(net.trunc()))),
            PeerMatch::Atom(PeerAtom::Pods { namespaces, pods }) => {
                Peer::Atom(self.atom(PeerQuestion::Pods(namespaces.clone(), pods.clone())))
            }
        }
    }

    /// The number of an atom, asked once for each set.
    pub(super) fn atom(&mut self, question: PeerQuestion) -> AtomId {
        if let Some(id) = self.atoms.find(&question).filter(|id| self.asked.atoms.contains(id)) {
            return id;
        }
        let id = self.atoms.ask(question);
        self.asked.atoms.insert(id);
        id
    }
}

/// The names of the ports that ingress rules ask of the endpoint.
pub(super) fn names_asked<'a>(rules: impl Iterator<Item = &'a Rule>) -> BTreeSet<(&'a Arc<str>, Protocol)> {
    rules
        .flat_map(|rule| rule.traffic.any_of.iter().chain(&rule.traffic.none_of))
        .filter_map(|asked| match &asked.port {
            PortSpec::Named(name) => Some((name, asked.protocol)),
            PortSpec::Any | PortSpec::Range(..) => None,
        })
        .collect()
}

/// The numbers of rules, by what they stand for: the same as long as some live set has the rule.
#[derive(Debug)]
pub(super) struct RuleNumbers {
    known: FxHashMap<RuleIdentity, (RuleNumber, u32)>,
    identities: FxHashMap<RuleNumber, RuleIdentity>,
    adopted: FxHashMap<RuleIdentity, RuleNumber>,
    unused: BTreeSet<RuleNumber>,
    numbers: Allocator,
}

impl RuleNumbers {
    pub(super) fn new(first: u32, adopted: BTreeMap<RuleNumber, RuleIdentity>) -> Self {
        let first = adopted.keys().next_back().map_or(first, |last| first.max(last.0.saturating_add(1)));
        Self {
            known: FxHashMap::default(),
            identities: FxHashMap::default(),
            adopted: adopted.into_iter().map(|(number, identity)| (identity, number)).collect(),
            unused: BTreeSet::new(),
            numbers: Allocator::new(first.max(super::FIRST_RULE), u32::MAX, 64),
        }
    }

    /// Numbers from `end` on have no counter: they are given only when there is no other, and then do not fit.
    pub(super) fn limit(&mut self, end: u32) {
        self.numbers.limit(end);
    }

    /// Whether some rule has a number without a counter.
    pub(super) fn overflows(&self) -> bool {
        self.identities.keys().any(|rule| !self.numbers.has_room_for(rule.0))
    }

    fn find(&self, identity: &RuleIdentity) -> Option<RuleNumber> {
        self.known.get(identity).map(|(rule, _)| *rule)
    }

    fn acquire(&mut self, identity: RuleIdentity, tables: &mut Tables, now: u64) -> RuleNumber {
        if let Some((rule, users)) = self.known.get_mut(&identity) {
            *users += 1;
            return *rule;
        }
        let rule = self.adopted.remove(&identity).unwrap_or_else(|| RuleNumber(self.numbers.take(now)));
        self.known.insert(identity.clone(), (rule, 1));
        self.identities.insert(rule, identity.clone());
        tables.rules(rule, Some(identity));
        rule
    }

    /// One set less has this rule.
    pub(super) fn release(&mut self, rule: RuleNumber) {
        let Some(identity) = self.identities.get(&rule) else { return };
        if let Some((_, users)) = self.known.get_mut(identity) {
            *users -= 1;
            if *users == 0 {
                self.unused.insert(rule);
            }
        }
    }

    /// Forgets the rules that no set has any more.
    pub(super) fn drop_unused(&mut self, tables: &mut Tables, now: u64) {
        for rule in std::mem::take(&mut self.unused) {
            let Some(identity) = self.identities.get(&rule) else { continue };
            if self.known.get(identity).is_some_and(|(_, users)| *users == 0) {
                self.known.remove(identity);
                self.identities.remove(&rule);
                self.numbers.release(rule.0, now);
                tables.rules(rule, None);
            }
        }
    }

    /// Gives up the adopted numbers that no rule has claimed.
    pub(super) fn forget_adopted(&mut self, now: u64) {
        for (_, rule) in self.adopted.drain() {
            self.numbers.release(rule.0, now);
        }
    }
}
