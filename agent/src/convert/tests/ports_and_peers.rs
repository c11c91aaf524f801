use serde_json::{Value, json};

use super::super::network_policy;
use super::{parse, warned};
use crate::model::{NamespaceScope, PeerAtom, PeerMatch, PortMatch, PortSpec, Protocol, Selector};

#[test]
fn ports_mean_what_the_api_says() {
    let rows: Vec<(&str, Value, Protocol, PortSpec)> = vec![
        ("an empty entry", json!({}), Protocol::TCP, PortSpec::Any),
        ("a protocol alone", json!({"protocol": "UDP"}), Protocol::UDP, PortSpec::Any),
        ("a number", json!({"port": 80}), Protocol::TCP, PortSpec::Range(80, 80)),
        ("a null protocol", json!({"port": 80, "protocol": null}), Protocol::TCP, PortSpec::Range(80, 80)),
        ("a range", json!({"port": 80, "endPort": 90, "protocol": "SCTP"}), Protocol::SCTP, PortSpec::Range(80, 90)),
        ("all ports as a range", json!({"port": 1, "endPort": 65535}), Protocol::TCP, PortSpec::Range(1, 65535)),
        ("a name", json!({"port": "dns", "protocol": "UDP"}), Protocol::UDP, PortSpec::Named("dns".into())),
    ];
    for (what, port, protocol, spec) in rows {
        let object = json!({"metadata": {"name": "p"}, "spec": {"ingress": [{"ports": [port]}]}});
        let policy = network_policy(&parse(object)).expect(what).value;
        let traffic = &policy.ingress.expect("governed")[0].traffic;
        assert_eq!(traffic.any_of, [PortMatch { protocol, port: spec }], "{what}: {port}");
        assert!(traffic.none_of.is_empty(), "{what}: nothing is excluded");
    }
}

fn in_namespace(name: &str, pods: Selector) -> PeerMatch {
    PeerMatch::Atom(PeerAtom::Pods { namespaces: NamespaceScope::Named(name.into()), pods })
}

fn in_namespaces(namespaces: Selector, pods: Selector) -> PeerMatch {
    PeerMatch::Atom(PeerAtom::Pods { namespaces: NamespaceScope::Matching(namespaces), pods })
}

fn cidr(text: &str) -> PeerMatch {
    PeerMatch::Atom(PeerAtom::Cidr(text.parse().expect("the test's own range")))
}

#[test]
fn peers_mean_what_the_api_says() {
    let a = || Selector::All(vec![Selector::In("a".into(), ["1".into()].into())]);
    let a_json = || json!({"matchLabels": {"a": "1"}});
    let not = |part| PeerMatch::Not(Box::new(part));
    let rows: Vec<(&str, Value, PeerMatch)> = vec![
        ("podSelector alone: the policy's namespace", json!({"podSelector": a_json()}), in_namespace("shop", a())),
        ("an empty podSelector: all of it", json!({"podSelector": {}}), in_namespace("shop", Selector::everything())),
        (
            "namespaceSelector alone: all pods of them",
            json!({"namespaceSelector": a_json()}),
            in_namespaces(a(), Selector::everything()),
        ),
        (
            "both in one peer: both hold",
            json!({"namespaceSelector": {}, "podSelector": a_json()}),
            in_namespaces(Selector::everything(), a()),
        ),
        ("a block", json!({"ipBlock": {"cidr": "10.0.0.0/8"}}), cidr("10.0.0.0/8")),
        (
            "a block with exceptions",
            json!({"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:1::/48", "2001:db8:2::/48"]}}),
            PeerMatch::All(vec![cidr("2001:db8::/32"), not(cidr("2001:db8:1::/48")), not(cidr("2001:db8:2::/48"))]),
        ),
    ];
    for (what, peer, expected) in rows {
        let other = json!({"ipBlock": {"cidr": "192.0.2.1/32"}});
        let spec = json!({"ingress": [{"from": [peer, other]}]});
        let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        let policy = network_policy(&parse(object)).expect(what).value;
        let found = &policy.ingress.expect("governed")[0].peer;
        assert_eq!(*found, PeerMatch::Any(vec![expected, cidr("192.0.2.1/32")]), "{what}: {peer}");
    }
}

#[test]
fn odd_spellings_of_ranges_are_accepted_with_a_warning() {
    let rows: &[(&str, &str, &str, bool)] = &[
        ("plain", "10.0.0.0/8", "10.0.0.0/8", false),
        ("one address", "10.1.2.3/32", "10.1.2.3/32", false),
        ("host bits", "10.1.2.3/8", "10.0.0.0/8", true),
        ("IPv6 host bits", "2001:db8::1/64", "2001:db8::/64", true),
        ("leading zeros are decimal", "010.000.0.0/8", "10.0.0.0/8", true),
        ("a leading zero in the length", "10.0.0.0/08", "10.0.0.0/8", true),
        ("many leading zeros", "0010.0.0.0/8", "10.0.0.0/8", true),
        ("IPv4-mapped", "::ffff:10.0.0.0/104", "10.0.0.0/8", true),
        ("one IPv4-mapped address", "::ffff:10.0.0.1/128", "10.0.0.1/32", true),
        ("all of IPv4, mapped", "::ffff:0:0/96", "0.0.0.0/0", true),
        ("wider than what is mapped: IPv6", "::ffff:0:0/95", "::fffe:0:0/95", true),
        ("IPv6 in capitals and full length", "2001:DB8:0:0:0:0:0:0/32", "2001:db8::/32", false),
        ("everything", "0.0.0.0/0", "0.0.0.0/0", false),
    ];
    for (what, text, expected, odd) in rows {
        let spec = json!({"ingress": [{"from": [{"ipBlock": {"cidr": text}}]}]});
        let object = json!({"metadata": {"name": "p"}, "spec": spec});
        let converted = network_policy(&parse(object)).expect(what);
        let expected_warnings: &[&str] = if *odd { &["spec.ingress[0].from[0].ipBlock.cidr"] } else { &[] };
        assert_eq!(warned(&converted), expected_warnings, "{what}: {text}");
        let rules = converted.value.ingress.expect("governed");
        assert_eq!(rules[0].peer, PeerMatch::Any(vec![cidr(expected)]), "{what}: {text}");
    }
}
