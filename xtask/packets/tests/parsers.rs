//! Our parser and an independent one say the same of every frame, or the difference is explained in [`expected`] and
//! pinned here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use portcullis_packets::{Parties, Recipe, agree, catalogue};
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
