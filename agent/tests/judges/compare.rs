//! Holds judges against each other.

use std::cell::{Cell, RefCell};

use portcullis::state::Desired;
use portcullis_common::stamp::Stamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

use super::hooks::{Judge, Memory, Node};
use super::journey::{PacketSpec, Target, packet, travel};
use super::oracle::Oracle;
use super::sequences;
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
            other.own_node = spec.own_node;
            other.hold(desired.clone());
        }
        self.memory.own_node = spec.own_node;
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
            if let Some(other) = &mut self.other {
                other.forget();
                let theirs = travel(other, &journey);
                if theirs != (answer.clone(), departures.clone()) {
                    let ours = format!("{answer:?} {departures:?}");
                    return Err(format!(
                        "{packet:?}: {journey:?}\nthe tables in memory: {ours}\nthe programs: {theirs:?}"
                    ));
                }
            }
            // A packet without its stamp, or one that may have two fates, has no clear sequel; nor has what a pod sends to
            // itself, whose two sides are one endpoint's.
            let clear = right.len() == 1 && !journey.unstamped && journey.source_address != journey.arrives_at;
            let ends_here = journey.frontend.is_none() && world.node.addresses.contains(&journey.arrives_at);
            if clear && (journey.target != Target::Nowhere || ends_here) {
                let deferred = departures[0].fate.is_ok_and(Stamp::is_deferred);
                let denied_at_exit = deferred && oracle.denies_egress(&journey);
                if answer.dropped.is_none() || denied_at_exit {
                    let open = answer.dropped.is_none();
                    judged += sequences::follow(&mut self.memory, None::<&mut Node<J>>, &journey, open)
                        .map_err(|what| format!("{packet:?}: {what}"))?;
                }
            }
            judged += sequences::send_odd(&mut self.memory, None::<&mut Node<J>>, &journey, &packet.odd)
                .map_err(|what| format!("{packet:?}: {what}"))?;
        }
        Ok(judged)
    }
}

/// Runs so many cases, those first that failed before and were saved in a file.
pub(crate) fn saved(cases: u32, file: &'static str) -> TestRunner {
    let failure_persistence = Some(Box::new(FileFailurePersistence::Direct(file)) as Box<_>);
    TestRunner::new(ProptestConfig { cases, failure_persistence, ..ProptestConfig::default() })
}

/// Runs the same cases each time: whether a fault is met is no matter of luck.
pub(crate) fn repeatable(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Lets a court judge packets of random clusters. Gives how many there were.
pub(crate) fn judge_random_clusters<J: Judge>(court: Court<J>, clusters: u32) -> usize {
    let judged = Cell::new(0);
    let court = RefCell::new(court);
    let outcome = saved(clusters, "proptest-regressions/judges.txt").run(
        &(cluster(), vec(packet(), 1..=PACKETS)),
        |(spec, packets)| {
            match court.borrow_mut().compare(&spec, &packets) {
                Ok(count) => judged.set(judged.get() + count),
                Err(disagreement) => return Err(TestCaseError::fail(disagreement)),
            }
            Ok(())
        },
    );
    if let Err(error) = outcome {
        panic!("{error}");
    }
    judged.get()
}

/// Whether the evaluator and tables that were changed after they were compiled disagree about some packet of so many random
/// clusters.
pub(crate) fn find_disagreement(change: fn(&mut Desired), clusters: u32) -> bool {
    let court = RefCell::new(Court::<Memory>::new(None));
    let outcome = repeatable(clusters).run(&(cluster(), vec(packet(), 1..=PACKETS)), |(spec, packets)| {
        let world = World::of(&spec);
        let mut desired = world.compile();
        change(&mut desired);
        let mut court = court.borrow_mut();
        court.memory.own_node = spec.own_node;
        court.memory.hold(desired);
        court.hear(&world, &packets, true).map_err(TestCaseError::fail).map(drop)
    });
    outcome.is_err()
}
