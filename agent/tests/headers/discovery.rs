//! ARP, neighbour discovery, MLD, DHCP, and frames that are no IP.

use std::net::{IpAddr, Ipv6Addr};

use portcullis_common::layout::{endpoint_flag, mac_word};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::{IPV4, Ip, ethernet, frame, packet, udp};
use crate::world::{A, B, C, Hook, NODE, OUTSIDE, World, address, between};

fn arp(hardware: u16, operation: u16, sender: IpAddr) -> Vec<u8> {
    let IpAddr::V4(sender) = sender else { panic!("ARP is for IPv4") };
    let head = [&hardware.to_be_bytes()[..], &[8, 0, 6, 4], &operation.to_be_bytes(), &[2, 0, 0, 0, 0, 1]].concat();
    ethernet(0x0806, &[&head[..], &sender.octets(), &[0; 6], &[10, 1, 0, 9]].concat())
}

fn nd(kind: u8, hop_limit: u8, from: IpAddr, to: Ipv6Addr, rest: &[u8]) -> Vec<u8> {
    let ip = Ip { hop_limit, ..Ip::new(from, to.into()) };
    frame(ip, 58, &[&[kind, 0, 0, 0, 0x60, 0, 0, 0][..], rest].concat())
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => panic!("{v4}"),
    }
}

#[test]
fn a_pod_speaks_for_itself_only() {
    let mut world = World::new();
    let own4 = address(C, true);
    let (own, other) = (address(C, false), address(B, false));
    let (link_local, none): (IpAddr, IpAddr) = ("fe80::1".parse().unwrap(), "::".parse().unwrap());
    let node = address(NODE, false);
    let group: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
    let zero: IpAddr = [0, 0, 0, 0].into();
    let claims = |target: IpAddr, from: IpAddr| nd(136, 255, from, group, &octets(target));
    let asks = |from: IpAddr| nd(135, 255, from, group, &octets(other));
    let bad = Err(Drop::DISCOVERY);
    let rows: [(&str, Vec<u8>, Result<(), Drop>); 33] = [
        ("an ARP question", arp(1, 1, own4), Ok(())),
        ("an ARP answer", arp(1, 2, own4), Ok(())),
        ("an ARP probe", arp(1, 1, zero), Ok(())),
        ("an ARP answer of nobody", arp(1, 2, zero), bad),
        ("an ARP question in another's name", arp(1, 1, address(B, true)), bad),
        ("an ARP answer in another's name", arp(1, 2, address(B, true)), bad),
        ("the same as of IEEE 802 hardware", arp(6, 2, address(B, true)), bad),
        ("the same as of other hardware", arp(15, 2, address(B, true)), bad),
        ("ARP in the node's name", arp(1, 2, address(NODE, true)), bad),
        ("ARP cut off", arp(1, 2, own4)[..30].into(), bad),
        ("an NS", asks(own), Ok(())),
        ("an NS of duplicate address detection", asks(none), Ok(())),
        ("an NS from a link-local address", asks(link_local), Ok(())),
        ("an NS in another's name", asks(other), bad),
        ("an NS in the node's name", asks(node), bad),
        ("an NA for itself", claims(own, own), Ok(())),
        ("an NA for its link-local address", claims(link_local, link_local), Ok(())),
        ("an NA for itself from its link-local address", claims(own, link_local), Ok(())),
        ("an NA for another", claims(other, own), bad),
        ("an NA for itself in another's name", claims(own, other), bad),
        ("an NA for the node", claims(node, own), bad),
        ("an NA from nobody", claims(own, none), bad),
        ("an NA for nobody, in another's name", claims(none, other), bad),
        ("a router solicitation", nd(133, 255, link_local, "ff02::2".parse().unwrap(), &[]), Ok(())),
        ("a router advertisement", nd(134, 255, link_local, group, &[0; 8]), Err(Drop::ROUTER)),
        ("the same with a lowered hop limit", nd(134, 64, link_local, group, &[0; 8]), Err(Drop::ROUTER)),
        ("an MLD report", nd(143, 1, link_local, "ff02::16".parse().unwrap(), &[0; 24]), Ok(())),
        ("an MLD report before it has an address", nd(143, 1, none, "ff02::16".parse().unwrap(), &[0; 24]), Ok(())),
        ("an MLD report in another's name", nd(143, 1, other, "ff02::16".parse().unwrap(), &[0; 24]), bad),
        // A pod has its address from the CNI. DHCP comes from no address of the pod's.
        ("DHCP", frame(Ip::new(zero, [255; 4].into()), 17, &udp(68, 67)), Err(Drop::SOURCE)),
        ("DHCPv6", frame(Ip::new(link_local, "ff02::1:2".parse().unwrap()), 17, &udp(546, 547)), Err(Drop::SOURCE)),
        ("IP in another's name", frame(between(B, OUTSIDE, true), 17, &udp(1, 2)), Err(Drop::SOURCE)),
        ("IP in another's name that is cut off", frame(between(B, OUTSIDE, true), 17, &[0; 4]), Err(Drop::SOURCE)),
    ];
    for (message, frame, expected) in &rows {
        let outcome = world.at(Hook::FromPod(C), Stamp::NONE, frame).map(drop);
        assert_eq!(&outcome, expected, "{message}");
    }
    world.change(C, |row| row.flags = endpoint_flag::ANY_ADDRESS);
    for (message, frame, expected) in &rows {
        let outcome = world.at(Hook::FromPod(C), Stamp::NONE, frame).map(drop);
        let wanted = if *expected == Err(Drop::ROUTER) { *expected } else { Ok(()) };
        assert_eq!(outcome, wanted, "{message}, without source validation");
    }
}

#[test]
fn what_is_no_ip_is_for_pods_that_nothing_restricts() {
    let inner = |from: u32| packet(between(from, OUTSIDE, true), 17, &udp(40_000, 80));
    let kinds = |from: u32| {
        let inner = inner(from);
        [
            ("VLAN", ethernet(0x8100, &[&[0, 5, 8, 0][..], &inner].concat())),
            ("QinQ", ethernet(0x88a8, &[&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &inner].concat())),
            ("MPLS", ethernet(0x8847, &[&[0, 0, 0x11, 64][..], &inner].concat())),
            ("LLC", ethernet(40, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &inner].concat())),
            ("PPPoE", ethernet(0x8864, &[&[0x11, 0, 0, 1, 0, 60, 0, 0x21][..], &inner].concat())),
            ("an Ethertype for experiments", ethernet(0x88b5, &inner)),
        ]
    };
    for (message, frame) in kinds(A) {
        let mut world = World::new();
        assert_eq!(world.at(Hook::FromPod(A), Stamp::NONE, &frame), Err(Drop::ETHERTYPE), "{message} of A");
        assert_eq!(world.at(Hook::ToPod(B), Stamp::OUTSIDE, &frame), Err(Drop::ETHERTYPE), "{message} to B");
    }
    for (message, frame) in kinds(C) {
        assert!(World::new().at(Hook::FromPod(C), Stamp::NONE, &frame).is_ok(), "{message} of C");
    }
    let contradicts = ethernet(0x86dd, &inner(A));
    assert_eq!(World::new().at(Hook::FromPod(A), Stamp::NONE, &contradicts), Err(Drop::MALFORMED), "IPv4 as IPv6");
    // The kernel takes tag 0 for no tag: it would hide a forged source.
    for pod in [A, C] {
        let forged = ethernet(IPV4, &inner(B));
        assert_eq!(
            World::new().tagged(Hook::FromPod(pod), &forged),
            Err(Drop::ETHERTYPE),
            "a tag in metadata of {pod}"
        );
    }
    assert_eq!(World::new().tagged(Hook::ToPod(B), &ethernet(IPV4, &inner(OUTSIDE))), Err(Drop::ETHERTYPE), "to B");
}

#[test]
fn a_pinned_pod_speaks_from_its_first_ethernet_address_only() {
    let (mine, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let own = address(C, true);
    // The address in the frame, and the one that ARP tells.
    let framed = |mut frame: Vec<u8>, mac: [u8; 6]| {
        frame[6..12].copy_from_slice(&mac);
        frame
    };
    let told = |mut frame: Vec<u8>, mac: [u8; 6]| {
        frame[22..28].copy_from_slice(&mac);
        frame
    };
    let udp = || frame(between(C, OUTSIDE, true), 17, &udp(40_000, 80));
    let asks = nd(135, 255, address(C, false), "ff02::1:ff00:1".parse().unwrap(), &octets(address(B, false)));
    let wrong = Err(Drop::SOURCE_MAC);
    let rows = [
        ("IP", framed(udp(), mine), Ok(())),
        ("IP from another", framed(udp(), other), wrong),
        ("ARP", framed(told(arp(1, 2, own), mine), mine), Ok(())),
        ("ARP from another", framed(told(arp(1, 2, own), mine), other), wrong),
        ("ARP for another", framed(told(arp(1, 2, own), other), mine), wrong),
        ("an ARP probe for another", framed(told(arp(1, 1, [0, 0, 0, 0].into()), other), mine), wrong),
        ("discovery", framed(asks.clone(), mine), Ok(())),
        ("discovery from another", framed(asks, other), wrong),
        ("a frame of another kind from another", framed(ethernet(0x88b5, &[0; 50]), other), wrong),
    ];
    let mac = mac_word([[2, 0], [0, 0], [0, 1]].map(u16::from_ne_bytes));
    for (message, frame, expected) in rows {
        let mut world = World::new();
        world.change(C, |row| (row.mac, row.flags) = (mac, endpoint_flag::PINNED));
        assert_eq!(world.at(Hook::FromPod(C), Stamp::NONE, &frame).map(drop), expected, "{message}");
        world.change(C, |row| row.mac = mac);
        assert_eq!(world.at(Hook::FromPod(C), Stamp::NONE, &frame).map(drop), Ok(()), "{message}, not pinned");
    }
}
