//! The pure part: messages to values, notifications and dumps to state. The kernel's part is tested live.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::bell::messages;
use super::parse;
use super::table::{Stale, Table};
use crate::endpoints::{Link, LinkKind, LinkLayer};

fn link_message(ifindex: u32, name: &str, mac: u8) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, mac]),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        LinkAttribute::Link(2),
        LinkAttribute::LinkNetNsId(7),
    ];
    message
}

fn link(ifindex: u32, name: &str, mac: u8) -> Link {
    parse::link(&link_message(ifindex, name, mac)).unwrap()
}

fn route_message(kind: RouteType, table: u8, prefix_len: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = prefix_len;
    message.header.kind = kind;
    message.header.table = table;
    message.attributes =
        vec![RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 1, 0, 1))), RouteAttribute::Oif(5)];
    message.attributes.extend(attributes);
    message
}

fn bytes(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[test]
fn devices_are_read_from_full_messages_only() {
    let mut bridge_port = link_message(5, "veth5", 1);
    bridge_port.header.interface_family = AddressFamily::Bridge;
    assert_eq!(parse::link(&bridge_port), None, "a bridge's word about its port");
    let mut nameless = link_message(5, "veth5", 1);
    nameless.attributes.remove(0);
    assert_eq!(parse::link(&nameless), None, "wireless extensions");

    let veth = link(5, "veth5", 1);
    assert_eq!((veth.kind, veth.peer_ifindex, veth.netnsid, veth.up), (LinkKind::Veth, Some(2), Some(7), true));
    let mut vlan = link_message(6, "eth0.5", 1);
    vlan.attributes[2] = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]);
    let vlan = parse::link(&vlan).unwrap();
    assert_eq!((vlan.kind, vlan.peer_ifindex), (LinkKind::Vlan, None), "IFLA_LINK of a VLAN is the device below it");
    let mut loopback = link_message(1, "lo", 0);
    loopback.attributes.truncate(2);
    loopback.header.flags |= LinkFlags::Loopback;
    assert_eq!(parse::link(&loopback).unwrap().kind, LinkKind::Loopback);
    let mut card = link_message(2, "eth0", 0);
    card.attributes.truncate(2);
    assert_eq!(parse::link(&card).unwrap().kind, LinkKind::Physical, "no IFLA_INFO_KIND");
}

#[test]
fn only_routes_that_matter_are_kept() {
    let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1)));
    // Kind, table, prefix length, further attributes, whether it counts as local, as host route; why.
    let table = [
        (RouteType::Unicast, 254, 32, vec![], (false, true), "a pod's host route"),
        (RouteType::Unicast, 100, 32, vec![], (false, true), "in a table of its own"),
        (RouteType::Unicast, 254, 32, vec![gateway], (false, false), "over a gateway: a pod of another node"),
        (RouteType::Unicast, 254, 24, vec![], (false, false), "a network"),
        (RouteType::Local, 255, 32, vec![], (true, false), "an address of the node"),
        (RouteType::Local, 255, 8, vec![], (true, false), "a prefix that ends in the node"),
        (RouteType::Local, 0, 32, vec![RouteAttribute::Table(255)], (true, false), "the table as attribute"),
        (RouteType::Local, 100, 32, vec![], (false, false), "a local route that only some rule reaches"),
        (RouteType::Broadcast, 255, 32, vec![], (false, false), "a broadcast address"),
        (RouteType::BlackHole, 254, 32, vec![], (false, false), "a black hole"),
    ];
    for (kind, number, prefix_len, attributes, expected, why) in table {
        let message = route_message(kind, number, prefix_len, attributes);
        let mut state = Table::default();
        state.notified(&bytes(RouteNetlinkMessage::NewRoute(message.clone()), 0), &mut Stale::default());
        let now = state.snapshot();
        assert_eq!((!now.local.is_empty(), now.host_routes.contains_key(&5)), expected, "{why}");
        state.notified(&bytes(RouteNetlinkMessage::DelRoute(message), 0), &mut Stale::default());
        assert_eq!(state.snapshot(), Table::default().snapshot(), "{why}: and goes again");
    }
}

#[test]
fn what_a_notification_leaves_unsaid_is_asked_for() {
    let route = route_message(RouteType::Unicast, 254, 32, vec![]);
    let mut down = link_message(5, "veth5", 1);
    down.header.flags = LinkFlags::empty();
    let mut garbled = bytes(RouteNetlinkMessage::NewLink(link_message(9, "veth9", 1)), 0);
    // The first attribute's length.
    garbled[32] = 0xff;
    let veths = |ifindexes: &[u32]| Stale { peers: ifindexes.iter().copied().collect(), ..Stale::default() };
    let routes = Stale { routes: true, ..Stale::default() };
    let table = [
        (bytes(RouteNetlinkMessage::NewLink(link_message(5, "veth5", 1)), 0), veths(&[5]), "a known veth changed"),
        (bytes(RouteNetlinkMessage::NewLink(link_message(6, "veth6", 1)), 0), veths(&[6]), "a new veth"),
        (bytes(RouteNetlinkMessage::NewLink(down), 0), Stale { routes: true, ..veths(&[5]) }, "a veth went down"),
        (bytes(RouteNetlinkMessage::NewRoute(route.clone()), 0), Stale::default(), "a route"),
        (bytes(RouteNetlinkMessage::NewRoute(route), NLM_F_REPLACE), routes, "a route that replaced another"),
        (garbled, Stale { all: true, ..Stale::default() }, "a message that cannot be read"),
    ];
    for (message, expected, why) in table {
        let mut state = Table::default();
        state.link_seen(link(5, "veth5", 1), &mut Stale::default());
        let mut stale = Stale::default();
        state.notified(&message, &mut stale);
        assert_eq!(stale, expected, "{why}");
    }
}

#[test]
fn a_dump_tells_a_device_that_stayed_from_one_that_took_its_index() {
    // Name and last byte of the MAC in the dump; whether it is the device that was known as veth5, 1; why.
    let table = [
        ("veth5", 1, true, "unchanged"),
        ("azv01", 1, true, "renamed"),
        ("veth5", 9, true, "with another MAC"),
        ("azv01", 9, false, "nothing is as it was"),
    ];
    for (name, mac, same, why) in table {
        let (unread, mut stale) = (BTreeSet::new(), Stale::default());
        let mut state = Table::default();
        state.links_dumped(vec![link(5, "veth5", 1)], &unread, &mut stale);
        state.peer_addresses(5, Some(vec!["10.1.0.1/24".parse().unwrap()]));
        let mut dumped = link(5, name, mac);
        // The pod may have moved its end; that proves nothing.
        dumped.netnsid = Some(8);
        state.links_dumped(vec![dumped], &unread, &mut stale);
        let now = state.snapshot();
        assert_eq!(now.links[&5].incarnation == 1, same, "{why}");
        assert_eq!(now.links[&5].peer_addresses, None, "{why}: the addresses were those of another namespace");
        assert!(stale.peers.contains(&5), "{why}: and are read again");
    }
}

#[test]
fn datagrams_are_split_and_broken_ones_are_noticed() {
    let one = bytes(RouteNetlinkMessage::NewLink(link_message(5, "veth5", 1)), 0);
    let two = one.repeat(2);
    let count = |datagram: &[u8]| {
        let (good, bad): (Vec<_>, Vec<_>) = messages(datagram).partition(Option::is_some);
        (good.len(), bad.len())
    };
    for (datagram, expected, why) in [
        (&two[..], (2, 0), "two messages"),
        (&[], (0, 0), "nothing"),
        (&two[..two.len() - 4], (1, 1), "the second is cut off"),
        (&two[..8], (0, 1), "not even a header"),
    ] {
        assert_eq!(count(datagram), expected, "{why}");
    }
}

#[test]
fn of_a_point_to_point_address_the_own_side_counts() {
    use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
    let mut message = AddressMessage::default();
    message.header.prefix_len = 32;
    let (own, other) = (IpAddr::from([10, 1, 0, 1]), IpAddr::from([10, 1, 0, 2]));
    message.attributes = vec![AddressAttribute::Address(other), AddressAttribute::Local(own)];
    assert_eq!(parse::address(&message).map(|net| net.addr()), Some(own), "IFA_LOCAL before IFA_ADDRESS");
    message.attributes.truncate(1);
    assert_eq!(parse::address(&message).map(|net| net.addr()), Some(other), "IPv6 has only IFA_ADDRESS");
    message.attributes.clear();
    assert_eq!(parse::address(&message), None);
}

#[test]
fn a_device_that_a_dump_cannot_describe_is_not_gone() {
    let mut state = Table::default();
    let mut stale = Stale::default();
    let both = vec![link(5, "veth5", 1), link(6, "veth6", 2)];
    state.links_dumped(both, &BTreeSet::new(), &mut stale);
    let before = state.snapshot();
    state.links_dumped(vec![link(6, "veth6", 2)], &BTreeSet::from([5]), &mut stale);
    assert_eq!(state.snapshot(), before, "it is there, only not readable");
    state.links_dumped(vec![link(6, "veth6", 2)], &BTreeSet::new(), &mut stale);
    assert!(!state.snapshot().links.contains_key(&5), "now it is gone");
}

#[test]
fn tunnel_devices_tell_their_ports() {
    let with = |kind: InfoKind, data: InfoData| {
        let mut message = link_message(5, "tunnel", 1);
        message.attributes[2] = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]);
        parse::link(&message).unwrap().tunnel_port
    };
    let vxlan = |port: u16| with(InfoKind::Vxlan, InfoData::Vxlan(vec![InfoVxlan::Id(7), InfoVxlan::Port(port)]));
    assert_eq!(vxlan(8472), Some(8472), "VXLAN");
    assert_eq!(vxlan(0), None, "VXLAN that has not got one yet");
    assert_eq!(with(InfoKind::Geneve, InfoData::Geneve(vec![InfoGeneve::Port(6081)])), Some(6081), "GENEVE");
    assert_eq!(link(5, "veth5", 1).tunnel_port, None, "no tunnel");
}

#[test]
fn what_stands_before_the_ip_header_is_told_by_the_type_of_the_device() {
    for (kind, expected, what) in [
        (1_u16, LinkLayer::Ethernet, "Ethernet: veth, vxlan, bond, gretap, tap"),
        (772, LinkLayer::Ethernet, "loopback"),
        (65534, LinkLayer::Ip, "none: tun, wireguard"),
        (519, LinkLayer::Ip, "raw IP"),
        (512, LinkLayer::Ip, "PPP"),
        (768, LinkLayer::Ip, "ipip"),
        (769, LinkLayer::Ip, "ip6tnl"),
        (776, LinkLayer::Ip, "sit"),
        (778, LinkLayer::Ip, "gre"),
        (823, LinkLayer::Ip, "ip6gre"),
        (32, LinkLayer::Unknown, "Infiniband"),
        (280, LinkLayer::Unknown, "CAN"),
        (804, LinkLayer::Unknown, "802.15.4"),
        (60000, LinkLayer::Unknown, "a type that nobody knows"),
    ] {
        let mut message = link_message(5, "device", 1);
        message.header.link_layer_type = kind.into();
        assert_eq!(parse::link(&message).map(|link| link.layer), Some(expected), "{what}");
    }
}
