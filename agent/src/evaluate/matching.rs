//! Whether one rule matches one question.

use super::{PeerView, namespace_matches};
use crate::index::Cluster;
use crate::model::{
    Direction, NamespaceScope, PeerAtom, PeerMatch, Pod, PortMatch, PortSpec, Protocol, Rule, Selector, Traffic,
    TrafficMatch,
};

/// What is asked: may this traffic pass between the endpoint and the peer?
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// Where namespaces' labels are found.
    pub cluster: &'q Cluster,
    /// The pod that is judged.
    pub endpoint: &'q Pod,
    /// Its view of the traffic.
    pub direction: Direction,
    /// The other side.
    pub peer: &'q PeerView<'q>,
    /// Protocol and port.
    pub traffic: Traffic,
}

impl<'q> Question<'q> {
    /// The pod that the traffic goes to, where it is one: the endpoint for ingress, the peer for egress. Named ports
    /// are looked up on it.
    #[must_use]
    pub fn destination(&self) -> Option<&'q Pod> {
        match self.direction {
            Direction::Ingress => Some(self.endpoint),
            Direction::Egress => self.peer.member(),
        }
    }
}

/// Whether both the peer and the ports of the rule match.
#[must_use]
pub fn rule_matches(question: &Question<'_>, rule: &Rule) -> bool {
    // The ports first, and labels before namespaces below: the cheaper question spares the dearer one.
    traffic_matches(question, &rule.traffic) && peer_matches(question, &rule.peer)
}

/// Whether the other side is one that is meant.
pub(super) fn peer_matches(question: &Question<'_>, wanted: &PeerMatch) -> bool {
    match wanted {
        PeerMatch::All(parts) => parts.iter().all(|part| peer_matches(question, part)),
        PeerMatch::Any(parts) => parts.iter().any(|part| peer_matches(question, part)),
        PeerMatch::Not(part) => !peer_matches(question, part),
        PeerMatch::Atom(atom) => atom_matches(question, atom),
    }
}

fn atom_matches(question: &Question<'_>, atom: &PeerAtom) -> bool {
    let peer = question.peer;
    match atom {
        PeerAtom::Pods { namespaces, pods } => {
            peer.member().is_some_and(|pod| pod_matches(question.cluster, pod, namespaces, pods))
        }
        PeerAtom::Cidr(range) => peer.address.is_some_and(|address| range.contains(&address)),
        PeerAtom::Itself => peer.itself,
        PeerAtom::OwnNode => question.direction == Direction::Egress && peer.own_node_destination,
    }
}

/// Whether a pod has these labels in one of these namespaces.
pub(super) fn pod_matches(cluster: &Cluster, pod: &Pod, namespaces: &NamespaceScope, pods: &Selector) -> bool {
    pods.matches(&pod.labels) && namespace_matches(cluster, &pod.key.namespace, namespaces)
}

/// Whether protocol and port are meant. Nothing named means everything, protocols without ports too.
pub(super) fn traffic_matches(question: &Question<'_>, wanted: &TrafficMatch) -> bool {
    let included = wanted.any_of.is_empty() || wanted.any_of.iter().any(|port| port_matches(question, port));
    included && !wanted.none_of.iter().any(|port| port_matches(question, port))
}

/// Whether one protocol with its ports is meant. A match that names TCP, UDP or SCTP never holds for ICMP or others.
pub(super) fn port_matches(question: &Question<'_>, wanted: &PortMatch) -> bool {
    let Traffic { protocol, port } = question.traffic;
    protocol == wanted.protocol
        && match &wanted.port {
            PortSpec::Any => true,
            PortSpec::Range(first, last) => (*first..=*last).contains(&port),
            PortSpec::Named(name) => {
                question.destination().and_then(|pod| declared_port(pod, name, protocol)) == Some(port)
            }
        }
}

/// The number that a pod declares under a name for a protocol. Ports without a name have none that could be meant.
pub(super) fn declared_port(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    pod.ports
        .iter()
        .find(|declared| !name.is_empty() && *declared.name == *name && declared.protocol == protocol)
        .map(|declared| declared.number)
}
