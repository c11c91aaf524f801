use serde_json::{Value, json};

use super::super::{Converted, network_policy, subject};
use super::{fields, parse, warned};
use crate::model::{
    Action, NamespaceScope, PeerAtom, PeerMatch, Policy, PolicyKind, RuleOrigin, Selector, Tier, TrafficMatch,
};

fn convert(spec: Value) -> Converted<Policy> {
    let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    network_policy(&parse(object)).expect("the API server would accept it")
}

#[test]
fn policy_types_are_filled_in_as_the_api_server_does() {
    let rule = json!([{}]);
    let rows: &[(&str, Value, (bool, bool))] = &[
        ("nothing at all", json!({}), (true, false)),
        ("null everywhere", json!({"policyTypes": null, "ingress": null, "egress": null}), (true, false)),
        ("ingress rules", json!({"ingress": rule}), (true, false)),
        ("egress rules", json!({"egress": rule}), (true, true)),
        ("an empty list of egress rules", json!({"egress": []}), (true, false)),
        ("an empty list of types", json!({"policyTypes": [], "egress": rule}), (true, true)),
        ("Ingress alone", json!({"policyTypes": ["Ingress"], "egress": rule}), (true, false)),
        ("Egress alone", json!({"policyTypes": ["Egress"]}), (false, true)),
        ("Egress alone with ingress rules", json!({"policyTypes": ["Egress"], "ingress": rule}), (false, true)),
        ("both", json!({"policyTypes": ["Egress", "Ingress"]}), (true, true)),
    ];
    for (what, spec, expected) in rows {
        let policy = convert(spec.clone()).value;
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), *expected, "{what}: {spec}");
    }
}

#[test]
fn missing_empty_and_null_lists_of_rules_allow_nothing_but_what_is_implied() {
    for list in [json!(null), json!([])] {
        let policy = convert(json!({"policyTypes": ["Ingress", "Egress"], "ingress": list, "egress": list})).value;
        let origins = |rules: Option<Vec<crate::model::Rule>>| -> Vec<(RuleOrigin, PeerMatch, bool)> {
            let rules = rules.expect("governed").into_iter();
            rules.map(|rule| (rule.origin, rule.peer, rule.traffic == TrafficMatch::default())).collect()
        };
        let itself = (RuleOrigin::Itself, PeerMatch::Atom(PeerAtom::Itself), true);
        let node = (RuleOrigin::OwnNode, PeerMatch::Atom(PeerAtom::OwnNode), true);
        assert_eq!(origins(policy.ingress), std::slice::from_ref(&itself), "ingress {list}");
        assert_eq!(origins(policy.egress), [itself, node], "egress {list}");
    }
}

#[test]
fn an_empty_rule_allows_everything() {
    for rule in [json!({}), json!({"from": [], "ports": []}), json!({"from": null, "ports": null})] {
        let rules = convert(json!({"ingress": [rule]})).value.ingress.expect("governed");
        assert_eq!(rules[0].peer, PeerMatch::anyone(), "everybody: {rule}");
        assert_eq!(rules[0].traffic, TrafficMatch::default(), "all traffic: {rule}");
    }
}

#[test]
fn rules_stand_in_the_order_of_the_spec_and_implied_ones_after_them() {
    let policy = convert(json!({"egress": [{"ports": [{}]}, {}]})).value;
    let rules = policy.egress.expect("governed");
    let origins: Vec<RuleOrigin> = rules.iter().map(|rule| rule.origin).collect();
    assert_eq!(origins, [RuleOrigin::Spec(0), RuleOrigin::Spec(1), RuleOrigin::Itself, RuleOrigin::OwnNode]);
    assert!(rules.iter().all(|rule| rule.action == Action::Allow), "NetworkPolicy only allows");
}

#[test]
fn a_policy_stands_in_the_default_tier_under_its_own_name() {
    let policy = convert(json!({})).value;
    assert_eq!((&*policy.tier, policy.order), (Tier::DEFAULT, Tier::NETWORK_POLICY_ORDER));
    assert_eq!(policy.id.kind, PolicyKind::NetworkPolicy);
    assert_eq!(policy.id.to_string(), "NetworkPolicy shop/p");
}

#[test]
fn a_policy_selects_pods_of_its_own_namespace() {
    for (what, spec) in
        [("absent", json!({})), ("null", json!({"podSelector": null})), ("{}", json!({"podSelector": {}}))]
    {
        let subject = convert(spec).value.subject;
        assert_eq!(subject.namespaces, NamespaceScope::Named("shop".into()), "{what}");
        assert_eq!(subject.pods, Selector::everything(), "a podSelector that is {what} selects every pod");
    }
    let unnamed = json!({"metadata": {"name": "p"}, "spec": {}});
    let policy = network_policy(&parse(unnamed)).expect("valid").value;
    assert_eq!(policy.id.namespace.as_deref(), Some("default"), "the namespace of an object that names none");
}

#[test]
fn a_selector_is_the_conjunction_of_its_labels_and_expressions() {
    let spec = json!({"podSelector": {
        "matchLabels": {"b": "2", "a": "1"},
        "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x"]},
            {"key": "d", "operator": "NotIn", "values": ["z"]},
            {"key": "e", "operator": "Exists"},
            {"key": "f", "operator": "DoesNotExist"},
        ],
    }});
    let expected = Selector::All(vec![
        Selector::In("a".into(), ["1".into()].into()),
        Selector::In("b".into(), ["2".into()].into()),
        Selector::In("c".into(), ["x".into(), "y".into()].into()),
        Selector::NotIn("d".into(), ["z".into()].into()),
        Selector::Exists("e".into()),
        Selector::DoesNotExist("f".into()),
    ]);
    assert_eq!(convert(spec).value.subject.pods, expected);
}

#[test]
fn what_an_author_may_not_have_meant_is_warned_about() {
    let rows: &[(&str, Value, &[&str])] = &[
        ("nothing odd", json!({"podSelector": {}, "ingress": [{}]}), &[]),
        ("ingress rules without effect", json!({"policyTypes": ["Egress"], "ingress": [{}]}), &["spec.ingress"]),
        ("egress rules without effect", json!({"policyTypes": ["Ingress"], "egress": [{}]}), &["spec.egress"]),
        ("no spec", json!(null), &["spec"]),
    ];
    for (what, spec, expected) in rows {
        assert_eq!(warned(&convert(spec.clone())), *expected, "{what}: {spec}");
    }
}

#[test]
fn names_and_labels_of_the_policy_itself_are_checked() {
    let rows: &[(&str, Value, &[&str])] = &[
        ("no name", json!({}), &["metadata.name"]),
        ("an empty name", json!({"name": ""}), &["metadata.name"]),
        ("a bad name", json!({"name": "P"}), &["metadata.name"]),
        ("a bad namespace", json!({"name": "p", "namespace": "a.b"}), &["metadata.namespace"]),
        ("a bad label", json!({"name": "p", "labels": {"a": "b c"}}), &["metadata.labels[a]"]),
    ];
    for (what, metadata, expected) in rows {
        let refused = network_policy(&parse(json!({"metadata": metadata, "spec": {}}))).expect_err(what);
        assert_eq!(fields(&refused), *expected, "{what}");
    }
}

#[test]
fn the_pods_of_a_bad_policy_are_known_where_its_selector_is_good() {
    let object = |spec: Value| parse(json!({"metadata": {"name": "p"}, "spec": spec}));
    let bad_rule = object(json!({"podSelector": {"matchLabels": {"a": "1"}}, "ingress": [{"from": [{}]}]}));
    let found = subject(&bad_rule).expect("its podSelector is good");
    assert_eq!(found.pods, Selector::All(vec![Selector::In("a".into(), ["1".into()].into())]));
    let bad_selector = object(json!({"podSelector": {"matchLabels": {"a": "-"}}}));
    assert_eq!(subject(&bad_selector), None, "a bad podSelector tells nothing");
}
