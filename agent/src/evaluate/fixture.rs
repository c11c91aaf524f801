//! Small clusters for tests, in the words of their manifests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Evaluator, NodeView, Party, PeerView};
use crate::index::Cluster;
use crate::model::{
    Action, Change, Decision, Direction, Family, Labels, Name, NamedPort, Namespace, NamespaceScope, Node, Object,
    Order, PeerAtom, PeerMatch, Pod, PodKey, Policy, PolicyId, PolicyKind, PortMatch, PortSpec, Protocol, Rule,
    RuleOrigin, Selector, Subject, Tier, TierDefault, Traffic, TrafficMatch, Verdict,
};

pub(crate) const TCP_80: Traffic = Traffic { protocol: Protocol::TCP, port: 80 };

pub(crate) fn tcp(port: u16) -> Traffic {
    Traffic { protocol: Protocol::TCP, port }
}

/// `ns/name`.
pub(crate) fn key(text: &str) -> PodKey {
    let (namespace, name) = text.split_once('/').expect("ns/name");
    Name::new(namespace, name)
}

/// `a=1,b=2`.
pub(crate) fn labels(text: &str) -> Labels {
    text.split(',').filter(|part| !part.is_empty()).map(|part| part.split_once('=').expect("key=value")).collect()
}

/// The labels of [`labels`], all wanted.
pub(crate) fn with(text: &str) -> Selector {
    Selector::All(labels(text).iter().map(|(label, value)| within(label, &[value])).collect())
}

pub(crate) fn within(label: &str, values: &[&str]) -> Selector {
    Selector::In(label.into(), values.iter().map(|value| Arc::from(*value)).collect())
}

pub(crate) fn not_within(label: &str, values: &[&str]) -> Selector {
    Selector::NotIn(label.into(), values.iter().map(|value| Arc::from(*value)).collect())
}

pub(crate) fn everything() -> Selector {
    Selector::everything()
}

/// A running pod on node `n1` with the label `pod: NAME`, an address of both families made of its name's bytes, and no
/// ports.
pub(crate) fn mk_pod(text: &str) -> Pod {
    let key = key(text);
    let byte = |part: &str| part.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let (namespace, name) = (byte(&key.namespace), byte(&key.name));
    Pod {
        uid: "".into(),
        labels: [("pod", Arc::clone(&key.name))].into_iter().collect(),
        addresses: vec![
            Ipv4Addr::new(10, 1, namespace, name).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, namespace.into(), name.into()).into(),
        ],
        node: Some("n1".into()),
        host_network: false,
        finished: false,
        ports: Vec::new(),
        key,
    }
}

pub(crate) fn port_named(name: &str, protocol: Protocol, number: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol, number }
}

/// A NetworkPolicy as its conversion leaves it: allow rules of the spec, then the implied ones.
pub(crate) fn mk_policy(text: &str, pods: Selector) -> PolicyBuilder {
    let Name { namespace, name } = key(text);
    PolicyBuilder(Policy {
        id: PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(namespace.clone()), name },
        tier: Tier::DEFAULT.into(),
        order: Tier::NETWORK_POLICY_ORDER,
        subject: Subject { namespaces: NamespaceScope::Named(namespace), pods },
        ingress: None,
        egress: None,
    })
}

pub(crate) struct PolicyBuilder(Policy);

impl PolicyBuilder {
    pub(crate) fn ingress(mut self, rules: Vec<Rule>) -> Self {
        self.0.ingress = Some(numbered(rules, vec![implied(RuleOrigin::Itself, PeerAtom::Itself)]));
        self
    }

    pub(crate) fn egress(mut self, rules: Vec<Rule>) -> Self {
        let itself = implied(RuleOrigin::Itself, PeerAtom::Itself);
        self.0.egress = Some(numbered(rules, vec![itself, implied(RuleOrigin::OwnNode, PeerAtom::OwnNode)]));
        self
    }

    /// Ingress rules with nothing implied, as kinds other than NetworkPolicy have them.
    pub(crate) fn bare_ingress(mut self, rules: Vec<Rule>) -> Self {
        self.0.ingress = Some(numbered(rules, Vec::new()));
        self
    }

    pub(crate) fn tier(mut self, tier: &str) -> Self {
        self.0.tier = tier.into();
        self
    }

    pub(crate) fn order(mut self, order: Option<f64>) -> Self {
        self.0.order = Order(order);
        self
    }

    pub(crate) fn done(self) -> Object {
        Object::Policy(self.0)
    }
}

fn numbered(rules: Vec<Rule>, implied: Vec<Rule>) -> Vec<Rule> {
    let numbered = (0..).zip(rules).map(|(index, rule)| Rule { origin: RuleOrigin::Spec(index), ..rule });
    numbered.chain(implied).collect()
}

fn implied(origin: RuleOrigin, peer: PeerAtom) -> Rule {
    Rule { origin, action: Action::Allow, peer: PeerMatch::Atom(peer), traffic: TrafficMatch::default() }
}

/// An allow rule: no peers means everybody, no ports everything.
pub(crate) fn allow(peers: Vec<PeerMatch>, ports: Vec<PortMatch>) -> Rule {
    act(Action::Allow, peers, ports)
}

pub(crate) fn act(action: Action, peers: Vec<PeerMatch>, ports: Vec<PortMatch>) -> Rule {
    let peer = if peers.is_empty() { PeerMatch::anyone() } else { PeerMatch::Any(peers) };
    let traffic = TrafficMatch { any_of: ports, none_of: Vec::new() };
    Rule { origin: RuleOrigin::Spec(0), action, peer, traffic }
}

/// `podSelector` alone, in a policy of this namespace.
pub(crate) fn pods_of(namespace: &str, pods: Selector) -> PeerMatch {
    PeerMatch::Atom(PeerAtom::Pods { namespaces: NamespaceScope::Named(namespace.into()), pods })
}

/// `namespaceSelector` with `podSelector`.
pub(crate) fn pods_in(namespaces: Selector, pods: Selector) -> PeerMatch {
    PeerMatch::Atom(PeerAtom::Pods { namespaces: NamespaceScope::Matching(namespaces), pods })
}

/// `namespaceSelector` by the label that every namespace has.
pub(crate) fn namespace_named(name: &str) -> Selector {
    within("kubernetes.io/metadata.name", &[name])
}

/// `ipBlock`.
pub(crate) fn block(cidr: &str, except: &[&str]) -> PeerMatch {
    let range = |text: &str| PeerMatch::Atom(PeerAtom::Cidr(text.parse().expect("CIDR")));
    let except = except.iter().map(|text| PeerMatch::Not(Box::new(range(text))));
    PeerMatch::All(std::iter::once(range(cidr)).chain(except).collect())
}

pub(crate) fn any_port(protocol: Protocol) -> PortMatch {
    PortMatch { protocol, port: PortSpec::Any }
}

pub(crate) fn port(protocol: Protocol, number: u16) -> PortMatch {
    ports(protocol, number, number)
}

pub(crate) fn ports(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch { protocol, port: PortSpec::Range(first, last) }
}

pub(crate) fn named(protocol: Protocol, name: &str) -> PortMatch {
    PortMatch { protocol, port: PortSpec::Named(name.into()) }
}

pub(crate) fn mk_namespace(name: &str, more: &str) -> Object {
    let own = labels(more);
    let labels = own.iter().chain([("kubernetes.io/metadata.name", name)]).map(|(key, value)| (key, Arc::from(value)));
    Object::Namespace(Namespace { name: name.into(), labels: labels.collect::<Labels>() })
}

pub(crate) fn mk_node(name: &str, addresses: &[&str]) -> Object {
    let addresses = addresses.iter().map(|address| ip(address)).collect();
    Object::Node(Node { name: name.into(), addresses, pod_cidrs: Vec::new() })
}

pub(crate) fn mk_tier(name: &str, order: Option<f64>, default: TierDefault) -> Object {
    Object::Tier(Tier { name: name.into(), order: Order(order), default })
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub(crate) fn mk_cluster(pods: impl IntoIterator<Item = Pod>, objects: impl IntoIterator<Item = Object>) -> Cluster {
    let mut cluster = Cluster::default();
    for object in pods.into_iter().map(Object::Pod).chain(objects) {
        cluster.apply(Change::Set(object));
    }
    cluster
}

/// Egress of the source and ingress of the destination, each `ns/pod` or an address, in the first family both have.
pub(crate) fn both_sides(cluster: &Cluster, from: &str, to: &str, traffic: Traffic) -> [Option<Decision>; 2] {
    let party = |text: &str| match text.parse() {
        Ok(address) => Party::Address(address),
        Err(_) => Party::Pod(&cluster.pods[&key(text)]),
    };
    let (from, to) = (party(from), party(to));
    let family = *from.families(&to).first().expect("a family that both have");
    side(cluster, from, to, traffic, family)
}

pub(crate) fn side(
    cluster: &Cluster,
    from: Party<'_>,
    to: Party<'_>,
    traffic: Traffic,
    family: Family,
) -> [Option<Decision>; 2] {
    let (evaluator, nodes) = (Evaluator::new(cluster), NodeView::of(cluster));
    let judge = |endpoint: Party<'_>, direction, other| {
        let pod = endpoint.pod()?;
        let view: PeerView<'_> = nodes.view(pod, direction, other, family);
        Some(evaluator.decide(pod, direction, &view, traffic))
    };
    [judge(from, Direction::Egress, to), judge(to, Direction::Ingress, from)]
}

/// Whether the connection passes both sides.
pub(crate) fn passes(cluster: &Cluster, from: &str, to: &str, traffic: Traffic) -> bool {
    both_sides(cluster, from, to, traffic).iter().flatten().all(|decision| decision.verdict == Verdict::Allow)
}

/// `allow no-policy`, `allow x/p#0`, `allow x/p#self`, `deny x/p`, `allow node`: a decision in few words.
pub(crate) fn brief(decision: &Decision) -> String {
    use crate::model::Cause;
    let verdict = if decision.verdict == Verdict::Allow { "allow" } else { "deny" };
    let policy = |id: &PolicyId| format!("{}/{}", id.namespace.as_deref().unwrap_or(""), id.name);
    let cause = match &decision.cause {
        Cause::NoPolicy => "no-policy".to_owned(),
        Cause::NodeProcess => "node".to_owned(),
        Cause::Isolation { policy: id } => policy(id),
        Cause::Rule { policy: id, origin } => match origin {
            RuleOrigin::Spec(index) => format!("{}#{index}", policy(id)),
            RuleOrigin::Itself => format!("{}#self", policy(id)),
            RuleOrigin::OwnNode => format!("{}#own-node", policy(id)),
        },
    };
    format!("{verdict} {cause}")
}

pub(crate) fn ingress(cluster: &Cluster, from: &str, to: &str, traffic: Traffic) -> String {
    both_sides(cluster, from, to, traffic)[1].as_ref().map(brief).expect("a pod")
}

pub(crate) fn egress(cluster: &Cluster, from: &str, to: &str, traffic: Traffic) -> String {
    both_sides(cluster, from, to, traffic)[0].as_ref().map(brief).expect("a pod")
}
