//! The same decision with its reasons: every policy that applies, every rule of it, and what each one missed.

use std::sync::Arc;

use super::matching::{Question, declared_port, peer_matches, port_matches, traffic_matches};
use super::{Evaluator, PeerView, namespace_labels, namespace_matches};
use crate::model::{
    Action, Cause, Decision, Direction, Labels, NamespaceScope, PeerAtom, PeerMatch, Pod, PolicyId, PortMatch,
    PortSpec, Rule, Selector, Traffic, TrafficMatch,
};

/// Why one side of a connection is allowed or denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What [`Evaluator::decide`] says.
    pub decision: Decision,
    /// The policies that apply to the endpoint in this direction, in the order in which they are asked.
    pub policies: Vec<PolicyReport>,
    /// Policies that select the endpoint but do not govern this direction.
    pub silent: Vec<PolicyId>,
}

/// One policy that applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyReport {
    /// Its name.
    pub id: PolicyId,
    /// Its tier.
    pub tier: Arc<str>,
    /// Its rules in order.
    pub rules: Vec<RuleReport>,
}

/// One rule, and how it stands to the traffic. It matches if it missed nothing; whether it decided depends on the rules
/// before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleReport {
    /// The rule.
    pub rule: Rule,
    /// It is the one that decided.
    pub decided: bool,
    /// Why the other side is not one that it means.
    pub peer: Option<PeerMiss>,
    /// Why protocol and port are not ones that it means.
    pub traffic: Option<TrafficMiss>,
}

impl RuleReport {
    /// Whether the rule matches the traffic.
    #[must_use]
    pub const fn matches(&self) -> bool {
        self.peer.is_none() && self.traffic.is_none()
    }
}

/// Why a peer is not one that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMiss {
    /// It is none of these; one reason for each alternative. Empty where nobody is meant.
    Alternatives(Vec<PeerMiss>),
    /// It is one of those that are left out.
    LeftOut(PeerMatch),
    /// Pods are meant, and it is none that selectors can match: an outside address, or a pod on its node's network.
    NoPod,
    /// Its namespace is another than this.
    Namespace(Arc<str>),
    /// Labels of its namespace are missing.
    NamespaceLabels(LabelMiss),
    /// Labels of its own are missing.
    PodLabels(LabelMiss),
    /// Its address is not in this range; or it has no address.
    Outside(ipnet::IpNet),
    /// The endpoint itself is meant.
    NotItself,
    /// The endpoint's own node is meant.
    NotOwnNode,
}

/// The part of a selector that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMiss {
    /// The part.
    pub requirement: Selector,
    /// The label that it asks about, as it is; `None` if it is absent, or if the part asks about more than one.
    pub found: Option<Arc<str>>,
}

/// Why protocol and port are not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrafficMiss {
    /// None of the alternatives holds.
    Alternatives(Vec<PortMiss>),
    /// It is left out.
    LeftOut(PortMatch),
}

/// Why one entry of a port list does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMiss {
    /// The entry.
    pub wanted: PortMatch,
    /// What is wrong.
    pub reason: PortMissReason,
}

/// What is wrong with one entry of a port list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMissReason {
    /// It names another protocol.
    Protocol,
    /// It names other port numbers.
    Number,
    /// The destination declares the name as another number.
    DeclaredAs(u16),
    /// The destination declares no port of that name for the protocol.
    NotDeclared,
    /// The destination is no pod, so that no name can be looked up.
    NoPod,
}

impl Evaluator<'_> {
    /// Decides and says why, for one direction of one endpoint.
    #[must_use]
    pub fn explain(&self, endpoint: &Pod, direction: Direction, peer: &PeerView<'_>, traffic: Traffic) -> Explanation {
        let judge = self.judge(endpoint, direction);
        let decision = judge.decide(peer, traffic);
        let question = judge.question(peer, traffic);
        let policies = judge
            .tiers
            .iter()
            .flat_map(|tier| tier.policies.iter().map(move |(policy, rules)| (tier.name, *policy, *rules)))
            .map(|(tier, policy, rules)| PolicyReport {
                id: policy.id.clone(),
                tier: tier.into(),
                rules: rules.iter().map(|rule| report(&question, &policy.id, rule, &decision)).collect(),
            })
            .collect();
        let silent = self.silent(endpoint, direction).map(|policy| policy.id.clone()).collect();
        Explanation { decision, policies, silent }
    }
}

fn report(question: &Question<'_>, id: &PolicyId, rule: &Rule, decision: &Decision) -> RuleReport {
    let peer = (!peer_matches(question, &rule.peer)).then(|| peer_miss(question, &rule.peer));
    let traffic = (!traffic_matches(question, &rule.traffic)).then(|| traffic_miss(question, &rule.traffic));
    let named = matches!(&decision.cause, Cause::Rule { policy, origin } if policy == id && *origin == rule.origin);
    let decided = named && peer.is_none() && traffic.is_none() && matches!(rule.action, Action::Allow | Action::Deny);
    RuleReport { rule: rule.clone(), decided, peer, traffic }
}

/// Why a peer that does not match does not.
fn peer_miss(question: &Question<'_>, wanted: &PeerMatch) -> PeerMiss {
    match wanted {
        // The first part that fails is the reason; a part that holds is none.
        PeerMatch::All(parts) => parts
            .iter()
            .find(|part| !peer_matches(question, part))
            .map_or(PeerMiss::Alternatives(Vec::new()), |part| peer_miss(question, part)),
        PeerMatch::Any(parts) if parts.len() == 1 => peer_miss(question, &parts[0]),
        PeerMatch::Any(parts) => PeerMiss::Alternatives(parts.iter().map(|part| peer_miss(question, part)).collect()),
        PeerMatch::Not(part) => PeerMiss::LeftOut((**part).clone()),
        PeerMatch::Atom(PeerAtom::Pods { namespaces, pods }) => pod_miss(question, namespaces, pods),
        PeerMatch::Atom(PeerAtom::Cidr(range)) => PeerMiss::Outside(*range),
        PeerMatch::Atom(PeerAtom::Itself) => PeerMiss::NotItself,
        PeerMatch::Atom(PeerAtom::OwnNode) => PeerMiss::NotOwnNode,
    }
}

fn pod_miss(question: &Question<'_>, namespaces: &NamespaceScope, pods: &Selector) -> PeerMiss {
    let Some(pod) = question.peer.member() else { return PeerMiss::NoPod };
    let namespace = &pod.key.namespace;
    if namespace_matches(question.cluster, namespace, namespaces) {
        return PeerMiss::PodLabels(label_miss(pods, &pod.labels));
    }
    match namespaces {
        NamespaceScope::Named(wanted) => PeerMiss::Namespace(wanted.clone()),
        NamespaceScope::Matching(selector) => {
            PeerMiss::NamespaceLabels(label_miss(selector, &namespace_labels(question.cluster, namespace)))
        }
    }
}

/// The smallest part of a selector that explains why it does not hold.
fn label_miss(selector: &Selector, labels: &Labels) -> LabelMiss {
    let found = match selector {
        Selector::All(parts) => {
            return match parts.iter().find(|part| !part.matches(labels)) {
                Some(part) => label_miss(part, labels),
                None => LabelMiss { requirement: selector.clone(), found: None },
            };
        }
        Selector::Any(_) | Selector::Not(_) => None,
        Selector::In(key, _) | Selector::NotIn(key, _) | Selector::Exists(key) | Selector::DoesNotExist(key) => {
            labels.get(key).map(Into::into)
        }
    };
    LabelMiss { requirement: selector.clone(), found }
}

/// Why protocol and port that do not match do not.
fn traffic_miss(question: &Question<'_>, wanted: &TrafficMatch) -> TrafficMiss {
    match wanted.none_of.iter().find(|port| port_matches(question, port)) {
        Some(port) => TrafficMiss::LeftOut(port.clone()),
        None => TrafficMiss::Alternatives(
            wanted
                .any_of
                .iter()
                .map(|port| PortMiss { wanted: port.clone(), reason: port_miss(question, port) })
                .collect(),
        ),
    }
}

fn port_miss(question: &Question<'_>, wanted: &PortMatch) -> PortMissReason {
    match &wanted.port {
        _ if wanted.protocol != question.traffic.protocol => PortMissReason::Protocol,
        PortSpec::Any | PortSpec::Range(..) => PortMissReason::Number,
        PortSpec::Named(name) => match question.destination() {
            None => PortMissReason::NoPod,
            Some(pod) => declared_port(pod, name, wanted.protocol)
                .map_or(PortMissReason::NotDeclared, PortMissReason::DeclaredAs),
        },
    }
}
