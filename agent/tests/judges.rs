//! The evaluator and `decide` over compiled tables give the same verdict by the same rule, for random clusters and packets.
//! The third judge, the loaded programs, is asked in `judges_live`.

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

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use hooks::{Memory, Node};
use journey::{PacketSpec, packet, travel};
use oracle::Oracle;
use world::{ClusterSpec, World, cluster};

/// Packets for each cluster, and clusters: what continuous integration judges is at least 10,000 packets.
const PACKETS: usize = 40;
const CLUSTERS: u32 = 1000;

/// Judges packets; gives how many took part, or what the judges disagree about.
fn compare(spec: &ClusterSpec, packets: &[PacketSpec]) -> Result<usize, String> {
    let world = World::of(spec);
    let oracle = Oracle::new(&world);
    let mut node = Node::new(Memory::default());
    node.hold(world.compile());
    let mut judged = 0;
    for packet in packets {
        let Some(journey) = world.journey(packet) else { continue };
        node.forget();
        let answer = travel(&mut node, &journey);
        let right = oracle.answers(&journey);
        if right.is_empty() {
            continue;
        }
        judged += 1;
        if !right.contains(&answer) {
            return Err(format!(
                "{packet:?}: {journey:?}\nthe evaluator: {right:?}\nthe tables: {answer:?}\nin the cluster {spec:?}"
            ));
        }
    }
    Ok(judged)
}

#[test]
fn evaluator_and_tables_agree() {
    let judged = AtomicUsize::new(0);
    let config = ProptestConfig {
        cases: CLUSTERS,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/judges.txt"))),
        ..ProptestConfig::default()
    };
    proptest!(config, |(spec in cluster(), packets in vec(packet(), 1..=PACKETS))| {
        match compare(&spec, &packets) {
            Ok(count) => drop(judged.fetch_add(count, Ordering::Relaxed)),
            Err(disagreement) => prop_assert!(false, "{}", disagreement),
        }
    });
    let judged = judged.into_inner();
    println!("{judged} packets were judged");
    assert!(judged >= 10_000, "only {judged} packets were judged");
}
