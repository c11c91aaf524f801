//! Fragments, extension headers and ICMP errors as real packets, through everything that a node does to them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portcullis_testbed::{Host, Protocol, Service, Shape, TestbedOptions};
use serde_json::{Value, json};

use crate::agent::{Agent, PATIENCE};
use crate::attacks::{address, arrives_in, next_hop, pair};
use crate::cluster::{LiveCluster, Plan, service_port};
use crate::frames::{self, Addresses, Hop, Mac};
use crate::manifests::policy;

/// x/a is isolated in both directions and may reach x/b, y/b and the outside; x/b and y/b are too, and admit x/a. Nothing
/// restricts x/d.
const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/d", 0), ("y/b", 1)];
/// Allowed, and served by nobody.
const CLOSED_PORT: u16 = 4444;
/// The MTU of the way to the outside.
const NARROW: u32 = 1300;
/// Bytes of a datagram that fits every other way.
const LONG: usize = 1400;

/// Where a cluster's packets are put together and translated on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Routed,
    /// On nodes that track no connections, and so put nothing together.
    RoutedUntracked,
    /// Through iptables.
    Bridged,
    /// Past them.
    BridgedAround,
}

const WAYS: [Way; 4] = [Way::Routed, Way::RoutedUntracked, Way::Bridged, Way::BridgedAround];

impl Way {
    fn shape(self) -> Shape {
        if matches!(self, Self::Routed | Self::RoutedUntracked) { Shape::Routed } else { Shape::Bridged }
    }

    /// Whether Services work between pods of one node.
    fn translates(self) -> bool {
        matches!(self, Self::Routed | Self::Bridged)
    }

    fn cluster(self, agents: bool) -> LiveCluster {
        let bed = TestbedOptions { br_netfilter: self == Self::Bridged, ..TestbedOptions::shaped(self.shape()) };
        // Without a Service no rule asks for connections to be tracked.
        let ports = if self == Self::RoutedUntracked { Vec::new() } else { vec![(Protocol::Udp, 80)] };
        let cluster = LiveCluster::new(&Plan { bed, ports, agents, ..Plan::new(self.shape(), &PODS) });
        if agents {
            cluster.enforce(&policies(&cluster));
        }
        cluster
    }
}

fn policies(cluster: &LiveCluster) -> Vec<Value> {
    let ports = json!([{"protocol": "UDP", "port": 80}, {"protocol": "UDP", "port": CLOSED_PORT}]);
    let servers = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}});
    let client = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}});
    let block = |address: &IpAddr| json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}});
    let outside: Vec<Value> = cluster.bed.outside().addresses().iter().map(block).collect();
    let both = json!(["Ingress", "Egress"]);
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": both, "ingress": [{"from": [client], "ports": ports}],
    });
    vec![
        policy(
            "x",
            "client",
            &json!({
                "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": both,
                "egress": [{"to": [servers], "ports": ports}, {"to": outside, "ports": ports}],
            }),
        ),
        policy("x", "server", &server),
        policy("y", "server", &server),
    ]
}

/// What a pod sends in fragments, and whether the last of them arrives.
struct Case {
    name: String,
    to: &'static str,
    frames: Vec<Vec<u8>>,
    mark: Vec<u8>,
    arrives: bool,
    /// Whether it arrives where nobody enforces and nothing is put together: otherwise receivers or the kernel refuse it.
    open: bool,
}

/// A UDP datagram whose transport bytes are cut in two: its header and 16 bytes, and the rest, in which the mark is.
struct Datagram {
    hop: Hop,
    addresses: Addresses,
    number: u16,
    first: Vec<u8>,
    rest: Vec<u8>,
}

impl Datagram {
    fn new(hop: Hop, addresses: Addresses, port: u16, number: u16) -> (Self, Vec<u8>) {
        let mark = format!("fragment number {number:06}").into_bytes();
        let whole = frames::udp(hop, addresses, (4000 + number, port), &[&[b'.'; 16][..], &mark].concat());
        let transport = &whole[if addresses.0.is_ipv4() { 34 } else { 54 }..];
        let (first, rest) = transport.split_at(24);
        (Self { hop, addresses, number, first: first.to_vec(), rest: rest.to_vec() }, mark)
    }

    fn fragment(&self, begin: u16, more: bool, protocol: u8, body: &[u8]) -> Vec<u8> {
        frames::fragment(self.hop, self.addresses, self.number, begin, more, protocol, body)
    }

    fn both(&self) -> Vec<Vec<u8>> {
        vec![self.fragment(0, true, 17, &self.first), self.fragment(24, false, 17, &self.rest)]
    }

    /// With 240 bytes of destination options before the transport header, which the kernel cannot cut up again as they
    /// were.
    fn with_options(&self) -> Vec<Vec<u8>> {
        let mut options = vec![17, 29];
        options.extend([1, 236]);
        options.resize(240, 0);
        options.extend(&self.first);
        vec![self.fragment(0, true, 60, &options), self.fragment(264, false, 60, &self.rest)]
    }
}

fn gateway(cluster: &LiveCluster, shape: Shape) -> Mac {
    match shape {
        Shape::Routed => next_hop(shape, cluster.pod("x/a")),
        Shape::Bridged => cluster.bed.node(0).mac(portcullis_testbed::BRIDGE).unwrap(),
    }
}

fn cases(cluster: &LiveCluster, way: Way) -> Vec<Case> {
    let mut cases = Vec::new();
    let shape = way.shape();
    let from = cluster.pod("x/a");
    for v4 in [true, false] {
        for to in ["x/b", "y/b"] {
            let target = cluster.pod(to);
            // Between pods of one bridge, past iptables, nothing is put together, and nowhere without connection tracking.
            let assembled = way.translates() || way == Way::BridgedAround && to == "y/b";
            let mac = if to == "y/b" { gateway(cluster, shape) } else { next_hop(shape, target) };
            let hop = Hop { from: from.mac("eth0").unwrap(), to: mac };
            let mut add =
                |name: &str, port: u16, arrives: bool, open: bool, make: &dyn Fn(&Datagram) -> Vec<Vec<u8>>| {
                    let number = u16::try_from(cases.len()).unwrap() + 1;
                    let (datagram, mark) = Datagram::new(hop, pair(from, target, v4), port, number);
                    let name = format!("{name}, to {to}, IPv4 {v4}");
                    cases.push(Case { name, to, frames: make(&datagram), mark, arrives, open });
                };
            let swapped = |datagram: &Datagram| datagram.both().into_iter().rev().collect::<Vec<_>>();
            let last_alone = |datagram: &Datagram| datagram.both().split_off(1);
            let overlapping = |datagram: &Datagram| {
                let other = datagram.fragment(16, false, 17, &[&datagram.first[16..], &datagram.rest].concat());
                vec![datagram.both().remove(0), other]
            };
            let tiny = |datagram: &Datagram| {
                vec![
                    datagram.fragment(0, true, 6, &datagram.first[..8]),
                    datagram.fragment(8, false, 6, &datagram.rest),
                ]
            };
            add("in order", 80, true, true, &Datagram::both);
            add("out of order", 80, assembled, true, &swapped);
            add("in order after that", 80, true, true, &Datagram::both);
            add("to a denied port", 9, false, true, &Datagram::both);
            add("to a denied port, out of order", 9, false, true, &swapped);
            add("without the first", 80, false, false, &last_alone);
            add("overlapping", 80, false, false, &overlapping);
            add("TCP with a first fragment of eight bytes", 80, false, false, &tiny);
            if !v4 {
                add("with 240 bytes of options", 80, true, true, &Datagram::with_options);
                add("with 240 bytes of options, to a denied port", 9, false, true, &Datagram::with_options);
            }
        }
        if !way.translates() {
            continue;
        }
        // Through Services: denied and allowed behind the same kind of address.
        for (to, arrives) in [("x/b", true), ("y/b", true), ("x/d", false)] {
            let hop = Hop { from: from.mac("eth0").unwrap(), to: gateway(cluster, shape) };
            let addresses = Addresses(address(from, v4), cluster.vip(to, v4));
            for (name, swaps) in [("to a Service", false), ("to a Service, out of order", true)] {
                let number = u16::try_from(cases.len()).unwrap() + 1;
                let (datagram, mark) = Datagram::new(hop, addresses, service_port(80), number);
                let mut frames = datagram.both();
                if swaps {
                    frames.reverse();
                }
                let name = format!("{name} before {to}, IPv4 {v4}");
                cases.push(Case { name, to, frames, mark, arrives, open: true });
            }
        }
    }
    cases
}

#[test]
fn later_fragments_have_the_verdict_of_their_first() {
    for way in WAYS {
        for agents in [false, true] {
            let cluster = way.cluster(agents);
            let mut wrong = Vec::new();
            for case in cases(&cluster, way) {
                let expected = if agents { case.arrives } else { case.arrives || case.open };
                let arrived = arrives_in(&cluster, &case.name, ("x/a", case.to), &case.frames, &case.mark);
                // Where nobody enforces, only what must arrive is asked about: what a receiver would refuse may be seen.
                if arrived != expected && (agents || expected) {
                    wrong.push(format!("{}: arrived {arrived}", case.name));
                }
            }
            assert!(wrong.is_empty(), "{way:?}, agents {agents}:\n{}", wrong.join("\n"));
        }
    }
}

/// Sends a datagram without waiting.
fn send(from: &Host, to: SocketAddr, bytes: usize) {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    from.namespace()
        .run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.send_to(&vec![0; bytes], to)?;
            Ok(())
        })
        .unwrap();
}

/// Sends long datagrams until the way's MTU is known, or not.
fn learns_the_mtu(from: &Host, to: SocketAddr, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        send(from, to, LONG);
        let route = from.namespace().tool("ip", &["route", "get", &to.ip().to_string()]).unwrap();
        if route.contains(&format!("mtu {NARROW}")) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn path_mtu_discovery_works_through_policy() {
    for way in [Way::Routed, Way::Bridged] {
        let cluster = way.cluster(true);
        let (client, outside) = (cluster.pod("x/a"), cluster.bed.outside());
        cluster.bed.fabric().namespace().ip([format!("link set outside mtu {NARROW}")]).unwrap();
        outside.namespace().ip([format!("link set eth0 mtu {NARROW}")]).unwrap();
        for (v4, vip) in [(true, IpAddr::from([10, 0, 7, 7])), (false, "fd00:10:96::707".parse().unwrap())] {
            let service = Service::new(&format!("x/outside-{v4}")).vip(vip).port(Protocol::Udp, CLOSED_PORT);
            cluster.bed.service(service.backend(outside, CLOSED_PORT)).unwrap();
            for (name, to) in [("directly", address(outside, v4)), ("through a Service", vip)] {
                let learnt = learns_the_mtu(client, SocketAddr::new(to, CLOSED_PORT), PATIENCE);
                assert!(learnt, "{way:?}, {name}, IPv4 {v4}; {}", drops(&cluster));
            }
        }
        // The denied port's flow does not exist, so nobody is told of its way.
        let denied = cluster.pod("x/b");
        let to = SocketAddr::new(address(outside, true), 9);
        assert!(!learns_the_mtu(denied, to, Duration::from_millis(300)), "{way:?}: a pod that may not send");
    }
}

/// What the agents have dropped, by node and reason.
fn drops(cluster: &LiveCluster) -> String {
    let of = |(node, agent): (usize, &Agent)| {
        let samples = agent.metrics();
        let dropped = samples.iter().filter(|sample| sample.name.contains("drop") && sample.value > 0.0);
        let shown: Vec<String> = dropped.map(|sample| format!("{:?} {}", sample.labels, sample.value)).collect();
        format!("node {node}: {}", shown.join(", "))
    };
    cluster.agents.iter().enumerate().map(of).collect::<Vec<_>>().join("; ")
}

/// Whether a pod hears that nobody listens on a port.
fn is_refused(from: &Host, to: SocketAddr) -> bool {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    from.namespace()
        .run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.connect(to)?;
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                // The kernel sends few errors a second.
                let _ = socket.send(b"is anybody there?");
                match socket.recv(&mut [0; 64]) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(true),
                    _ => {}
                }
            }
            Ok(false)
        })
        .unwrap()
}

#[test]
fn errors_pass_between_pods_about_their_flows_only() {
    for way in WAYS {
        for agents in [false, true] {
            let cluster = way.cluster(agents);
            let client = cluster.pod("x/a");
            for v4 in [true, false] {
                for server in ["x/b", "y/b"] {
                    let to = SocketAddr::new(address(cluster.pod(server), v4), CLOSED_PORT);
                    assert!(is_refused(client, to), "{way:?}, agents {agents}: {to} of {server}");
                }
                if way.translates() {
                    let vip: IpAddr = if v4 { [10, 0, 7, 8].into() } else { "fd00:10:96::708".parse().unwrap() };
                    let service = Service::new(&format!("x/closed-{v4}")).vip(vip).port(Protocol::Udp, CLOSED_PORT);
                    cluster.bed.service(service.backend(cluster.pod("x/b"), CLOSED_PORT)).unwrap();
                    let to = SocketAddr::new(vip, CLOSED_PORT);
                    assert!(is_refused(client, to), "{way:?}, agents {agents}: {to}, a Service; {}", drops(&cluster));
                }
            }
            forged_errors(&cluster, way, agents);
        }
    }
}

/// Errors about flows that nobody has, by pods that may and may not send.
fn forged_errors(cluster: &LiveCluster, way: Way, agents: bool) {
    let mut wrong = Vec::new();
    for v4 in [true, false] {
        for (from, to) in [("x/d", "x/b"), ("x/b", "x/a"), ("x/b", "x/d"), ("x/d", "x/a")] {
            let (sender, target) = (cluster.pod(from), cluster.pod(to));
            let hop = Hop { from: sender.mac("eth0").unwrap(), to: next_hop(way.shape(), target) };
            let mark = format!("forged by {from} for {to}, {v4}").into_bytes();
            let quoted = frames::udp(hop, pair(target, sender, v4), (1234, 4321), &mark);
            let frame = frames::unreachable(hop, pair(sender, target, v4), frames::without_ethernet(&quoted));
            let name = format!("a forged error of {from} for {to}, IPv4 {v4}");
            let arrived = arrives_in(cluster, &name, (from, to), &[frame], &mark);
            // Through iptables such an error is invalid, but nobody drops it.
            if arrived == agents {
                wrong.push(format!("{name}: arrived {arrived}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{way:?}, agents {agents}:\n{}", wrong.join("\n"));
}

#[test]
fn what_the_node_would_unwrap_is_dropped_once_it_has_the_device() {
    let cluster = Way::Routed.cluster(true);
    let (pod, node, agent) = (cluster.pod("x/d"), cluster.bed.node(0), &cluster.agents[0]);
    let dropped = || agent.metric("portcullis_drops_total", &[("reason", "tunnel")]);
    let tries = |to: IpAddr, port: u16| send(pod, SocketAddr::new(to, port), 60);
    for v4 in [true, false] {
        tries(address(node, v4), 8472);
    }
    assert!(dropped() < 1.0, "without a device the port is like any other");
    node.namespace().ip(["link add wrapped type vxlan id 7 dstport 8472 dev eth0"]).unwrap();
    for v4 in [true, false] {
        for to in [address(node, v4), address(cluster.bed.node(1), v4), address(cluster.bed.outside(), v4)] {
            let before = dropped();
            // Until the agent has seen the device; flows from before it are judged again.
            agent.await_metrics("a drop", |_| {
                tries(to, 8472);
                dropped() > before
            });
        }
        let before = dropped();
        tries(address(node, v4), 8473);
        tries(address(cluster.bed.outside(), v4), 80);
        assert!((dropped() - before).abs() < f64::EPSILON, "other ports pass");
    }
}
