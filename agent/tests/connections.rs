//! Connections as the decision follows them, on tables of two rules.

#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy.toml allows it only inside the tests")]

use std::net::{IpAddr, Ipv4Addr};

use portcullis::flows::{Connection, Inherited, Local, Progress, Reader, Surroundings, Tuple};
use portcullis::state::image::Sizes;
use portcullis::state::memory::MemoryTables;
use portcullis_common::decide::{self, Packet};
use portcullis_common::flow::{FlowEntry, FlowKey, Lifetime, state};
use portcullis_common::layout::{
    EndpointRow, Size, VALID, VerdictWord, endpoint_flag, endpoint_word, interface_kind, narrow, narrow_key, node_flag,
    peer, reach, rule, wide, wide_key,
};
use portcullis_common::packet::{Drop, tcp};
use portcullis_common::seed::{self, Seed};
use portcullis_common::tables::Event;
use portcullis_common::{Address, Stamp};

#[path = "connections/kept.rs"]
mod kept;
#[path = "connections/own_node.rs"]
mod own_node;

const ACK: u8 = tcp::ACK;
const SYN: u8 = tcp::SYN;
const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const RST: u8 = tcp::RST;
const FIN: u8 = tcp::FIN | tcp::ACK;

/// The endpoint that is judged, a peer elsewhere, another local endpoint, a Service and the node.
const POD: [u8; 4] = [10, 1, 0, 1];
const PEER: [u8; 4] = [192, 0, 2, 7];
const BACKEND: [u8; 4] = [10, 1, 0, 2];
const SERVICE: [u8; 4] = [10, 96, 0, 1];
const NODE: [u8; 4] = [10, 0, 0, 1];
/// The device of slot 0; slot 1's follows.
const DEVICE: u32 = 100;
const UPLINK: u32 = 2;

/// Sets of one verdict for everything, and the rules that give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Free = 0,
    Allow = 1,
    Deny = 2,
}
const ALLOWS: u32 = 20;
const DENIES: u32 = 21;

struct World {
    tables: MemoryTables,
    revision: u32,
}

impl World {
    fn new(ingress: Set, egress: Set) -> Self {
        let tables = MemoryTables::new(Sizes { share_bits: 3, ..Sizes::small() });
        let mut world = Self { tables, revision: 0 };
        for (set, allow, rule) in [(1, true, ALLOWS), (2, false, DENIES)] {
            world.narrow(narrow_key(narrow::SET_DEFAULT, set, 0), VALID | u64::from(set));
            world.narrow(narrow_key(narrow::PROFILE_DEFAULT, set, 0), VerdictWord::new(allow, rule).0);
        }
        let row = |address: [u8; 4], value: u64| ([words(address), [0; 2]], value);
        for ([address, _], value) in [row(SERVICE, peer::TRANSLATABLE), row(NODE, peer::TRANSLATABLE | peer::OWN_NODE)]
        {
            let key = [address[0], address[1], wide_key(wide::PEER, 0, 0, 0)];
            world.tables.image.put_wide(&key, peer::VALID | value).unwrap();
        }
        let [first, second] = words(SERVICE);
        world.tables.image.put_wide(&[first, second, wide_key(wide::SERVICE, 0, 6, 80)], peer::VALID | 1).unwrap();
        world.reach(reach::PART);
        for slot in 0..2 {
            world.tables.image.put_interface(DEVICE + slot, interface_kind::ENDPOINT, slot).unwrap();
        }
        world.tables.image.set_flags(node_flag::CONFIRM);
        world.policy(ingress, egress);
        world
    }

    fn narrow(&mut self, key: u64, value: u64) {
        self.tables.image.put_narrow(key, value).unwrap();
    }

    /// What both sets reach of the Service.
    fn reach(&mut self, word: u64) {
        for set in [1, 2] {
            self.narrow(narrow_key(narrow::REACH_DEFAULT, set, 0), word);
        }
    }

    /// Slot 0 comes under these sets, by a new revision; slot 1 is under none.
    fn policy(&mut self, ingress: Set, egress: Set) {
        self.revision += 1;
        let content = EndpointRow {
            v4: Address::v4(u32::from_ne_bytes(POD)),
            ingress: ingress as u32,
            egress: egress as u32,
            incarnation: 1,
            ..EndpointRow::default()
        };
        let row = 2 + self.revision;
        self.tables.image.put_row(row, &content);
        self.tables.image.put_endpoint(0, endpoint_word(self.revision, row));
        let other =
            EndpointRow { v4: Address::v4(u32::from_ne_bytes(BACKEND)), incarnation: 2, ..EndpointRow::default() };
        self.tables.image.put_row(1, &other);
        self.tables.image.put_endpoint(1, endpoint_word(1, 1));
    }

    fn judge(&self, hook: Hook, device: u32, from: Side, to: Side, flags: u8, stamp: Stamp) -> Result<Stamp, Drop> {
        let last_device = if stamp == Stamp::NONE { 0 } else { UPLINK };
        let (ifindex, ingress_ifindex) = (device, last_device);
        let size = Size::one(54);
        let mut packet = Packet { ifindex, ingress_ifindex, size, link: 14, vlan: false, stamp };
        let frame = frame(from, to, flags);
        let frame = frame.as_slice();
        let outcome = match hook {
            Hook::FromPod => decide::from_pod(&self.tables, &mut packet, &frame),
            Hook::ToPod => decide::to_pod(&self.tables, &mut packet, &frame),
            Hook::FromUplink => decide::from_uplink(&self.tables, &mut packet, &frame),
            Hook::ToUplink => decide::to_uplink(&self.tables, &mut packet, &frame),
        };
        outcome.map(|()| packet.stamp)
    }

    /// The pod sends.
    fn leave(&self, to: Side, flags: u8) -> Result<Stamp, Drop> {
        self.judge(Hook::FromPod, DEVICE, (POD, 4000), to, flags, Stamp::NONE)
    }

    /// Somebody outside sends to the pod.
    fn arrive(&self, from: Side, flags: u8) -> Result<Stamp, Drop> {
        self.judge(Hook::ToPod, DEVICE, from, (POD, 4000), flags, Stamp::OUTSIDE)
    }

    fn noted(&mut self, event: Event) -> u64 {
        self.tables.drops(Drop(event as u32))
    }

    /// Enters what the kernel's connection table says.
    fn seed(&self, connections: &[Connection]) -> usize {
        self.seed_as(connections, false)
    }

    /// The same, for the first time or later.
    fn seed_as(&self, connections: &[Connection], first: bool) -> usize {
        let local = |slot, address, incarnation| Local {
            slot,
            generation: 0,
            incarnation,
            addresses: vec![IpAddr::V4(Ipv4Addr::from(address))],
        };
        let flags = |address: IpAddr| match address {
            IpAddr::V4(address) if address.octets() == SERVICE => peer::TRANSLATABLE,
            IpAddr::V4(address) if address.octets() == NODE => peer::TRANSLATABLE | peer::OWN_NODE,
            _ => 0,
        };
        let endpoints = [local(0, POD, 1), local(1, BACKEND, 2)];
        let lifetimes = [1_000_000; 16];
        let around = Surroundings { endpoints: &endpoints, flags: &flags, lifetimes, jiffies: 1000, first };
        let inherited = Inherited::default();
        let mut reader = Reader::new(around, inherited.reading(&[]));
        let seeds = connections.iter().flat_map(|connection| reader.seeds(connection));
        seeds.map(|mut place| usize::from(seed::plant(&self.tables, &mut place))).sum()
    }
}

#[derive(Clone, Copy)]
enum Hook {
    FromPod,
    ToPod,
    FromUplink,
    ToUplink,
}

type Side = ([u8; 4], u16);

fn words(address: [u8; 4]) -> [u64; 2] {
    Address::v4(u32::from_ne_bytes(address)).words
}

/// TCP over IPv4.
fn frame(from: Side, to: Side, flags: u8) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[12] = 8;
    frame[14] = 0x45;
    frame[17] = 40;
    frame[23] = 6;
    frame[26..30].copy_from_slice(&from.0);
    frame[30..34].copy_from_slice(&to.0);
    frame[34..36].copy_from_slice(&from.1.to_be_bytes());
    frame[36..38].copy_from_slice(&to.1.to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, flags]);
    frame
}

fn tuple(from: Side, to: Side) -> Tuple {
    let address = |side: Side| IpAddr::V4(Ipv4Addr::from(side.0));
    Tuple { source: address(from), destination: address(to), source_port: from.1, destination_port: to.1 }
}

/// An established connection without translation.
fn direct(opener: Side, other: Side) -> Connection {
    Connection {
        protocol: 6,
        original: tuple(opener, other),
        reply: tuple(other, opener),
        progress: Progress::Established,
        remaining: 432_000,
        id: 0,
    }
}

const POLICY: Result<bool, Drop> = Err(Drop::POLICY);

#[test]
fn packets_in_the_middle_of_unknown_connections_open_only_what_their_sender_may() {
    const PASSES: Result<bool, Drop> = Ok(true);
    const PASSES_ALONE: Result<bool, Drop> = Ok(false);
    // What, ingress, egress, whether the pod sends, the flags, and what becomes of it: whether the other direction, which
    // is denied by itself, goes on after it.
    let rows = [
        ("the pod's ACK, free", Set::Deny, Set::Free, true, ACK, PASSES),
        ("the pod's ACK, allowed", Set::Deny, Set::Allow, true, ACK, PASSES),
        ("the pod's ACK, denied", Set::Deny, Set::Deny, true, ACK, POLICY),
        ("the pod's FIN, allowed", Set::Deny, Set::Allow, true, FIN, PASSES),
        ("the pod's packet without flags, allowed", Set::Deny, Set::Allow, true, 0, PASSES),
        ("the pod's SYN-ACK, allowed", Set::Deny, Set::Allow, true, SYN_ACK, PASSES_ALONE),
        ("the pod's RST, allowed", Set::Deny, Set::Allow, true, RST, PASSES_ALONE),
        ("the pod's RST with ACK, allowed", Set::Deny, Set::Allow, true, RST | ACK, PASSES_ALONE),
        ("the pod's SYN-ACK, denied", Set::Allow, Set::Deny, true, SYN_ACK, POLICY),
        ("a peer's ACK, denied: a scan", Set::Deny, Set::Free, false, ACK, POLICY),
        ("a peer's FIN, denied: a scan", Set::Deny, Set::Free, false, FIN, POLICY),
        ("a peer's packet without flags, denied: a scan", Set::Deny, Set::Free, false, 0, POLICY),
        ("a peer's SYN-ACK, denied: a scan", Set::Deny, Set::Free, false, SYN_ACK, POLICY),
        ("a peer's RST, denied: a scan", Set::Deny, Set::Free, false, RST, POLICY),
        ("a peer's ACK, allowed", Set::Allow, Set::Deny, false, ACK, PASSES),
        ("a peer's SYN-ACK, allowed", Set::Allow, Set::Deny, false, SYN_ACK, PASSES_ALONE),
        ("a peer's RST, allowed", Set::Allow, Set::Deny, false, RST, PASSES_ALONE),
    ];
    for (what, ingress, egress, outgoing, flags, expected) in rows {
        let mut world = World::new(ingress, egress);
        let first = if outgoing { world.leave((PEER, 80), flags) } else { world.arrive((PEER, 80), flags) };
        let after = || if outgoing { world.arrive((PEER, 80), ACK) } else { world.leave((PEER, 80), ACK) };
        let found = first.map(|_| after().is_ok());
        assert_eq!(found, expected, "{what}");
        let (taken, refused) = (world.noted(Event::TakenUp), world.noted(Event::NotTakenUp));
        assert_eq!((taken > 0, refused > 0), (expected == PASSES, expected != PASSES), "{what}: the agent is told");
    }
}

#[test]
fn who_has_opened_a_connection_is_what_the_kernel_says() {
    let (pod, other) = ((POD, 4000), (PEER, 80));
    // What, ingress, egress, the kernel's word, and whether packets of the pod and of its peer pass then.
    let rows = [
        ("a denied peer's is not the pod's own", Set::Deny, Set::Free, direct(other, pod), false),
        ("an allowed peer's is answered", Set::Allow, Set::Deny, direct(other, pod), true),
        ("the pod's own, allowed, is answered", Set::Deny, Set::Allow, direct(pod, other), true),
        ("the pod's own, denied, does not go on", Set::Allow, Set::Deny, direct(pod, other), false),
    ];
    for (what, ingress, egress, connection, passes) in rows {
        for (order, assumed) in
            [("at once", None), ("after the pod's packet", Some(true)), ("after its peer's", Some(false))]
        {
            let world = World::new(ingress, egress);
            // Taken up, if the sender might have opened it.
            let _ = assumed.map(|outgoing| if outgoing { world.leave(other, ACK) } else { world.arrive(other, ACK) });
            assert_eq!(world.seed(&[connection]), 1, "{what}, {order}");
            for turn in 0..3 {
                assert_eq!(world.leave(other, ACK).is_ok(), passes, "{what}, {order}: the pod's, {turn}");
                assert_eq!(world.arrive(other, ACK).is_ok(), passes, "{what}, {order}: its peer's, {turn}");
            }
        }
    }
}

#[test]
fn what_packets_have_shown_is_not_replaced() {
    let (pod, other) = ((POD, 4000), (PEER, 80));
    let world = World::new(Set::Deny, Set::Allow);
    world.leave(other, SYN).unwrap();
    assert_eq!(world.seed(&[direct(other, pod)]), 0, "its beginning was seen");
    assert!(world.arrive(other, SYN_ACK).is_ok() && world.leave(other, ACK).is_ok(), "it goes on");
    for progress in [Progress::New, Progress::Over] {
        let world = World::new(Set::Allow, Set::Deny);
        let connection = Connection { progress, ..direct(other, pod) };
        assert_eq!(world.seed(&[connection]), 0, "{progress:?}: what begins with its next packet is not entered");
    }
    // Those that the kernel forgets soon are not remembered longer here.
    let mut world = World::new(Set::Allow, Set::Deny);
    world.seed(&[Connection { remaining: 10, ..direct(other, pod) }]);
    world.tables.now += 9_900;
    assert!(world.leave(other, ACK).is_ok(), "still known");
    let mut world = World::new(Set::Allow, Set::Deny);
    world.seed(&[Connection { remaining: 10, ..direct(other, pod) }]);
    world.tables.now += 10_100;
    assert_eq!(world.leave(other, ACK), Err(Drop::POLICY), "forgotten as the kernel has");
}

#[test]
fn datagrams_that_nobody_has_answered_are_flows_only_before_anything_was_judged_and_take_no_flows_place() {
    let unanswered =
        |opener, other| Connection { protocol: 17, progress: Progress::New, remaining: 30, ..direct(opener, other) };
    let (pod, other) = ((POD, 4000), (PEER, 80));
    for opener in [pod, other] {
        let connection = unanswered(opener, if opener == pod { other } else { pod });
        assert_eq!(World::new(Set::Allow, Set::Allow).seed_as(&[connection], true), 1, "{opener:?}: the first time");
        assert_eq!(World::new(Set::Allow, Set::Allow).seed_as(&[connection], false), 0, "{opener:?}: later");
    }
    // A share full of what the pod has sent and nobody has answered: all of it lives.
    let mut world = World::new(Set::Deny, Set::Allow);
    for port in 1000..9000 {
        world.leave((PEER, port), SYN).unwrap();
    }
    world.noted(Event::FlowEvicted);
    let flood: Vec<Connection> = (10_000..12_000).map(|port| unanswered((PEER, port), pod)).collect();
    assert_eq!(world.seed_as(&flood, true), 0, "no place was free");
    let answered: Vec<Connection> =
        flood.iter().map(|connection| Connection { progress: Progress::Answered, ..*connection }).collect();
    assert!(world.seed_as(&answered, true) > 0, "what was answered takes the place of what was not");

    // What the pod was taken to have opened stays so, though a stranger's datagram came before.
    let world = World::new(Set::Deny, Set::Allow);
    world.leave(other, ACK).unwrap();
    let assumed = Connection { protocol: 6, progress: Progress::New, ..direct(other, pod) };
    assert_eq!(world.seed_as(&[assumed], true), 0, "TCP is never entered unanswered");
    let ports = 4000 | 80 << 16 | 6 << 32;
    let key = FlowKey { peer: Address { words: words(PEER) }, local: Address { words: words(POD) }, ports };
    let mut entry = FlowEntry { key, incarnation: 1, state: state::INGRESS, ..FlowEntry::default() };
    assert!(!seed::plant(&world.tables, &mut Seed { entry, owner: 0, reserved: 0 }), "unanswered");
    entry.state |= state::ANSWERED;
    assert!(seed::plant(&world.tables, &mut Seed { entry, owner: 0, reserved: 0 }), "answered");
}

#[test]
fn a_process_of_this_node_that_names_its_loopback_is_the_nodes_own() {
    for (what, opener, passes) in [("by the node's loopback", [127, 0, 0, 1], true), ("from elsewhere", PEER, false)] {
        let world = World::new(Set::Deny, Set::Deny);
        let connection = Connection {
            original: tuple((opener, 5000), (opener, 30_080)),
            reply: tuple((POD, 4000), (NODE, 5000)),
            ..direct((opener, 5000), (POD, 4000))
        };
        assert_eq!(world.seed(&[connection]), 1, "{what}");
        assert_eq!(world.leave((NODE, 5000), ACK).is_ok(), passes, "{what}: the pod's answer by NodePort");
    }
}

/// The pod's connection to the Service, which the host has led to the backend.
fn translated(masqueraded: [u8; 4]) -> Connection {
    Connection {
        original: tuple((POD, 4000), (SERVICE, 80)),
        reply: tuple((BACKEND, 8080), (masqueraded, 4000)),
        ..direct((POD, 4000), (SERVICE, 80))
    }
}

#[test]
fn connections_to_services_are_confirmed_by_what_the_kernel_says() {
    for (what, source) in [("as it was sent", POD), ("masqueraded", NODE)] {
        for (egress, passes) in [(Set::Allow, true), (Set::Deny, false)] {
            let world = World::new(Set::Deny, egress);
            assert_eq!(
                world.seed(&[translated(source)]),
                3,
                "the client's flow, the exit's word and the backend's flow"
            );
            // The backend answers: its own hook, then the client's, with the address translated back.
            let answer =
                world.judge(Hook::FromPod, DEVICE + 1, (BACKEND, 8080), (source, 4000), ACK, Stamp::NONE).unwrap();
            assert_eq!(answer.is_reply(), passes, "{what}, {egress:?}");
            let arrived = world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), ACK, answer);
            let expected = if passes { Ok(Stamp::NONE) } else { Err(Drop::UNCONFIRMED) };
            assert_eq!(arrived, expected, "{what}, {egress:?}");
        }
    }
    // Of a local client the backend's policy is asked by its own address, though the packet carries the node's.
    let world = World::new(Set::Deny, Set::Allow);
    world.seed(&[translated(NODE)]);
    let answer = world.judge(Hook::FromPod, DEVICE + 1, (BACKEND, 8080), (NODE, 4000), ACK, Stamp::NONE);
    assert!(answer.is_ok(), "{answer:?}");
}

#[test]
fn each_packet_to_a_service_counts_once_for_the_rule_that_allowed_its_backend() {
    // What the set reaches of the Service, and where the answer is counted.
    for (what, reached) in [("one rule for all backends", reach::all(ALLOWS)), ("several", reach::PART)] {
        let mut world = World::new(Set::Deny, Set::Allow);
        world.reach(reached);
        let mut expected = 0;
        for flags in [SYN, ACK, ACK, FIN] {
            let stamp = world.leave((SERVICE, 80), flags).unwrap();
            assert!(stamp.is_deferred(), "{what}");
            world.judge(Hook::ToUplink, UPLINK, (POD, 4000), (PEER, 8080), flags, stamp).unwrap();
            expected += 1;
            assert_eq!(world.tables.counter(ALLOWS).packets, expected, "{what}: the pod's packet");
            let stamp =
                world.judge(Hook::FromUplink, UPLINK, (PEER, 8080), (POD, 4000), flags | ACK, Stamp::NONE).unwrap();
            assert!(stamp.is_reply(), "{what}");
            world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), flags | ACK, stamp).unwrap();
            expected += 1;
            assert_eq!(world.tables.counter(ALLOWS).packets, expected, "{what}: the answer");
        }
        assert_eq!(world.tables.counter(ALLOWS).bytes, expected * 54, "{what}");
    }
    // A process of this node answers: no exit sees the pod's packets, which count from the first answer on.
    let mut world = World::new(Set::Deny, Set::Allow);
    world.reach(reach::all(ALLOWS));
    world.leave((SERVICE, 80), SYN).unwrap();
    world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), SYN_ACK, Stamp::NONE).unwrap();
    world.leave((SERVICE, 80), ACK).unwrap();
    world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), ACK, Stamp::NONE).unwrap();
    assert_eq!(world.tables.counter(ALLOWS).packets, 3, "all but the SYN");
    // So they do after a change of policy.
    world.policy(Set::Deny, Set::Allow);
    world.leave((SERVICE, 80), ACK).unwrap();
    world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), ACK, Stamp::NONE).unwrap();
    world.leave((SERVICE, 80), ACK).unwrap();
    assert_eq!(world.tables.counter(ALLOWS).packets, 5, "all but the first");
    // What is deferred in another's name confirms nothing.
    let forged = Stamp::deferred(1, 0).with_reply();
    assert!(!forged.is_reply() && forged.confirms(), "{forged:?}");
}

/// The pod's packet to the Service, which the host leads to the peer; and the peer's answer.
fn asks(world: &World, flags: u8) -> Result<Stamp, Drop> {
    let stamp = world.leave((SERVICE, 80), flags)?;
    world.judge(Hook::ToUplink, UPLINK, (POD, 4000), (PEER, 8080), flags, stamp)
}

fn answers(world: &World, flags: u8) -> Result<Stamp, Drop> {
    let stamp = world.judge(Hook::FromUplink, UPLINK, (PEER, 8080), (POD, 4000), flags, Stamp::NONE)?;
    world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), flags, stamp)
}

#[test]
fn a_backend_that_has_left_its_service_answers_only_while_it_is_allowed() {
    const UNCONFIRMED: Result<Stamp, Drop> = Err(Drop::UNCONFIRMED);
    // The flow's beginning, and whether its own packet comes first after the change.
    type Begin = fn(&World);
    let seen: Begin = |world| {
        asks(world, SYN).unwrap();
        answers(world, SYN_ACK).unwrap();
        asks(world, ACK).unwrap();
    };
    let told: Begin = |world| {
        let reply = tuple((PEER, 8080), (POD, 4000));
        assert_eq!(world.seed(&[Connection { reply, ..translated(POD) }]), 2, "the client's flow and the exit's word");
    };
    let unknown: Begin = |_| {};
    let rows: [(&str, Begin, bool); 5] = [
        ("seen, its answer first", seen, false),
        ("seen, its own packet first", seen, true),
        ("told by the kernel, its answer first", told, false),
        ("told by the kernel, its own packet first", told, true),
        ("met in its middle", unknown, true),
    ];
    for (what, begin, own_first) in rows {
        for (egress, allowed) in [(Set::Allow, true), (Set::Deny, false)] {
            let mut world = World::new(Set::Deny, Set::Allow);
            world.reach(reach::all(ALLOWS));
            begin(&world);
            // One rule allows all backends that remain; the flow's own is another.
            world.policy(Set::Deny, egress);
            for turn in 0..3 {
                for outgoing in [own_first, !own_first] {
                    let before = world.tables.counter(ALLOWS).packets;
                    let outcome = if outgoing { asks(&world, ACK) } else { answers(&world, ACK) };
                    let counted = world.tables.counter(ALLOWS).packets - before;
                    let denied = if outgoing { Err(Drop::POLICY) } else { UNCONFIRMED };
                    let right = if allowed { outcome.is_ok() } else { outcome == denied };
                    assert!(right, "{what}, {egress:?}, turn {turn}, the pod's {outgoing}: {outcome:?}");
                    assert_eq!(counted, u64::from(allowed), "{what}, {egress:?}, turn {turn}, the pod's {outgoing}");
                }
            }
        }
    }
}

#[test]
fn a_flood_of_openings_leaves_established_connections_known() {
    let mut world = World::new(Set::Allow, Set::Deny);
    // The peer has opened it, so nothing but the entry lets the pod answer.
    let other = (PEER, 80);
    world.arrive(other, SYN).unwrap();
    world.leave(other, SYN_ACK).unwrap();
    world.arrive(other, ACK).unwrap();
    for port in 1000..20_000 {
        world.tables.now += 1;
        world.arrive((PEER, port), SYN).unwrap();
        // Answered, as a server without cookies does; the flood's sender never acknowledges.
        world.leave((PEER, port), SYN_ACK).unwrap();
    }
    assert!(world.noted(Event::FlowEvicted) > 10_000, "the share was full");
    assert_eq!(world.noted(Event::EstablishedEvicted), 0, "none that lived has gone");
    assert!(world.leave(other, ACK).is_ok(), "it is still known");
}

#[test]
fn a_tuple_used_again_starts_clean() {
    let other = (PEER, 80);
    let mut world = World::new(Set::Allow, Set::Deny);
    world.tables.image.set_lifetimes(&lifetimes());
    // Opened by the peer, lived and ended; then the same tuple again.
    for (side, flags) in [(0, SYN), (1, SYN_ACK), (0, ACK), (0, FIN), (1, FIN), (0, SYN), (1, SYN_ACK), (0, ACK)] {
        let outcome = if side == 0 { world.arrive(other, flags) } else { world.leave(other, flags) };
        assert!(outcome.is_ok(), "{flags}");
    }
    world.tables.now += 10_000;
    assert!(world.leave(other, ACK).is_ok(), "an established one, not one that is closing");
    // Denied from now on: a SYN of a known tuple is judged like any.
    world.policy(Set::Deny, Set::Deny);
    assert_eq!(world.arrive(other, SYN), Err(Drop::POLICY), "a SYN rides on nothing");
    let world = World::new(Set::Deny, Set::Allow);
    world.leave(other, SYN).unwrap();
    assert_eq!(world.arrive(other, SYN), Err(Drop::POLICY), "nor on what the pod has opened");
}

/// Each lifetime another length, established the longest.
fn lifetimes() -> [u32; 16] {
    let mut lifetimes = [0; 16];
    for (lifetime, _, seconds) in Lifetime::ALL {
        lifetimes[lifetime as usize] = seconds;
    }
    lifetimes
}

#[test]
fn forged_flags_do_not_end_a_connection_for_good() {
    let other = (PEER, 80);
    let established = || {
        let mut world = World::new(Set::Allow, Set::Deny);
        world.tables.image.set_lifetimes(&lifetimes());
        for (side, flags) in [(0, SYN), (1, SYN_ACK), (0, ACK)] {
            let outcome = if side == 0 { world.arrive(other, flags) } else { world.leave(other, flags) };
            outcome.unwrap();
        }
        world.tables.now += 1;
        world
    };
    // What is sent, by whom (0: the peer), and whether the connection is known after 1,000 seconds of silence.
    type Sent<'a> = &'a [(u8, u8)];
    let rows: [(&str, Sent<'_>, bool); 8] = [
        ("nothing", &[], true),
        ("a RST", &[(0, RST)], false),
        ("a forged RST, and its pretended sender goes on", &[(0, RST), (0, ACK)], true),
        ("a RST that the other side had not heard of yet", &[(0, RST), (1, ACK)], false),
        ("a forged SYN, which the pod answers with an ACK", &[(0, SYN), (1, ACK)], true),
        ("a new connection of the same tuple, not yet acknowledged", &[(0, SYN), (1, SYN_ACK)], false),
        ("one FIN", &[(0, FIN), (1, ACK)], false),
        ("both", &[(0, FIN), (1, FIN), (0, ACK)], false),
    ];
    for (what, packets, known) in rows {
        let mut world = established();
        for (side, flags) in packets {
            let outcome = if *side == 0 { world.arrive(other, *flags) } else { world.leave(other, *flags) };
            outcome.unwrap();
        }
        world.tables.now += 1000;
        assert_eq!(world.leave(other, ACK).is_ok(), known, "{what}");
    }
}

#[test]
fn a_masqueraded_client_that_is_denied_is_told_from_others() {
    let world = World::new(Set::Deny, Set::Free);
    let rows = [
        ("an outside client in the node's name", NODE, Stamp::OUTSIDE, Err(Drop::MASQUERADED)),
        ("an outside client", PEER, Stamp::OUTSIDE, Err(Drop::POLICY)),
        ("the node itself", NODE, Stamp::NONE, Ok(())),
        ("another pod that was masqueraded", NODE, Stamp::judged(1, 0), Err(Drop::POLICY)),
    ];
    for (what, from, stamp, expected) in rows {
        let outcome = world.judge(Hook::ToPod, DEVICE, (from, 5000), (POD, 4000), SYN, stamp);
        assert_eq!(outcome.map(drop), expected, "{what}");
    }
}
