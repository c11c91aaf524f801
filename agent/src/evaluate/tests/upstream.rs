//! The enforcement cases of kubernetes/kubernetes test/e2e/network/netpol, as truth tables.
//!
//! Pods are named `namespace/name` and carry the label `pod: NAME`; namespaces x, y and z always exist. Each serves the
//! ports 80 and 81 of every protocol under the names `serve-80-tcp` and so on. A pod's traffic to itself is not judged
//! there, and not here.

use crate::evaluate::Party;
use crate::evaluate::fixture::*;
use crate::model::{Family, Object, PeerMatch, Pod, PortMatch, Protocol, Selector, Traffic, Verdict};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const SCTP: Protocol = Protocol::SCTP;

/// One state of one case.
struct State {
    name: &'static str,
    pods: &'static str,
    objects: Vec<Object>,
    /// What must be blocked: `from->to`, each a pod, a namespace or `*`; with `!` in front allowed after all. Later
    /// ones override earlier ones; everything else is allowed.
    probes: Vec<(Protocol, u16, &'static [&'static str])>,
}

fn state(
    name: &'static str,
    pods: &'static str,
    objects: Vec<Object>,
    probes: Vec<(Protocol, u16, &'static [&'static str])>,
) -> State {
    State { name, pods, objects, probes }
}

fn served_pod(name: &str) -> Pod {
    let mut pod = mk_pod(name);
    for (protocol, word) in [(TCP, "tcp"), (UDP, "udp"), (SCTP, "sctp")] {
        pod.ports.extend([80, 81].map(|number| port_named(&format!("serve-{number}-{word}"), protocol, number)));
    }
    pod
}

fn applies(pattern: &str, pod: &str) -> bool {
    pattern == "*" || pattern == pod || pod.split('/').next() == Some(pattern)
}

fn blocked(expected: &[&str], from: &str, to: &str) -> bool {
    expected.iter().fold(false, |blocked, line| {
        let (allowed, line) = line.strip_prefix('!').map_or((false, *line), |line| (true, line));
        let (source, destination) = line.split_once("->").expect("from->to");
        if applies(source, from) && applies(destination, to) { !allowed } else { blocked }
    })
}

fn check(states: Vec<State>) {
    for State { name, pods, objects, probes } in states {
        let namespaces = ["x", "y", "z"].map(|namespace| mk_namespace(namespace, ""));
        let cluster = mk_cluster(pods.split(' ').map(served_pod), namespaces.into_iter().chain(objects));
        for (protocol, number, expected) in probes {
            let traffic = Traffic { protocol, port: number };
            for (from, to) in cluster.pods.values().flat_map(|from| cluster.pods.values().map(move |to| (from, to))) {
                for family in [Family::V4, Family::V6] {
                    let [out, into] = side(&cluster, Party::Pod(from), Party::Pod(to), traffic, family);
                    let passes = [&out, &into].into_iter().flatten().all(|side| side.verdict == Verdict::Allow);
                    let (source, destination) = (from.key.to_string(), to.key.to_string());
                    assert!(
                        source == destination || passes != blocked(expected, &source, &destination),
                        "{name}: {source} -> {destination} {number}/{protocol} {family}: passes: {passes} ({out:?}; {into:?})"
                    );
                }
            }
        }
    }
}

fn pod(name: &str) -> Selector {
    with(&format!("pod={name}"))
}

/// A peer of the policy's own namespace x.
fn mine(pods: Selector) -> PeerMatch {
    pods_of("x", pods)
}

fn of_namespace(name: &str) -> PeerMatch {
    pods_in(namespace_named(name), everything())
}

fn outside_x() -> Selector {
    not_within("kubernetes.io/metadata.name", &["x"])
}

/// Admits these peers on these ports to x/a.
fn to_a(peers: Vec<PeerMatch>, ports: Vec<PortMatch>) -> Object {
    mk_policy("x/to-a", pod("a")).ingress(vec![allow(peers, ports)]).done()
}

fn deny_ingress() -> Object {
    mk_policy("x/deny", everything()).ingress(vec![]).done()
}

#[test]
fn default_deny_and_pod_selectors() {
    let four = "x/a x/b x/c y/a";
    let three = "x/a x/b y/a";
    let deny_all = mk_policy("x/deny-all", everything()).ingress(vec![]).egress(vec![]).done();
    check(vec![
        state("1 default-deny-ingress", "x/a x/b y/a y/b", vec![deny_ingress()], vec![(TCP, 80, &["*->x"])]),
        state("2 default-deny-all", three, vec![deny_all], vec![(TCP, 80, &["*->x", "x->*"])]),
        state(
            "3 from pods within the namespace",
            four,
            vec![to_a(vec![mine(pod("b"))], vec![])],
            vec![(TCP, 80, &["*->x/a", "!x/b->x/a"])],
        ),
        state(
            "4 allow for a target",
            three,
            vec![deny_ingress(), to_a(vec![pods_in(everything(), everything())], vec![])],
            vec![(TCP, 80, &["*->x/b"])],
        ),
        state(
            "7 PodSelector with MatchExpressions",
            three,
            vec![to_a(vec![mine(within("pod", &["b"]))], vec![])],
            vec![(TCP, 80, &["*->x/a", "!x/b->x/a"])],
        ),
        state(
            "12 any PodSelectors",
            "x/a x/b x/c",
            vec![to_a(vec![mine(pod("b")), mine(pod("c"))], vec![])],
            vec![(TCP, 80, &["*->x/a", "!x/b->x/a", "!x/c->x/a"])],
        ),
        state(
            "23 deny from other namespaces",
            "x/a x/b y/a z/a",
            vec![mk_policy("x/own", everything()).ingress(vec![allow(vec![mine(everything())], vec![])]).done()],
            vec![(TCP, 80, &["y->x", "z->x"])],
        ),
    ]);
}

#[test]
fn namespace_selectors() {
    let four = "x/a x/b y/a z/a";
    let only_y: &[&str] = &["*->x/a", "!y->x/a"];
    let name_in_y = pods_in(within("kubernetes.io/metadata.name", &["y"]), everything());
    check(vec![
        state(
            "5 pods in all namespaces",
            four,
            vec![to_a(vec![pods_in(everything(), everything())], vec![])],
            vec![(TCP, 80, &[])],
        ),
        state("6 a different namespace", four, vec![to_a(vec![of_namespace("y")], vec![])], vec![(TCP, 80, only_y)]),
        state(
            "8 NamespaceSelector with MatchExpressions",
            four,
            vec![to_a(vec![name_in_y], vec![])],
            vec![(TCP, 80, only_y)],
        ),
        state(
            "9 PodSelector or NamespaceSelector",
            "x/a x/b x/c y/a",
            vec![to_a(vec![pods_in(outside_x(), everything()), mine(pod("b"))], vec![])],
            vec![(TCP, 80, &["x->x/a", "!x/b->x/a"])],
        ),
        state(
            "10 PodSelector and NamespaceSelector",
            "x/a x/b y/a y/b z/b",
            vec![to_a(vec![pods_in(outside_x(), pod("b"))], vec![])],
            vec![(TCP, 80, &["*->x/a", "!y/b->x/a", "!z/b->x/a"])],
        ),
        state(
            "11 multiple PodSelectors and NamespaceSelectors",
            "x/a x/b y/a y/b y/c",
            vec![to_a(vec![pods_in(outside_x(), within("pod", &["b", "c"]))], vec![])],
            vec![(TCP, 80, &["x->x/a", "y/a->x/a"])],
        ),
        state(
            "13 a pod in a different namespace",
            "x/a x/b y/a y/b z/a",
            vec![to_a(vec![pods_in(namespace_named("y"), pod("a"))], vec![])],
            vec![(TCP, 80, &["*->x/a", "!y/a->x/a"])],
        ),
        state("41 default namespace label", four, vec![to_a(vec![of_namespace("y")], vec![])], vec![(TCP, 80, only_y)]),
        state(
            "42 default namespace label, egress, MatchExpressions",
            four,
            vec![
                mk_policy("x/out", pod("a"))
                    .egress(vec![allow(
                        vec![pods_in(not_within("kubernetes.io/metadata.name", &["y"]), everything())],
                        vec![],
                    )])
                    .done(),
            ],
            vec![(TCP, 80, &["x/a->y"])],
        ),
    ]);
}

#[test]
fn ports_and_protocols() {
    let five = "x/a x/b y/a y/b z/a";
    let three = "x/a x/b y/a";
    let on = |protocol, number| to_a(vec![of_namespace("y")], vec![port(protocol, number)]);
    let second = || mk_policy("x/to-a-80", pod("a")).ingress(vec![allow(vec![of_namespace("y")], vec![port(TCP, 80)])]);
    let x_named = |name| mk_policy("x/all", everything()).ingress(vec![allow(vec![], vec![named(TCP, name)])]).done();
    let named_egress = mk_policy("x/out", everything()).egress(vec![allow(vec![], vec![named(TCP, "serve-80-tcp")])]);
    check(vec![
        state("14 Ports", five, vec![on(TCP, 81)], vec![(TCP, 81, &["*->x/a", "!y->x/a"])]),
        state(
            "15 stacked, first",
            five,
            vec![on(TCP, 81)],
            vec![(TCP, 81, &["*->x/a", "!y->x/a"]), (TCP, 80, &["*->x/a"])],
        ),
        state(
            "15 stacked, both",
            five,
            vec![on(TCP, 81), second().done()],
            vec![(TCP, 81, &["*->x/a", "!y->x/a"]), (TCP, 80, &["*->x/a", "!y->x/a"])],
        ),
        state(
            "16 allow-all",
            three,
            vec![mk_policy("x/all", everything()).ingress(vec![allow(vec![], vec![])]).done()],
            vec![(TCP, 80, &[]), (TCP, 81, &[])],
        ),
        state("17 one named port", three, vec![x_named("serve-81-tcp")], vec![(TCP, 81, &[]), (TCP, 80, &["*->x"])]),
        state(
            "18 from a namespace on one named port",
            "x/a x/b y/a z/a",
            vec![to_a(vec![of_namespace("y")], vec![named(TCP, "serve-80-tcp")])],
            vec![(TCP, 80, &["*->x/a", "!y->x/a"]), (TCP, 81, &["*->x/a"])],
        ),
        state(
            "19 egress on one named port",
            "x/a y/a",
            vec![named_egress.done()],
            vec![(TCP, 80, &[]), (TCP, 81, &["x->*"])],
        ),
        state(
            "30 any port of a protocol",
            "x/a y/a",
            vec![to_a(vec![], vec![any_port(TCP)])],
            vec![(TCP, 80, &[]), (UDP, 80, &["*->x/a"])],
        ),
        state(
            "38 SCTP is not TCP",
            "x/a y/a",
            vec![deny_ingress(), to_a(vec![], vec![port(SCTP, 81)])],
            vec![(TCP, 81, &["*->x"]), (SCTP, 81, &[])],
        ),
        state("39 isolated by SCTP", "x/a y/a", vec![to_a(vec![], vec![port(SCTP, 80)])], vec![(TCP, 81, &["*->x/a"])]),
        state("40 UDP is not TCP", "x/a y/a", vec![to_a(vec![], vec![port(UDP, 81)])], vec![(TCP, 81, &["*->x/a"])]),
    ]);
    for protocol in [UDP, SCTP] {
        check(vec![
            state("43/46 default deny", "x/a x/b y/a y/b", vec![deny_ingress()], vec![(protocol, 80, &["*->x"])]),
            state(
                "44/47 Ports",
                "x/a x/b y/a z/a",
                vec![on(protocol, 81)],
                vec![(protocol, 81, &["*->x/a", "!y->x/a"])],
            ),
            state(
                "45/48 only from {y,a}",
                three,
                vec![to_a(vec![pods_in(namespace_named("y"), pod("a"))], vec![])],
                vec![(protocol, 80, &["*->x/a", "!y/a->x/a"])],
            ),
        ]);
    }
}

#[test]
fn updates() {
    let all = || mk_policy("x/all", everything()).ingress(vec![allow(vec![], vec![])]).done();
    let labelled = |name: &str, more: &str| {
        let mut pod = mk_pod(name);
        pod.labels = labels(&format!("pod={},{more}", pod.key.name));
        Object::Pod(pod)
    };
    let from_label = || to_a(vec![pods_in(with("ns2=updated"), everything())], vec![]);
    let from_pod = || to_a(vec![mine(with("pod=b,pod2=updated"))], vec![]);
    let isolate = || mk_policy("x/isolate", with("target=isolated")).ingress(vec![]).done();
    let port_80 = || mk_policy("x/80", everything()).ingress(vec![allow(vec![], vec![port(TCP, 80)])]).done();
    let out_80 = || mk_policy("x/80", everything()).egress(vec![allow(vec![], vec![port(TCP, 80)])]).done();
    let out_all = || mk_policy("x/out", everything()).egress(vec![allow(vec![], vec![])]).done();
    let deny_all = mk_policy("x/deny-all", everything()).ingress(vec![]).egress(vec![]).done();
    let egress_a = || mk_policy("x/out", pod("a")).egress(vec![allow(vec![], vec![])]).done();
    let none_to_a = || mk_policy("x/to-a", pod("a")).ingress(vec![]).done();
    let two = "x/a y/a";
    check(vec![
        state("20 before the update", two, vec![all()], vec![(TCP, 81, &[])]),
        state(
            "20 after the update",
            two,
            vec![mk_policy("x/all", everything()).ingress(vec![]).done()],
            vec![(TCP, 81, &["*->x"])],
        ),
        state("21 before the label", two, vec![from_label()], vec![(TCP, 80, &["*->x/a"])]),
        state("21 after", two, vec![from_label(), mk_namespace("y", "ns2=updated")], vec![(TCP, 80, &[])]),
        state("22 before the label", "x/a x/b", vec![from_pod()], vec![(TCP, 80, &["*->x/a"])]),
        state("22 after", "x/a x/b", vec![from_pod(), labelled("x/b", "pod2=updated")], vec![(TCP, 80, &[])]),
        state("24 before the label", two, vec![isolate()], vec![(TCP, 80, &[])]),
        state("24 after", two, vec![isolate(), labelled("x/a", "target=isolated")], vec![(TCP, 80, &["*->x/a"])]),
        state("31 port 80 alone", two, vec![port_80()], vec![(TCP, 81, &["*->x"])]),
        state("31 allow-all takes precedence", two, vec![port_80(), all()], vec![(TCP, 81, &[])]),
        state("32 port 80 alone", two, vec![out_80()], vec![(TCP, 81, &["x->*"])]),
        state("32 allow-all takes precedence", two, vec![out_80(), out_all()], vec![(TCP, 81, &[])]),
        state("33 before the deletion", two, vec![deny_all], vec![(TCP, 80, &["*->x", "x->*"])]),
        state("33 after", two, vec![], vec![(TCP, 80, &[])]),
        state("37 egress alone", "x/a x/b y/a", vec![egress_a()], vec![(TCP, 80, &[])]),
        state("37 with ingress", "x/a x/b y/a", vec![egress_a(), none_to_a()], vec![(TCP, 80, &["*->x/a"])]),
    ]);
}

#[test]
fn egress() {
    let out = |subject: Selector, peers: Vec<PeerMatch>| mk_policy("x/out", subject).egress(vec![allow(peers, vec![])]);
    let to_ya = || pods_in(namespace_named("y"), pod("a"));
    let from_xa = || pods_in(namespace_named("x"), pod("a"));
    let nothing_out = |subject| mk_policy("x/out", subject).egress(vec![]).done();
    let both = mk_policy("x/both", pod("a"))
        .ingress(vec![allow(vec![mine(pod("b"))], vec![])])
        .egress(vec![allow(vec![], vec![port(TCP, 80)])]);
    let server = |name: &str, target| mk_policy(name, pod(target)).ingress(vec![allow(vec![from_xa()], vec![])]).done();
    check(vec![
        state("25 by PodSelector", "x/a x/b y/a", vec![nothing_out(pod("a"))], vec![(TCP, 80, &["x/a->*"])]),
        state("26 of a namespace", "x/a x/b y/a", vec![nothing_out(everything())], vec![(TCP, 80, &["x->*"])]),
        state(
            "27 Ingress, Egress together",
            "x/a x/b x/c y/a",
            vec![both.done()],
            vec![(TCP, 80, &["*->x/a", "!x/b->x/a"]), (TCP, 81, &["*->x/a", "!x/b->x/a", "x/a->*"])],
        ),
        state(
            "28 denied on the client side although the server allows",
            "x/a y/a y/b",
            vec![out(pod("a"), vec![to_ya()]).done(), server("y/a", "a"), server("y/b", "b")],
            vec![(TCP, 80, &["*->y", "x/a->*", "!x/a->y/a"])],
        ),
        state(
            "29 to a server in a different namespace",
            "x/a y/a y/b",
            vec![out(pod("a"), vec![to_ya()]).done()],
            vec![(TCP, 80, &["x/a->*", "!x/a->y/a"])],
        ),
    ]);
}

#[test]
fn address_blocks() {
    let single = |name: &str| {
        let pod = mk_pod(name);
        pod.addresses.iter().map(|address| block(&ipnet::IpNet::from(*address).to_string(), &[])).collect::<Vec<_>>()
    };
    let all_but_b = || {
        let pod = mk_pod("x/b");
        ["0.0.0.0/4", "f000::/4"]
            .iter()
            .zip(&pod.addresses)
            .map(|(around, address)| block(around, &[&ipnet::IpNet::from(*address).to_string()]))
            .collect::<Vec<_>>()
    };
    let out = |peers| mk_policy("x/out", pod("a")).egress(vec![allow(peers, vec![])]).done();
    check(vec![
        state("34 CIDR", "x/a y/a y/b", vec![out(single("y/b"))], vec![(TCP, 80, &["x/a->*", "!x/a->y/b"])]),
        state("35 except", "x/a x/b x/c", vec![out(all_but_b())], vec![(TCP, 80, &["x/a->x/b"])]),
        state("36 except, before", "x/a x/b x/c", vec![out(all_but_b())], vec![(TCP, 80, &["x/a->x/b"])]),
        state("36 after", "x/a x/b x/c", vec![out(single("x/b"))], vec![(TCP, 80, &["x/a->*", "!x/a->x/b"])]),
        state(
            "36 both in one policy: except is no denial",
            "x/a x/b x/c",
            vec![out(all_but_b().into_iter().chain(single("x/b")).collect())],
            vec![(TCP, 80, &[])],
        ),
    ]);
}
