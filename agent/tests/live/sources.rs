//! Pods that may send from addresses that are not theirs (`--source-validation off`): what that opens, and what it does not.

use portcullis_testbed::{BRIDGE, Host, Protocol, Shape};
use serde_json::json;

use crate::attacks::{address, arrives_in, next_hop};
use crate::cluster::{LiveCluster, Plan};
use crate::frames::{self, Addresses, Hop};
use crate::manifests::policy;

/// x/a may do what it wants. x/b and y/b admit x/c only. x/d may send to x/c only.
const PODS: [(&str, usize); 5] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("x/d", 0), ("y/b", 1)];

fn cluster(shape: Shape, validation: &str) -> LiveCluster {
    let mut plan = Plan::new(shape, &PODS);
    plan.arguments = ["--source-validation", validation].map(str::to_owned).into();
    let cluster = LiveCluster::new(&plan);
    let c = json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}, "podSelector": {"matchLabels": {"pod": "c"}},
    }]);
    let admits = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": [{"from": c}],
    });
    let sends = json!({"podSelector": {"matchLabels": {"pod": "d"}}, "policyTypes": ["Egress"], "egress": [{"to": c}]});
    cluster.enforce(&[policy("x", "server", &admits), policy("y", "server", &admits), policy("x", "sender", &sends)]);
    cluster
}

/// A frame of one pod's to another, in somebody's name, and whether it arrives where sources are not checked.
struct Row {
    what: String,
    from: &'static str,
    to: &'static str,
    frame: Vec<u8>,
    mark: Vec<u8>,
    off: bool,
    /// And where they are.
    on: bool,
}

fn rows(cluster: &LiveCluster, shape: Shape) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for v4 in [true, false] {
        let of = |name: &str| address(cluster.pod(name), v4);
        let nobody = if v4 { "10.244.0.200".parse().unwrap() } else { "fd00:10:244::c8".parse().unwrap() };
        for (what, from, source, to, off, on) in [
            ("its own name", "x/a", of("x/a"), "x/c", true, true),
            ("nobody's name", "x/a", nobody, "x/c", true, false),
            ("another's name", "x/a", of("x/d"), "x/c", true, false),
            // On its node a pod is known by its stamp, whatever it calls itself.
            ("an admitted pod's name", "x/a", of("x/c"), "x/b", false, false),
            ("an admitted pod's name, on another node", "x/a", of("x/c"), "y/b", true, false),
            ("another's name, to whom it may reach", "x/d", of("x/a"), "x/c", true, false),
            ("another's name, to whom it may not reach", "x/d", of("x/c"), "x/b", false, false),
            ("another's name, to whom it may not reach elsewhere", "x/d", of("x/c"), "y/b", false, false),
        ] {
            let target = cluster.pod(to);
            let own_node = target.node().index() == 0;
            let next = if own_node || shape == Shape::Routed {
                next_hop(shape, target)
            } else {
                cluster.bed.node(0).mac(BRIDGE).unwrap()
            };
            let hop = Hop { from: cluster.pod(from).mac("eth0").unwrap(), to: next };
            let mark = format!("in somebody's name {:04}", rows.len()).into_bytes();
            let frame = frames::udp(hop, Addresses(source, address(target, v4)), (4000, 80), &mark);
            rows.push(Row { what: format!("{what}, from {from} to {to}, IPv4 {v4}"), from, to, frame, mark, off, on });
        }
    }
    if shape == Shape::Bridged {
        // What a bridge leads to the wrong pod, and an ARP answer for another.
        let (a, c): (&Host, &Host) = (cluster.pod("x/a"), cluster.pod("x/c"));
        let hop = Hop { from: a.mac("eth0").unwrap(), to: c.mac("eth0").unwrap() };
        for v4 in [true, false] {
            let mark = format!("led to the wrong pod {v4}").into_bytes();
            let addresses = Addresses(address(a, v4), address(cluster.pod("x/d"), v4));
            let frame = frames::udp(hop, addresses, (4000, 80), &mark);
            let what = format!("another's address as destination, IPv4 {v4}");
            rows.push(Row { what, from: "x/a", to: "x/c", frame, mark, off: true, on: false });
        }
        let mac = [0x02, 0xbd, 0xbd, 0xbd, 0xbd, 0x77];
        let sender = (mac, address(cluster.pod("x/d"), true));
        let frame = frames::arp(hop, 2, sender, (hop.to, address(c, true)));
        let what = "an ARP answer in another's name".to_owned();
        rows.push(Row { what, from: "x/a", to: "x/c", frame, mark: mac.to_vec(), off: true, on: false });
    }
    rows
}

#[test]
fn pods_may_use_any_address_where_the_setting_says_so_and_stay_who_they_are() {
    for shape in [Shape::Routed, Shape::Bridged] {
        for validation in ["on", "off"] {
            let cluster = cluster(shape, validation);
            let mut wrong = Vec::new();
            for row in rows(&cluster, shape) {
                let expected = if validation == "off" { row.off } else { row.on };
                let arrived = arrives_in(&cluster, &row.what, (row.from, row.to), &[row.frame], &row.mark);
                if arrived != expected {
                    wrong.push(format!("in {}: arrived {arrived}", row.what));
                }
            }
            assert!(wrong.is_empty(), "{shape:?}, validation {validation}:\n{}", wrong.join("\n"));
        }
    }
}

#[test]
fn a_pod_with_an_address_of_its_own_making_is_answered_there() {
    let cluster = cluster(Shape::Routed, "off");
    let (a, node) = (cluster.pod("x/a"), cluster.bed.node(0));
    let made = "10.77.0.1".parse().unwrap();
    a.add_address(made).unwrap();
    node.namespace().ip([format!("route add {made}/32 dev {}", a.veth())]).unwrap();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let to = cluster.pod("x/c").v4().unwrap();
        let probe = portcullis_testbed::Probe::new(a, to, protocol, 80).timeout(crate::agent::PATIENCE);
        let outcome = probe.source(made).run();
        assert!(outcome.is_answer_of("x/c"), "{protocol}: {outcome:?}");
        let outcome = portcullis_testbed::Probe::new(cluster.pod("x/c"), made, protocol, 80)
            .timeout(crate::agent::PATIENCE)
            .run();
        assert!(outcome.is_answer_of("x/a"), "{protocol}, the other way: {outcome:?}");
    }
}
