//! Tiers, policies and rules.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::labels::Selector;
use super::traffic::TrafficMatch;

/// The pod's view of traffic, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The order of a tier or policy: ascending, "none given" last. Never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order(pub Option<f64>);

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        let value = |order: &Self| order.0.unwrap_or(f64::INFINITY);
        value(self).total_cmp(&value(other)).then(self.0.is_none().cmp(&other.0.is_none()))
    }
}

/// What happens to traffic that reaches the end of a tier in which some policy applies to the endpoint's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierDefault {
    /// It is denied, attributed to isolation by the first policy that applies.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A tier: its policies are asked before those of later tiers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// Unique.
    pub name: Arc<str>,
    /// Position among tiers; ties by name.
    pub order: Order,
    /// What ends it.
    pub default: TierDefault,
}

impl Tier {
    /// The tier of Kubernetes NetworkPolicies and of Calico policies that name none.
    pub const DEFAULT: &str = "default";
    /// The order of every NetworkPolicy within [`Tier::DEFAULT`] (Calico's choice, kept so that both kinds mix).
    pub const NETWORK_POLICY_ORDER: Order = Order(Some(1000.0));
    /// The order of [`Tier::DEFAULT`] among tiers (Calico's choice).
    pub const DEFAULT_ORDER: Order = Order(Some(1_000_000.0));
}

/// The API that a policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetworkPolicy => "NetworkPolicy",
        })
    }
}

/// Names one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// Its API.
    pub kind: PolicyKind,
    /// Its namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
}

impl PolicyId {
    /// `name/namespace/kind`: the string that breaks ties between policies of one tier and order.
    #[must_use]
    pub fn tie_break(&self) -> String {
        format!("{}/{}/{}", self.name, self.namespace.as_deref().unwrap_or(""), self.kind)
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub id: PolicyId,
    /// The tier it stands in. A tier that is not known counts after all that are, and ends with a denial: the policy's
    /// object may arrive before its tier's.
    pub tier: Arc<str>,
    /// Its position in the tier; ties by [`PolicyId::tie_break`].
    pub order: Order,
    /// The pods that it applies to.
    pub subject: Subject,
    /// Ingress rules in order; `None` where the policy does not govern ingress. `Some([])` isolates and allows nothing.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules, likewise.
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules for a direction, `None` where the policy does not govern it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl Policy {
    /// Takes away what is implied about the node where a pod runs: rules are asked about it like about any other peer.
    #[must_use]
    pub fn judging_own_node(mut self) -> Self {
        for rules in [&mut self.ingress, &mut self.egress].into_iter().flatten() {
            rules.retain(|rule| rule.origin != RuleOrigin::OwnNode);
        }
        self
    }
}

/// Which pods a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Of these namespaces.
    pub namespaces: NamespaceScope,
    /// With these labels.
    pub pods: Selector,
}

/// A set of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// The one of this name, whether or not its object is known.
    Named(Arc<str>),
    /// Those whose labels match. `Selector::everything()` is every namespace (of pods: nothing external).
    Matching(Selector),
}

/// What a rule does with traffic that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Let it go; final.
    Allow,
    /// Drop it; final.
    Deny,
    /// Leave it to the next tier.
    Pass,
    /// Note it and go on with the next rule.
    Log,
}

/// Where a rule came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleOrigin {
    /// The rule at this 0-based index in the policy's spec.
    Spec(u32),
    /// Implied by every NetworkPolicy: "a pod cannot block access to itself".
    Itself,
    /// Implied by every NetworkPolicy: traffic to the node where the pod runs is always allowed.
    OwnNode,
}

/// One rule: traffic that the peer *and* the ports match is treated as the action says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Where it came from.
    pub origin: RuleOrigin,
    /// What it does.
    pub action: Action,
    /// The other side: the source for ingress, the destination for egress.
    pub peer: PeerMatch,
    /// Protocols and ports.
    pub traffic: TrafficMatch,
}

/// What is asked of the other side. `All([])` is everybody, `Any([])` nobody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerMatch {
    /// Every part holds.
    All(Vec<PeerMatch>),
    /// At least one part holds.
    Any(Vec<PeerMatch>),
    /// The part does not hold.
    Not(Box<PeerMatch>),
    /// One question.
    Atom(PeerAtom),
}

impl PeerMatch {
    /// Everybody, inside and outside the cluster.
    #[must_use]
    pub const fn anyone() -> Self {
        Self::All(Vec::new())
    }
}

/// One question about a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerAtom {
    /// A pod of these namespaces with these labels. Host-network and finished pods are never matched.
    Pods {
        /// Its namespace.
        namespaces: NamespaceScope,
        /// Its labels.
        pods: Selector,
    },
    /// An address in this range, whoever has it. Host bits are zero.
    Cidr(IpNet),
    /// The endpoint that is judged itself.
    Itself,
    /// The node that the endpoint runs on, as a destination: an address in that node's local table that is no
    /// Service's address.
    OwnNode,
}
