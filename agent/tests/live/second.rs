//! Pods with a second veth: whose it is, and what may be sent there in whose name.

use std::net::IpAddr;
use std::time::Duration;

use portcullis_testbed::{Outcome, Pod, Probe, Protocol, Shape};

use crate::attacks::{address, arrives_by};
use crate::cluster::LiveCluster;
use crate::frames::{self, Addresses, Hop};
use crate::hooks::{await_that, cluster, verdicts};
use crate::hooks_devices::{endpoint, exits};

/// Gives a pod of the first node a second veth, `net1` inside, on a network of its own.
fn second_interface(cluster: &LiveCluster, pod: &str, veth: &str, net: u8) {
    let (node, pod) = (cluster.bed.node(0), cluster.pod(pod));
    node.namespace()
        .ip([
            format!("link add {veth} type veth peer name net1 netns {}", pod.namespace().path()),
            format!("link set {veth} up"),
            format!("addr add 198.18.{net}.1/24 dev {veth}"),
            format!("addr add 2001:db8:{net}::1/64 dev {veth} nodad"),
        ])
        .unwrap();
    pod.namespace()
        .ip([
            "link set net1 up".to_owned(),
            format!("addr add 198.18.{net}.2/24 dev net1"),
            format!("addr add 2001:db8:{net}::2/64 dev net1 nodad"),
        ])
        .unwrap();
    // The host's reverse-path filter is no part of what is asked here, nor the pod's.
    for (namespace, device) in [(node.namespace(), veth), (pod.namespace(), "net1"), (pod.namespace(), "eth0")] {
        for device in ["all", device] {
            let path = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
            namespace.run(|| Ok(std::fs::write(&path, "0")?)).unwrap();
        }
    }
}

fn other_address(net: u8, v4: bool) -> IpAddr {
    if v4 { [198, 18, net, 2].into() } else { [0x2001, 0xdb8, net.into(), 0, 0, 0, 0, 2].into() }
}

/// x/b admits x/c only; x/a may send to y/b only; x/c and y/b admit everybody.
fn sent_by_second_interfaces(cluster: &LiveCluster, as_network: bool, context: &str) {
    let mut wrong = Vec::new();
    for v4 in [true, false] {
        let of = |name: &str| address(cluster.pod(name), v4);
        for (what, from, source, to, as_pods, as_networks) in [
            ("its pod's name, to whom that may reach", "x/a", of("x/a"), "y/b", true, true),
            ("its pod's name, to whom that may not reach", "x/a", of("x/a"), "x/c", false, true),
            ("its pod's name, to whom only that may reach", "x/c", of("x/c"), "x/b", true, true),
            ("an admitted neighbour's name", "x/a", of("x/c"), "x/b", false, true),
            ("the name of a pod of another node", "x/c", of("y/b"), "x/a", false, true),
            ("a neighbour's name, to whom everybody may reach", "x/a", of("x/b"), "x/c", false, true),
            ("its own other address", "x/a", other_address(1, v4), "x/c", false, true),
            ("its own other address, of a pod that may send anywhere", "x/c", other_address(3, v4), "y/b", false, true),
        ] {
            let veth = if from == "x/a" { "second0" } else { "second1" };
            let host = cluster.bed.node(0).mac(veth).unwrap();
            let hop = Hop { from: cluster.pod(from).mac("net1").unwrap(), to: host };
            let mark = format!("{context} {what} {v4}").into_bytes();
            let frame = frames::udp(hop, Addresses(source, address(cluster.pod(to), v4)), (4000, 80), &mark);
            let name = format!("{context}: in {what}, from {from} to {to}, IPv4 {v4}");
            let arrived = arrives_by(cluster, &name, (from, "net1", to), &[frame], &mark);
            if arrived != if as_network { as_networks } else { as_pods } {
                wrong.push(format!("{name}: arrived {arrived}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), cluster.agents[0].log());
}

#[test]
fn what_a_second_interface_sends_is_its_pods() {
    for (attach, as_network) in [("auto", false), ("clsact", false), ("auto", true)] {
        let setting = if as_network { "network" } else { "pod" };
        let context = format!("{attach}, {setting}");
        let mut cluster = cluster(Shape::Routed, &["--attach", attach, "--second-interfaces", setting]);
        second_interface(&cluster, "x/a", "second0", 1);
        second_interface(&cluster, "x/c", "second1", 3);
        let known = |cluster: &LiveCluster| {
            let problems = cluster.agents[0].status()["problems"].to_string();
            let found = exits(&cluster.agents[0]);
            ["second0", "second1"].iter().all(|veth| {
                problems.contains(&format!("veth {veth}")) && found.contains(&(*veth).to_owned()) == as_network
            })
        };
        await_that(&format!("{context}: word of the second interfaces"), || known(&cluster));
        sent_by_second_interfaces(&cluster, as_network, &context);
        if as_network {
            continue;
        }
        connections_by_second_interface(&cluster, &context);
        verdicts(&cluster, &context);
        // The next agent knows them again; nothing passes otherwise meanwhile.
        cluster.agents[0].terminate();
        sent_by_second_interfaces(&cluster, false, &format!("{context}, no agent"));
        cluster.agents[0].spawn();
        cluster.agents[0].await_ready();
        await_that(&format!("{context}: word of the second interfaces again"), || known(&cluster));
        sent_by_second_interfaces(&cluster, false, &format!("{context}, another agent"));
        connections_by_second_interface(&cluster, &format!("{context}, another agent"));
    }
}

/// Both interfaces are one endpoint: what is asked by the one and answered by the other is one flow.
fn connections_by_second_interface(cluster: &LiveCluster, context: &str) {
    let a = cluster.pod("x/a");
    let own = a.v4().unwrap();
    for (to, allowed) in [("y/b", true), ("x/c", false)] {
        let to = cluster.pod(to).v4().unwrap();
        a.namespace().ip([format!("route replace {to}/32 via 198.18.1.1 dev net1 src {own}")]).unwrap();
        let patience = Duration::from_millis(if allowed { 3000 } else { 300 });
        let outcome = Probe::new(a, to, Protocol::Tcp, 80).source(own.into()).timeout(patience).run();
        let right = if allowed { matches!(outcome, Outcome::Answered(_)) } else { outcome == Outcome::Timeout };
        a.namespace().ip([format!("route del {to}/32 via 198.18.1.1 dev net1")]).unwrap();
        assert!(right, "{context}: to {to}: {outcome:?}\n{}", cluster.agents[0].log());
    }
}

#[test]
fn a_second_interface_that_is_a_network_of_its_own_is_an_exit_and_said_to_be_one() {
    let cluster = cluster(Shape::Routed, &["--second-interfaces", "network"]);
    let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
    let (a, b, c) = (cluster.pod("x/a"), cluster.pod("x/b"), cluster.pod("x/c"));
    node.namespace()
        .ip([
            format!("link add second0 type veth peer name net1 netns {}", a.namespace().path()),
            "link set second0 up".to_owned(),
            "addr add 192.0.2.1/24 dev second0".to_owned(),
            // Both ends here.
            "link add near0 type veth peer name near1".to_owned(),
            "link set near0 up".to_owned(),
            "link set near1 up".to_owned(),
        ])
        .unwrap();
    a.namespace().ip(["link set net1 up", "addr add 192.0.2.2/24 dev net1"]).unwrap();
    for pod in [b, c] {
        a.namespace().ip([format!("route add {}/32 via 192.0.2.1 dev net1 src 192.0.2.2", pod.v4().unwrap())]).unwrap();
    }
    await_that("the exits", || {
        let found = exits(agent);
        ["second0", "near0", "near1"].iter().all(|name| found.contains(&(*name).to_owned()))
    });
    await_that("the report", || agent.status()["problems"].to_string().contains("veth second0"));
    let ask = |to: &Pod, patience: u64| {
        Probe::new(a, to.v4().unwrap(), Protocol::Tcp, 80).timeout(Duration::from_millis(patience)).run()
    };
    // It is no way round the server's policy; the client's own does not know that network.
    assert_eq!(ask(b, 300), Outcome::Timeout, "to a server that admits others");
    assert!(ask(c, 3000).is_answer_of("x/c"), "to one that admits everybody");
    assert_eq!(endpoint(agent, a.veth())["pod"], "x/a", "its pod is where it was");
}
