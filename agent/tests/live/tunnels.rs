//! Devices that wrap what goes to the other node: VXLAN, IPIP with 6in4, WireGuard. What a pod sends is judged on what is
//! inside, once, and what a pod has wrapped itself comes nowhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portcullis_testbed::{Namespace, Outcome, Pod, Probe, Protocol, Service, Shape, probe_all};
use serde_json::{Value, json};

use crate::agent::{Agent, PATIENCE, pause};
use crate::attacks::{address, arrives_in, next_hop, pair};
use crate::cluster::{LiveCluster, Plan, service_port};
use crate::frames::{self, Addresses, Hop};
use crate::hooks::await_that;
use crate::manifests::policy;

/// x/a may reach pods `b` only, who admit it alone. Nothing restricts the others.
const PODS: [(&str, usize); 6] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/a", 1), ("y/b", 1), ("y/c", 1)];
const VXLAN_PORT: u16 = 4789;
const WIREGUARD_PORT: u16 = 51_820;
/// Where datagrams are counted, by pods and by their Services.
const SILENT: u16 = 9000;
/// Datagrams to each destination.
const COUNT: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tunnel {
    Vxlan,
    /// IPIP, and 6in4 (`sit`) for IPv6, as Calico sets them up: no remote address, so that they unwrap what anybody sends.
    Ipip,
    Wireguard,
}

impl Tunnel {
    const ALL: [Self; 3] = [Self::Vxlan, Self::Ipip, Self::Wireguard];

    /// The devices of a node, by family, IPv4 first.
    const fn devices(self) -> &'static [&'static str] {
        match self {
            Self::Vxlan => &["vx0"],
            Self::Ipip => &["tun4", "tun6"],
            Self::Wireguard => &["wg0"],
        }
    }

    fn made(self, local: Ipv4Addr, remote: Ipv4Addr) -> Vec<String> {
        match self {
            Self::Vxlan => {
                vec![format!("link add vx0 type vxlan id 7 dstport {VXLAN_PORT} local {local} remote {remote}")]
            }
            Self::Ipip => {
                vec![format!("link add tun4 type ipip local {local}"), format!("link add tun6 type sit local {local}")]
            }
            Self::Wireguard => vec!["link add wg0 type wireguard".to_owned()],
        }
    }

    /// Whether this kernel, and this machine's tools, have it.
    fn is_there(self) -> bool {
        let namespace = Namespace::new("probe-of-tunnels").unwrap();
        let loopback = Ipv4Addr::LOCALHOST;
        let there = self.made(loopback, loopback).iter().all(|command| namespace.ip([command]).is_ok());
        // The guests of the kernel matrix have all of them, so each is tested somewhere.
        assert!(there || std::env::var_os("PORTCULLIS_GUEST").is_none(), "no {self:?}");
        if !there {
            eprintln!("skipped: this kernel has no devices for {self:?}");
        }
        there
    }

    /// Leads all that pods of one node send to those of the other through it.
    fn plumb(self, cluster: &LiveCluster) {
        for (own, other) in [(0, 1), (1, 0)] {
            let (node, peer) = (cluster.bed.node(own), cluster.bed.node(other));
            let (local, remote) = (node.v4().unwrap(), peer.v4().unwrap());
            node.namespace().ip(self.made(local, remote)).unwrap();
            let up = |device: &&str| format!("link set {device} up");
            node.namespace().ip(self.devices().iter().map(up)).unwrap();
            let (v4, v6) = (peer.pod_cidr_v4(), peer.pod_cidr_v6());
            let routes = match self {
                Self::Vxlan => vec![
                    format!("addr add 192.168.77.{}/24 dev vx0", own + 1),
                    format!("addr add fd77::{}/64 dev vx0 nodad", own + 1),
                    format!("route replace {v4} via 192.168.77.{} dev vx0", other + 1),
                    format!("route replace {v6} via fd77::{} dev vx0", other + 1),
                ],
                Self::Ipip => vec![
                    format!("route replace {v4} via {remote} dev tun4 onlink"),
                    format!("route replace {v6} via ::{remote} dev tun6 onlink"),
                ],
                Self::Wireguard => {
                    vec![format!("route replace {v4} dev wg0"), format!("route replace {v6} dev wg0")]
                }
            };
            node.namespace().ip(routes).unwrap();
        }
        if self == Self::Wireguard {
            exchange_keys(cluster);
        }
    }

    /// Takes it away, and leads packets as before.
    fn remove(self, cluster: &LiveCluster) {
        for (own, other) in [(0, 1), (1, 0)] {
            let (node, peer) = (cluster.bed.node(own), cluster.bed.node(other));
            let mut commands = vec![
                format!("route replace {} via {}", peer.pod_cidr_v4(), peer.v4().unwrap()),
                format!("route replace {} via {}", peer.pod_cidr_v6(), peer.v6().unwrap()),
            ];
            commands.extend(self.devices().iter().map(|device| format!("link del {device}")));
            node.namespace().ip(commands).unwrap();
        }
    }

    /// What a pod may wrap itself, so that a node unwraps it: who is said to send it, and the protocol and bytes around
    /// which the pod's own IPv4 header goes.
    fn wrapped(self, cluster: &LiveCluster, at: usize, addresses: Addresses, mark: &[u8]) -> Option<(u8, Vec<u8>)> {
        let node = cluster.bed.node(at);
        let mac = if self == Self::Vxlan { node.mac("vx0").unwrap() } else { [0; 6] };
        let inner = frames::udp(Hop { from: [2, 0, 0, 0, 0, 9], to: mac }, addresses, (4000, 80), mark);
        match self {
            Self::Vxlan => Some((17, [&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat())),
            Self::Ipip => {
                let protocol = if addresses.0.is_ipv4() { 4 } else { 41 };
                Some((protocol, frames::without_ethernet(&inner).to_vec()))
            }
            // Nobody but a peer can sign what it unwraps.
            Self::Wireguard => None,
        }
    }
}

fn exchange_keys(cluster: &LiveCluster) {
    let nodes = [cluster.bed.node(0), cluster.bed.node(1)];
    let wg = |at: usize, arguments: &[&str], input: &str| {
        nodes[at].namespace().tool_with_input("wg", arguments, input).unwrap().trim().to_owned()
    };
    let private = [wg(0, &["genkey"], ""), wg(1, &["genkey"], "")];
    let public = [wg(0, &["pubkey"], &private[0]), wg(1, &["pubkey"], &private[1])];
    for (own, other) in [(0, 1), (1, 0)] {
        let endpoint = format!("{}:{WIREGUARD_PORT}", nodes[other].v4().unwrap());
        let port = WIREGUARD_PORT.to_string();
        let device = ["set", "wg0", "listen-port", &port, "private-key", "/proc/self/fd/0"];
        let peer = ["peer", &public[other], "endpoint", &endpoint, "allowed-ips", "0.0.0.0/0,::/0"];
        wg(own, &[&device[..], &peer[..]].concat(), &private[own]);
    }
}

fn policies() -> Vec<Value> {
    let both = json!(["Ingress", "Egress"]);
    let pods = |namespace: Value, name: &str| json!([{"namespaceSelector": namespace, "podSelector": {"matchLabels": {"pod": name}}}]);
    let client = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": both, "egress": [{"to": pods(json!({}), "b")}],
    });
    let of_x = json!({"matchLabels": {"kubernetes.io/metadata.name": "x"}});
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": both, "ingress": [{"from": pods(of_x, "a")}],
    });
    vec![policy("x", "client", &client), policy("x", "server", &server), policy("y", "server", &server)]
}

/// How many packets a node's devices have sent.
fn sent_by(cluster: &LiveCluster, node: usize, tunnel: Tunnel) -> u64 {
    let of = |device: &&str| {
        let namespace = cluster.bed.node(node).namespace();
        let shown = namespace.tool("ip", &["-json", "-statistics", "link", "show", device]).unwrap();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    tunnel.devices().iter().map(of).sum()
}

#[test]
fn what_goes_through_a_tunnel_is_judged_once_and_pods_have_none_of_their_own() {
    let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(Shape::Routed, &PODS) });
    let tunnels = before_agents(&cluster);
    cluster.start_agents(&[], &policies());
    with_agents(&cluster, &tunnels);
}

/// Finds out which tunnels there are. What pods wrap does arrive where nobody enforces, and everybody reaches everybody.
pub(crate) fn before_agents(cluster: &LiveCluster) -> Vec<Tunnel> {
    let tunnels: Vec<Tunnel> = Tunnel::ALL.into_iter().filter(|tunnel| tunnel.is_there()).collect();
    let silent = (0_u8..).zip(["y/b", "y/c"]).map(|(at, server)| {
        let vips: [IpAddr; 2] =
            [[10, 0, 11, at].into(), [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xb00 + u16::from(at)].into()];
        let service = Service::new(&format!("x/silent-{at}")).port(Protocol::Udp, SILENT + 1);
        (vips.into_iter().fold(service, Service::vip), SILENT, vec![cluster.pod(server)])
    });
    cluster.expose_all(silent.collect());
    for tunnel in &tunnels {
        tunnel.plumb(cluster);
        let wrong = [verdicts(cluster, |_, _| true), wrapped(cluster, *tunnel, true)].concat();
        assert!(wrong.is_empty(), "{tunnel:?}, without agents:\n{}", wrong.join("\n"));
        tunnel.remove(cluster);
    }
    tunnels
}

/// Needs an agent on each of two nodes.
pub(crate) fn with_agents(cluster: &LiveCluster, tunnels: &[Tunnel]) {
    for &tunnel in tunnels {
        tunnel.plumb(cluster);
        await_that("the tunnels among the exits", || cluster.agents.iter().all(|agent| has_exits(agent, tunnel)));
        cluster.enforce(&policies());
        let before = [0, 1].map(|node| sent_by(cluster, node, tunnel));
        let by_policy = |from: &str, to: &str| match (from, to) {
            (_, "x/b" | "y/b") => from == "x/a",
            ("x/a", _) | (_, "x/a") => false,
            _ => true,
        };
        let mut wrong = verdicts(cluster, by_policy);
        wrong.extend(counted(cluster));
        for (node, before) in before.into_iter().enumerate() {
            if sent_by(cluster, node, tunnel) < before + u64::from(COUNT) {
                wrong.push(format!("node {node} has not sent by it"));
            }
        }
        wrong.extend(wrapped(cluster, tunnel, false));
        assert!(wrong.is_empty(), "{tunnel:?}:\n{}", wrong.join("\n"));
        tunnel.remove(cluster);
        eprintln!("judged what goes through {tunnel:?}");
    }
}

fn has_exits(agent: &Agent, tunnel: Tunnel) -> bool {
    let status = agent.status();
    let exits = status["exits"].as_array().unwrap();
    tunnel.devices().iter().all(|device| exits.iter().any(|exit| exit["name"] == *device))
}

/// Asks pods of the other node, at their own addresses and those of their Services, and describes what is wrong.
fn verdicts(cluster: &LiveCluster, allowed: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut rows = Vec::new();
    for (from, to) in [("x/a", "y/b"), ("x/a", "y/c"), ("x/c", "y/c"), ("y/a", "x/b"), ("y/a", "x/c"), ("y/c", "x/a")] {
        for (v4, protocol) in [true, false].into_iter().flat_map(|v4| [(v4, Protocol::Tcp), (v4, Protocol::Udp)]) {
            let direct = (address(cluster.pod(to), v4), 80);
            for (to_address, port) in [direct, (cluster.vip(to, v4), service_port(80))] {
                let probe = Probe::new(cluster.pod(from), to_address, protocol, port);
                rows.push((from, to, probe));
            }
        }
    }
    let ask = |patience| {
        let probes: Vec<Probe> = rows.iter().map(|(.., probe)| probe.clone().timeout(patience)).collect();
        probe_all(&probes)
    };
    let (first, mut wrong) = (ask(Duration::from_millis(500)), Vec::new());
    for ((from, to, probe), outcome) in rows.iter().zip(first) {
        let expected = allowed(from, to);
        let late = expected && outcome == Outcome::Timeout;
        let outcome = if late { probe.clone().timeout(Duration::from_secs(10)).run() } else { outcome };
        if if expected { !outcome.is_answer_of(to) } else { outcome != Outcome::Timeout } {
            let at = SocketAddr::new(probe.to, probe.port);
            wrong.push(format!("{from} to {to} at {at} by {}: {outcome:?}, allowed {expected}", probe.protocol));
        }
    }
    wrong
}

/// Sends datagrams that nobody answers, and describes what the rules' counters or the receivers do not agree with.
fn counted(cluster: &LiveCluster) -> Vec<String> {
    let listen = |pod: &Pod| pod.namespace().run(|| Ok(UdpSocket::bind(("::", SILENT))?)).unwrap();
    let servers = ["y/b", "y/c"].map(|name| (name, listen(cluster.pod(name))));
    let counters = || {
        let packets = |agent: &Agent, policy: (&str, &str), direction: &str, verdict: &str| {
            let labels = [("policy_namespace", policy.0), ("policy_name", policy.1), ("direction", direction)];
            agent.metric("portcullis_policy_packets_total", &[&labels[..], &[("verdict", verdict)]].concat()) as u32
        };
        let [near, far] = &cluster.agents[..] else { panic!("a testbed of two nodes") };
        let client = |verdict| packets(near, ("x", "client"), "egress", verdict);
        [client("allow"), client("deny"), packets(far, ("y", "server"), "ingress", "allow")]
    };
    let before = settled(&counters);
    let mut expected: BTreeMap<String, u32> = BTreeMap::new();
    for (at, (server, _)) in (0_u8..).zip(&servers) {
        for v4 in [true, false] {
            let vip: IpAddr = if v4 {
                [10, 0, 11, at].into()
            } else {
                [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xb00 + u16::from(at)].into()
            };
            for to in [(address(cluster.pod(server), v4), SILENT), (vip, SILENT + 1)] {
                let payload = format!("{server} at {} {}", to.0, to.1);
                let any: IpAddr = if v4 { [0; 4].into() } else { [0; 16].into() };
                let sent = cluster.pod("x/a").namespace().run(|| {
                    let socket = UdpSocket::bind((any, 0))?;
                    (0..COUNT).try_for_each(|_| socket.send_to(payload.as_bytes(), to).map(drop))?;
                    Ok(())
                });
                sent.unwrap();
                expected.insert(payload, if *server == "y/b" { COUNT } else { 0 });
            }
        }
    }
    // Both families, directly and by the Service, of one server that is allowed and of one that is denied.
    let wanted = [4 * COUNT, 4 * COUNT, 4 * COUNT];
    let deadline = Instant::now() + PATIENCE;
    let difference = || {
        let now = counters();
        std::array::from_fn::<u32, 3, _>(|at| now[at] - before[at])
    };
    while difference().iter().zip(wanted).any(|(now, wanted)| *now < wanted) && Instant::now() < deadline {
        pause(Duration::from_millis(20));
    }
    let mut wrong = Vec::new();
    let counted = settled(&difference);
    if counted != wanted {
        wrong.push(format!("allowed and denied here, allowed there: {counted:?} packets of {wanted:?} that were sent"));
    }
    let mut arrived: BTreeMap<String, u32> = expected.keys().map(|payload| (payload.clone(), 0)).collect();
    for (_, socket) in &servers {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            *arrived.entry(String::from_utf8_lossy(&buffer[..length]).into_owned()).or_default() += 1;
        }
    }
    if arrived != expected {
        wrong.push(format!("{arrived:?} have arrived, {expected:?} should have"));
    }
    wrong
}

/// What counters say once nothing else is under way, such as the last packets of connections.
fn settled(counters: &dyn Fn() -> [u32; 3]) -> [u32; 3] {
    let mut last = counters();
    let deadline = Instant::now() + PATIENCE;
    loop {
        pause(Duration::from_millis(300));
        let now = counters();
        if now == last || Instant::now() >= deadline {
            return now;
        }
        last = now;
    }
}

/// Sends what nodes would unwrap, in the name of a pod that is admitted, from one that nothing restricts: describes what
/// arrives although it should not, or the other way round.
fn wrapped(cluster: &LiveCluster, tunnel: Tunnel, arrives: bool) -> Vec<String> {
    let (sender, admitted) = (cluster.pod("x/c"), cluster.pod("x/a"));
    let dropped = || {
        cluster.agents.iter().map(|agent| agent.metric("portcullis_drops_total", &[("reason", "tunnel")])).sum::<f64>()
    };
    let mut wrong = Vec::new();
    for (at, victim) in [(0, "x/b"), (1, "y/b")] {
        for v4 in [true, false] {
            let mark = format!("wrapped in {tunnel:?} for {victim}, {v4}, {arrives}").into_bytes();
            let inner = pair(admitted, cluster.pod(victim), v4);
            let Some((protocol, bytes)) = tunnel.wrapped(cluster, at, inner, &mark) else { continue };
            let hop = Hop { from: sender.mac("eth0").unwrap(), to: next_hop(Shape::Routed, sender) };
            let outer = Addresses(address(sender, true), address(cluster.bed.node(at), true));
            let frame = match protocol {
                17 => frames::udp(hop, outer, (5000, VXLAN_PORT), &bytes),
                _ => frames::ip_protocol(hop, outer, protocol, &bytes),
            };
            let what = format!("what x/c has wrapped in {tunnel:?} for {victim}, IPv4 {v4}");
            let before = dropped();
            let arrived = arrives_in(cluster, &what, ("x/c", victim), &[frame], &mark);
            if arrived != arrives {
                wrong.push(format!("{what}: arrived {arrived}"));
            }
            if !arrives && dropped() < before + 1.0 {
                wrong.push(format!("{what}: it was not dropped as a tunnel's"));
            }
        }
    }
    wrong
}
