//! What our parser must say of a frame that etherparse has read: the decisions about kinds of packets, on another's
//! reading of their bytes. Where etherparse is stricter or knows less than we need, a comment says why.

use portcullis_common::Address;
use portcullis_common::packet::{Drop, Headers, Shape};

use crate::reading::{IpReading, Reading, Transport, reading};

/// What [`Headers::parse`] must say: the shape, and the headers where the shape tells that they are known.
#[must_use]
pub fn expected(frame: &[u8], link: usize) -> (Shape, Headers) {
    let mut headers = Headers::default();
    let bad = |why: Drop| Shape(why.0);
    let shape = match reading(frame, link) {
        Reading::Short => bad(Drop::MALFORMED),
        Reading::Ethertype(_) => bad(Drop::ETHERTYPE),
        Reading::Arp(None) => bad(Drop::MALFORMED),
        Reading::Arp(Some(message)) => {
            headers.v4 = true;
            headers.source = Address::from(std::net::IpAddr::from(message.sender));
            Shape::ARP
        }
        Reading::Ip(None) => bad(Drop::MALFORMED),
        Reading::Ip(Some(packet)) => ip(&packet, &mut headers),
    };
    (shape, headers)
}

fn ip(packet: &IpReading<'_>, headers: &mut Headers) -> Shape {
    let bad = |why: Drop| Shape(why.0);
    headers.v4 = packet.from.is_ipv4();
    headers.source = packet.from.into();
    headers.destination = packet.to.into();
    headers.protocol = packet.protocol;
    if !headers.v4 {
        headers.hop_limit = packet.hop_limit;
    }
    if packet.declared < 0 && headers.v4 {
        return bad(Drop::MALFORMED);
    }
    if headers.v4 && packet.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Shape::FRAGMENT;
    }
    if !headers.v4 {
        let first = packet.chain.first().map_or(packet.protocol, |extension| extension.number);
        let usual = packet.chain.len() == 1 && packet.chain[0].length == 8 && packet.protocol == 58;
        match first {
            0 if packet.payload.len() < 2 && packet.chain.is_empty() => return bad(Drop::MALFORMED),
            0 if !usual => return Shape::EXTENSION,
            44 => return Shape::FRAGMENT,
            43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254 => return Shape::EXTENSION,
            _ => {}
        }
    }
    transport(packet, headers)
}

fn transport(packet: &IpReading<'_>, headers: &mut Headers) -> Shape {
    let malformed = Shape(Drop::MALFORMED.0);
    let ports = |headers: &mut Headers, source: u16, destination: u16| {
        headers.source_port = source;
        headers.destination_port = destination;
        headers.policy_port = destination;
    };
    let word = |at: usize| packet.payload.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    match (packet.protocol, &packet.transport) {
        (6, Transport::Tcp(source, destination, flags)) => {
            ports(headers, *source, *destination);
            headers.tcp_flags = *flags;
            headers.opens = flags & 0x12 == 0x02;
            Shape::IP
        }
        // etherparse refuses a data offset that lies. Policy needs ports and flags only, which no option moves; the
        // receiver drops the packet.
        (6, _) if packet.declared >= 20 && packet.payload.len() >= 16 => {
            let (Some(source), Some(destination)) = (word(0), word(2)) else { return malformed };
            ports(headers, source, destination);
            headers.tcp_flags = packet.payload[13];
            headers.opens = headers.tcp_flags & 0x12 == 0x02;
            Shape::IP
        }
        (17, Transport::Udp(source, destination)) => {
            ports(headers, *source, *destination);
            Shape::IP
        }
        // etherparse takes a UDP length below eight for an error. Nobody decides by it; the receiver drops the packet.
        (17, _) if packet.declared >= 8 && packet.payload.len() >= 4 => {
            let (Some(source), Some(destination)) = (word(0), word(2)) else { return malformed };
            ports(headers, source, destination);
            Shape::IP
        }
        // etherparse knows no SCTP (RFC 9260 section 3).
        (132, _) if packet.declared >= 16 && packet.payload.len() >= 16 => {
            let (Some(source), Some(destination)) = (word(0), word(2)) else { return malformed };
            ports(headers, source, destination);
            headers.opens = packet.payload[12] == 1;
            Shape::IP
        }
        (1 | 58, _) if packet.declared < 8 || packet.payload.len() < 8 => malformed,
        (1 | 58, Transport::Icmp(kind, code, rest, data)) => icmp(packet, headers, (*kind, *code), *rest, data),
        (1, _) if headers.v4 => {
            let (kind, code) = (packet.payload[0], packet.payload[1]);
            let rest = [packet.payload[4], packet.payload[5], packet.payload[6], packet.payload[7]];
            // etherparse demands a timestamp message's whole twenty bytes.
            icmp(packet, headers, (kind, code), rest, &packet.payload[8..])
        }
        (6 | 17 | 132 | 1 | 58, _) => malformed,
        _ => Shape::IP,
    }
}

fn icmp(packet: &IpReading<'_>, headers: &mut Headers, (kind, code): (u8, u8), rest: [u8; 4], data: &[u8]) -> Shape {
    if headers.v4 != (packet.protocol == 1) {
        return Shape(Drop::MALFORMED.0);
    }
    headers.policy_port = u16::from_be_bytes([kind, code]);
    let echo = if headers.v4 { [8, 0] } else { [128, 129] };
    if echo.contains(&kind) {
        headers.source_port = u16::from_be_bytes([rest[0], rest[1]]);
        headers.destination_port = headers.source_port;
        headers.opens = kind == echo[0];
    }
    if headers.v4 {
        return Shape::IP;
    }
    match (kind, packet.hop_limit) {
        (134 | 137, _) => Shape::ROUTER,
        (133 | 135, 255) => Shape::DISCOVERY,
        (136, 255) => match data.first_chunk::<16>() {
            Some(target) => {
                headers.source = Address::from_bytes(*target);
                Shape::DISCOVERY
            }
            None => Shape(Drop::MALFORMED.0),
        },
        (130..=132 | 143, 1) if packet.to.is_multicast() => Shape::DISCOVERY,
        _ => Shape::IP,
    }
}
