//! Recipes as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::recipe::{Arp, Body, Extension, Fragment, Icmp, Ip, Link, Net, Parties, Tag, Target};

const FROM_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TO_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const STRANGER_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 9);
const STRANGER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 9);
/// What datagrams carry behind their headers.
const DATA: &[u8; 24] = b"three times eight bytes.";

pub(crate) fn frame(link: &Link, net: &Net, parties: &Parties) -> Vec<u8> {
    let (ethertype, packet) = match net {
        Net::Ip(packet) => (if parties.from.is_ipv4() { 0x0800_u16 } else { 0x86dd }, ip(packet, parties)),
        Net::Arp(message) => (0x0806, arp(message, parties)),
        Net::Raw(bytes) => (0x88b5, bytes.clone()),
    };
    let mut frame = [TO_MAC, FROM_MAC].concat();
    match link {
        Link::Ethernet => frame.extend(ethertype.to_be_bytes()),
        Link::Contradicting(other) => frame.extend(other.to_be_bytes()),
        Link::Tagged(tags) => {
            for tag in tags {
                match tag {
                    Tag::Vlan(id) => frame.extend([[0x81, 0x00], (id & 0xfff).to_be_bytes()].concat()),
                    Tag::Service(id) => frame.extend([[0x88, 0xa8], (id & 0xfff).to_be_bytes()].concat()),
                    Tag::Mpls(label) => {
                        frame.extend([0x88, 0x47]);
                        frame.extend(((label & 0xf_ffff) << 12 | 0x140).to_be_bytes());
                    }
                }
            }
            // A label's stack has no ethertype behind it.
            if !matches!(tags.last(), Some(Tag::Mpls(_))) {
                frame.extend(ethertype.to_be_bytes());
            }
        }
        Link::Llc => {
            frame.extend(u16::try_from(packet.len() + 8).unwrap_or(1500).min(1500).to_be_bytes());
            frame.extend([0xaa, 0xaa, 3, 0, 0, 0]);
            frame.extend(ethertype.to_be_bytes());
        }
    }
    frame.extend(packet);
    frame
}

fn arp(message: &Arp, parties: &Parties) -> Vec<u8> {
    let v4 = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let sender = match message.sender {
        None => [0; 4],
        Some(Target::Sender) => v4(parties.from),
        Some(Target::Receiver) => v4(parties.to),
        Some(Target::Stranger) => STRANGER_V4.octets(),
    };
    let hardware = if message.other_hardware { OTHER_MAC } else { FROM_MAC };
    let mut bytes = Vec::new();
    for word in [message.hardware, message.protocol, u16::from_be_bytes(message.lengths), message.operation] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(hardware);
    bytes.extend(sender);
    bytes.extend(if message.operation == 2 { TO_MAC } else { [0; 6] });
    bytes.extend(v4(parties.to));
    bytes
}

/// An IP packet.
pub(crate) fn ip(ip: &Ip, parties: &Parties) -> Vec<u8> {
    headers(ip, parties, ip.fragment, &payload_behind_fragment(ip, parties, ip.fragment))
}

/// The part of a datagram that fragmentation cuts.
pub(crate) fn payload(ip: &Ip, parties: &Parties) -> Vec<u8> {
    payload_behind_fragment(ip, parties, Some(Fragment { offset: 0, more: true, id: 0 }))
}

/// One fragment's frame.
pub(crate) fn fragment(ip: &Ip, parties: &Parties, place: Fragment, part: &[u8]) -> Vec<u8> {
    let whole = headers(ip, parties, Some(place), part);
    let ethertype = if parties.from.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    [[TO_MAC, FROM_MAC].concat(), ethertype.to_vec(), whole].concat()
}

fn payload_behind_fragment(ip: &Ip, parties: &Parties, fragment: Option<Fragment>) -> Vec<u8> {
    let (protocol, body) = body(&ip.body, parties);
    if parties.from.is_ipv4() || fragment.is_none() {
        return body;
    }
    chain(&ip.late, protocol, body).1
}

fn headers(ip: &Ip, parties: &Parties, fragment: Option<Fragment>, payload: &[u8]) -> Vec<u8> {
    let (protocol, _) = body(&ip.body, parties);
    match (parties.from, parties.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(ip, from, to, protocol, fragment, payload),
        (from, to) => {
            let v6 = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            self::v6(ip, v6(from), v6(to), protocol, fragment, payload)
        }
    }
}

fn v4(ip: &Ip, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: Option<Fragment>, payload: &[u8]) -> Vec<u8> {
    let mut options = ip.options.clone();
    options.truncate(40);
    options.resize(options.len().next_multiple_of(4), 0);
    let length = 20 + options.len();
    let ihl = ip.ihl.unwrap_or((length / 4) as u8) & 0xf;
    let total = ip.length.unwrap_or((length + payload.len()) as u16);
    let place = fragment.map_or(0, |place| place.offset & 0x1fff | if place.more { 0x2000 } else { 0 });
    let id = fragment.map_or(1, |place| place.id as u16);
    let mut header = vec![ip.version.unwrap_or(4) << 4 | ihl, 0];
    for word in [total, id, place] {
        header.extend(word.to_be_bytes());
    }
    header.extend([ip.hop_limit, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(&options);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    header.extend(payload);
    header
}

fn v6(ip: &Ip, from: Ipv6Addr, to: Ipv6Addr, protocol: u8, fragment: Option<Fragment>, payload: &[u8]) -> Vec<u8> {
    let (next, rest) = match fragment {
        None => {
            // Without a fragment header there is only one chain.
            let (next, rest) = chain(&ip.late, protocol, payload.to_vec());
            chain(&ip.extensions, next, rest)
        }
        Some(place) => {
            let (inner, _) = chain(&ip.late, protocol, Vec::new());
            let field = (place.offset & 0x1fff) << 3 | u16::from(place.more);
            let header = [&[inner, 0][..], &field.to_be_bytes(), &place.id.to_be_bytes(), payload].concat();
            chain(&ip.extensions, 44, header)
        }
    };
    let mut bytes = vec![ip.version.unwrap_or(6) << 4, 0, 0, 0];
    bytes.extend(ip.length.unwrap_or(rest.len() as u16).to_be_bytes());
    bytes.extend([next, ip.hop_limit]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(rest);
    bytes
}

/// Extension headers before a payload, and the number of the first.
fn chain(extensions: &[Extension], protocol: u8, payload: Vec<u8>) -> (u8, Vec<u8>) {
    extensions.iter().rev().fold((protocol, payload), |(next, rest), extension| {
        let (number, mut bytes) = extension_header(*extension, next);
        bytes.extend(rest);
        (number, bytes)
    })
}

fn extension_header(extension: Extension, next: u8) -> (u8, Vec<u8>) {
    // PadN options fill a header of options (RFC 8200 section 4.2).
    let options = |units: u8| {
        let mut bytes = vec![next, units];
        let mut left = usize::from(units) * 8 + 6;
        while left > 0 {
            let data = (left.max(2) - 2).min(255);
            // One byte left over is Pad1.
            bytes.extend(if left == 1 { vec![0] } else { [&[1, data as u8][..], &vec![0; data]].concat() });
            left -= if left == 1 { 1 } else { data + 2 };
        }
        bytes
    };
    let zeros = |start: &[u8], length: usize| {
        let mut bytes = start.to_vec();
        bytes.resize(length, 0);
        bytes
    };
    match extension {
        Extension::HopByHop(units) => (0, options(units)),
        Extension::Jumbo(length) => (0, [&[next, 0, 0xc2, 4][..], &length.to_be_bytes()].concat()),
        Extension::Destination(units) => (60, options(units)),
        Extension::Routing(kind, left, units) => (43, zeros(&[next, units, kind, left], usize::from(units) * 8 + 8)),
        Extension::Authentication(units) => (51, zeros(&[next, units], usize::from(units) * 4 + 8)),
        Extension::Atomic => (44, vec![next, 0, 0, 0, 0, 0, 0, 9]),
        Extension::Mobility => (135, zeros(&[next, 0, 1], 8)),
        Extension::HostIdentity => (139, zeros(&[next, 4, 1, 0x21], 40)),
        Extension::Shim6 => (140, zeros(&[next, 0, 0x80], 8)),
        Extension::Experimental => (253, zeros(&[next, 0], 8)),
        Extension::Esp => (50, vec![0, 0, 0, 9, 0, 0, 0, 1]),
        Extension::NoNext => (59, Vec::new()),
    }
}

/// What an IP packet carries, with its number.
fn body(body: &Body, parties: &Parties) -> (u8, Vec<u8>) {
    let Parties { client, server, .. } = parties;
    let ports = [client.to_be_bytes(), server.to_be_bytes()].concat();
    let icmp_number = if parties.from.is_ipv4() { 1 } else { 58 };
    match body {
        Body::Tcp(flags, offset) => {
            let mut bytes = ports;
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, offset.unwrap_or(5) << 4, *flags, 0x10, 0, 0, 0, 0, 0]);
            bytes.extend(DATA);
            (6, summed(parties, 6, 16, bytes))
        }
        Body::Udp(length) => {
            let mut bytes = ports;
            bytes.extend(length.unwrap_or(8 + DATA.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(DATA);
            (17, summed(parties, 17, 6, bytes))
        }
        Body::Sctp(chunk) => (132, [&ports[..], &[0; 8], &[*chunk, 0, 0, 20], &[0; 16]].concat()),
        Body::Icmp(message) => {
            let mut bytes = icmp(message, parties);
            if icmp_number == 58 {
                return (58, summed(parties, 58, 2, bytes));
            }
            let sum = checksum(&[&bytes]);
            bytes[2..4].copy_from_slice(&sum);
            (1, bytes)
        }
        Body::WrongIcmp if icmp_number == 1 => {
            (58, [&[128, 0, 0, 0][..], &client.to_be_bytes(), &[0, 1], DATA].concat())
        }
        Body::WrongIcmp => (1, [&[8, 0, 0, 0][..], &client.to_be_bytes(), &[0, 1], DATA].concat()),
        Body::Ipip(inner) => {
            let hidden = Parties { from: STRANGER_V4.into(), to: Ipv4Addr::new(10, 99, 0, 1).into(), ..*parties };
            (4, ip(&Ip::of((**inner).clone()), &hidden))
        }
        Body::SixInFour => {
            let to = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
            let hidden = Parties { from: STRANGER_V6.into(), to: to.into(), ..*parties };
            (41, ip(&Ip::of(Body::Udp(None)), &hidden))
        }
        Body::Gre => (47, [&[0, 0, 0x08, 0][..], &body_of_gre(parties)].concat()),
        Body::Other(number) => (*number, DATA.to_vec()),
        Body::Empty(number) => (*number, Vec::new()),
    }
}

fn body_of_gre(parties: &Parties) -> Vec<u8> {
    body(&Body::Ipip(Box::new(Body::Udp(None))), parties).1
}

fn icmp(message: &Icmp, parties: &Parties) -> Vec<u8> {
    let v4 = parties.from.is_ipv4();
    let v6 = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let whose = |target: &Target| match target {
        Target::Sender => v6(parties.from),
        Target::Receiver => v6(parties.to),
        Target::Stranger => STRANGER_V6.octets(),
    };
    let echo = |kind: u8| [&[kind, 0, 0, 0][..], &parties.client.to_be_bytes(), &[0, 1], DATA].concat();
    let with = |kind: u8, four: [u8; 4], rest: &[u8]| [&[kind, 0, 0, 0][..], &four, rest].concat();
    let link_layer = |kind: u8| [&[kind, 1][..], &FROM_MAC].concat();
    match message {
        Icmp::Echo => echo(if v4 { 8 } else { 128 }),
        Icmp::EchoReply => echo(if v4 { 0 } else { 129 }),
        Icmp::Message(kind, code) => vec![*kind, *code, 0, 0, 0, 0, 0, 0],
        Icmp::Error(kind, code, quote) => {
            let quoted = if quote.returned { parties.reversed() } else { *parties };
            let mut packet = ip(&quote.packet, &quoted);
            packet.truncate(quote.bytes.into());
            // Fragmentation needed and packet too big carry the next hop's MTU.
            [&[*kind, *code, 0, 0, 0, 0, 0x05, 0x14][..], &packet].concat()
        }
        Icmp::RouterSolicitation => with(if v4 { 10 } else { 133 }, [0; 4], &[]),
        Icmp::RouterAdvertisement if v4 => with(9, [1, 2, 7, 8], &[[10, 99, 0, 9], [0; 4]].concat()),
        Icmp::RouterAdvertisement => with(134, [64, 0, 7, 8], &[&[0; 8][..], &link_layer(1)].concat()),
        Icmp::Solicitation(target) => with(135, [0; 4], &[&whose(target)[..], &link_layer(1)].concat()),
        Icmp::Advertisement(target) => with(136, [0x60, 0, 0, 0], &[&whose(target)[..], &link_layer(2)].concat()),
        Icmp::Redirect if v4 => with(5, STRANGER_V4.octets(), &ip(&Ip::of(Body::Udp(None)), &parties.reversed())),
        Icmp::Redirect => with(137, [0; 4], &[&STRANGER_V6.octets()[..], &v6(parties.from)].concat()),
        Icmp::Mld(143) => with(143, [0; 4], &[]),
        Icmp::Mld(kind) => with(*kind, [0; 4], &v6(parties.to)),
    }
}

/// A transport header with its checksum in place: over the pseudo-header of the parties' family.
fn summed(parties: &Parties, protocol: u8, place: usize, mut bytes: Vec<u8>) -> Vec<u8> {
    let mut pseudo = match (parties.from, parties.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => Vec::new(),
    };
    pseudo.extend((bytes.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    let mut sum = checksum(&[&pseudo, &bytes]);
    if protocol == 17 && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    bytes[place..place + 2].copy_from_slice(&sum);
    bytes
}

/// The Internet checksum (RFC 1071). Every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | word.get(1).copied().map_or(0, u64::from)).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}
