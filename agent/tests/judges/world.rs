//! A random cluster as one node sees it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers};
use portcullis::convert;
use portcullis::index::Cluster;
use portcullis::model::{
    Action, Change, NamespaceScope, Object, Order, PeerMatch, Policy, Rule, RuleOrigin, Tier, TierDefault,
};
use portcullis::state::LocalId;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::documents::{self, OWN_ADDRESSES, OWN_NODE};

/// A tier of a policy API that is not NetworkPolicy's.
#[derive(Clone, Debug)]
pub(crate) struct TierSpec {
    pub(crate) name: &'static str,
    pub(crate) order: Option<f64>,
    pub(crate) ends_with_denial: bool,
}

/// A policy in such a tier (or beside NetworkPolicies): a NetworkPolicy's rules, with other actions.
#[derive(Clone, Debug)]
pub(crate) struct TieredPolicy {
    pub(crate) document: Document,
    pub(crate) tier: &'static str,
    pub(crate) order: Option<f64>,
    /// The action of each rule in turn.
    pub(crate) actions: Vec<Action>,
    /// Every second peer is meant by not being it.
    pub(crate) negated: bool,
    /// The rules that NetworkPolicies imply stay: with the last action.
    pub(crate) implied: bool,
    /// Of all namespaces, not only its own.
    pub(crate) everywhere: bool,
}

/// A manifest; shown as one.
#[derive(Clone)]
pub(crate) struct Document(pub Value);

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A cluster by its manifests.
#[derive(Clone)]
pub(crate) struct ClusterSpec {
    pub(crate) documents: Vec<Document>,
    pub(crate) tiers: Vec<TierSpec>,
    pub(crate) tiered: Vec<TieredPolicy>,
    pub(crate) service_ranges: Vec<&'static str>,
    /// Policy judges what pods send to their node.
    pub(crate) own_node: bool,
}

/// Documents of a folder that `portcullis matrix` and `explain` read; what no manifest can say follows as comments.
impl fmt::Debug for ClusterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for document in &self.documents {
            writeln!(f, "---\n{document:?}")?;
        }
        for tier in &self.tiers {
            writeln!(f, "# {tier:?}")?;
        }
        for policy in &self.tiered {
            writeln!(f, "# {policy:?}")?;
        }
        writeln!(f, "# policy judges traffic to the own node: {}", self.own_node)?;
        writeln!(f, "# the tables are those of node {OWN_NODE}; service ranges: {:?}", self.service_ranges)
    }
}

pub(crate) fn tier() -> impl Strategy<Value = TierSpec> {
    (select(vec!["t1", "t2", "default"]), select(vec![Some(1.0), Some(2_000_000.0), None]), any::<bool>())
        .prop_map(|(name, order, ends_with_denial)| TierSpec { name, order, ends_with_denial })
}

pub(crate) fn tiered(number: usize) -> impl Strategy<Value = TieredPolicy> {
    let action = select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Pass, Action::Log]);
    (
        documents::policy(format!("t{number}")),
        select(vec!["t1", "t1", "t2", "default", "late"]),
        select(vec![Some(1.0), Some(1000.0), Some(2000.0), None]),
        vec(action, 1..=4),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(document, tier, order, actions, negated, implied, everywhere)| TieredPolicy {
            document: Document(document),
            tier,
            order,
            actions,
            negated,
            implied,
            everywhere,
        })
}

pub(crate) fn cluster() -> impl Strategy<Value = ClusterSpec> {
    let namespaces = Vec::from(["x", "y", "z"].map(|name| weighted(0.8, documents::namespace(name))));
    let pods = (2..=6_usize).prop_flat_map(|count| (0..count).map(documents::pod).collect::<Vec<_>>());
    let policies = (0..=5_usize)
        .prop_flat_map(|count| (0..count).map(|number| documents::policy(format!("n{number}"))).collect::<Vec<_>>());
    let services = (0..=2_usize).prop_flat_map(|count| (0..count).map(documents::service).collect::<Vec<_>>());
    let tiered = prop_oneof![
        3 => Just(Vec::new()).boxed(),
        2 => (1..=3_usize).prop_flat_map(|count| (0..count).map(tiered).collect::<Vec<_>>()).boxed(),
    ];
    let ranges = select(vec![vec![], vec!["10.96.0.0/16", "fd00:96::/112"]]);
    let own_node = proptest::bool::weighted(0.3);
    (namespaces, pods, policies, services, vec(tier(), 0..=2), tiered, ranges, own_node).prop_map(
        |(namespaces, pods, policies, services, tiers, tiered, service_ranges, own_node)| {
            let all =
                documents::nodes().into_iter().chain(namespaces.into_iter().flatten()).chain(pods).chain(policies);
            let documents = all.chain(services.into_iter().flatten()).map(Document).collect();
            ClusterSpec { documents, tiers, tiered, service_ranges, own_node }
        },
    )
}

fn parse<T: serde::de::DeserializeOwned>(document: &Value) -> T {
    serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"))
}

/// What a manifest means.
pub(crate) fn object(document: &Value) -> Option<Object> {
    let kind = document["kind"].as_str().unwrap();
    let refused = |refusals: Vec<convert::Invalid>| -> ! { panic!("{refusals:?}: {document}") };
    Some(match kind {
        "Pod" => Object::Pod(convert::pod(&parse(document)).unwrap_or_else(|e| refused(e)).value),
        "Namespace" => Object::Namespace(convert::namespace(&parse(document)).unwrap_or_else(|e| refused(e)).value),
        "Node" => Object::Node(convert::node(&parse(document)).unwrap_or_else(|e| refused(e)).value),
        "Service" => Object::Service(convert::service(&parse(document)).unwrap_or_else(|e| refused(e)).value),
        "EndpointSlice" => {
            Object::EndpointSlice(convert::endpoint_slice(&parse(document)).unwrap_or_else(|e| refused(e)).value?)
        }
        _ => Object::Policy(convert::network_policy(&parse(document)).unwrap_or_else(|e| refused(e)).value),
    })
}

impl TieredPolicy {
    pub(crate) fn policy(&self) -> Policy {
        let Some(Object::Policy(mut policy)) = object(&self.document.0) else { panic!("no policy") };
        policy.tier = self.tier.into();
        policy.order = Order(self.order);
        if self.everywhere {
            policy.subject.namespaces = NamespaceScope::Matching(portcullis::model::Selector::everything());
        }
        for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
            rules.retain(|rule| self.implied || matches!(rule.origin, RuleOrigin::Spec(_)));
            for (index, rule) in rules.iter_mut().enumerate() {
                self.change(index, rule);
            }
        }
        policy
    }

    fn change(&self, index: usize, rule: &mut Rule) {
        rule.action = self.actions[index % self.actions.len()];
        if self.negated && index % 2 == 1 {
            let peer = std::mem::replace(&mut rule.peer, PeerMatch::anyone());
            rule.peer = PeerMatch::Not(Box::new(peer));
        }
    }
}

impl TierSpec {
    pub(crate) fn tier(&self) -> Tier {
        let default = if self.ends_with_denial { TierDefault::Deny } else { TierDefault::Pass };
        Tier { name: self.name.into(), order: Order(self.order), default }
    }
}

/// What one node knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) node: NodeFacts,
    pub(crate) local: Vec<LocalPod>,
    /// Policy judges what pods send to their node.
    pub(crate) own_node: bool,
}

/// What a manifest's object means where policy judges traffic to the own node. Other kinds of policy, which imply nothing,
/// are made from the same manifests but not by this.
pub(crate) fn seen(object: Object, own_node: bool) -> Object {
    match object {
        Object::Policy(policy) if own_node => Object::Policy(policy.judging_own_node()),
        object => object,
    }
}

impl World {
    pub(crate) fn of(spec: &ClusterSpec) -> Self {
        let mut cluster = Cluster::default();
        let objects = spec.documents.iter().filter_map(|document| object(&document.0));
        let objects = objects.map(|object| seen(object, spec.own_node));
        let tiers = spec.tiers.iter().map(|tier| Object::Tier(tier.tier()));
        let policies = spec.tiered.iter().map(|policy| Object::Policy(policy.policy()));
        for object in objects.chain(tiers).chain(policies) {
            cluster.apply(Change::Set(object));
        }
        let ranges: Vec<IpNet> = spec.service_ranges.iter().map(|range| range.parse().unwrap()).collect();
        Self { own_node: spec.own_node, ..Self::seen(cluster, ranges) }
    }

    /// What the node knows of a cluster.
    pub(crate) fn seen(cluster: Cluster, service_ranges: Vec<IpNet>) -> Self {
        let addresses: BTreeSet<IpAddr> = OWN_ADDRESSES.map(|address| address.parse().unwrap()).into();
        let members = cluster.pods.values().filter(|pod| pod.is_member() && pod.node.as_deref() == Some(OWN_NODE));
        let local = members
            .map(|pod| LocalPod { id: LocalId { pod: pod.key.clone(), uid: pod.uid.clone() }, pod: Arc::clone(pod) })
            .collect();
        Self { local, node: NodeFacts { addresses, service_ranges }, cluster, own_node: false }
    }

    pub(crate) fn input(&self) -> Input<'_> {
        Input { cluster: &self.cluster, local: &self.local, node: &self.node }
    }

    /// The tables of this world, made from nothing.
    pub(crate) fn compile(&self) -> portcullis::state::Desired {
        let mut compiler = Compiler::new(Numbers::default(), std::collections::BTreeMap::new());
        compiler.compile(&self.input(), &Dirty::all()).clone()
    }
}
