use proptest::prelude::*;

use super::{Bounded, SeriesBound};
use crate::metrics::RuleFigures;
use crate::model::{Direction, PolicyId, PolicyKind, RuleOrigin, Verdict};
use crate::state::{RuleCause, RuleIdentity};

fn figures(name: &str, packets: u64) -> RuleFigures {
    let policy = PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("x".into()), name: name.into() };
    let cause = RuleCause::Rule(RuleOrigin::Spec(0));
    let rule = RuleIdentity { direction: Direction::Ingress, verdict: Verdict::Allow, policy, cause };
    RuleFigures { rule, packets, bytes: 100 * packets }
}

fn shown(bounded: &Bounded) -> Vec<(String, u64)> {
    bounded.rules.iter().map(|figures| (figures.rule.policy.name.to_string(), figures.packets)).collect()
}

fn other(bounded: &Bounded) -> u64 {
    bounded.others.iter().map(|other| other.packets).sum()
}

#[test]
fn rules_beyond_the_bound_are_counted_together() {
    let mut bound = SeriesBound::new(2);
    let bounded = bound.apply(vec![figures("b", 1), figures("c", 2), figures("d", 4), figures("e", 8)]);
    assert_eq!(shown(&bounded), [("b".to_owned(), 1), ("c".to_owned(), 2)]);
    assert_eq!((other(&bounded), bounded.folded, bounded.others.len()), (12, 2, 1), "one series for the others");
    assert_eq!(bounded.others[0].bytes, 1200);

    let bounded =
        bound.apply(vec![figures("a", 16), figures("b", 1), figures("c", 2), figures("d", 4), figures("e", 8)]);
    assert_eq!(shown(&bounded), [("b".to_owned(), 1), ("c".to_owned(), 2)], "a rule keeps its series");
    assert_eq!((other(&bounded), bounded.folded), (28, 3));

    let bounded = bound.apply(vec![figures("a", 16), figures("d", 4), figures("f", 32)]);
    assert_eq!(shown(&bounded), [("f".to_owned(), 32)], "what was folded stays so, and a new one has room");
    assert_eq!((other(&bounded), bounded.folded), (28, 2), "what one counted that is gone remains counted");

    let bounded = bound.apply(vec![figures("a", 3)]);
    assert_eq!(other(&bounded), 31, "and a counter that began anew counts on");
}

#[test]
fn no_series_at_all() {
    let bounded = SeriesBound::new(0).apply(vec![figures("a", 1)]);
    assert_eq!((bounded.rules.len(), other(&bounded)), (0, 1), "all are others");
    assert_eq!(SeriesBound::new(0).apply(Vec::new()), Bounded::default(), "and without rules there is nothing");
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_falls(
        most in 0_usize..6,
        steps in prop::collection::vec(prop::collection::vec((0_u8..10, 0_u64..5), 0..10), 1..10),
    ) {
        let mut bound = SeriesBound::new(most);
        let mut counts = [0_u64; 10];
        let mut last = 0;
        for step in steps {
            let mut present = [false; 10];
            for (rule, more) in step {
                counts[usize::from(rule)] += more;
                present[usize::from(rule)] = true;
            }
            let rules: Vec<RuleFigures> = (0..10_usize)
                .filter(|rule| present[*rule])
                .map(|rule| figures(&rule.to_string(), counts[rule]))
                .collect();
            let total: u64 = rules.iter().map(|figures| figures.packets).sum();
            let bounded = bound.apply(rules);
            prop_assert!(bounded.rules.len() <= most, "the bound holds");
            let told = shown(&bounded).iter().map(|(_, packets)| packets).sum::<u64>() + other(&bounded);
            prop_assert!(told >= total, "every packet is counted: {told} of {total}");
            prop_assert!(other(&bounded) >= last, "the sum of the others never falls");
            last = other(&bounded);
        }
    }
}
