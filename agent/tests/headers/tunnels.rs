//! What a pod wraps, and what is behind extension headers.

use portcullis_common::layout::{endpoint_flag, rule};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::{Ip, frame, udp};
use crate::world::{A, C, Hook, NODE, OUTSIDE, World, between};

#[test]
fn what_the_node_would_unwrap_is_dropped_whoever_sends_it() {
    for v4 in [true, false] {
        for pod in [A, C] {
            let mut world = World::new();
            world.tables.image.set_tunnels([8472, 0, 6081, 0]);
            for to in [OUTSIDE, NODE] {
                let ip = between(pod, to, v4);
                for protocol in [4, 41, 47] {
                    let outcome = world.at(Hook::FromPod(pod), Stamp::NONE, &frame(ip, protocol, &[0; 40]));
                    assert_eq!(outcome, Err(Drop::TUNNEL), "{protocol} from {pod}");
                }
                for port in [8472, 6081] {
                    world.counted();
                    let outcome = world.at(Hook::FromPod(pod), Stamp::NONE, &frame(ip, 17, &udp(40_000, port)));
                    assert_eq!(
                        (outcome, world.counted()),
                        (Err(Drop::TUNNEL), vec![rule::TUNNEL]),
                        "{port} from {pod}"
                    );
                }
                let other = world.at(Hook::FromPod(pod), Stamp::NONE, &frame(ip, 17, &udp(8472, 80)));
                assert!(other.is_ok(), "from a tunnel's port: {other:?}");
                let none = world.at(Hook::FromPod(C), Stamp::NONE, &frame(between(C, to, v4), 17, &udp(1, 0)));
                assert!(none.is_ok(), "port 0 is no tunnel's: {none:?}");
            }
            let to = between(C, OUTSIDE, v4);
            world.change(C, |row| row.flags = endpoint_flag::TUNNELS);
            for (protocol, body) in [(47, vec![0; 40]), (17, udp(40_000, 8472))] {
                let outcome = world.at(Hook::FromPod(C), Stamp::NONE, &frame(to, protocol, &body));
                assert!(outcome.is_ok(), "{protocol}, where that is allowed");
            }
        }
    }
}

#[test]
fn extension_headers_hide_no_port() {
    let extension = |next: u8, units: u8, rest: &[u8]| {
        let mut header = vec![next, units, 1, 4];
        header.resize(8 + 8 * usize::from(units), 0);
        [&header[..], rest].concat()
    };
    let ip = between(A, OUTSIDE, false);
    let options = |port: u16| frame(ip, 60, &extension(17, 29, &udp(40_000, port)));
    let six = |port: u16| {
        let (next, body) = (0..5).fold((17, udp(40_000, port)), |(next, rest), _| (60, extension(next, 0, &rest)));
        frame(ip, 0, &extension(next, 0, &body))
    };
    let seven = (0..7).fold((17, udp(40_000, 80)), |(next, rest), _| (60, extension(next, 0, &rest)));
    let route = |kind: u8, left: u8| {
        let mut header = extension(17, 2, &udp(40_000, 80));
        (header[2], header[3]) = (kind, left);
        frame(ip, 43, &header)
    };
    let mut routed = frame(between(A, OUTSIDE, true), 17, &udp(40_000, 80));
    routed[14] = 0x47;
    routed.splice(34..34, [131, 7, 4, 10, 0, 0, 1, 0]);
    let length = u16::try_from(routed.len() - 14).unwrap().to_be_bytes();
    routed[16..18].copy_from_slice(&length);
    let rows: [(&str, Vec<u8>, Option<Drop>); 13] = [
        ("an allowed port behind 240 bytes of options", options(80), None),
        ("a denied port behind them", options(81), Some(Drop::POLICY)),
        ("an allowed port behind six headers", six(80), None),
        ("a denied port behind them", six(81), Some(Drop::POLICY)),
        ("an allowed port behind seven headers", frame(ip, seven.0, &seven.1), Some(Drop::EXTENSION)),
        ("a route at its end", route(2, 0), None),
        ("a route that goes on", route(2, 1), Some(Drop::SOURCE_ROUTE)),
        ("a route of type 0", route(0, 0), Some(Drop::SOURCE_ROUTE)),
        ("an IPv4 source route", routed, Some(Drop::SOURCE_ROUTE)),
        ("ESP, which no rule with ports admits", frame(ip, 50, &[0; 24]), Some(Drop::POLICY)),
        ("no next header", frame(ip, 59, &[0; 24]), Some(Drop::POLICY)),
        ("mobility", frame(ip, 135, &[59, 0, 0, 0, 0, 0, 0, 0]), Some(Drop::POLICY)),
        ("shim6 around an allowed port", frame(ip, 140, &extension(17, 0, &udp(40_000, 80))), Some(Drop::POLICY)),
    ];
    for (message, frame, expected) in rows {
        let outcome = World::new().at(Hook::FromPod(A), Stamp::NONE, &frame);
        assert_eq!(outcome.err(), expected, "{message}");
    }
    let mut world = World::new();
    let forged = Ip::new(between(C, OUTSIDE, false).from, ip.to);
    let outcome = world.at(Hook::FromPod(A), Stamp::NONE, &frame(forged, 43, &extension(17, 2, &udp(1, 80))));
    assert_eq!(outcome, Err(Drop::SOURCE), "in another's name, whatever else is wrong with it");
}
