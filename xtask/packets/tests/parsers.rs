//! Our parser and an independent one say the same of every frame, or the difference is explained in [`expected`] and
//! pinned here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use portcullis_common::packet::{Drop, Headers, Shape};
use portcullis_packets::reading::{Reading, reading};
use portcullis_packets::{Parties, Recipe, catalogue, expected};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn parties(v4: bool) -> Parties {
    let [from, to]: [IpAddr; 2] =
        if v4 { ["10.1.0.10", "10.2.0.20"] } else { ["fd00:1::a", "fd00:2::14"] }.map(|text| text.parse().unwrap());
    Parties { from, to, client: 40123, server: 80 }
}

/// What our parser says, of which only what the shape makes known counts.
fn ours(frame: &[u8], link: usize) -> (Shape, Headers) {
    let mut headers = Headers { protocol: 99, tcp_flags: 0xff, opens: true, ..Headers::default() };
    let shape = headers.parse(&frame, link);
    (shape, headers)
}

/// What is left of headers if the shape makes only some of them known.
fn known((shape, headers): (Shape, Headers)) -> (Shape, Headers) {
    let Headers { source, destination, v4, .. } = headers;
    match shape {
        Shape::IP | Shape::ARP | Shape::DISCOVERY | Shape::ROUTER => (shape, headers),
        Shape::FRAGMENT | Shape::EXTENSION => (shape, Headers { source, destination, v4, ..Headers::default() }),
        _ => (shape, Headers::default()),
    }
}

/// The differences that are left, each with its reason.
fn explained(frame: &[u8], link: usize, ours: Shape, theirs: Shape) -> bool {
    let judged = |shape: Shape| matches!(shape, Shape::IP | Shape::ARP | Shape::DISCOVERY | Shape::ROUTER);
    // Both refuse it, one for its extension headers, the other because they are cut off.
    let both_refuse = !judged(ours) && !judged(theirs) && matches!(reading(frame, link), Reading::Ip(_));
    // Options that the frame cuts off: a protocol without ports is judged by its number, and the kernel drops the packet.
    let options = frame.get(link).is_some_and(|first| (0x46..=0x4f).contains(first));
    let portless = ours == Shape::IP && theirs == Shape(Drop::MALFORMED.0) && options;
    // ARP cut off behind the sender's address, which is all that is asked; the receiver drops it.
    let arp = ours == Shape::ARP && frame.len() < link + 28;
    both_refuse || portless || arp
}

fn compare(frame: &[u8]) -> Result<(), String> {
    for (frame, link) in [(frame, 14), (frame.get(14..).unwrap_or_default(), 0)] {
        let (ours, theirs) = (known(ours(frame, link)), known(expected(frame, link)));
        if ours != theirs && !explained(frame, link, ours.0, theirs.0) {
            return Err(format!("link {link}: ours {ours:?}\ntheirs {theirs:?}\nframe {frame:02x?}"));
        }
        let mut short = Headers { protocol: 99, tcp_flags: 0xff, opens: true, ..Headers::default() };
        if short.parse_usual(&frame, link) && (Shape::IP, short) != (ours.0, ours.1) {
            return Err(format!("link {link}: the short way {short:?}\nthe long one {ours:?}\nframe {frame:02x?}"));
        }
    }
    Ok(())
}

#[test]
fn every_kind_of_packet_is_read_alike_whole_and_cut_at_every_byte() {
    for kind in catalogue() {
        for v4 in [true, false].into_iter().zip(kind.families).filter(|(_, has)| *has).map(|(v4, _)| v4) {
            let frame = kind.recipe.frame(&parties(v4));
            for length in (0..=frame.len()).rev() {
                let outcome = compare(&frame[..length]);
                assert!(outcome.is_ok(), "{}, IPv4 {v4}, {length} bytes: {}", kind.name, outcome.unwrap_err());
            }
        }
    }
}

#[test]
fn random_packets_are_read_alike() {
    let config = ProptestConfig {
        cases: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/parsers.txt"))),
        ..ProptestConfig::default()
    };
    proptest!(config, |(v4: bool, seed in vec(any::<u8>(), 0..160), cut in proptest::option::weighted(0.2, 0..200_usize))| {
        let recipe = Recipe::random(&seed);
        let mut frame = recipe.frame(&parties(v4));
        frame.truncate(cut.unwrap_or(usize::MAX));
        let outcome = compare(&frame);
        prop_assert!(outcome.is_ok(), "{:?}: {}", recipe, outcome.unwrap_err());
    });
}

/// Bytes that no generator thought of: a valid frame with some of them changed.
#[test]
fn corrupted_packets_are_read_alike() {
    let config = ProptestConfig {
        cases: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/parsers.txt"))),
        ..ProptestConfig::default()
    };
    let kinds = catalogue();
    let changes = vec((0..120_usize, any::<u8>()), 1..=6);
    proptest!(config, |(v4: bool, kind in 0..kinds.len(), changes in changes)| {
        let mut frame = kinds[kind].recipe.frame(&parties(v4));
        for (place, byte) in &changes {
            if let Some(there) = frame.get_mut(*place) {
                *there = *byte;
            }
        }
        let outcome = compare(&frame);
        prop_assert!(outcome.is_ok(), "{} with {:?}: {}", kinds[kind].name, changes, outcome.unwrap_err());
    });
}
