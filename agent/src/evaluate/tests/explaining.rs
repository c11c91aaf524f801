//! Explanations: the reasons they give, and that they always explain the decision that is made.

use proptest::prelude::*;

use crate::evaluate::fixture::*;
use crate::evaluate::{Evaluator, Explanation, NodeView, Party, PeerMiss, PortMissReason, TrafficMiss};
use crate::index::Cluster;
use crate::model::{Direction, Family, Object, PeerMatch, Pod, PortMatch, Protocol, Rule, Selector, Traffic, Verdict};

fn explained(cluster: &Cluster, from: &str, to: &str, traffic: Traffic) -> Explanation {
    let source = from.parse().map_or_else(|_| Party::Pod(&cluster.pods[&key(from)]), Party::Address);
    let endpoint = &cluster.pods[&key(to)];
    let view = NodeView::of(cluster).view(endpoint, Direction::Ingress, source, Family::V4);
    Evaluator::new(cluster).explain(endpoint, Direction::Ingress, &view, traffic)
}

/// Why the only rule of the only policy misses a peer.
fn peer_miss(source: Pod, peer: PeerMatch) -> Option<PeerMiss> {
    let from = source.key.to_string();
    let policy = mk_policy("x/p", with("pod=a")).ingress(vec![allow(vec![peer], vec![])]).done();
    let cluster = mk_cluster([mk_pod("x/a"), source], [policy, mk_namespace("y", "env=dev")]);
    explained(&cluster, &from, "x/a", TCP_80).policies.remove(0).rules.remove(0).peer
}

#[test]
fn reasons_of_peers() {
    let labelled = |name, text| Pod { labels: labels(text), ..mk_pod(name) };
    let on_host = Pod { host_network: true, node: Some("n2".into()), ..mk_pod("y/b") };
    let address = mk_pod("y/b").addresses[0].to_string();
    let hit = || pods_in(everything(), everything());
    let rows: Vec<(&str, Pod, PeerMatch, &str)> = vec![
        ("a match", mk_pod("y/b"), hit(), "None"),
        ("namespace", mk_pod("y/b"), pods_of("x", everything()), r#"Some(Namespace("x"))"#),
        (
            "a namespace's label that differs",
            mk_pod("y/b"),
            pods_in(with("env=prod"), everything()),
            r#"Some(NamespaceLabels(LabelMiss { requirement: In("env", {"prod"}), found: Some("dev") }))"#,
        ),
        (
            "the one of two labels that is absent",
            labelled("x/b", "app=web"),
            pods_of("x", with("app=web,tier=1")),
            r#"Some(PodLabels(LabelMiss { requirement: In("tier", {"1"}), found: None }))"#,
        ),
        (
            "a label that must be absent",
            labelled("x/b", "app=web"),
            pods_of("x", Selector::All(vec![Selector::DoesNotExist("app".into())])),
            r#"Some(PodLabels(LabelMiss { requirement: DoesNotExist("app"), found: Some("web") }))"#,
        ),
        ("host network", on_host, hit(), "Some(NoPod)"),
        ("a range", mk_pod("y/b"), block("192.0.2.0/24", &[]), "Some(Outside(192.0.2.0/24))"),
        (
            "an exception",
            mk_pod("y/b"),
            block("10.0.0.0/8", &[&format!("{address}/32")]),
            &format!("Some(LeftOut(Atom(Cidr({address}/32))))"),
        ),
    ]
    .into_iter()
    .map(|(why, pod, peer, text)| (why, pod, peer, &*text.to_owned().leak()))
    .collect();
    for (why, source, peer, expected) in rows {
        assert_eq!(format!("{:?}", peer_miss(source, peer)), expected, "{why}");
    }
}

#[test]
fn reasons_of_ports() {
    let rows = [
        (port(Protocol::UDP, 80), PortMissReason::Protocol),
        (port(Protocol::TCP, 81), PortMissReason::Number),
        (named(Protocol::TCP, "web"), PortMissReason::DeclaredAs(8080)),
        (named(Protocol::TCP, "nope"), PortMissReason::NotDeclared),
    ];
    let pod = Pod { ports: vec![port_named("web", Protocol::TCP, 8080)], ..mk_pod("x/a") };
    for (wanted, reason) in rows {
        let policy = mk_policy("x/p", everything()).ingress(vec![allow(vec![], vec![wanted.clone()])]).done();
        let cluster = mk_cluster([pod.clone(), mk_pod("x/b")], [policy]);
        let traffic = explained(&cluster, "x/b", "x/a", TCP_80).policies.remove(0).rules.remove(0).traffic;
        let Some(TrafficMiss::Alternatives(misses)) = traffic else { panic!("{wanted:?} must miss: {traffic:?}") };
        assert_eq!(misses[0].reason, reason, "{wanted:?}");
    }
}

#[test]
fn policies_in_order_and_those_that_are_silent() {
    let all = || vec![allow(vec![], vec![])];
    let cluster = mk_cluster(
        ["x/a", "x/b"].map(mk_pod),
        [
            mk_policy("x/2", everything()).ingress(all()).done(),
            mk_policy("x/1", everything()).ingress(vec![]).done(),
            mk_policy("x/3", everything()).egress(vec![]).done(),
            mk_policy("x/4", with("pod=c")).ingress(all()).done(),
        ],
    );
    let explanation = explained(&cluster, "x/b", "x/a", TCP_80);
    let names: Vec<&str> = explanation.policies.iter().map(|policy| policy.id.name.as_ref()).collect();
    assert_eq!(names, ["1", "2"], "those that apply, in order");
    let silent: Vec<&str> = explanation.silent.iter().map(|id| id.name.as_ref()).collect();
    assert_eq!(silent, ["3"], "those of the other direction alone");
    assert!(explanation.policies[1].rules[0].decided, "the rule that decided is marked");
}

fn selectors() -> impl Strategy<Value = Selector> {
    prop_oneof![
        Just(everything()),
        Just(with("pod=a")),
        Just(not_within("pod", &["a"])),
        Just(within("pod", &["b", "c"])),
        Just(Selector::Exists("app".into())),
        Just(Selector::DoesNotExist("app".into())),
    ]
}

fn peers() -> impl Strategy<Value = PeerMatch> {
    let namespaces = prop_oneof![Just(everything()), Just(namespace_named("y")), Just(with("env=prod"))];
    prop_oneof![
        selectors().prop_map(|pods| pods_of("x", pods)),
        (namespaces, selectors()).prop_map(|(namespaces, pods)| pods_in(namespaces, pods)),
        Just(block("10.0.0.0/8", &["10.1.0.0/17"])),
        Just(block("0.0.0.0/0", &[])),
    ]
}

fn port_lists() -> impl Strategy<Value = PortMatch> {
    let protocol = || prop_oneof![Just(Protocol::TCP), Just(Protocol::UDP)];
    prop_oneof![
        protocol().prop_map(any_port),
        (protocol(), 79_u16..82).prop_map(|(protocol, number)| port(protocol, number)),
        (protocol(), prop_oneof![Just("web"), Just("nope")]).prop_map(|(protocol, name)| named(protocol, name)),
    ]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let one = (prop::collection::vec(peers(), 0..3), prop::collection::vec(port_lists(), 0..3));
    prop::collection::vec(one.prop_map(|(peers, ports)| allow(peers, ports)), 0..3)
}

fn policies() -> impl Strategy<Value = Vec<Object>> {
    let types = prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))];
    let one = (prop_oneof![Just("x"), Just("y")], selectors(), types, rules(), rules());
    prop::collection::vec(one, 0..4).prop_map(|policies| {
        let named = (0..).zip(policies);
        named
            .map(|(index, (namespace, subject, (ingress, egress), into, out))| {
                let policy = mk_policy(&format!("{namespace}/p{index}"), subject);
                let policy = if ingress { policy.ingress(into) } else { policy };
                if egress { policy.egress(out) } else { policy }.done()
            })
            .collect()
    })
}

fn pods() -> impl Strategy<Value = Vec<Pod>> {
    let flags = prop::collection::vec((any::<bool>(), any::<bool>(), 0_u8..10), 6);
    flags.prop_map(|flags| {
        let names = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c"];
        let pods = names.into_iter().zip(flags).map(|(name, (app, web, rare))| {
            let mut pod = mk_pod(name);
            let own = format!("pod={}", pod.key.name);
            pod.labels = labels(&if app { format!("{own},app=1") } else { own });
            pod.ports = if web { vec![port_named("web", Protocol::TCP, 80)] } else { vec![] };
            pod.host_network = rare == 0;
            pod.finished = rare == 1;
            pod.node = Some(if rare % 2 == 0 { "n1" } else { "n2" }.into());
            pod
        });
        pods.collect()
    })
}

proptest! {
    /// What the API says of NetworkPolicies, with no order at all: a pod that some policy selects is isolated, and what
    /// some rule of such a policy matches is allowed.
    #[test]
    fn decisions_are_the_union_of_what_rules_allow(pods in pods(), policies in policies(), udp: bool, number in 79_u16..82) {
        let cluster = mk_cluster(pods, policies.into_iter().chain([mk_namespace("y", "env=prod")]));
        let protocol = if udp { Protocol::UDP } else { Protocol::TCP };
        let (evaluator, nodes) = (Evaluator::new(&cluster), NodeView::of(&cluster));
        let pairs = cluster.pods.values().flat_map(|endpoint| cluster.pods.values().map(move |other| (endpoint, other)));
        let questions = pairs.flat_map(|(endpoint, other)| {
            [Direction::Ingress, Direction::Egress].map(|direction| (endpoint, direction, other))
        });
        for (endpoint, direction, other) in questions {
            let view = nodes.view(endpoint, direction, Party::Pod(other), Family::V4);
            let traffic = Traffic { protocol, port: number };
            let explanation = evaluator.explain(endpoint, direction, &view, traffic);
            let decision = evaluator.decide(endpoint, direction, &view, traffic);
            prop_assert_eq!(&explanation.decision, &decision, "one decision");
            let rules: Vec<_> = explanation.policies.iter().flat_map(|policy| &policy.rules).collect();
            let node = view.node_process_of_own_node && endpoint.is_member();
            let allowed = node || explanation.policies.is_empty() || rules.iter().any(|rule| rule.matches());
            let question = format!("{direction} of {} with {}: {explanation:?}", endpoint.key, other.key);
            prop_assert_eq!(decision.verdict == Verdict::Allow, allowed, "{}", question);
            let first = rules.iter().position(|rule| rule.matches());
            let decided = rules.iter().position(|rule| rule.decided);
            prop_assert_eq!(decided, if node { None } else { first }, "the first that matches decides: {}", question);
            prop_assert!(rules.iter().filter(|rule| rule.decided).count() <= 1, "one rule decides: {}", question);
            let selected = cluster.policies.values().filter(|policy| policy.rules(direction).is_some()).filter(|policy| {
                policy.id.namespace.as_ref() == Some(&endpoint.key.namespace)
                    && policy.subject.pods.matches(&endpoint.labels)
                    && endpoint.is_member()
            });
            prop_assert_eq!(selected.count(), explanation.policies.len(), "those that select the pod apply: {}", question);
        }
    }
}
