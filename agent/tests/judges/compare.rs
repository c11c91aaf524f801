//! Holds judges against each other.

use std::cell::{Cell, RefCell};

use portcullis::state::Desired;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

use super::hooks::{Judge, Memory, Node};
use super::journey::{PacketSpec, packet, travel};
use super::oracle::Oracle;
use super::world::{ClusterSpec, World, cluster};

/// Packets for each cluster, at most.
const PACKETS: usize = 40;

/// The evaluator, and tables in memory, and tables of one more judge if there is one.
pub(crate) struct Court<J> {
    pub(crate) memory: Node<Memory>,
    pub(crate) other: Option<Node<J>>,
}

impl<J: Judge> Court<J> {
    pub(crate) fn new(other: Option<J>) -> Self {
        Self { memory: Node::new(Memory::default()), other: other.map(Node::new) }
    }

    /// Judges packets; gives how many took part, or what the judges disagree about.
    pub(crate) fn compare(&mut self, spec: &ClusterSpec, packets: &[PacketSpec]) -> Result<usize, String> {
        let world = World::of(spec);
        let desired = world.compile();
        if let Some(other) = &mut self.other {
            other.hold(desired.clone());
        }
        self.memory.hold(desired);
        self.hear(&world, packets, true).map_err(|disagreement| format!("{disagreement}\nin the cluster {spec:?}"))
    }

    /// Judges packets by tables as they are. `settled`: nothing is left in them that was kept for the way.
    pub(crate) fn hear(&mut self, world: &World, packets: &[PacketSpec], settled: bool) -> Result<usize, String> {
        let mut oracle = Oracle::new(world);
        oracle.settled = settled;
        let mut judged = 0;
        for packet in packets {
            let Some(journey) = world.journey(packet) else { continue };
            self.memory.forget();
            let (answer, departures) = travel(&mut self.memory, &journey);
            let right = oracle.answers(&journey);
            judged += 1;
            if !right.is_empty() && !right.contains(&answer) {
                return Err(format!("{packet:?}: {journey:?}\nthe evaluator: {right:?}\nthe tables: {answer:?}"));
            }
            let Some(other) = &mut self.other else { continue };
            other.forget();
            let theirs = travel(other, &journey);
            if theirs != (answer.clone(), departures.clone()) {
                let ours = format!("{answer:?} {departures:?}");
                return Err(format!("{packet:?}: {journey:?}\nthe tables in memory: {ours}\nthe programs: {theirs:?}"));
            }
        }
        Ok(judged)
    }
}

/// Lets a court judge packets of random clusters. Gives how many there were.
pub(crate) fn judge_random_clusters<J: Judge>(court: Court<J>, clusters: u32) -> usize {
    let judged = Cell::new(0);
    let court = RefCell::new(court);
    let config = ProptestConfig {
        cases: clusters,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/judges.txt"))),
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(&(cluster(), vec(packet(), 1..=PACKETS)), |(spec, packets)| {
        match court.borrow_mut().compare(&spec, &packets) {
            Ok(count) => judged.set(judged.get() + count),
            Err(disagreement) => return Err(TestCaseError::fail(disagreement)),
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    judged.get()
}

/// Whether the evaluator and tables that were changed after they were compiled disagree about some packet of so many random
/// clusters.
pub(crate) fn find_disagreement(change: fn(&mut Desired), clusters: u32) -> bool {
    let court = RefCell::new(Court::<Memory>::new(None));
    let config =
        ProptestConfig { cases: clusters, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() };
    // The same clusters each time: whether a fault is met is no matter of luck.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome =
        TestRunner::new_with_rng(config, rng).run(&(cluster(), vec(packet(), 1..=PACKETS)), |(spec, packets)| {
            let world = World::of(&spec);
            let mut desired = world.compile();
            change(&mut desired);
            let mut court = court.borrow_mut();
            court.memory.hold(desired);
            court.hear(&world, &packets, true).map_err(TestCaseError::fail).map(drop)
        });
    outcome.is_err()
}
