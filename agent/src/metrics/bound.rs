//! At most so many rules have series of their own; the others are counted together.

use std::collections::{BTreeMap, BTreeSet};

use super::RuleFigures;
use crate::model::{Direction, Verdict};
use crate::state::RuleIdentity;

/// Packets and bytes.
type Counts = (u64, u64);

/// Rules that have no series of their own, in one direction and with one verdict, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherFigures {
    /// Of the pods.
    pub direction: Direction,
    /// Of the rules.
    pub verdict: Verdict,
    /// Packets.
    pub packets: u64,
    /// Their bytes, link-layer header included.
    pub bytes: u64,
}

/// Which rules have series of their own. A rule that has them keeps them, and one that has none gets none, for as long as
/// it exists: otherwise counters would fall and jump when rules come and go.
#[derive(Clone, Debug)]
pub struct SeriesBound {
    most: usize,
    shown: BTreeSet<RuleIdentity>,
    /// Each with its last counts.
    folded: BTreeMap<RuleIdentity, Counts>,
    /// What folded rules had counted that are gone, or that began anew.
    gone: BTreeMap<(Direction, Verdict), Counts>,
}

/// Rules with series of their own, one for each identity, and the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// Those with series of their own.
    pub rules: Vec<RuleFigures>,
    /// The others together.
    pub others: Vec<OtherFigures>,
    /// How many they are.
    pub folded: u64,
}

impl SeriesBound {
    /// At most `most` rules have series of their own.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { most, shown: BTreeSet::new(), folded: BTreeMap::new(), gone: BTreeMap::new() }
    }

    /// Tells those that have series of their own from the others. `rules` are all that exist.
    pub fn apply(&mut self, rules: Vec<RuleFigures>) -> Bounded {
        let mut counts: BTreeMap<RuleIdentity, Counts> = BTreeMap::new();
        for RuleFigures { rule, packets, bytes } in rules {
            add(counts.entry(rule).or_default(), (packets, bytes));
        }
        self.shown.retain(|rule| counts.contains_key(rule));
        for (rule, last) in std::mem::take(&mut self.folded) {
            match counts.get(&rule) {
                Some(now) => {
                    // It was gone in between: its counter began anew.
                    if now.0 < last.0 {
                        add(self.gone.entry((rule.direction, rule.verdict)).or_default(), last);
                    }
                    self.folded.insert(rule, *now);
                }
                None => add(self.gone.entry((rule.direction, rule.verdict)).or_default(), last),
            }
        }
        let mut bounded = Bounded::default();
        let mut others = self.gone.clone();
        for (rule, (packets, bytes)) in counts {
            if !self.folded.contains_key(&rule) && (self.shown.contains(&rule) || self.shown.len() < self.most) {
                self.shown.insert(rule.clone());
                bounded.rules.push(RuleFigures { rule, packets, bytes });
                continue;
            }
            add(others.entry((rule.direction, rule.verdict)).or_default(), (packets, bytes));
            self.folded.insert(rule, (packets, bytes));
        }
        bounded.folded = self.folded.len() as u64;
        let other = |((direction, verdict), (packets, bytes))| OtherFigures { direction, verdict, packets, bytes };
        bounded.others = others.into_iter().map(other).collect();
        bounded
    }
}

fn add(sum: &mut Counts, (packets, bytes): Counts) {
    sum.0 = sum.0.saturating_add(packets);
    sum.1 = sum.1.saturating_add(bytes);
}

#[cfg(test)]
mod tests;
