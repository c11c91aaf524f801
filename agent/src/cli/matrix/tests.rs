//! The form of the answer, and which questions it answers.

use super::*;
use crate::cli::arguments::EngineName;
use crate::cli::engine::EvaluatorEngine;
use crate::evaluate::fixture::*;
use crate::model::{Object, Protocol};

fn args(ports: &[Traffic], output: MatrixOutput) -> MatrixArgs {
    MatrixArgs {
        source: Default::default(),
        namespaces: Vec::new(),
        ports: ports.to_vec(),
        output,
        engine: EngineName::Evaluator,
        own_node: Default::default(),
    }
}

fn answer(cluster: &Cluster, args: &MatrixArgs) -> String {
    let mut out = Vec::new();
    write(args, cluster, &EvaluatorEngine::new(cluster), u64::MAX, &mut out).expect("written");
    String::from_utf8(out).expect("UTF-8")
}

/// `from->to family port/protocol verdict egress-reason/ingress-reason` for each entry.
fn entries(cluster: &Cluster, ports: &[Traffic]) -> Vec<String> {
    let json: serde_json::Value =
        serde_json::from_str(&answer(cluster, &args(ports, MatrixOutput::Json))).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    json["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| {
            let [from, to, family, port, protocol, verdict] =
                ["from", "to", "family", "port", "protocol", "verdict"].map(|field| text(&entry[field]));
            let [egress, ingress] = ["egress", "ingress"].map(|side| text(&entry[side]["reason"]));
            format!("{from}->{to} {family} {port}/{protocol} {verdict} {egress}/{ingress}")
        })
        .collect()
}

fn v4_pod(name: &str, address: &str) -> Pod {
    Pod { addresses: vec![ip(address)], ..mk_pod(name) }
}

fn isolate(subject: &str) -> Object {
    mk_policy("x/p", with(subject)).ingress(vec![]).egress(vec![]).done()
}

#[test]
fn json() {
    let rules = vec![allow(vec![], vec![port(Protocol::UDP, 53)]), allow(vec![pods_of("x", with("pod=b"))], vec![])];
    let policy = mk_policy("x/p", with("pod=a")).ingress(rules).done();
    let cluster = mk_cluster([v4_pod("x/a", "10.0.0.1"), v4_pod("x/b", "10.0.0.2")], [policy]);
    let free = r#"{"verdict":"allow","reason":"no-policy","kind":null,"policy":null,"rule":null}"#;
    let entry = |from: &str, to: &str, verdict: &str, ingress: &str| {
        format!(
            r#"{{"from":"{from}","to":"{to}","family":"IPv4","protocol":"TCP","port":80,"verdict":"{verdict}","egress":{free},"ingress":{ingress}}}"#
        )
    };
    let of_policy = |verdict: &str, reason: &str, rule: &str| {
        format!(r#"{{"verdict":"{verdict}","reason":"{reason}","kind":"NetworkPolicy","policy":"x/p","rule":{rule}}}"#)
    };
    let expected = [
        entry("x/a", "x/a", "allow", &of_policy("allow", "self", "null")),
        entry("x/a", "x/b", "allow", free),
        entry("x/b", "x/a", "allow", &of_policy("allow", "rule", "1")),
        entry("x/b", "x/b", "allow", free),
    ];
    let expected = format!("{{\"entries\":[{}]}}\n", expected.join(","));
    assert_eq!(answer(&cluster, &args(&[TCP_80], MatrixOutput::Json)), expected);

    let cluster = mk_cluster([v4_pod("x/a", "10.0.0.1"), v4_pod("y/b", "10.0.0.2")], [isolate("pod=a")]);
    let json = answer(&cluster, &args(&[TCP_80], MatrixOutput::Json));
    let denied = entry("y/b", "x/a", "deny", &of_policy("deny", "isolation", "null"));
    assert!(json.contains(&denied), "isolation names the policy and no rule: {json}");
}

#[test]
fn table() {
    let cluster = mk_cluster([v4_pod("x/a", "10.0.0.1"), v4_pod("y/b", "10.0.0.2")], [isolate("pod=a")]);
    let expected = "\
FROM  TO   FAMILY  PORT    VERDICT  EGRESS                INGRESS
x/a   x/a  IPv4    80/TCP  allow    allow (x/p self)      allow (x/p self)
x/a   y/b  IPv4    80/TCP  deny     deny (x/p isolation)  allow (no-policy)
y/b   x/a  IPv4    80/TCP  deny     allow (no-policy)     deny (x/p isolation)
y/b   y/b  IPv4    80/TCP  allow    allow (no-policy)     allow (no-policy)
";
    assert_eq!(answer(&cluster, &args(&[TCP_80], MatrixOutput::Table)), expected);
    assert_eq!(answer(&mk_cluster([], []), &args(&[], MatrixOutput::Json)), "{\"entries\":[]}\n", "no pods");
}

#[test]
fn ports() {
    let udp = Traffic { protocol: Protocol::UDP, port: 53 };
    let mut server = v4_pod("x/a", "10.0.0.1");
    server.ports = vec![
        port_named("web", Protocol::TCP, 80),
        port_named("again", Protocol::TCP, 80),
        port_named("", Protocol::UDP, 53),
    ];
    let cluster = mk_cluster([server, v4_pod("x/b", "10.0.0.2")], []);
    let own = ["x/a->x/a IPv4 80/TCP", "x/a->x/a IPv4 53/UDP", "x/b->x/a IPv4 80/TCP", "x/b->x/a IPv4 53/UDP"];
    let expected = own.map(|line| format!("{line} allow no-policy/no-policy"));
    assert_eq!(entries(&cluster, &[]), expected, "each destination's container ports, once each");
    assert_eq!(entries(&cluster, &[udp, udp, TCP_80]).len(), 8, "the ports given, once each, for every pod");
}

#[test]
fn families() {
    let dual = || mk_pod("x/a");
    let v4 = v4_pod("x/b", "10.0.0.2");
    let v6 = Pod { addresses: vec![ip("fd00::3")], ..mk_pod("x/c") };
    let none = |name| Pod { addresses: vec![], ..mk_pod(name) };
    let rows: Vec<(&str, Vec<Pod>, &str, Vec<&str>)> = vec![
        ("both have both", vec![dual(), mk_pod("x/b")], "x/a->x/b", vec!["IPv4", "IPv6"]),
        ("one has IPv4", vec![dual(), v4.clone()], "x/a->x/b", vec!["IPv4"]),
        ("the other has IPv4", vec![dual(), v4.clone()], "x/b->x/a", vec!["IPv4"]),
        ("nothing in common", vec![v4, v6.clone()], "x/b->x/c", vec![]),
        ("one has no address: the other's", vec![dual(), none("x/b")], "x/a->x/b", vec!["IPv4", "IPv6"]),
        ("one has no address: the other's, IPv6", vec![v6, none("x/b")], "x/b->x/c", vec!["IPv6"]),
        ("neither has an address", vec![none("x/a"), none("x/b")], "x/a->x/b", vec!["IPv4"]),
        ("to itself without an address", vec![none("x/a")], "x/a->x/a", vec!["IPv4"]),
    ];
    for (why, pods, pair, expected) in rows {
        let all = entries(&mk_cluster(pods, []), &[TCP_80]);
        let of_pair: Vec<&str> = all
            .iter()
            .filter(|line| line.starts_with(&format!("{pair} ")))
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert_eq!(of_pair, expected, "{why}");
    }
}

#[test]
fn pods_without_addresses_are_matched_by_selectors() {
    let none = |name| Pod { addresses: vec![], ..mk_pod(name) };
    let by = |peer| {
        let policy = mk_policy("x/p", with("pod=a")).ingress(vec![allow(vec![peer], vec![])]).done();
        entries(&mk_cluster([none("x/a"), none("x/b")], [policy]), &[TCP_80])
    };
    let line = |verdict, reason| format!("x/b->x/a IPv4 80/TCP {verdict} no-policy/{reason}");
    assert!(by(pods_of("x", with("pod=b"))).contains(&line("allow", "rule")), "by a selector");
    assert!(by(block("0.0.0.0/0", &[])).contains(&line("deny", "isolation")), "not by a range");
}

#[test]
fn pods_on_their_nodes_network() {
    let host = |name, node: &str, address| Pod { host_network: true, node: Some(node.into()), ..v4_pod(name, address) };
    let pods = [v4_pod("x/a", "10.0.0.1"), host("k/own", "n1", "192.0.2.1"), host("k/other", "n2", "192.0.2.2")];
    let all = entries(&mk_cluster(pods, [isolate("pod=a")]), &[TCP_80]);
    let rows = [
        ("a process of the node comes in", "k/own->x/a", "allow no-policy/own-node"),
        ("one of another node is judged by its address", "k/other->x/a", "deny no-policy/isolation"),
        ("the own node is always reached", "x/a->k/own", "allow own-node/no-policy"),
        ("another node is not", "x/a->k/other", "deny isolation/no-policy"),
        ("policy is not about it", "k/own->k/other", "allow no-policy/no-policy"),
        ("nor about what it does with itself", "k/own->k/own", "allow no-policy/no-policy"),
    ];
    for (why, pair, expected) in rows {
        let line = format!("{pair} IPv4 80/TCP {expected}");
        assert!(all.contains(&line), "{why}: {line} in {all:#?}");
    }
}

#[test]
fn finished_pods_are_left_out() {
    let finished = Pod { finished: true, ..v4_pod("x/b", "10.0.0.1") };
    let all = entries(&mk_cluster([v4_pod("x/a", "10.0.0.1"), finished], []), &[TCP_80]);
    assert_eq!(all, ["x/a->x/a IPv4 80/TCP allow no-policy/no-policy"]);
}
