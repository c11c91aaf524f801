use super::*;

/// An Ethernet frame with IPv4 and a transport header of 20 bytes.
fn frame(protocol: u8, total: u16, flags: u8) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[12] = 8;
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[23] = protocol;
    frame[26..38].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 2, 0x9c, 0x40, 0, 80]);
    frame[46..48].copy_from_slice(&[0x50, flags]);
    frame
}

#[test]
fn the_short_way_reads_what_the_long_one_reads() {
    let with = |place: usize, byte: u8| {
        let mut frame = frame(6, 40, 0x10);
        frame[place] = byte;
        frame
    };
    let rows = [
        ("TCP", frame(6, 40, 0x10), true),
        ("TCP that opens", frame(6, 40, 0x02), true),
        ("TCP that answers an opening", frame(6, 40, 0x12), true),
        ("UDP", frame(17, 28, 0x02), true),
        ("TCP cut off", frame(6, 39, 0x10), false),
        ("UDP cut off", frame(17, 27, 0), false),
        ("ICMP", frame(1, 40, 0), false),
        ("SCTP", frame(132, 40, 0), false),
        ("options", with(14, 0x46), false),
        ("IPv6 by its version", with(14, 0x65), false),
        ("IPv6 by its type", with(12, 0x86), false),
        ("a later fragment", with(21, 1), false),
        ("a first fragment", with(20, 0x20), false),
        ("that may not come in fragments", with(20, 0x40), true),
    ];
    for (message, frame, usual) in rows {
        for length in [54, 42, 38, 30, 13] {
            let frame = &frame[..length];
            let mut short = Headers { protocol: 99, tcp_flags: 0xff, v4: false, opens: true, ..Headers::default() };
            let mut long = short;
            let taken = short.parse_usual(&frame, 14);
            let shape = long.parse(&frame, 14);
            assert!(!taken || shape == Shape::IP && short == long, "{message}, {length} bytes: {short:?}, {long:?}");
            assert!(taken == usual || length < 54, "{message}");
            assert!(!short.parse_usual(&frame, 0), "{message}: without a link header the short way is closed");
        }
    }
}

extern crate std;
use std::vec::Vec;

/// What a row expects of a packet.
type Row = (&'static str, Vec<u8>, Shape);

fn read(frame: &[u8]) -> (Shape, Work) {
    let mut work = Work::default();
    // SAFETY: nobody else's.
    let shape = unsafe { frame.read_headers(&raw mut work, 14) };
    (shape, work)
}

fn check(rows: Vec<Row>) {
    for (message, frame, expected) in rows {
        let (shape, work) = read(&frame);
        assert_eq!(shape, expected, "{message}: {work:?}");
    }
}

fn ethernet(ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = Vec::from([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(rest);
    frame
}

/// IPv4 with these options; `fragment` is the word of flags and offset.
fn v4_with(options: &[u8], fragment: u16, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = 20 + options.len();
    let mut packet = Vec::from([0x40 | (length / 4) as u8, 0]);
    packet.extend(((length + body.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 1, 0, 1, 10, 2, 0, 2]);
    packet.extend(options);
    packet.extend(body);
    packet
}

fn v4(protocol: u8, body: &[u8]) -> Vec<u8> {
    v4_with(&[], 0, protocol, body)
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::from([0x60, 0, 0, 0]);
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend(body);
    packet
}

fn v4_frame(packet: &[u8]) -> Vec<u8> {
    ethernet(0x0800, packet)
}

fn v6_frame(packet: &[u8]) -> Vec<u8> {
    ethernet(0x86dd, packet)
}

/// UDP from port 40000 to 80.
fn udp() -> Vec<u8> {
    Vec::from([0x9c, 0x40, 0, 80, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
}

/// TCP from port 40000 to 80, with four bytes of options.
fn tcp_header() -> Vec<u8> {
    let mut header = Vec::from([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2]);
    header.extend([0x60, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    header
}

/// An extension header of this many units of eight bytes beyond the first, with another behind it.
fn extension(next: u8, units: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = Vec::from([next, units, 1, 4]);
    header.resize(8 + 8 * units as usize, 0);
    header.extend(rest);
    header
}

fn fragment_header(next: u8, word: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = Vec::from([next, 0]);
    header.extend(word.to_be_bytes());
    header.extend([0, 0, 0x56, 0x78]);
    header.extend(rest);
    header
}

#[test]
fn ipv4_with_options_lies_and_fragments() {
    let udp = udp();
    let cut = |bytes: usize| v4_frame(&v4(17, &udp)[..bytes]);
    let change = |place: usize, byte: u8| {
        let mut packet = v4(17, &udp);
        packet[place] = byte;
        v4_frame(&packet)
    };
    let options = |options: &[u8]| v4_frame(&v4_with(options, 0, 17, &udp));
    let padded = {
        let mut frame = v4_frame(&v4(17, &udp));
        frame.extend([0; 10]);
        frame
    };
    let fragment = |word: u16, protocol: u8, body: &[u8]| v4_frame(&v4_with(&[], word, protocol, body));
    let malformed = Shape::bad(Drop::MALFORMED);
    check(Vec::from([
        ("plain", v4_frame(&v4(17, &udp)), Shape::IP),
        ("with a router alert", options(&[148, 4, 0, 0]), Shape::IP),
        ("with forty bytes of no operation", options(&[1; 40]), Shape::IP),
        ("with an end of options before what looks like a route", options(&[0, 131, 3, 4]), Shape::IP),
        ("with a record of its route", options(&[7, 7, 4, 0, 0, 0, 0, 0]), Shape::IP),
        ("loosely routed by its source", options(&[131, 7, 4, 10, 0, 0, 1, 0]), Shape::bad(Drop::SOURCE_ROUTE)),
        ("strictly routed by its source", options(&[1, 137, 7, 4, 10, 0, 0, 1]), Shape::bad(Drop::SOURCE_ROUTE)),
        ("with an option that ends beyond the header", options(&[7, 9, 4, 0]), malformed),
        ("with an option shorter than itself", options(&[7, 1, 4, 0]), malformed),
        ("with an option without its length", options(&[1, 1, 1, 7]), malformed),
        ("header shorter than a header", change(0, 0x44), malformed),
        ("header longer than the packet", change(0, 0x4f), malformed),
        ("header that claims the ports as options", change(0, 0x46), malformed),
        ("version 6 under IPv4's type", change(0, 0x65), malformed),
        ("total length below the header's", change(3, 19), malformed),
        ("total length that cuts the ports off", change(3, 27), malformed),
        ("total length beyond the frame", change(3, 37), malformed),
        ("total length 0 in an ordinary frame", change(3, 0), malformed),
        ("padded", padded, Shape::IP),
        ("cut off in the header", cut(19), malformed),
        ("cut off in the ports", cut(27), malformed),
        ("first fragment", fragment(0x2000, 17, &udp), Shape::IP),
        ("later fragment", fragment(0x2002, 17, &udp), Shape::LATER),
        ("last fragment", fragment(2, 17, &udp), Shape::LATER),
        ("first fragment that cuts UDP's header", fragment(0x2000, 17, &udp[..4]), Shape::bad(Drop::TINY)),
        ("first fragment that cuts TCP's header", fragment(0x2000, 6, &tcp_header()[..16]), Shape::bad(Drop::TINY)),
        ("first fragment that cuts TCP's options", fragment(0x2000, 6, &tcp_header()[..20]), Shape::bad(Drop::TINY)),
        ("first fragment with TCP's options", fragment(0x2000, 6, &tcp_header()), Shape::IP),
        ("first fragment that cuts SCTP's chunk", fragment(0x2000, 132, &udp[..12]), Shape::bad(Drop::TINY)),
        ("first fragment that cuts an echo", fragment(0x2000, 1, &[8, 0, 0, 0]), Shape::bad(Drop::TINY)),
        ("fragment of nothing", fragment(0x2002, 17, &[]), malformed),
        ("fragment that ends beyond the longest packet", fragment(0x1fff, 17, &udp), malformed),
        ("fragmented error", fragment(0x2000, 1, &[3, 4, 0, 0, 0, 0, 0, 0]), Shape::bad(Drop::FRAGMENT)),
    ]));
}

#[test]
fn ipv6_extension_headers_are_walked_to_a_bound() {
    let udp = udp();
    let frame = |next: u8, body: &[u8]| v6_frame(&v6(next, body));
    let chain =
        |length: usize| (0..length).fold((17_u8, udp.clone()), |(next, rest), _| (60, extension(next, 0, &rest)));
    let chained = |length: usize| {
        let (next, body) = chain(length);
        frame(next, &body)
    };
    let routing = |kind: u8, left: u8| {
        let mut header = extension(17, 2, &udp);
        header[2] = kind;
        header[3] = left;
        frame(43, &header)
    };
    let (malformed, tiny) = (Shape::bad(Drop::MALFORMED), Shape::bad(Drop::TINY));
    let too_much = Shape::bad(Drop::EXTENSION);
    let first = |body: &[u8], next: u8| frame(44, &fragment_header(next, 1, body));
    let mut lying = v6(60, &extension(17, 0, &udp));
    lying[41] = 3;
    let mut long = v6(17, &udp);
    long[5] += 1;
    let mut padded = v6_frame(&v6(17, &udp));
    padded.extend([0; 6]);
    let mut jumbo = v6(0, &extension(17, 0, &udp));
    jumbo[4..6].copy_from_slice(&[0, 0]);
    let mut huge = v6(0, &extension(17, 0, &udp));
    huge.resize(70_000, 0);
    huge[4..6].copy_from_slice(&[0, 0]);
    check(Vec::from([
        ("plain", frame(17, &udp), Shape::IP),
        ("padded", padded, Shape::IP),
        ("payload beyond the frame", v6_frame(&long), malformed),
        ("version 4 under IPv6's type", ethernet(0x86dd, &v4(17, &udp)), malformed),
        ("hop-by-hop options", frame(0, &extension(17, 1, &udp)), Shape::IP),
        ("hop-by-hop options second", frame(60, &extension(0, 0, &extension(17, 0, &udp))), too_much),
        ("destination options of 240 bytes", frame(60, &extension(17, 29, &udp)), Shape::IP),
        ("six extension headers", chained(6), Shape::IP),
        ("seven extension headers", chained(7), too_much),
        ("an option header that is longer than the packet", v6_frame(&lying), malformed),
        ("authentication header", frame(51, &extension(17, 1, &[&[0; 4][..], &udp[4..]].concat())), Shape::IP),
        ("a route at its end", routing(2, 0), Shape::IP),
        ("a route with a segment left", routing(2, 1), Shape::bad(Drop::SOURCE_ROUTE)),
        ("a segment route with a segment left", routing(4, 1), Shape::bad(Drop::SOURCE_ROUTE)),
        ("a route of type 0, at its end", routing(0, 0), Shape::bad(Drop::SOURCE_ROUTE)),
        ("ESP", frame(50, &udp), Shape::IP),
        ("no next header", frame(59, &udp), Shape::IP),
        ("no next header, and nothing", frame(59, &[]), Shape::IP),
        ("mobility", frame(135, &extension(59, 0, &[])), Shape::IP),
        ("HIP", frame(139, &extension(59, 0, &[])), Shape::IP),
        ("shim6", frame(140, &extension(17, 0, &udp)), Shape::IP),
        ("for experiments", frame(253, &udp), Shape::IP),
        ("payload length 0 in an ordinary frame", v6_frame(&jumbo), malformed),
        ("payload length 0 in a frame longer than 65,535", v6_frame(&huge), Shape::IP),
        ("atomic fragment", frame(44, &fragment_header(17, 0, &udp)), Shape::IP),
        ("first fragment", first(&udp, 17), Shape::IP),
        ("first fragment with 240 bytes of options", first(&extension(17, 29, &udp), 60), Shape::IP),
        ("first fragment that cuts the options", first(&extension(17, 3, &[])[..16], 60), tiny),
        ("first fragment without what the options announce", first(&extension(17, 0, &[]), 60), tiny),
        ("first fragment that cuts UDP's header", first(&udp[..4], 17), tiny),
        ("later fragment", frame(44, &fragment_header(17, 17, &udp)), Shape::LATER),
        ("later fragment behind options", frame(60, &extension(44, 0, &fragment_header(17, 16, &udp))), Shape::LATER),
        ("fragment in a fragment", first(&fragment_header(17, 1, &udp), 44), too_much),
        ("atomic fragment in a fragment", first(&fragment_header(17, 0, &udp), 44), too_much),
        ("fragmented solicitation", first(&[135, 0, 0, 0, 0, 0, 0, 0], 58), Shape::bad(Drop::FRAGMENT)),
    ]));
}

#[test]
fn what_stands_behind_a_walk_is_what_policy_asks_about() {
    let udp = udp();
    let rows: [(&str, Vec<u8>, u8); 8] = [
        ("options of IPv4", v4_frame(&v4_with(&[148, 4, 0, 0], 0, 17, &udp)), 17),
        ("first fragment of IPv4", v4_frame(&v4_with(&[], 0x2000, 17, &udp)), 17),
        ("destination options", v6_frame(&v6(60, &extension(17, 29, &udp))), 17),
        ("hop-by-hop, route, options", v6_frame(&v6(0, &extension(60, 0, &extension(17, 0, &udp)))), 17),
        ("first fragment", v6_frame(&v6(44, &fragment_header(17, 1, &udp))), 17),
        ("first fragment with options", v6_frame(&v6(44, &fragment_header(60, 1, &extension(17, 2, &udp)))), 17),
        ("atomic fragment", v6_frame(&v6(44, &fragment_header(6, 0, &tcp_header()))), 6),
        ("TCP behind options", v6_frame(&v6(60, &extension(6, 0, &tcp_header()))), 6),
    ];
    for (message, frame, protocol) in rows {
        let (shape, work) = read(&frame);
        let Headers { source_port, destination_port, policy_port, .. } = work.headers;
        assert_eq!((shape, work.headers.protocol), (Shape::IP, protocol), "{message}");
        assert_eq!((source_port, destination_port, policy_port), (40_000, 80, 80), "{message}");
    }
    let (_, work) = read(&v6_frame(&v6(44, &fragment_header(17, 1, &udp))));
    let Headers { datagram, begin, end, last, first_fragment, .. } = work.headers;
    assert_eq!((datagram, begin, end, last, first_fragment), (0x5678, 0, 16, false, true), "a first fragment");
    let (_, work) = read(&v4_frame(&v4_with(&[], 2, 17, &udp)));
    let Headers { datagram, begin, end, last, first_fragment, .. } = work.headers;
    assert_eq!((datagram, begin, end, last, first_fragment), (0x1234, 16, 32, true, false), "a last fragment");
}

#[test]
fn both_long_ways_read_the_same() {
    let icmp = |kind: u8| Vec::from([kind, 3, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let bodies = [(17, udp()), (6, tcp_header()), (132, tcp_header()), (1, icmp(8)), (58, icmp(128)), (58, icmp(136))];
    for (protocol, body) in bodies {
        for packet in [v4_frame(&v4(protocol, &body)), v6_frame(&v6(protocol, &body))] {
            for length in 14..=packet.len() {
                let frame = &packet[..length];
                let (mut long, mut rare) = (Headers::default(), Headers::default());
                let (shape, other) = (long.parse(&frame, 14), rare.parse_rare(&frame, 14, false));
                assert_eq!(shape, other, "{protocol}, {length} bytes");
                (rare.left, rare.rest, long.rest) = (0, 0, 0);
                assert!(shape != Shape::IP || long == rare, "{protocol}, {length} bytes: {long:?}, {rare:?}");
            }
        }
    }
}

#[test]
fn errors_quote_packets() {
    let quote_v4 = |quoted: &[u8], kind: u8| {
        let mut body = Vec::from([kind, 4, 0, 0, 0, 0, 5, 0x14]);
        body.extend(quoted);
        v4_frame(&v4(1, &body))
    };
    let quote_v6 = |quoted: &[u8], kind: u8| {
        let mut body = Vec::from([kind, 0, 0, 0, 0, 0, 5, 0]);
        body.extend(quoted);
        v6_frame(&v6(58, &body))
    };
    let redirect = |options: &[u8]| {
        let mut body = Vec::from([137, 0, 0, 0, 0, 0, 0, 0]);
        body.extend([0xfe; 32]);
        body.extend(options);
        v6_frame(&v6(58, &body))
    };
    let about = |quoted: &[u8], before: &[u8]| {
        let mut options = Vec::from(before);
        options.extend([4, 8, 0, 0, 0, 0, 0, 0]);
        options.extend(quoted);
        redirect(&options)
    };
    // A quote shows the whole packet's length, however much of it follows.
    let cut = |mut packet: Vec<u8>, kept: usize| {
        packet.truncate(kept);
        packet
    };
    let udp4 = cut(v4(17, &udp()), 28);
    let tcp6 = cut(v6(6, &tcp_header()), 48);
    let none = Headers::default();
    let ports = |headers: &Headers| (headers.protocol, headers.source_port, headers.destination_port);
    type Row = (&'static str, Vec<u8>, Shape, (u8, u16, u16));
    let rows: [Row; 16] = [
        ("packet too big for UDP", quote_v4(&udp4, 3), Shape::RELATED, (17, 40_000, 80)),
        ("source quench", quote_v4(&udp4, 4), Shape::RELATED, (17, 40_000, 80)),
        ("time exceeded", quote_v4(&udp4, 11), Shape::RELATED, (17, 40_000, 80)),
        ("parameter problem", quote_v4(&udp4, 12), Shape::RELATED, (17, 40_000, 80)),
        ("redirect", quote_v4(&udp4, 5), Shape::REDIRECT, (17, 40_000, 80)),
        (
            "with options",
            quote_v4(&cut(v4_with(&[7, 7, 4, 0, 0, 0, 0, 0], 0, 17, &udp()), 36), 3),
            Shape::RELATED,
            (17, 40_000, 80),
        ),
        (
            "about a first fragment",
            quote_v4(&cut(v4_with(&[], 0x2000, 17, &udp()), 28), 3),
            Shape::RELATED,
            (17, 40_000, 80),
        ),
        // RFC 1122 section 3.2.2: no error is ever about a later fragment.
        ("about a later fragment", quote_v4(&cut(v4_with(&[], 2, 17, &udp()), 28), 3), Shape::RELATED, ports(&none)),
        ("about an echo", quote_v4(&v4(1, &[8, 0, 0, 0, 0, 7, 0, 1]), 3), Shape::RELATED, (1, 7, 7)),
        ("without ports", quote_v4(&udp4[..27], 3), Shape::RELATED, ports(&none)),
        ("packet too big for TCP", quote_v6(&tcp6, 2), Shape::RELATED, (6, 40_000, 80)),
        ("parameter problem, IPv6", quote_v6(&tcp6, 4), Shape::RELATED, (6, 40_000, 80)),
        (
            "behind options",
            quote_v6(&cut(v6(60, &extension(6, 0, &tcp_header())), 56), 1),
            Shape::RELATED,
            (6, 40_000, 80),
        ),
        ("an IPv6 redirect about a packet", about(&tcp6, &[]), Shape::REDIRECT, (6, 40_000, 80)),
        ("an IPv6 redirect, second option", about(&tcp6, &[2, 1, 0, 0, 0, 0, 0, 0]), Shape::REDIRECT, (6, 40_000, 80)),
        ("an IPv6 redirect about nothing", redirect(&[2, 1, 0, 0, 0, 0, 0, 0]), Shape::REDIRECT, ports(&none)),
    ];
    for (message, frame, expected, quoted) in rows {
        let (shape, work) = read(&frame);
        assert_eq!((shape, ports(&work.quoted)), (expected, quoted), "{message}: {work:?}");
        let known = work.quoted != none;
        assert_eq!(known, quoted != ports(&none), "{message}: nothing is left of a quote that cannot be read");
        assert!(!work.quoted.opens, "{message}: what is quoted opens nothing");
    }
}

#[test]
fn what_is_not_ip_is_told_apart() {
    let arp = |hardware: u16, lengths: u16, operation: u16| {
        let mut body = Vec::from(hardware.to_be_bytes());
        body.extend([8, 0]);
        body.extend(lengths.to_be_bytes());
        body.extend(operation.to_be_bytes());
        body.extend([2, 0, 0, 0, 0, 1, 10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2]);
        ethernet(0x0806, &body)
    };
    let inner = v4(17, &udp());
    let tagged = |tags: &[u16]| {
        let mut body = Vec::new();
        tags[1..].iter().for_each(|tag| body.extend([[0, 5], tag.to_be_bytes()].concat()));
        body.extend([0, 5, 8, 0]);
        body.extend(&inner);
        ethernet(tags[0], &body)
    };
    let mut target = Vec::from([136, 0, 0, 0, 0x60, 0, 0, 0]);
    target.extend([0xfd; 16]);
    let (other, claim) = (Shape::bad(Drop::ETHERTYPE), Shape::bad(Drop::DISCOVERY));
    check(Vec::from([
        ("ARP", arp(1, 0x0604, 1), Shape::ARP),
        ("ARP that the kernel takes for Ethernet's", arp(6, 0x0604, 2), Shape::ARP),
        ("ARP of other hardware", arp(7, 0x0604, 2), claim),
        ("ARP of other lengths", arp(1, 0x0610, 2), claim),
        ("ARP cut off", arp(1, 0x0604, 1)[..30].into(), claim),
        ("VLAN", tagged(&[0x8100]), other),
        ("QinQ", tagged(&[0x88a8, 0x8100]), other),
        ("MPLS", ethernet(0x8847, &[&[0, 0, 0x11, 64][..], &inner].concat()), other),
        ("LLC", ethernet(30, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &inner].concat()), other),
        ("RARP", ethernet(0x8035, &[0; 28]), other),
        ("PPPoE", ethernet(0x8864, &[&[0x11, 0, 0, 0, 0, 38, 0, 0x21][..], &inner].concat()), other),
        ("a neighbour advertisement", v6_frame(&v6(58, &target)), Shape::DISCOVERY),
        ("a neighbour advertisement behind options", v6_frame(&v6(60, &extension(58, 0, &target))), Shape::DISCOVERY),
        ("a neighbour advertisement without target", v6_frame(&v6(58, &target[..8])), Shape::bad(Drop::MALFORMED)),
        ("a router advertisement", v6_frame(&v6(58, &[134, 0, 0, 0, 0, 0, 0, 0])), Shape::ROUTER),
        (
            "a router advertisement behind options",
            v6_frame(&v6(60, &extension(58, 0, &[134, 0, 0, 0, 0, 0, 0, 0]))),
            Shape::ROUTER,
        ),
        ("ICMP in IPv6", v6_frame(&v6(1, &[8, 0, 0, 0, 0, 0, 0, 0])), Shape::bad(Drop::MALFORMED)),
        ("ICMPv6 in IPv4", v4_frame(&v4(58, &[128, 0, 0, 0, 0, 0, 0, 0])), Shape::bad(Drop::MALFORMED)),
    ]));
    let (_, work) = read(&v6_frame(&v6(58, &target)));
    assert_eq!(work.headers.target.to_bytes(), [0xfd; 16], "an advertisement speaks for its target");
    assert_eq!(work.headers.source.to_bytes()[15], 1, "and has a source of its own");
}

#[test]
fn questions_and_answers_of_icmp_are_one_flow() {
    for (question, answer, v4) in
        [(8_u16, 0_u16, true), (13, 14, true), (15, 16, true), (17, 18, true), (128, 129, false)]
    {
        let message = |kind: u16| {
            let body = [kind as u8, 0, 0, 0, 0, 7, 0, 1];
            let frame = if v4 { v4_frame(&super::tests::v4(1, &body)) } else { v6_frame(&v6(58, &body)) };
            let (shape, work) = read(&frame);
            assert_eq!((shape, work.headers.source_port, work.headers.destination_port), (Shape::IP, 7, 7), "{kind}");
            work.headers
        };
        let (asks, answers) = (message(question), message(answer));
        assert_eq!((asks.policy_port, asks.opens), (question << 8, true), "{question} asks");
        assert_eq!((answers.answered_port(), answers.opens), (question << 8, false), "{answer} answers {question}");
    }
}

#[test]
fn the_short_way_reads_ipv6_as_the_long_one_does() {
    let rows = [
        ("TCP", v6(6, &tcp_header()), true),
        ("UDP", v6(17, &udp()), true),
        ("SCTP", v6(132, &tcp_header()), false),
        ("ICMPv6", v6(58, &[128, 0, 0, 0, 0, 7, 0, 1]), false),
        ("options before UDP", v6(60, &extension(17, 0, &udp())), false),
        ("a fragment", v6(44, &fragment_header(17, 1, &udp())), false),
        ("UDP's header cut off by the length", v6(17, &udp()[..7]), false),
        ("TCP's header cut off by the length", v6(6, &tcp_header()[..19]), false),
        ("IPv4", v4(17, &udp()), false),
    ];
    for (message, packet, usual) in rows {
        let whole = v6_frame(&packet);
        for length in 13..=whole.len() {
            let frame = &whole[..length];
            let mut short = Headers { protocol: 99, tcp_flags: 0xff, v4: false, opens: true, ..Headers::default() };
            let mut long = short;
            let (taken, shape) = (short.parse_usual(&frame, 14), long.parse(&frame, 14));
            assert!(!taken || shape == Shape::IP && short == long, "{message}, {length} bytes: {short:?}, {long:?}");
            assert!(taken == usual || length < whole.len(), "{message}");
        }
    }
}
