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
use portcullis::cli::{Engine, EvaluatorEngine, TablesEngine};
use portcullis::evaluate::{NodeView, Party};
use portcullis::model::{Direction, Protocol, Traffic};
use proptest::prelude::*;
use world::World;

#[test]
fn evaluator_and_tables_agree() {
    let judged = judge_random_clusters(Court::<Memory>::new(None), 1000);
    println!("{judged} packets were judged");
    assert!(judged >= 10_000, "only {judged} packets were judged");
}

/// The questions of `portcullis matrix`, answered by both of its engines.
#[test]
fn engines_of_the_matrix_agree() {
    let traffic =
        |protocol, ports: &[u16]| ports.iter().map(move |port| Traffic { protocol, port: *port }).collect::<Vec<_>>();
    let asked = [
        traffic(Protocol::TCP, &[53, 80, 90, 443, 8080]),
        traffic(Protocol::UDP, &[53, 80, 90]),
        traffic(Protocol::SCTP, &[80, 7000]),
    ]
    .concat();
    proptest!(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }, |(spec in world::cluster())| {
        let cluster = World::of(&spec).cluster;
        let (evaluator, tables) = (EvaluatorEngine::new(&cluster), TablesEngine::new(&cluster).unwrap());
        let nodes = NodeView::of(&cluster);
        // The matrix leaves finished pods out: their addresses may be others' already.
        let pods: Vec<_> = cluster.pods.values().filter(|pod| !pod.finished).collect();
        for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (*from, *to))) {
            for family in Party::Pod(from).families(&Party::Pod(to)) {
                let egress = nodes.view(from, Direction::Egress, Party::Pod(to), family);
                let ingress = nodes.view(to, Direction::Ingress, Party::Pod(from), family);
                for traffic in &asked {
                    for (pod, direction, view) in [(from, Direction::Egress, &egress), (to, Direction::Ingress, &ingress)] {
                        let ours = tables.decide(pod, direction, view, *traffic);
                        let right = evaluator.decide(pod, direction, view, *traffic);
                        prop_assert_eq!(ours, right, "{} of {} to {}, {} {:?}", direction, from.key, to.key, family, traffic);
                    }
                }
            }
        }
    });
}
