//! The evaluator and `decide` over compiled tables give the same verdict by the same rule, for random clusters and packets.
//! The third judge, the loaded programs, is asked in `judges_live`.

#[path = "judges/compare.rs"]
mod compare;
#[path = "judges/documents.rs"]
mod documents;
#[path = "judges/hooks.rs"]
mod hooks;
#[path = "judges/journey.rs"]
mod journey;
#[path = "judges/oracle.rs"]
mod oracle;
#[path = "judges/packets.rs"]
mod packets;
#[path = "judges/world.rs"]
mod world;

use compare::{Court, judge_random_clusters};
use hooks::Memory;

#[test]
fn evaluator_and_tables_agree() {
    let judged = judge_random_clusters(Court::<Memory>::new(None), 1000);
    println!("{judged} packets were judged");
    assert!(judged >= 10_000, "only {judged} packets were judged");
}
