//! Frames that no honest pod would send, and some that it would.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, VlanId};

pub(crate) type Mac = [u8; 6];

/// Ethernet addresses: who sends, and to whom.
#[derive(Clone, Copy)]
pub(crate) struct Hop {
    pub(crate) from: Mac,
    pub(crate) to: Mac,
}

/// IP addresses of one family: source, destination.
#[derive(Clone, Copy)]
pub(crate) struct Addresses(pub(crate) IpAddr, pub(crate) IpAddr);

fn ip(addresses: Addresses, hop_limit: u8) -> IpHeaders {
    match (addresses.0, addresses.1) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header::new(0, hop_limit, IpNumber::UDP, source.octets(), destination.octets()).unwrap();
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::UDP,
                hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("addresses of two families"),
    }
}

/// A UDP datagram.
pub(crate) fn udp(hop: Hop, addresses: Addresses, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(hop.from, hop.to).ip(ip(addresses, 64)).udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A TCP segment in the middle of a connection.
pub(crate) fn tcp_ack(hop: Hop, addresses: Addresses, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(hop.from, hop.to).ip(ip(addresses, 64)).tcp(ports.0, ports.1, 1, 500).ack(1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A UDP datagram with an 802.1Q tag.
pub(crate) fn tagged_udp(hop: Hop, addresses: Addresses, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(hop.from, hop.to)
        .single_vlan(VlanId::try_new(5).unwrap())
        .ip(ip(addresses, 64))
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// An IP packet of any protocol.
pub(crate) fn ip_protocol(hop: Hop, addresses: Addresses, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(hop.from, hop.to).ip(ip(addresses, 64));
    let mut frame = Vec::new();
    builder.write(&mut frame, IpNumber(protocol), payload).unwrap();
    frame
}

/// What follows the Ethernet header of a frame.
pub(crate) fn without_ethernet(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

/// A frame of any Ethertype.
pub(crate) fn ethertype(hop: Hop, number: u16, payload: &[u8]) -> Vec<u8> {
    [&hop.to[..], &hop.from[..], &number.to_be_bytes()[..], payload].concat()
}

/// An ARP message (RFC 826): operation 1 asks, 2 answers. The sender is who the message is said to come from.
pub(crate) fn arp(hop: Hop, operation: u16, sender: (Mac, IpAddr), target: (Mac, IpAddr)) -> Vec<u8> {
    let four = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("ARP is for IPv4"),
    };
    let body =
        [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes(), &sender.0, &four(sender.1), &target.0, &four(target.1)]
            .concat();
    ethertype(hop, 0x0806, &body)
}

/// A neighbour discovery message (RFC 4861, section 4): `type_` 134 to 137, four bytes, and what follows them.
fn discovery(hop: Hop, addresses: Addresses, type_: u8, four: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(hop.from, hop.to).ip(ip(addresses, 255)).icmpv6_raw(type_, 0, four);
    let mut frame = Vec::new();
    builder.write(&mut frame, rest).unwrap();
    frame
}

/// A neighbour solicitation, with a source link-layer address.
pub(crate) fn solicitation(hop: Hop, addresses: Addresses, target: Ipv6Addr, link: Mac) -> Vec<u8> {
    discovery(hop, addresses, 135, [0; 4], &[&target.octets()[..], &[1, 1], &link[..]].concat())
}

/// A neighbour advertisement, solicited and overriding, with a target link-layer address.
pub(crate) fn advertisement(hop: Hop, addresses: Addresses, target: Ipv6Addr, link: Mac) -> Vec<u8> {
    discovery(hop, addresses, 136, [0x60, 0, 0, 0], &[&target.octets()[..], &[2, 1], &link[..]].concat())
}

/// A router advertisement: a default router for half an hour, with a source link-layer address.
pub(crate) fn router_advertisement(hop: Hop, addresses: Addresses, link: Mac) -> Vec<u8> {
    discovery(hop, addresses, 134, [64, 0, 7, 8], &[&[0; 8][..], &[1, 1], &link[..]].concat())
}

/// A redirect: `destination` is said to be reached by `target`.
pub(crate) fn redirect(hop: Hop, addresses: Addresses, target: Ipv6Addr, destination: Ipv6Addr, link: Mac) -> Vec<u8> {
    let rest = [&target.octets()[..], &destination.octets()[..], &[2, 1], &link[..]].concat();
    discovery(hop, addresses, 137, [0; 4], &rest)
}

/// A fragment of a datagram: the bytes from `begin` on, and whether more follow. IPv6 has the header in front of
/// everything that `body` begins with.
pub(crate) fn fragment(
    hop: Hop,
    addresses: Addresses,
    datagram: u16,
    begin: u16,
    more: bool,
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (addresses.0, addresses.1) {
        let length = u16::try_from(body.len()).unwrap();
        let mut header =
            Ipv4Header::new(length, 64, IpNumber(protocol), source.octets(), destination.octets()).unwrap();
        header.identification = datagram;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(begin / 8).unwrap();
        header.header_checksum = header.calc_header_checksum();
        return ethertype(hop, 0x0800, &[&header.to_bytes()[..], body].concat());
    }
    let word = (begin | u16::from(more)).to_be_bytes();
    let header = [&[protocol, 0][..], &word, &[0, 0], &datagram.to_be_bytes()].concat();
    ip_protocol(hop, addresses, 44, &[&header[..], body].concat())
}

/// "Port unreachable" of the family, about a packet.
pub(crate) fn unreachable(hop: Hop, addresses: Addresses, quoted: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(hop.from, hop.to).ip(ip(addresses, 64));
    let mut frame = Vec::new();
    let (kind, code) = if addresses.0.is_ipv4() { (3, 3) } else { (1, 4) };
    if addresses.0.is_ipv4() {
        builder.icmpv4_raw(kind, code, [0; 4]).write(&mut frame, quoted).unwrap();
    } else {
        builder.icmpv6_raw(kind, code, [0; 4]).write(&mut frame, quoted).unwrap();
    }
    frame
}
