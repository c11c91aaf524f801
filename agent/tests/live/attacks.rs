//! What a pod may try on the wire. Each attack works on a node without an agent, so that it is known to be one, and
//! fails on a node with one, where an honest packet sent right after it still arrives.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use portcullis_testbed::{Host, Protocol, ROUTED_HOST_MAC, Shape};
use serde_json::json;

use crate::agent::PATIENCE;
use crate::cluster::{LiveCluster, Plan};
use crate::frames::{self, Addresses, Hop, Mac};
use crate::manifests::policy;

/// How long a frame may trail behind one that was sent after it.
const TRAILING: Duration = Duration::from_millis(60);

/// x/a is the attacker, who may send to x/c only. x/b and y/b are victims, who admit x/c only. x/d is selected by no
/// policy, so nothing but x/a's own protects it.
const PODS: [(&str, usize); 5] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("x/d", 0), ("y/b", 1)];

struct Attack {
    name: String,
    from: &'static str,
    to: &'static str,
    frame: Vec<u8>,
    /// Bytes by which the frame is known where it arrives.
    mark: Vec<u8>,
}

fn plan(shape: Shape, agents: bool) -> Plan {
    Plan { agents, ports: vec![(Protocol::Udp, 80)], ..Plan::new(shape, &PODS) }
}

fn enforce(cluster: &LiveCluster) {
    let only_c = json!([{"podSelector": {"matchLabels": {"pod": "c"}}}]);
    cluster.enforce(&[
        policy("x", "attacker", &json!({
            "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"], "egress": [{"to": only_c}],
        })),
        policy("x", "victim", &json!({
            "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": [{"from": only_c}],
        })),
                policy("y", "victim", &json!({
            "podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}},
                "podSelector": {"matchLabels": {"pod": "c"}},
            }]}],
        })),
    ]);
}

#[test]
fn attacks_on_routed_pods_fail() {
    attacks_fail(Shape::Routed);
}

#[test]
fn attacks_on_bridged_pods_fail() {
    attacks_fail(Shape::Bridged);
}

fn attacks_fail(shape: Shape) {
    let open = LiveCluster::new(&plan(shape, false));
    let without: Vec<(String, bool)> =
        attacks(&open, shape).into_iter().map(|attack| (attack.name.clone(), arrives(&open, shape, &attack))).collect();
    let blunt: Vec<&String> = without.iter().filter(|(_, arrived)| !arrived).map(|(name, _)| name).collect();
    assert!(blunt.is_empty(), "no attacks even without an agent: {blunt:#?}");
    drop(open);

    let cluster = LiveCluster::new(&plan(shape, true));
    enforce(&cluster);
    let successful: Vec<String> = attacks(&cluster, shape)
        .into_iter()
        .filter(|attack| arrives(&cluster, shape, attack))
        .map(|attack| attack.name)
        .collect();
    assert!(successful.is_empty(), "of {}, these attacks succeed: {successful:#?}", without.len());
}

/// Sends the attack, then an honest datagram to the same pod, and tells whether the attack was seen in that pod.
fn arrives(cluster: &LiveCluster, shape: Shape, attack: &Attack) -> bool {
    let name = format!("{} ({shape:?})", attack.name);
    arrives_in(cluster, &name, (attack.from, attack.to), std::slice::from_ref(&attack.frame), &attack.mark)
}

/// Sends frames from one pod, then an honest datagram to another, and tells whether the mark was seen in that one.
pub(crate) fn arrives_in(
    cluster: &LiveCluster,
    name: &str,
    (from, to): (&str, &str),
    frames: &[Vec<u8>],
    mark: &[u8],
) -> bool {
    arrives_by(cluster, name, (from, "eth0", to), frames, mark)
}

/// The same, sent by one of the pod's devices.
pub(crate) fn arrives_by(
    cluster: &LiveCluster,
    name: &str,
    (from, device, to): (&str, &str, &str),
    frames: &[Vec<u8>],
    mark: &[u8],
) -> bool {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let target = cluster.pod(to);
    let capture = target.capture("eth0").unwrap();
    frames.iter().for_each(|frame| cluster.pod(from).inject(device, frame).unwrap());
    // Node processes are admitted by every policy, so a datagram of the node is honest wherever it goes.
    let honest = if to.starts_with("y/") { &**cluster.bed.node(1) } else { cluster.bed.node(0) };
    let control = format!("honest datagram {number}").into_bytes();
    let address = std::net::SocketAddr::new(target.v4().unwrap().into(), 9);
    honest
        .namespace()
        .run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&control, address)?;
            Ok(())
        })
        .unwrap();
    let is = |bytes: &[u8], mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    let mut arrived = false;
    let mut controlled = false;
    loop {
        let wanted = |bytes: &[u8]| is(bytes, &control) || is(bytes, mark);
        let patience = if controlled { TRAILING } else { PATIENCE };
        let seen = capture.next_matching(patience, |frame| !frame.outgoing && wanted(&frame.bytes)).unwrap();
        match seen {
            Some(frame) if is(&frame.bytes, mark) => arrived = true,
            Some(_) => controlled = true,
            None => break,
        }
    }
    assert!(controlled, "{name}: the honest datagram has not arrived");
    arrived
}

/// Where an honest pod sends its frames for another pod.
pub(crate) fn next_hop(shape: Shape, target: &Host) -> Mac {
    match shape {
        Shape::Bridged => target.mac("eth0").unwrap(),
        Shape::Routed => {
            let bytes: Vec<u8> = ROUTED_HOST_MAC.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            bytes.try_into().unwrap()
        }
    }
}

/// The addresses of one family of two hosts.
pub(crate) fn pair(from: &Host, to: &Host, v4: bool) -> Addresses {
    Addresses(address(from, v4), address(to, v4))
}

pub(crate) fn address(host: &Host, v4: bool) -> IpAddr {
    if v4 { host.v4().unwrap().into() } else { host.v6().unwrap().into() }
}

struct Attacks<'a> {
    cluster: &'a LiveCluster,
    shape: Shape,
    list: Vec<Attack>,
}

impl Attacks<'_> {
    /// Bytes unlike those of any other attack.
    fn mark(&self) -> Vec<u8> {
        format!("attack number {:04}", self.list.len()).into_bytes()
    }

    /// A MAC address unlike any other, for messages that carry nothing else.
    fn odd_mac(&self) -> Mac {
        [0x02, 0xbd, 0xbd, 0xbd, 0xbd, u8::try_from(self.list.len()).unwrap()]
    }

    fn add(&mut self, name: &str, from: &'static str, to: &'static str, frame: Vec<u8>, mark: Vec<u8>) {
        self.list.push(Attack { name: name.to_owned(), from, to, frame, mark });
    }

    fn hop(&self, from: &str, to: &str) -> Hop {
        Hop { from: self.mac(from), to: next_hop(self.shape, self.cluster.pod(to)) }
    }

    fn mac(&self, pod: &str) -> Mac {
        self.cluster.pod(pod).mac("eth0").unwrap()
    }

    fn udp(&mut self, name: &str, from: &'static str, to: &'static str, hop: Hop, addresses: Addresses) {
        let mark = self.mark();
        let family = if addresses.0.is_ipv4() { "IPv4" } else { "IPv6" };
        self.add(&format!("{name}, {family}"), from, to, frames::udp(hop, addresses, (4000, 80), &mark), mark);
    }
}

fn attacks(cluster: &LiveCluster, shape: Shape) -> Vec<Attack> {
    let mut attacks = Attacks { cluster, shape, list: Vec::new() };
    for v4 in [true, false] {
        by_address(&mut attacks, v4);
        tunnels(&mut attacks, v4);
        if shape == Shape::Bridged {
            by_mac(&mut attacks, v4);
            vlan(&mut attacks, v4);
        }
    }
    if shape == Shape::Bridged {
        node_addresses(&mut attacks);
        neighbours(&mut attacks);
        let mark = attacks.mark();
        let frame = frames::ethertype(attacks.hop("x/a", "x/c"), 0x88b5, &[&mark[..], &[0; 40]].concat());
        attacks.add("an unknown Ethertype", "x/a", "x/c", frame, mark);
    }
    attacks.list
}

/// Forged sources, and plain disobedience.
fn by_address(attacks: &mut Attacks<'_>, v4: bool) {
    let pod = |name: &str| attacks.cluster.pod(name).clone();
    let (a, b, c, far) = (pod("x/a"), pod("x/b"), pod("x/c"), pod("y/b"));
    let to_far = Hop { from: attacks.mac("x/a"), to: gateway(attacks) };
    attacks.udp("denied by its own policy", "x/a", "x/b", attacks.hop("x/a", "x/b"), pair(&a, &b, v4));
    attacks.udp("denied by its own policy, another node", "x/a", "y/b", to_far, pair(&a, &far, v4));
    attacks.udp("in the name of an admitted pod", "x/a", "x/b", attacks.hop("x/a", "x/b"), pair(&c, &b, v4));
    let hop = attacks.hop("x/d", "x/b");
    attacks.udp("in the name of an admitted pod, by a pod without policy", "x/d", "x/b", hop, pair(&c, &b, v4));
    let hop = Hop { from: attacks.mac("x/d"), to: gateway(attacks) };
    attacks.udp("in another pod's name, to another node", "x/d", "y/b", hop, pair(&c, &far, v4));
    let other_node = attacks.cluster.bed.node(1).clone();
    attacks.udp("in another node's name", "x/a", "x/b", attacks.hop("x/a", "x/b"), pair(&other_node, &b, v4));
}

/// The MAC address to which a pod sends what is for another node.
fn gateway(attacks: &Attacks<'_>) -> Mac {
    match attacks.shape {
        Shape::Routed => next_hop(Shape::Routed, attacks.cluster.pod("x/a")),
        Shape::Bridged => attacks.cluster.bed.node(0).mac(portcullis_testbed::BRIDGE).unwrap(),
    }
}

/// Frames whose MAC address leads elsewhere than their IP address.
fn by_mac(attacks: &mut Attacks<'_>, v4: bool) {
    let pod = |name: &str| attacks.cluster.pod(name).clone();
    let (a, c) = (pod("x/a"), pod("x/c"));
    let from = attacks.mac("x/a");
    for victim in ["x/b", "x/d"] {
        let own = pod(victim);
        for (kind, to) in [
            ("to another pod's MAC address", attacks.mac(victim)),
            ("flooded to an unknown MAC address", [0x02, 0xde, 0xad, 0xbe, 0xef, 0x01]),
            ("to the broadcast MAC address", [0xff; 6]),
            ("to a multicast MAC address", [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03]),
        ] {
            for (what, target) in [("an allowed address", &c), ("a denied address", &own)] {
                let name = format!("{kind}, with {what}, at {victim}");
                attacks.udp(&name, "x/a", victim, Hop { from, to }, pair(&a, target, v4));
            }
        }
    }
}

fn node_addresses(attacks: &mut Attacks<'_>) {
    let b = attacks.cluster.pod("x/b").clone();
    let node = attacks.cluster.bed.node(0).clone();
    for (name, source) in [("its node's", address(&node, false)), ("the bridge's", "fd00:10:244::1".parse().unwrap())] {
        let hop = attacks.hop("x/a", "x/b");
        attacks.udp(&format!("in {name} name"), "x/a", "x/b", hop, Addresses(source, address(&b, false)));
    }
    for (name, source) in [("its node's", address(&node, true)), ("the bridge's", "10.244.0.1".parse().unwrap())] {
        let hop = attacks.hop("x/a", "x/b");
        attacks.udp(&format!("in {name} name"), "x/a", "x/b", hop, Addresses(source, address(&b, true)));
    }
}

/// What the node or another pod would unwrap behind the programs' backs, to a pod that may be reached.
fn tunnels(attacks: &mut Attacks<'_>, v4: bool) {
    let pod = |name: &str| attacks.cluster.pod(name).clone();
    let (a, b, c) = (pod("x/a"), pod("x/b"), pod("x/c"));
    for (name, protocol, inner_v4) in [("IP in IP", 4, true), ("IPv6 in IP", 41, false), ("GRE", 47, true)] {
        let mark = attacks.mark();
        let hop = attacks.hop("x/a", "x/c");
        let inner = frames::udp(hop, pair(&c, &b, inner_v4), (4000, 80), &mark);
        let mut payload = frames::without_ethernet(&inner).to_vec();
        if protocol == 47 {
            payload = [&[0, 0, 8, 0][..], &payload].concat();
        }
        let frame = frames::ip_protocol(hop, pair(&a, &c, v4), protocol, &payload);
        let family = if v4 { "IPv4" } else { "IPv6" };
        attacks.add(&format!("{name} ({protocol}) over {family}"), "x/a", "x/c", frame, mark);
    }
}

fn vlan(attacks: &mut Attacks<'_>, v4: bool) {
    let pod = |name: &str| attacks.cluster.pod(name).clone();
    let (a, b, c) = (pod("x/a"), pod("x/b"), pod("x/c"));
    for (name, to, target) in [("denied", "x/b", &b), ("allowed", "x/c", &c)] {
        let mark = attacks.mark();
        let frame = frames::tagged_udp(attacks.hop("x/a", to), pair(&a, target, v4), (4000, 80), &mark);
        attacks.add(&format!("with a VLAN tag, to an {name} pod, IPv4 {v4}"), "x/a", to, frame, mark);
    }
}

/// Answers and questions in another's name.
fn neighbours(attacks: &mut Attacks<'_>) {
    let pod = |name: &str| attacks.cluster.pod(name).clone();
    let (a, b, c) = (pod("x/a"), pod("x/b"), pod("x/c"));
    let hop = attacks.hop("x/a", "x/b");
    let node_v4: IpAddr = "10.244.0.1".parse().unwrap();
    for (whose, sender) in [("another pod", address(&c, true)), ("the gateway", node_v4)] {
        for (operation, name) in [(1, "question"), (2, "answer")] {
            let mac = attacks.odd_mac();
            let frame = frames::arp(hop, operation, (mac, sender), (hop.to, address(&b, true)));
            attacks.add(&format!("an ARP {name} in the name of {whose}"), "x/a", "x/b", frame, mac.to_vec());
        }
    }
    let (a6, b6, c6) = (a.v6().unwrap(), b.v6().unwrap(), c.v6().unwrap());
    let gateway: Ipv6Addr = "fd00:10:244::1".parse().unwrap();
    for (whose, target) in [("another pod", c6), ("the gateway", gateway)] {
        let mac = attacks.odd_mac();
        let frame = frames::advertisement(hop, Addresses(a6.into(), b6.into()), target, mac);
        attacks.add(&format!("an NA from itself for {whose}"), "x/a", "x/b", frame, mac.to_vec());
        let mac = attacks.odd_mac();
        let frame = frames::advertisement(hop, Addresses(target.into(), b6.into()), target, mac);
        attacks.add(&format!("an NA in the name of {whose}"), "x/a", "x/b", frame, mac.to_vec());
        let mac = attacks.odd_mac();
        let frame = frames::solicitation(hop, Addresses(target.into(), b6.into()), b6, mac);
        attacks.add(&format!("an NS in the name of {whose}"), "x/a", "x/b", frame, mac.to_vec());
    }
    let link_local = link_local_of(&hop.from);
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let to_all = Hop { from: hop.from, to: [0x33, 0x33, 0, 0, 0, 1] };
    let mac = attacks.odd_mac();
    let frame = frames::router_advertisement(to_all, Addresses(link_local.into(), all_nodes.into()), mac);
    attacks.add("a router advertisement", "x/a", "x/b", frame, mac.to_vec());
    let mac = attacks.odd_mac();
    let frame = frames::redirect(hop, Addresses(link_local.into(), b6.into()), a6, c6, mac);
    attacks.add("a redirect", "x/a", "x/b", frame, mac.to_vec());
}

/// The link-local address that the kernel makes of a MAC address (RFC 4291, appendix A).
fn link_local_of(mac: &Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = *mac;
    let words = [[0xfe, 0x80], [0, 0], [0, 0], [0, 0], [a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]];
    Ipv6Addr::from(words.map(u16::from_be_bytes))
}
