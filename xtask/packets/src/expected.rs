//! What our parser must say of a frame that etherparse has read: the decisions about kinds of packets, on another's
//! reading of their bytes. Where etherparse is stricter or knows less than we need, a comment says why.

use std::net::IpAddr;

use portcullis_common::packet::{Drop, Shape};

use crate::reading::{Extension, IpReading, Reading, Stop, Transport, quoted, reading};

/// What a parser says of a frame. Only what the shape makes known is filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// [`Shape`]'s number.
    pub shape: u32,
    /// Whether the packet is IPv4.
    pub v4: bool,
    /// Source and destination; of ARP the sender's address only.
    pub addresses: Option<(IpAddr, Option<IpAddr>)>,
    /// Whom an advertisement speaks for.
    pub target: Option<IpAddr>,
    /// The upper layer, of what can be judged.
    pub upper: Option<Upper>,
    /// TCP's flags.
    pub flags: u8,
    /// Whether it opens a flow.
    pub opens: bool,
    /// A fragment's place.
    pub part: Option<Part>,
    /// What an error quotes: its addresses and upper layer.
    pub quoted: Option<(IpAddr, IpAddr, Upper)>,
}

/// Protocol, source port, destination port, and what policy calls the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upper {
    /// The IP protocol.
    pub protocol: u8,
    /// The source port or identifier.
    pub source: u16,
    /// The destination port or identifier.
    pub destination: u16,
    /// Destination port, or type and code.
    pub policy: u16,
}

/// A fragment's datagram and place in it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The sender's number of the datagram.
    pub datagram: u32,
    /// Where it begins.
    pub begin: u32,
    /// Where it ends.
    pub end: u32,
    /// Whether none follows.
    pub last: bool,
}

impl Said {
    /// The shape.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        Shape(self.shape)
    }

    fn only(shape: Shape) -> Self {
        Self { shape: shape.0, ..Self::default() }
    }

    fn bad(why: Drop) -> Self {
        Self::only(Shape(why.0))
    }
}

/// Extension headers that we walk over. RFC 8200 section 4.1 knows no honest packet with more.
const MOST_EXTENSIONS: usize = 6;

/// What our parser must say of a frame whose link-layer header has this length.
#[must_use]
pub fn expected(frame: &[u8], link: usize) -> Said {
    match reading(frame, link) {
        Reading::Short => Said::bad(Drop::MALFORMED),
        Reading::Ethertype(_) => Said::bad(Drop::ETHERTYPE),
        Reading::Arp(message) => match message.or_else(|| lenient_arp(frame.get(link..).unwrap_or_default())) {
            None => Said::bad(Drop::DISCOVERY),
            Some((sender, operation)) => Said {
                v4: true,
                addresses: Some((sender.into(), None)),
                opens: operation == 1,
                ..Said::only(Shape::ARP)
            },
        },
        Reading::Ip(None) => Said::bad(Drop::MALFORMED),
        Reading::Ip(Some(packet)) => ip(frame, link, &packet),
    }
}

/// etherparse demands the target's addresses too, and hardware type 1. All that is asked of ARP is whose address the sender
/// claims; the kernel takes type 6 as well (net/ipv4/arp.c, `arp_process`) and drops what is cut off.
fn lenient_arp(message: &[u8]) -> Option<([u8; 4], u16)> {
    let word = |at: usize| message.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let known = matches!(word(0)?, 1 | 6) && word(2)? == 0x0800 && word(4)? == 0x0604;
    let sender = message.get(14..18)?.first_chunk::<4>()?;
    if known { Some((*sender, word(6)?)) } else { None }
}

fn ip(frame: &[u8], link: usize, packet: &IpReading<'_>) -> Said {
    let available = isize::try_from(frame.len().saturating_sub(link + packet.header)).unwrap_or(isize::MAX);
    let walked: usize = packet.chain.iter().map(|extension| extension.length).sum();
    let declared = packet.declared + isize::try_from(walked).unwrap_or(0);
    // A length that is not the packet's.
    if declared < 0 || declared > available {
        return Said::bad(Drop::MALFORMED);
    }
    let refused = if packet.from.is_ipv4() { options(packet.options) } else { extensions(packet, false) };
    if let Some(why) = refused {
        return Said::bad(why);
    }
    let known = Said {
        v4: packet.from.is_ipv4(),
        addresses: Some((packet.from, Some(packet.to))),
        part: part(packet),
        ..Said::default()
    };
    if let Some(place) = known.part {
        if place.end > 65_535 || place.end == place.begin {
            return Said::bad(Drop::MALFORMED);
        }
        if place.begin != 0 {
            // The protocol is the first fragment's to say (RFC 8200 section 4.5), but in IPv4 every one tells it.
            return Said { shape: Shape::LATER.0, ..known };
        }
    }
    transport(frame, packet, known)
}

fn part(packet: &IpReading<'_>) -> Option<Part> {
    let fragment = packet.fragment?;
    let (begin, length) = (u32::from(fragment.offset) * 8, u32::try_from(packet.fragmented).unwrap_or(0));
    Some(Part { datagram: fragment.id, begin, end: begin + length, last: !fragment.more })
}

/// What IPv4 options make of a packet. RFC 791 section 3.1: each but the first two kinds has a length. (etherparse gives
/// options as bytes.)
fn options(mut rest: &[u8]) -> Option<Drop> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [1, more @ ..] => rest = more,
            [131 | 137, ..] => return Some(Drop::SOURCE_ROUTE),
            [_, length, ..] if *length >= 2 && usize::from(*length) <= rest.len() => {
                rest = &rest[usize::from(*length)..]
            }
            _ => return Some(Drop::MALFORMED),
        }
    }
}

/// Why a chain of extension headers is not followed to its end.
fn extensions(packet: &IpReading<'_>, quoted: bool) -> Option<Drop> {
    let mut fragment_headers = 0;
    let (mut first_fragment, mut walked) = (false, 0);
    let cut = |first_fragment: bool| if first_fragment { Drop::TINY } else { Drop::MALFORMED };
    for (number, extension) in packet.chain.iter().enumerate() {
        if number == MOST_EXTENSIONS {
            return Some(Drop::EXTENSION);
        }
        walked += extension.length;
        match *extension {
            // Type 0 is forbidden (RFC 5095); of any other the destination is final when no segment is left.
            Extension { number: 43, segments_left, kind, .. } if segments_left != 0 || kind == 0 => {
                return Some(Drop::SOURCE_ROUTE);
            }
            Extension { number: 44, .. } if fragment_headers > 0 => return Some(Drop::EXTENSION),
            Extension { number: 44, .. } => {
                fragment_headers += 1;
                first_fragment = packet.fragment.is_some_and(|fragment| fragment.offset == 0);
                // An empty fragment is refused where it is met.
                if packet.fragment.is_some() && packet.fragmented == 0 {
                    return Some(Drop::MALFORMED);
                }
            }
            _ => {}
        }
    }
    let _ = (walked, quoted);
    match packet.stopped {
        _ if packet.is_later() => None,
        None => None,
        Some(_) if packet.chain.len() >= MOST_EXTENSIONS => Some(Drop::EXTENSION),
        Some(Stop::Misplaced) => Some(Drop::EXTENSION),
        Some(Stop::Cut) => Some(cut(first_fragment)),
    }
}

fn transport(frame: &[u8], packet: &IpReading<'_>, known: Said) -> Said {
    let first = known.part.is_some();
    let cut = Said::bad(if first { Drop::TINY } else { Drop::MALFORMED });
    let payload = packet.payload;
    let ports = |protocol: u8| {
        word(payload, 0).zip(word(payload, 2)).map(|(source, destination)| Upper {
            protocol,
            source,
            destination,
            policy: destination,
        })
    };
    let judged = |upper: Option<Upper>, flags: u8, opens: bool| match upper {
        Some(_) => Said { upper, flags, opens, ..known.clone() },
        None => cut.clone(),
    };
    match (packet.protocol, &packet.transport) {
        (6, Transport::Tcp(source, destination, flags)) => {
            let upper = Upper { protocol: 6, source: *source, destination: *destination, policy: *destination };
            judged(Some(upper), *flags, flags & 0x12 == 0x02)
        }
        // etherparse refuses a data offset that lies. Of a whole packet policy needs ports and flags only, which no option
        // moves, and the receiver drops it; of a first fragment the options are wanted too.
        (6, _) if payload.len() >= 20 && (!first || payload.len() >= usize::from(payload[12] >> 4) * 4) => {
            judged(ports(6), payload[13], payload[13] & 0x12 == 0x02)
        }
        (17, Transport::Udp(source, destination)) => {
            let upper = Upper { protocol: 17, source: *source, destination: *destination, policy: *destination };
            judged(Some(upper), 0, false)
        }
        // etherparse takes a UDP length below eight for an error. Nobody decides by it; the receiver drops the packet.
        (17, _) if payload.len() >= 8 => judged(ports(17), 0, false),
        // etherparse knows no SCTP (RFC 9260 section 3).
        (132, _) if payload.len() >= 16 => judged(ports(132), 0, payload[12] == 1),
        (1 | 58, _) if payload.len() < 8 => cut,
        (1 | 58, _) if (packet.protocol == 1) != packet.from.is_ipv4() => Said::bad(Drop::MALFORMED),
        (1 | 58, Transport::Icmp(kind, code, rest, data)) => icmp(frame, packet, known, (*kind, *code), *rest, data),
        // etherparse demands a timestamp message's whole twenty bytes.
        (1 | 58, _) => {
            let rest = [payload[4], payload[5], payload[6], payload[7]];
            icmp(frame, packet, known, (payload[0], payload[1]), rest, &payload[8..])
        }
        (6 | 17 | 132, _) => cut,
        (protocol, _) => judged(Some(Upper { protocol, ..Upper::default() }), 0, false),
    }
}

fn icmp(frame: &[u8], packet: &IpReading<'_>, known: Said, (kind, code): (u8, u8), rest: [u8; 4], data: &[u8]) -> Said {
    let v4 = known.v4;
    let shape = match (v4, kind) {
        (true, 3 | 4 | 11 | 12) | (false, 1..=4) => Shape::RELATED,
        (true, 5) | (false, 137) => Shape::REDIRECT,
        (false, 134) => Shape::ROUTER,
        (false, 133 | 135 | 136) if packet.hop_limit == 255 => Shape::DISCOVERY,
        (false, 130..=132 | 143) if packet.hop_limit == 1 && packet.to.is_multicast() => Shape::DISCOVERY,
        _ => Shape::IP,
    };
    if shape == Shape::IP {
        let (upper, opens) = message(packet.protocol, v4, kind, code, [rest[0], rest[1]]);
        return Said { upper: Some(upper), opens, ..known };
    }
    if known.part.is_some() {
        return Said::bad(Drop::FRAGMENT);
    }
    // A quote or target that is cut off is read on as far as the frame goes.
    let at = data.as_ptr().addr() - frame.as_ptr().addr();
    let data = &frame[at..];
    let mut said = Said { shape: shape.0, ..known };
    if shape == Shape::DISCOVERY && kind == 136 {
        match data.first_chunk::<16>() {
            Some(target) => said.target = Some(IpAddr::from(*target)),
            None => return Said::bad(Drop::MALFORMED),
        }
    }
    if matches!(shape, Shape::RELATED | Shape::REDIRECT) {
        let packet = if shape == Shape::REDIRECT && !v4 { redirected(data) } else { Some(data) };
        said.quoted = packet.and_then(quote);
    }
    said
}

/// Type and code as a port, and the identifier of messages that ask and answer (as nf_conntrack_proto_icmp.c).
fn message(protocol: u8, v4: bool, kind: u8, code: u8, identifier: [u8; 2]) -> (Upper, bool) {
    let asks = if v4 { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) };
    let answers = if v4 { matches!(kind, 0 | 14 | 16 | 18) } else { matches!(kind, 129 | 140) };
    let identifier = if asks || answers { u16::from_be_bytes(identifier) } else { 0 };
    let policy = u16::from_be_bytes([kind, code]);
    (Upper { protocol, source: identifier, destination: identifier, policy }, asks)
}

/// The packet in a redirect's first or second option (RFC 4861 section 4.6.3).
fn redirected(data: &[u8]) -> Option<&[u8]> {
    let options = data.get(32..)?;
    let at = match options {
        [4, _, ..] => 0,
        [_, units, ..] if *units > 0 && options.get(usize::from(*units) * 8) == Some(&4) => usize::from(*units) * 8,
        _ => return None,
    };
    options.get(at..at + 2)?;
    Some(options.get(at + 8..).unwrap_or_default())
}

/// Who the quoted packet was from and to. Eight bytes behind its IP header are enough (RFC 792).
fn quote(bytes: &[u8]) -> Option<(IpAddr, IpAddr, Upper)> {
    let packet = quoted(bytes)?;
    let refused = if packet.from.is_ipv4() { None } else { extensions(&packet, true) };
    let part = part(&packet);
    let fragment_lies = part.is_some_and(|part| part.end > 65_535 || part.end == part.begin);
    if packet.declared < 0 || refused.is_some() || fragment_lies || packet.is_later() {
        return None;
    }
    let payload = packet.beyond.first_chunk::<8>()?;
    let v4 = packet.from.is_ipv4();
    let upper = match packet.protocol {
        protocol @ (6 | 17 | 132) => {
            let destination = word(payload, 2)?;
            Upper { protocol, source: word(payload, 0)?, destination, policy: destination }
        }
        protocol @ (1 | 58) if (protocol == 1) == v4 => {
            message(protocol, v4, payload[0], payload[1], [payload[4], payload[5]]).0
        }
        1 | 58 => return None,
        protocol => Upper { protocol, ..Upper::default() },
    };
    Some((packet.from, packet.to, upper))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}
