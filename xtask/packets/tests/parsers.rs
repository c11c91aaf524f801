//! Our parser and an independent one say the same of every frame, or the difference is explained in [`expected`] and
//! pinned here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use portcullis_common::packet::{Drop, Headers, Shape};
use portcullis_packets::{Parties, Recipe, agree, catalogue, ours};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn parties(v4: bool) -> Parties {
    let [from, to]: [IpAddr; 2] =
        if v4 { ["10.1.0.10", "10.2.0.20"] } else { ["fd00:1::a", "fd00:2::14"] }.map(|text| text.parse().unwrap());
    Parties { from, to, client: 40123, server: 80 }
}

#[test]
fn every_kind_of_packet_is_read_alike_whole_and_cut_at_every_byte() {
    for kind in catalogue() {
        for v4 in [true, false].into_iter().zip(kind.families).filter(|(_, has)| *has).map(|(v4, _)| v4) {
            let frame = kind.recipe.frame(&parties(v4));
            for length in (0..=frame.len()).rev() {
                let outcome = agree(&frame[..length]);
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
        let outcome = agree(&frame);
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
        let outcome = agree(&frame);
        prop_assert!(outcome.is_ok(), "{} with {:?}: {}", kinds[kind].name, changes, outcome.unwrap_err());
    });
}

/// A generator that makes only what is refused at once proves nothing.
#[test]
fn the_generator_makes_every_kind_often() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    let mut runner =
        TestRunner::new_with_rng(ProptestConfig::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let mut counts = std::collections::BTreeMap::<u32, usize>::new();
    let (mut quoted, mut usual) = (0, 0);
    for number in 0..20_000 {
        let seed = vec(any::<u8>(), 0..160).new_tree(&mut runner).unwrap().current();
        let frame = Recipe::random(&seed).frame(&parties(number % 2 == 0));
        let said = ours(&frame, 14);
        *counts.entry(said.shape).or_default() += 1;
        quoted += usize::from(said.quoted.is_some());
        usual += usize::from(Headers::default().parse_usual(&frame.as_slice(), 14));
    }
    for shape in [
        Shape::IP,
        Shape::ARP,
        Shape::DISCOVERY,
        Shape::ROUTER,
        Shape::LATER,
        Shape::RELATED,
        Shape::REDIRECT,
        Shape::bad(Drop::MALFORMED),
        Shape::bad(Drop::ETHERTYPE),
        Shape::bad(Drop::EXTENSION),
        Shape::bad(Drop::SOURCE_ROUTE),
        Shape::bad(Drop::TINY),
        Shape::bad(Drop::FRAGMENT),
        Shape::bad(Drop::DISCOVERY),
    ] {
        let count = counts.get(&shape.0).copied().unwrap_or(0);
        assert!(count >= 20, "{shape:?} was made {count} times of 20,000");
    }
    assert!(quoted > 200, "{quoted} errors quote something");
    assert!(usual > 1_000, "{usual} frames go the short way");
}
