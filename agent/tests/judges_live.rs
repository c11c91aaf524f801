//! The evaluator, `decide` over compiled tables and the loaded programs give the same verdict by the same rule, for random
//! clusters and packets. Needs root.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test, whose modules are shared with others that use other parts of them"
)]

#[path = "judges/compare.rs"]
mod compare;
#[path = "judges/documents.rs"]
mod documents;
#[path = "judges/hooks.rs"]
mod hooks;
#[path = "judges/journey.rs"]
mod journey;
#[path = "judges/kernel.rs"]
mod kernel;
#[path = "judges/oracle.rs"]
mod oracle;
#[path = "judges/packets.rs"]
mod packets;
#[path = "judges/sequences.rs"]
mod sequences;
#[path = "judges/updating.rs"]
mod updating;
#[path = "judges/world.rs"]
mod world;

use compare::{Court, judge_random_clusters};
use kernel::Programs;
use updating::follow_random_streams;

#[test]
fn three_judges_agree() {
    let clusters = clusters(150);
    let judged = judge_random_clusters(Court::new(Some(Programs::load())), clusters);
    println!("judged {judged} packets of {clusters} clusters");
    assert!(judged >= 6 * clusters as usize, "only {judged} packets of {clusters} clusters were judged");
}

/// How many random clusters: fewer where the machine is emulated.
fn clusters(usual: u32) -> u32 {
    let chosen = std::env::var("PORTCULLIS_CLUSTERS").ok();
    chosen.map_or(usual, |chosen| chosen.parse().expect("PORTCULLIS_CLUSTERS is a number"))
}

#[test]
fn at_every_step_the_programs_give_the_old_verdict_or_the_new() {
    let judged = follow_random_streams(Programs::load(), 12, 4, 12);
    println!("{judged} packets were judged between steps");
    assert!(judged > 1_000, "only {judged} packets were judged between steps");
}
