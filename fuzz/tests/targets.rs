//! The fuzz targets' assertions over the saved corpus and over random bytes, and proof that they can fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;

use portcullis_fuzz::{Breakage, decide, parse, try_decide};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn config(cases: u32) -> ProptestConfig {
    let file = FileFailurePersistence::Direct("proptest-regressions/targets.txt");
    ProptestConfig { cases, failure_persistence: Some(Box::new(file)), ..ProptestConfig::default() }
}

#[test]
fn the_corpus_holds() {
    corpus("parse").iter().for_each(|input| parse(input));
    corpus("decide").iter().for_each(|input| decide(input));
}

#[test]
fn random_bytes_hold_for_the_parser() {
    proptest!(config(10_000), |(data in vec(any::<u8>(), 0..200))| parse(&data));
}

#[test]
fn random_bytes_hold_for_the_decision() {
    proptest!(config(2_000), |(data in vec(any::<u8>(), 0..800))| {
        let outcome = try_decide(&data, Breakage::None);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    });
}

/// Whether some input of the corpus, or of so many random ones, shows that something is broken.
fn caught(breakage: Breakage) -> bool {
    if corpus("decide").iter().any(|input| try_decide(input, breakage).is_err()) {
        return true;
    }
    let config = ProptestConfig { failure_persistence: None, max_shrink_iters: 0, ..config(2_000) };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let run = runner.run(&vec(any::<u8>(), 0..800), |data| try_decide(&data, breakage).map_err(TestCaseError::fail));
    run.is_err()
}

#[test]
fn what_is_broken_on_purpose_is_caught() {
    for breakage in [
        Breakage::PassesMalformed,
        Breakage::PassesAnySource,
        Breakage::PassesExits,
        Breakage::Flaps,
        Breakage::RidesOnHistory,
        Breakage::PassesMiddles,
    ] {
        assert!(caught(breakage), "not caught: {breakage:?}");
    }
}
