//! What the kernel does to a packet's stamp and to the index of the device that it came in at, between the hook where a
//! packet enters the host and the one where it leaves: the facts that the agent's way of judging rests on. No agent
//! runs; a small program stamps, another reads. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers of tests; numbers of the kernel's interface"
)]

#[path = "stamp/witness.rs"]
mod witness;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::{IpNumber, PacketBuilder};
use portcullis_testbed::{
    BRIDGE, Host, Masquerade, Pod, PodOptions, Protocol, Proxy, Service, Shape, Testbed, TestbedOptions,
    br_netfilter_available,
};
use witness::{Program, Seen, Witness};

const STAMP: u16 = 0x4a5b;
const CLASS: u16 = 0x0777;
/// Nothing else in these namespaces sends packets this long.
const PAYLOAD: usize = 700;
/// What fragments have, but for the last, and nothing else.
const LONG: usize = 1400;
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a fragment's payload.
const FRAGMENT: usize = 1448;

/// A datagram in fragments the first of which begins with 240 bytes of destination options, PadN (RFC 8200, section 4.2):
/// as if they had stood before the fragment header, of which there is then no room for as much in each.
fn fragments_with_long_options(hop: ([u8; 6], [u8; 6]), from: Ipv6Addr, to: Ipv6Addr) -> Vec<Vec<u8>> {
    let mut datagram = vec![0; 240];
    datagram[..4].copy_from_slice(&[17, 29, 1, 236]);
    let length = 3008_u16;
    datagram.extend([4000_u16, 9, length, 0].map(u16::to_be_bytes).concat());
    datagram.resize(240 + usize::from(length), 7);
    let pieces = datagram.chunks(FRAGMENT).enumerate().map(|(at, piece)| {
        let more = (at + 1) * FRAGMENT < datagram.len();
        let offset = (at * FRAGMENT) as u16 | u16::from(more);
        let header = [&[60, 0][..], &offset.to_be_bytes(), &0x0bad_cafe_u32.to_be_bytes()].concat();
        let builder = PacketBuilder::ethernet2(hop.0, hop.1).ipv6(from.octets(), to.octets(), 64);
        let mut frame = Vec::new();
        builder.write(&mut frame, IpNumber::IPV6_FRAGMENTATION_HEADER, &[&header, piece].concat()).unwrap();
        frame
    });
    pieces.collect()
}

/// Which device the packet was received by last, as the exit sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    Sender,
    Bridge,
    Lost,
    Either,
}

struct Road {
    bed: Testbed,
    client: Pod,
    near: Pod,
    far: Pod,
    witness: Witness,
    context: String,
}

impl Road {
    /// A client whose packets are stamped, a pod beside it and one on another node; every exit is watched.
    fn new(options: TestbedOptions, masquerade: Masquerade) -> Self {
        let context = format!(
            "{:?}, {:?}, br_netfilter {}, rp_filter {:?}, masquerade {masquerade:?}",
            options.shape, options.proxy, options.br_netfilter, options.rp_filter
        );
        let bed = Testbed::new(options).unwrap();
        let client = bed.add_pod(0, "x/client", PodOptions::default()).unwrap();
        let near = bed.add_pod(0, "x/near", PodOptions::default()).unwrap();
        let far = bed.add_pod(1, "x/far", PodOptions::default()).unwrap();
        // Somebody receives what is sent: ICMP errors that quote it would leave by the same exits.
        for pod in [&client, &near, &far] {
            pod.serve(Protocol::Udp, 9).unwrap();
        }
        let services = [&client, &near, &far].into_iter().enumerate().map(|(at, pod)| {
            let last = 10 + at as u8;
            let service =
                Service::new(pod.name()).vip([10, 0, 0, last]).vip([0xfd00, 0x10, 0x96, 0, 0, 0, 0, last.into()]);
            Service { masquerade, ..service.port(Protocol::Udp, 80).backend(pod, 9) }
        });
        bed.services(services).unwrap();
        let witness = Witness::new(STAMP, CLASS);
        let node = bed.node(0).namespace();
        witness.attach(Program::Stamping, node, client.veth(), "ingress", 1);
        for exit in [client.veth(), near.veth(), "eth0"] {
            witness.attach(Program::Recording, node, exit, "egress", 1);
        }
        Self { bed, client, near, far, witness, context }
    }

    fn index(&self, device: &str) -> u32 {
        self.bed.node(0).ifindex(device).unwrap()
    }

    /// Sends a datagram of the client's, and gives what left at `exit` because of it, `packets` at least.
    fn send(&self, to: SocketAddr, payload: usize, exit: &str, packets: usize) -> Vec<Seen> {
        self.send_of(&self.client, to, payload, exit, packets)
    }

    /// Sends a datagram of a host's.
    fn send_of(&self, from: &Host, to: SocketAddr, payload: usize, exit: &str, packets: usize) -> Vec<Seen> {
        self.witness.forget();
        send(from, to, payload);
        self.await_seen(to, payload, exit, packets)
    }

    /// Waits for what leaves at `exit` because of a datagram, `packets` at least.
    fn await_seen(&self, to: SocketAddr, payload: usize, exit: &str, packets: usize) -> Vec<Seen> {
        let (exit, deadline) = (self.index(exit), Instant::now() + PATIENCE);
        loop {
            // Others of such lengths are answers, and errors that quote a packet, of 1,280 bytes at most (RFC 4443, section
            // 2.4). VXLAN over IPv4 adds 50 bytes.
            let whole = 14 + if to.is_ipv4() { 20 } else { 40 } + 8 + payload;
            let of_ours = |seen: &Seen| {
                let length = seen.length as usize;
                let is_it = if payload > 1500 { length >= LONG } else { [whole, whole + 50].contains(&length) };
                seen.ifindex == exit && is_it
            };
            let seen: Vec<Seen> = self.witness.seen().into_iter().filter(of_ours).collect();
            if seen.len() >= packets {
                return seen;
            }
            let all = || self.witness.seen();
            assert!(Instant::now() < deadline, "{}: {to} has not left at {exit}: {:?}", self.context, all());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends, and fails unless all that leaves has the stamp and the index.
    fn expect(&self, what: &str, to: SocketAddr, payload: usize, exit: &str, index: Index) {
        let packets = if payload > 1500 { 2 } else { 1 };
        let seen = self.send(to, payload, exit, packets);
        self.check(what, to, &seen, STAMP, index);
    }

    /// Fails unless all these packets have the stamp and the index.
    fn check(&self, what: &str, to: SocketAddr, seen: &[Seen], stamp: u16, index: Index) {
        let expected = match index {
            Index::Sender => self.index(self.client.veth()),
            Index::Bridge => self.index(BRIDGE),
            Index::Lost | Index::Either => 0,
        };
        let wrong = |seen: &&Seen| {
            let index = index != Index::Either && seen.ingress_ifindex != expected;
            seen.tc_index != u32::from(stamp) || index
        };
        let wrong: Vec<&Seen> = seen.iter().filter(wrong).collect();
        assert!(
            wrong.is_empty(),
            "{}, {what} to {to}: stamp {stamp:#x}, index {index:?} ({expected}): {wrong:#x?}",
            self.context
        );
    }

    /// What a process of the node sends has neither.
    fn expect_nothing_of_the_node(&self) {
        let node = self.bed.node(0);
        for (to, exit) in [(&self.near, self.near.veth()), (&self.far, "eth0")] {
            for to in self.directly(to) {
                let seen = self.send_of(node, to, PAYLOAD, exit, 1);
                self.check("from the node", to, &seen, 0, Index::Lost);
                let seen = self.send_of(node, to, 3000, exit, 2);
                self.check("from the node, in fragments", to, &seen, 0, Index::Lost);
            }
        }
    }

    /// IPv6 that conntrack has put together, and that the kernel cannot take apart again as it was, has lost its index.
    fn expect_index_lost_when_rebuilt(&self, target: &Pod, exit: &str) {
        let (own, to) = (self.client.v6().unwrap(), target.v6().unwrap());
        let gateway = match self.bed.node(0).mac(BRIDGE) {
            Ok(mac) => mac,
            Err(_) => self.bed.node(0).mac(self.client.veth()).unwrap(),
        };
        self.witness.forget();
        for frame in fragments_with_long_options((self.client.mac("eth0").unwrap(), gateway), own, to) {
            self.client.inject("eth0", &frame).unwrap();
        }
        let to = SocketAddr::new(to.into(), 9);
        let seen = self.await_seen(to, 3000, exit, 2);
        self.check("in fragments with long options", to, &seen, STAMP, Index::Lost);
    }

    fn directly(&self, host: &Host) -> Vec<SocketAddr> {
        host.addresses().into_iter().map(|address| SocketAddr::new(address, 9)).collect()
    }
}

fn send(from: &Host, to: SocketAddr, payload: usize) {
    let sent = from.namespace().run(|| {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.send_to(&vec![7; payload], to)?;
        Ok(())
    });
    sent.unwrap();
}

fn through_service(last: u16) -> [SocketAddr; 2] {
    let v4 = IpAddr::from([10, 0, 0, last as u8]);
    [SocketAddr::new(v4, 80), SocketAddr::new(IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, last]), 80)]
}

/// Routed: routing, DNAT, masquerade, hairpin and fragments, with reverse-path filters of all kinds.
#[test]
fn a_stamp_survives_what_routing_and_netfilter_do() {
    for (proxy, rp_filter, masquerade) in [
        (Proxy::IptablesNft, Some(0), Masquerade::FromOutsidePods),
        (Proxy::IptablesLegacy, Some(1), Masquerade::All),
        (Proxy::Nftables, Some(2), Masquerade::FromOutsidePods),
    ] {
        let options = TestbedOptions { proxy, rp_filter, ..TestbedOptions::shaped(Shape::Routed) };
        let road = Road::new(options, masquerade);
        netfilter(&road, Index::Sender);
        road.expect_nothing_of_the_node();
        road.expect_index_lost_when_rebuilt(&road.far, "eth0");
        // Without connection tracking, of untranslated packets.
        untracked(&road);
        for to in road.directly(&road.near) {
            road.expect("untracked", to, PAYLOAD, road.near.veth(), Index::Sender);
        }
        for to in road.directly(&road.far) {
            road.expect("untracked, in fragments", to, 3000, "eth0", Index::Either);
        }
    }
}

fn netfilter(road: &Road, routed: Index) {
    for to in road.directly(&road.far) {
        road.expect("to another node", to, PAYLOAD, "eth0", routed);
        // Rebuilt ones may have no index: conntrack puts IPv6 together, and the kernel takes it apart again.
        road.expect("to another node in fragments", to, 3000, "eth0", Index::Either);
    }
    for to in through_service(11) {
        road.expect("through a Service to a neighbour", to, PAYLOAD, road.near.veth(), routed);
    }
    for to in through_service(12) {
        road.expect("through a Service to another node", to, PAYLOAD, "eth0", routed);
        road.expect("through a Service in fragments", to, 3000, "eth0", Index::Either);
    }
    for to in through_service(10) {
        road.expect("through a Service to itself", to, PAYLOAD, road.client.veth(), routed);
    }
}

fn untracked(road: &Road) {
    let node = road.bed.node(0).namespace();
    node.nft("table inet untracked {\n chain early {\n  type filter hook prerouting priority -300\n  notrack\n }\n}")
        .unwrap();
}

/// Bridged: what stays on the bridge keeps the sender's index, what goes up through it has the bridge's.
#[test]
fn a_stamp_survives_bridges() {
    for (br_netfilter, rp_filter) in [(false, Some(1)), (true, Some(2))] {
        if br_netfilter && !br_netfilter_available() {
            println!("skipped br_netfilter: this kernel has none");
            continue;
        }
        let options = TestbedOptions { br_netfilter, rp_filter, ..TestbedOptions::shaped(Shape::Bridged) };
        let road = Road::new(options, Masquerade::FromOutsidePods);
        bridged(&road, "");
        flooded(&road);
        for to in through_service(12) {
            road.expect("through a Service to another node", to, PAYLOAD, "eth0", Index::Bridge);
            road.expect("through a Service in fragments", to, 3000, "eth0", Index::Either);
        }
        for to in through_service(11) {
            road.expect("through a Service to a neighbour", to, PAYLOAD, road.near.veth(), Index::Either);
        }
        road.expect_nothing_of_the_node();
        road.expect_index_lost_when_rebuilt(&road.far, "eth0");
        untracked(&road);
        bridged(&road, ", untracked");
    }
}

fn bridged(road: &Road, how: &str) {
    for to in road.directly(&road.near) {
        road.expect(&format!("on one bridge{how}"), to, PAYLOAD, road.near.veth(), Index::Sender);
    }
    for to in road.directly(&road.far) {
        road.expect(&format!("to another node{how}"), to, PAYLOAD, "eth0", Index::Bridge);
        road.expect(&format!("to another node in fragments{how}"), to, 3000, "eth0", Index::Either);
    }
}

/// A frame for nobody's MAC address goes out at every port.
fn flooded(road: &Road) {
    let to = SocketAddr::new(road.near.v4().unwrap().into(), 9);
    let (source, destination) = (road.client.v4().unwrap().octets(), road.near.v4().unwrap().octets());
    let builder = PacketBuilder::ethernet2(road.client.mac("eth0").unwrap(), [0x02, 0xde, 0xad, 0, 0, 1]);
    let mut frame = Vec::new();
    builder.ipv4(source, destination, 64).udp(4000, 9).write(&mut frame, &[7; PAYLOAD]).unwrap();
    road.witness.forget();
    road.client.inject("eth0", &frame).unwrap();
    let seen = road.await_seen(to, PAYLOAD, road.near.veth(), 1);
    road.check("flooded", to, &seen, STAMP, Index::Sender);
}

/// VXLAN: the stamp is on the packet inside and on the one around it, and that one has no index.
#[test]
fn a_stamp_survives_encapsulation_and_the_index_does_not() {
    let road = Road::new(TestbedOptions::shaped(Shape::Routed), Masquerade::FromOutsidePods);
    let (node, other) = (road.bed.node(0), road.bed.node(1));
    let tunnel = format!("link add tunnel0 type vxlan id 7 dstport 4789 remote {} dev eth0", other.v4().unwrap());
    if let Err(error) = node.namespace().ip([&tunnel]) {
        println!("skipped: this kernel has no vxlan: {error:#}");
        return;
    }
    node.namespace()
        .ip([
            "link set tunnel0 up",
            "route add 198.51.100.0/24 dev tunnel0",
            "neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev tunnel0",
        ])
        .unwrap();
    road.witness.attach(Program::Recording, node.namespace(), "tunnel0", "egress", 1);
    let to = SocketAddr::from(([198, 51, 100, 9], 9));
    road.expect("into the tunnel", to, PAYLOAD, "tunnel0", Index::Sender);
    road.expect("out of the tunnel", to, PAYLOAD, "eth0", Index::Lost);
}

/// A legacy filter that says TC_ACT_OK puts its class into the field, from before ours as from behind it.
#[test]
fn a_foreign_filter_that_accepts_overwrites_the_stamp() {
    let road = Road::new(TestbedOptions::shaped(Shape::Routed), Masquerade::FromOutsidePods);
    let node = road.bed.node(0).namespace();
    let to = road.directly(&road.near)[0];
    let stamps =
        || -> Vec<u32> { road.send(to, PAYLOAD, road.near.veth(), 1).into_iter().map(|seen| seen.tc_index).collect() };
    assert!(stamps().iter().all(|stamp| *stamp == u32::from(STAMP)), "without it");
    road.witness.attach(Program::Foreign, node, road.client.veth(), "ingress", 7);
    assert!(stamps().iter().all(|stamp| *stamp == u32::from(CLASS)), "behind ours it forges the stamp");
    node.tool("tc", &["filter", "del", "dev", road.client.veth(), "ingress", "prio", "1"]).unwrap();
    road.witness.attach(Program::Stamping, node, road.client.veth(), "ingress", 9);
    assert!(stamps().iter().all(|stamp| *stamp == u32::from(CLASS)), "before ours it hides the packet from it");
}
