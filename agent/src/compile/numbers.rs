//! Numbers of the tables: fresh when given, and given again only when no table or packet can still mean the old owner.

use std::collections::VecDeque;

use crate::model::Verdict;
use crate::state::{RuleNumber, TableVerdict};

/// No policy applies, or every tier passed: the packet goes on.
pub const RULE_NO_POLICY: RuleNumber = RuleNumber(0);
/// The other side is a process of the own node, which ingress policy never stops.
pub const RULE_NODE_PROCESS: RuleNumber = RuleNumber(1);
/// The endpoint is closed: nothing is known of its policy yet.
pub const RULE_CLOSED: RuleNumber = RuleNumber(2);
/// The lowest number of a policy's rule; those below are constants.
pub const FIRST_RULE: u32 = 16;

/// What the tables say where no policy decides.
pub(super) const NO_POLICY: TableVerdict = TableVerdict { verdict: Verdict::Allow, rule: RULE_NO_POLICY };

/// The lowest free number of each kind. An agent that finds tables of a previous one starts above all numbers in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Of peer classes; at least 1, as 0 is the class of an address that no table names.
    pub class: u32,
    /// Of policy sets; at least 1.
    pub set: u32,
    /// Of profiles; at least 1.
    pub profile: u32,
    /// Of port classes; at least 1, as 0 is the class of a port that no rule asks about.
    pub port_class: u16,
    /// Of Service ports; at least 1.
    pub service: u32,
    /// Of rules; at least [`FIRST_RULE`].
    pub rule: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { class: 1, set: 1, profile: 1, port_class: 1, service: 1, rule: FIRST_RULE }
    }
}

/// Gives numbers of one kind.
///
/// A released number waits for two further settlements, and in a queue of at least `spare` others, oldest first: packets
/// that still hold it, caches that still name it, and people who still read it have long moved on.
#[derive(Debug)]
pub(super) struct Allocator {
    next: u32,
    end: u32,
    spare: usize,
    free: VecDeque<(u32, u64)>,
}

impl Allocator {
    pub(super) fn new(first: u32, end: u32, spare: usize) -> Self {
        Self { next: first, end, spare, free: VecDeque::new() }
    }

    /// A number; `now` counts settlements.
    pub(super) fn take(&mut self, now: u64) -> u32 {
        let aged = self.free.front().is_some_and(|(_, since)| since + 2 <= now);
        if ((aged && self.free.len() > self.spare) || self.next >= self.end)
            && let Some((number, _)) = self.free.pop_front()
        {
            return number;
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }

    /// Gives a number back. One beyond the end was given only since there was no other.
    pub(super) fn release(&mut self, number: u32, now: u64) {
        if number < self.end {
            self.free.push_back((number, now));
        }
    }

    /// Whether a number is below the end.
    pub(super) fn has_room_for(&self, number: u32) -> bool {
        number < self.end
    }

    /// Numbers end here.
    pub(super) fn limit(&mut self, end: u32) {
        self.end = end;
    }
}

#[cfg(test)]
mod tests {
    use super::Allocator;

    #[test]
    fn a_released_number_waits_for_two_settlements_and_for_its_turn() {
        let mut numbers = Allocator::new(5, 100, 1);
        assert_eq!((numbers.take(0), numbers.take(0)), (5, 6));
        numbers.release(5, 0);
        assert_eq!(numbers.take(9), 7, "one alone stays spare");
        numbers.release(6, 0);
        assert_eq!(numbers.take(1), 8, "too fresh");
        assert_eq!(numbers.take(2), 5, "oldest first");
        assert_eq!(numbers.take(2), 9, "one stays spare");
    }

    #[test]
    fn numbers_beyond_the_end_do_not_come_back() {
        let mut numbers = Allocator::new(1, u32::MAX, 100);
        numbers.limit(3);
        assert_eq!((numbers.take(0), numbers.take(0), numbers.take(0), numbers.take(0)), (1, 2, 3, 4));
        [4, 3, 2].into_iter().for_each(|number| numbers.release(number, 0));
        assert_eq!(numbers.take(0), 2, "the one that fits");
        assert_eq!(numbers.take(0), 5, "there is no other");
    }

    #[test]
    fn at_the_end_of_the_range_released_numbers_serve_at_once() {
        let mut numbers = Allocator::new(1, 2, 100);
        assert_eq!(numbers.take(0), 1);
        numbers.release(1, 0);
        assert_eq!(numbers.take(0), 1);
    }
}
