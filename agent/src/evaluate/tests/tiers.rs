//! Tiers, orders and the actions that kinds other than NetworkPolicy bring.

use crate::evaluate::fixture::*;
use crate::model::{Action, Object, Rule, TierDefault};

fn policy(name: &str, tier: &str, order: Option<f64>, actions: &[Action]) -> Object {
    let rules: Vec<Rule> = actions.iter().map(|action| act(*action, vec![], vec![])).collect();
    mk_policy(name, with("pod=a")).tier(tier).order(order).bare_ingress(rules).done()
}

fn tier(name: &str, order: f64, default: TierDefault) -> Object {
    mk_tier(name, Some(order), default)
}

#[test]
fn order_decides() {
    use Action::{Allow, Deny, Log, Pass};
    let early = |default| tier("early", 10.0, default);
    let late = |default| tier("late", 2e6, default);
    let rows: Vec<(&str, Vec<Object>, &str)> = vec![
        (
            "tiers by order",
            vec![
                early(TierDefault::Deny),
                policy("x/a", "default", Some(1.0), &[Allow]),
                policy("x/z", "early", Some(9.0), &[Deny]),
            ],
            "deny x/z#0",
        ),
        (
            "tiers of one order by name",
            vec![
                tier("b", 10.0, TierDefault::Deny),
                tier("a", 10.0, TierDefault::Deny),
                policy("x/1", "b", None, &[Deny]),
                policy("x/2", "a", None, &[Allow]),
            ],
            "allow x/2#0",
        ),
        (
            "a tier without an order comes last",
            vec![
                mk_tier("a", None, TierDefault::Deny),
                policy("x/1", "a", None, &[Deny]),
                policy("x/2", "default", None, &[Allow]),
            ],
            "allow x/2#0",
        ),
        (
            "policies by order, not by name",
            vec![policy("x/a", "default", Some(2.0), &[Deny]), policy("x/b", "default", Some(1.0), &[Allow])],
            "allow x/b#0",
        ),
        (
            "a policy without an order comes last",
            vec![policy("x/a", "default", None, &[Deny]), policy("x/b", "default", Some(1e9), &[Allow])],
            "allow x/b#0",
        ),
        (
            "policies of one order by name",
            vec![policy("x/b", "default", None, &[Deny]), policy("x/a", "default", None, &[Allow])],
            "allow x/a#0",
        ),
        ("rules in their order", vec![policy("x/a", "default", None, &[Deny, Allow])], "deny x/a#0"),
        ("Log goes on", vec![policy("x/a", "default", None, &[Log, Allow, Deny])], "allow x/a#1"),
        ("Log alone decides nothing", vec![policy("x/a", "default", None, &[Log])], "deny x/a"),
        (
            "Pass leaves the tier",
            vec![
                early(TierDefault::Deny),
                policy("x/1", "early", Some(1.0), &[Pass, Deny]),
                policy("x/2", "early", Some(2.0), &[Deny]),
                policy("x/3", "default", None, &[Allow]),
            ],
            "allow x/3#0",
        ),
        (
            "Pass into a tier that denies at its end",
            vec![
                early(TierDefault::Deny),
                policy("x/1", "early", Some(1.0), &[Pass]),
                policy("x/3", "default", None, &[]),
            ],
            "deny x/3",
        ),
        (
            "every tier passed",
            vec![policy("x/1", "default", None, &[Pass]), late(TierDefault::Pass), policy("x/2", "late", None, &[])],
            "allow no-policy",
        ),
        ("a tier's end denies", vec![early(TierDefault::Deny), policy("x/1", "early", None, &[])], "deny x/1"),
        ("a tier's end passes", vec![early(TierDefault::Pass), policy("x/1", "early", None, &[])], "allow no-policy"),
        (
            "the end is the first policy's that applies",
            vec![policy("x/1", "default", Some(2.0), &[]), policy("x/2", "default", Some(1.0), &[])],
            "deny x/2",
        ),
        (
            "a tier whose policies select others does not count",
            vec![
                early(TierDefault::Deny),
                mk_policy("x/1", with("pod=b")).tier("early").ingress(vec![]).done(),
                policy("x/2", "default", None, &[Allow]),
            ],
            "allow x/2#0",
        ),
        (
            "a tier whose policies govern the other direction does not count",
            vec![
                early(TierDefault::Deny),
                mk_policy("x/1", with("pod=a")).tier("early").egress(vec![]).done(),
                policy("x/2", "default", None, &[Allow]),
            ],
            "allow x/2#0",
        ),
        (
            "a tier after the default one is asked where nothing in that one applies",
            vec![late(TierDefault::Pass), policy("x/1", "late", None, &[Deny])],
            "deny x/1#0",
        ),
        ("a tier that is not known ends in a denial", vec![policy("x/1", "lost", None, &[])], "deny x/1"),
        (
            "and comes after all that are",
            vec![
                mk_tier("zz", None, TierDefault::Pass),
                policy("x/1", "lost", None, &[Deny]),
                policy("x/2", "zz", None, &[Allow]),
            ],
            "allow x/2#0",
        ),
        (
            "the default tier is what it is, whatever an object says",
            vec![
                tier("default", 1.0, TierDefault::Pass),
                early(TierDefault::Deny),
                policy("x/1", "early", None, &[Pass]),
                policy("x/2", "default", None, &[]),
            ],
            "deny x/2",
        ),
    ];
    for (why, objects, expected) in rows {
        let cluster = mk_cluster(["x/a", "x/b"].map(mk_pod), objects);
        assert_eq!(ingress(&cluster, "x/b", "x/a", TCP_80), expected, "{why}");
    }
}

#[test]
fn other_kinds_can_keep_a_pod_from_itself() {
    let deny = policy("x/deny", "default", Some(1.0), &[Action::Deny]);
    let network = mk_policy("x/p", with("pod=a")).ingress(vec![]).done();
    let cluster = mk_cluster([mk_pod("x/a")], [deny, network]);
    assert_eq!(ingress(&cluster, "x/a", "x/a", TCP_80), "deny x/deny#0", "the implied rules are rules, no bypass");
}

#[test]
fn negated_peers() {
    use crate::model::PeerMatch;
    let not_b = PeerMatch::Not(Box::new(pods_of("x", with("pod=b"))));
    let rule = act(Action::Allow, vec![not_b], vec![]);
    let cluster = mk_cluster(
        ["x/a", "x/b", "x/c"].map(mk_pod),
        [mk_policy("x/p", with("pod=a")).bare_ingress(vec![rule]).done()],
    );
    assert_eq!(ingress(&cluster, "x/b", "x/a", TCP_80), "deny x/p", "the one left out");
    assert_eq!(ingress(&cluster, "x/c", "x/a", TCP_80), "allow x/p#0", "another pod");
    assert_eq!(ingress(&cluster, "203.0.113.1", "x/a", TCP_80), "allow x/p#0", "an outside address");
}
