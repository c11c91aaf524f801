//! The oracle: what the policy APIs say about one connection, read off the model directly.
//!
//! It shares nothing with `compile` and is written to be obviously right: every question walks tiers, policies and
//! rules in their order. Tests hold the compiled tables and the BPF programs against it; `matrix` and `explain` answer
//! from it.
//!
//! A connection is judged once for each side: egress of the source and ingress of the destination. It passes when both
//! allow it. Replies are not judged: they belong to the connection that was allowed.

mod explain;
#[cfg(test)]
pub(crate) mod fixture;
mod matching;
mod peer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use explain::{Explanation, LabelMiss, PeerMiss, PolicyReport, PortMiss, PortMissReason, RuleReport, TrafficMiss};
pub use matching::{Question, rule_matches};
pub use peer::{NodeView, Party, PeerView};

use crate::index::Cluster;
use crate::model::{
    Action, Cause, Decision, Direction, Labels, NamespaceScope, Order, Pod, Policy, Rule, Tier, TierDefault, Traffic,
    Verdict,
};

/// Reads a cluster's policies in the order in which they count.
#[derive(Clone, Debug)]
pub struct Evaluator<'a> {
    cluster: &'a Cluster,
    tiers: Vec<OrderedTier<'a>>,
}

/// A tier with the policies that stand in it, first one first.
#[derive(Clone, Debug)]
struct OrderedTier<'a> {
    name: &'a str,
    default: TierDefault,
    policies: Vec<&'a Policy>,
}

impl<'a> Evaluator<'a> {
    /// Puts the cluster's tiers and policies in order.
    ///
    /// The tier [`Tier::DEFAULT`] is always there, as Kubernetes' own policies need it, whatever a source says of it. A
    /// policy that names a tier that is not known (its object may be late or gone) still isolates: its tier comes after
    /// all known ones and ends with a denial.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        let mut policies: BTreeMap<&'a str, Vec<&'a Policy>> = BTreeMap::new();
        for policy in cluster.policies.values() {
            policies.entry(&policy.tier).or_default().push(policy);
        }
        let mut tiers: Vec<(bool, Order, OrderedTier<'a>)> = policies
            .into_iter()
            .map(|(name, mut policies)| {
                policies.sort_by_cached_key(|policy| (policy.order, policy.id.tie_break()));
                let (unknown, order, default) = match cluster.tiers.get(name) {
                    _ if name == Tier::DEFAULT => (false, Tier::DEFAULT_ORDER, TierDefault::Deny),
                    Some(tier) => (false, tier.order, tier.default),
                    None => (true, Order(None), TierDefault::Deny),
                };
                (unknown, order, OrderedTier { name, default, policies })
            })
            .collect();
        tiers.sort_by_key(|(unknown, order, tier)| (*unknown, *order, tier.name));
        Self { cluster, tiers: tiers.into_iter().map(|(_, _, tier)| tier).collect() }
    }

    /// What is decided about traffic between an endpoint and a peer, in one direction of the endpoint.
    #[must_use]
    pub fn decide(&self, endpoint: &Pod, direction: Direction, peer: &PeerView<'_>, traffic: Traffic) -> Decision {
        self.judge(endpoint, direction).decide(peer, traffic)
    }

    /// Finds the policies that apply to an endpoint in one direction, to answer many questions about it.
    #[must_use]
    pub fn judge<'e>(&self, endpoint: &'e Pod, direction: Direction) -> Judge<'a, 'e> {
        let tiers = self
            .tiers
            .iter()
            .map(|tier| JudgedTier {
                name: tier.name,
                default: tier.default,
                policies: tier
                    .policies
                    .iter()
                    .filter(|policy| self.applies(policy, endpoint))
                    .filter_map(|policy| Some((*policy, policy.rules(direction)?)))
                    .collect(),
            })
            .collect();
        Judge { cluster: self.cluster, endpoint, direction, tiers }
    }

    /// Policies that select the endpoint and leave this direction alone, in order.
    fn silent(&self, endpoint: &Pod, direction: Direction) -> impl Iterator<Item = &'a Policy> {
        self.tiers
            .iter()
            .flat_map(|tier| tier.policies.iter().copied())
            .filter(move |policy| policy.rules(direction).is_none() && self.applies(policy, endpoint))
    }

    /// Whether the policy's subject selects the pod. Host-network and finished pods are never selected.
    fn applies(&self, policy: &Policy, endpoint: &Pod) -> bool {
        endpoint.is_member()
            && matching::pod_matches(self.cluster, endpoint, &policy.subject.namespaces, &policy.subject.pods)
    }
}

/// The policies that apply to one endpoint in one direction.
#[derive(Clone, Debug)]
pub struct Judge<'a, 'e> {
    cluster: &'a Cluster,
    endpoint: &'e Pod,
    direction: Direction,
    tiers: Vec<JudgedTier<'a>>,
}

#[derive(Clone, Debug)]
struct JudgedTier<'a> {
    name: &'a str,
    default: TierDefault,
    policies: Vec<(&'a Policy, &'a [Rule])>,
}

impl<'a> Judge<'a, '_> {
    /// What is decided about traffic with this peer.
    ///
    /// Tiers in order; in each the policies in order; in each the rules in order; the first that matches decides. A
    /// rule with [`Action::Log`] decides nothing, one with [`Action::Pass`] leaves the tier. A tier in which no policy
    /// applies to the endpoint in this direction is not asked, nor does its end count. What no tier decides is allowed.
    #[must_use]
    pub fn decide(&self, peer: &PeerView<'_>, traffic: Traffic) -> Decision {
        if let Some(decision) = self.before_all_tiers(peer) {
            return decision;
        }
        let question = self.question(peer, traffic);
        for tier in &self.tiers {
            match first_match(tier, &question) {
                Some((policy, rule)) if rule.action != Action::Pass => {
                    let verdict = if rule.action == Action::Allow { Verdict::Allow } else { Verdict::Deny };
                    return Decision { verdict, cause: Cause::Rule { policy: policy.id.clone(), origin: rule.origin } };
                }
                Some(_passed) => {}
                None if tier.default == TierDefault::Pass => {}
                None => {
                    // A tier in which no policy applies does not count.
                    if let Some((policy, _)) = tier.policies.first() {
                        return Decision {
                            verdict: Verdict::Deny,
                            cause: Cause::Isolation { policy: policy.id.clone() },
                        };
                    }
                }
            }
        }
        Decision { verdict: Verdict::Allow, cause: Cause::NoPolicy }
    }

    /// "the only allowed connections into the pod are those from the pod's node and those allowed by the ingress list"
    /// (NetworkPolicySpec.ingress): the node's own processes come before every policy, kubelet's probes among them.
    /// Pods that no policy can select have no node of their own to be let in from.
    fn before_all_tiers(&self, peer: &PeerView<'_>) -> Option<Decision> {
        (self.endpoint.is_member() && self.direction == Direction::Ingress && peer.node_process_of_own_node)
            .then_some(Decision { verdict: Verdict::Allow, cause: Cause::NodeProcess })
    }

    fn question<'q>(&'q self, peer: &'q PeerView<'q>, traffic: Traffic) -> Question<'q> {
        Question { cluster: self.cluster, endpoint: self.endpoint, direction: self.direction, peer, traffic }
    }
}

/// The first rule of a tier that says something final about the tier: allow, deny or pass.
fn first_match<'a>(tier: &JudgedTier<'a>, question: &Question<'_>) -> Option<(&'a Policy, &'a Rule)> {
    tier.policies
        .iter()
        .flat_map(|(policy, rules)| rules.iter().map(move |rule| (*policy, rule)))
        .find(|(_, rule)| rule.action != Action::Log && rule_matches(question, rule))
}

/// Whether a namespace is in the scope. One without an object has only the label that API servers give to every
/// namespace, `kubernetes.io/metadata.name`.
fn namespace_matches(cluster: &Cluster, name: &Arc<str>, scope: &NamespaceScope) -> bool {
    match scope {
        NamespaceScope::Named(wanted) => wanted == name,
        NamespaceScope::Matching(selector) => selector.matches(&namespace_labels(cluster, name)),
    }
}

fn namespace_labels(cluster: &Cluster, name: &Arc<str>) -> Labels {
    match cluster.namespaces.get(name) {
        Some(namespace) => namespace.labels.clone(),
        None => [("kubernetes.io/metadata.name", Arc::clone(name))].into_iter().collect(),
    }
}
