//! Protocols and ports: lists, ranges, names, and protocols that have none.

use crate::evaluate::fixture::*;
use crate::index::Cluster;
use crate::model::{NamedPort, Pod, PortMatch, Protocol, Traffic, TrafficMatch};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const SCTP: Protocol = Protocol::SCTP;
const GRE: Protocol = Protocol(47);

fn with_ports(name: &str, ports: Vec<NamedPort>) -> Pod {
    Pod { ports, ..mk_pod(name) }
}

fn on(protocol: Protocol, port: u16) -> Traffic {
    Traffic { protocol, port }
}

/// x/a (web is 8080/TCP and 8053/UDP), x/a2 (web is 9090/TCP) and y/b (no ports).
fn pods() -> [Pod; 3] {
    [
        with_ports("x/a", vec![port_named("web", TCP, 8080), port_named("web", UDP, 8053), port_named("", TCP, 7000)]),
        with_ports("x/a2", vec![port_named("web", TCP, 9090)]),
        mk_pod("y/b"),
    ]
}

fn ingress_on(ports: Vec<PortMatch>) -> Cluster {
    mk_cluster(pods(), [mk_policy("x/p", everything()).ingress(vec![allow(vec![], ports)]).done()])
}

#[test]
fn lists_and_ranges() {
    let rows = [
        ("no list: TCP", vec![], on(TCP, 1), true),
        ("no list: every protocol", vec![], on(GRE, 0), true),
        ("no list: ICMP", vec![], on(Protocol::ICMP, 0x0800), true),
        ("a number", vec![port(TCP, 80)], on(TCP, 80), true),
        ("another number", vec![port(TCP, 80)], on(TCP, 81), false),
        ("another protocol", vec![port(TCP, 80)], on(UDP, 80), false),
        ("one of several", vec![port(TCP, 80), port(UDP, 53)], on(UDP, 53), true),
        ("no mixture of several", vec![port(TCP, 80), port(UDP, 53)], on(TCP, 53), false),
        ("a protocol", vec![any_port(SCTP)], on(SCTP, 65535), true),
        ("a protocol, another", vec![any_port(SCTP)], on(TCP, 80), false),
        ("first of a range", vec![ports(TCP, 8000, 8080)], on(TCP, 8000), true),
        ("last of a range", vec![ports(TCP, 8000, 8080)], on(TCP, 8080), true),
        ("below a range", vec![ports(TCP, 8000, 8080)], on(TCP, 7999), false),
        ("above a range", vec![ports(TCP, 8000, 8080)], on(TCP, 8081), false),
        ("a range to the end", vec![ports(TCP, 1, 65535)], on(TCP, 65535), true),
        (
            "a list never means ICMP",
            vec![any_port(TCP), any_port(UDP), any_port(SCTP)],
            on(Protocol::ICMP, 0x0800),
            false,
        ),
        ("a list never means ICMPv6", vec![any_port(TCP), any_port(UDP)], on(Protocol::ICMPV6, 0x8000), false),
        ("a list never means others", vec![any_port(TCP), ports(UDP, 0, 65535)], on(GRE, 0), false),
    ];
    for (why, list, traffic, expected) in rows {
        let decided = ingress(&ingress_on(list), "y/b", "x/a", traffic);
        assert_eq!(decided, if expected { "allow x/p#0" } else { "deny x/p" }, "{why}");
    }
}

#[test]
fn names_on_ingress_are_the_selected_pods() {
    let rows = [
        ("its number", "x/a", named(TCP, "web"), on(TCP, 8080), true),
        ("the number of a replica that declares another", "x/a", named(TCP, "web"), on(TCP, 9090), false),
        ("each its own", "x/a2", named(TCP, "web"), on(TCP, 9090), true),
        ("a protocol's number", "x/a", named(UDP, "web"), on(UDP, 8053), true),
        ("the other protocol's number", "x/a", named(UDP, "web"), on(UDP, 8080), false),
        ("a protocol without that name", "x/a2", named(UDP, "web"), on(UDP, 9090), false),
        ("traffic of another protocol", "x/a", named(TCP, "web"), on(UDP, 8080), false),
        ("a name that nobody declares", "x/a", named(TCP, "nope"), on(TCP, 8080), false),
        ("no name means no unnamed port", "x/a", named(TCP, ""), on(TCP, 7000), false),
    ];
    for (why, to, wanted, traffic, expected) in rows {
        let decided = ingress(&ingress_on(vec![wanted]), "y/b", to, traffic);
        assert_eq!(decided, if expected { "allow x/p#0" } else { "deny x/p" }, "{why}");
    }
}

#[test]
fn names_on_egress_are_each_destinations() {
    let out = |peers| mk_policy("y/p", everything()).egress(vec![allow(peers, vec![named(TCP, "web")])]).done();
    let on_host =
        Pod { host_network: true, node: Some("n2".into()), ..with_ports("x/h", vec![port_named("web", TCP, 80)]) };
    let anybody = mk_cluster(pods().into_iter().chain([on_host]), [out(vec![])]);
    let ranges = mk_cluster(pods(), [out(vec![block("10.0.0.0/8", &[])])]);
    let selected = mk_cluster(pods(), [out(vec![pods_of("x", with("pod=a"))])]);
    let rows = [
        ("no `to`: the destination's number", &anybody, "x/a", on(TCP, 8080), true),
        ("no `to`: another destination's number", &anybody, "x/a2", on(TCP, 9090), true),
        ("no `to`: not the other's", &anybody, "x/a2", on(TCP, 8080), false),
        ("no `to`: an outside address declares nothing", &anybody, "203.0.113.1", on(TCP, 8080), false),
        ("no `to`: nor a pod on its node's network", &anybody, "x/h", on(TCP, 80), false),
        ("a range matches a pod, whose name counts", &ranges, "x/a", on(TCP, 8080), true),
        ("a range matches an outside address, which has no name", &ranges, "10.200.0.1", on(TCP, 8080), false),
        ("a selected destination", &selected, "x/a", on(TCP, 8080), true),
        ("a destination that is not selected", &selected, "x/a2", on(TCP, 9090), false),
    ];
    for (why, cluster, to, traffic, expected) in rows {
        let decided = egress(cluster, "y/b", to, traffic);
        assert_eq!(decided, if expected { "allow y/p#0" } else { "deny y/p" }, "{why}");
    }
}

#[test]
fn exclusions() {
    let rule = |any_of: Vec<PortMatch>, none_of: Vec<PortMatch>| {
        let mut rule = allow(vec![], vec![]);
        rule.traffic = TrafficMatch { any_of, none_of };
        mk_cluster(pods(), [mk_policy("x/p", everything()).ingress(vec![rule]).done()])
    };
    let rows = [
        ("all but a port: another", rule(vec![], vec![port(TCP, 22)]), on(TCP, 80), true),
        ("all but a port: that one", rule(vec![], vec![port(TCP, 22)]), on(TCP, 22), false),
        ("all but a port: another protocol", rule(vec![], vec![port(TCP, 22)]), on(UDP, 22), true),
        ("all but a protocol", rule(vec![], vec![any_port(TCP)]), on(TCP, 80), false),
        ("a range without one of it", rule(vec![ports(TCP, 1, 100)], vec![port(TCP, 22)]), on(TCP, 22), false),
        ("the rest of the range", rule(vec![ports(TCP, 1, 100)], vec![port(TCP, 22)]), on(TCP, 23), true),
        ("a name", rule(vec![], vec![named(TCP, "web")]), on(TCP, 8080), false),
    ];
    for (why, cluster, traffic, expected) in rows {
        let decided = ingress(&cluster, "y/b", "x/a", traffic);
        assert_eq!(decided, if expected { "allow x/p#0" } else { "deny x/p" }, "{why}");
    }
}

#[test]
fn one_rule_wants_peer_and_port() {
    let rules = vec![
        allow(vec![pods_of("x", everything())], vec![port(TCP, 80)]),
        allow(vec![pods_in(namespace_named("y"), everything())], vec![port(TCP, 81)]),
    ];
    let cluster = mk_cluster(pods(), [mk_policy("x/p", with("pod=a")).ingress(rules).done()]);
    let rows =
        [("x/a2", 80, "allow x/p#0"), ("y/b", 81, "allow x/p#1"), ("x/a2", 81, "deny x/p"), ("y/b", 80, "deny x/p")];
    for (from, number, expected) in rows {
        assert_eq!(ingress(&cluster, from, "x/a", tcp(number)), expected, "{from} on {number}");
    }
}
