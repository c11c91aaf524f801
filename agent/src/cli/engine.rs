//! Who decides.

mod tables;

use std::collections::BTreeMap;

pub use tables::TablesEngine;

use crate::evaluate::{Evaluator, Judge, PeerView};
use crate::index::Cluster;
use crate::model::{Decision, Direction, Pod, PodKey, Traffic};

/// Decides one side of a connection. All engines must agree, in the verdict and in what they name as its cause.
pub trait Engine {
    /// What is decided about traffic between a pod of the cluster and a peer, in one direction of the pod.
    fn decide(&self, endpoint: &Pod, direction: Direction, peer: &PeerView<'_>, traffic: Traffic) -> Decision;
}

/// Answers from the policies themselves. Finds the policies that apply to each pod once, not for each pair.
#[derive(Debug)]
pub struct EvaluatorEngine<'a> {
    evaluator: Evaluator<'a>,
    judges: BTreeMap<(&'a PodKey, Direction), Judge<'a, 'a>>,
}

impl<'a> EvaluatorEngine<'a> {
    /// For all pods of a cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        let evaluator = Evaluator::new(cluster);
        let judges = cluster
            .pods
            .values()
            .flat_map(|pod| [Direction::Ingress, Direction::Egress].map(|direction| (pod, direction)))
            .map(|(pod, direction)| ((&pod.key, direction), evaluator.judge(pod, direction)))
            .collect();
        Self { evaluator, judges }
    }
}

impl Engine for EvaluatorEngine<'_> {
    fn decide(&self, endpoint: &Pod, direction: Direction, peer: &PeerView<'_>, traffic: Traffic) -> Decision {
        match self.judges.get(&(&endpoint.key, direction)) {
            Some(judge) => judge.decide(peer, traffic),
            None => self.evaluator.decide(endpoint, direction, peer, traffic),
        }
    }
}
