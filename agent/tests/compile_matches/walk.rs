//! A direct walk over the rules, written from the meaning of the model alone.

use std::net::IpAddr;

use portcullis::compile::{LocalPod, NodeFacts};
use portcullis::index::Cluster;
use portcullis::model::{
    Action, Backend, Direction, Family, Labels, NamespaceScope, Order, PeerAtom, PeerMatch, Pod, Policy, PolicyId,
    PortMatch, PortSpec, Protocol, Rule, Service, ServicePort, TargetPort, Tier, TierDefault, Traffic, Verdict,
};
use portcullis::state::{RuleCause, RuleIdentity};

/// Everything that decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) local: Vec<LocalPod>,
    pub(crate) node: NodeFacts,
}

/// A verdict and what decided; `None`: no policy.
pub(crate) type Judgement = (Verdict, Option<RuleIdentity>);

impl World {
    fn namespace_labels(&self, name: &str) -> Labels {
        match self.cluster.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => Labels::from_iter([("kubernetes.io/metadata.name", name)]),
        }
    }

    fn in_scope(&self, namespace: &str, scope: &NamespaceScope) -> bool {
        match scope {
            NamespaceScope::Named(name) => **name == *namespace,
            NamespaceScope::Matching(selector) => selector.matches(&self.namespace_labels(namespace)),
        }
    }

    /// The pod that an address is taken to be of.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let members = self.cluster.pods.values().filter(|pod| !pod.host_network && !pod.finished);
        let claiming = members.filter(|pod| pod.addresses.contains(&address));
        claiming.max_by_key(|pod| (pod.uid.clone(), pod.key.clone())).map(AsRef::as_ref)
    }

    pub(crate) fn is_service_address(&self, address: IpAddr) -> bool {
        let services = self.cluster.services.values();
        services.flat_map(|service| service.cluster_ips.iter().chain(&service.external_ips)).any(|ip| *ip == address)
    }

    pub(crate) fn is_own_node(&self, address: IpAddr) -> bool {
        self.node.addresses.contains(&address)
    }

    pub(crate) fn is_translatable(&self, address: IpAddr) -> bool {
        self.node.addresses.contains(&address)
            || self.is_service_address(address)
            || self.node.service_ranges.iter().any(|range| range.contains(&address))
    }

    fn peer_matches(&self, peer: &PeerMatch, address: IpAddr, endpoint: &Pod) -> bool {
        match peer {
            PeerMatch::All(parts) => parts.iter().all(|part| self.peer_matches(part, address, endpoint)),
            PeerMatch::Any(parts) => parts.iter().any(|part| self.peer_matches(part, address, endpoint)),
            PeerMatch::Not(part) => !self.peer_matches(part, address, endpoint),
            PeerMatch::Atom(PeerAtom::Pods { namespaces, pods }) => self
                .pod_at(address)
                .is_some_and(|pod| self.in_scope(&pod.key.namespace, namespaces) && pods.matches(&pod.labels)),
            PeerMatch::Atom(PeerAtom::Cidr(net)) => net.contains(&address),
            PeerMatch::Atom(PeerAtom::Itself) => endpoint.addresses.contains(&address),
            PeerMatch::Atom(PeerAtom::OwnNode) => self.is_own_node(address),
        }
    }

    fn port_matches(&self, asked: &PortMatch, traffic: Traffic, destination: Option<&Pod>) -> bool {
        asked.protocol == traffic.protocol
            && match &asked.port {
                PortSpec::Any => true,
                PortSpec::Range(first, last) => (*first..=*last).contains(&traffic.port),
                PortSpec::Named(name) => destination.is_some_and(|pod| {
                    let mut ports = pod.ports.iter();
                    ports.any(|port| {
                        port.name == *name && port.protocol == traffic.protocol && port.number == traffic.port
                    })
                }),
            }
    }

    fn rule_matches(&self, rule: &Rule, direction: Direction, endpoint: &Pod, peer: IpAddr, traffic: Traffic) -> bool {
        let destination = match direction {
            Direction::Ingress => Some(endpoint),
            Direction::Egress => self.pod_at(peer),
        };
        let holds = |asked: &PortMatch| self.port_matches(asked, traffic, destination);
        let TrafficMatch { any_of, none_of } = &rule.traffic;
        self.peer_matches(&rule.peer, peer, endpoint)
            && (any_of.is_empty() || any_of.iter().any(holds))
            && !none_of.iter().any(holds)
    }

    /// Known tiers come before unknown ones; nothing changes the built-in one.
    fn tier(&self, name: &str) -> ((bool, Order), TierDefault) {
        match self.cluster.tiers.get(name) {
            _ if name == Tier::DEFAULT => ((false, Tier::DEFAULT_ORDER), TierDefault::Deny),
            Some(tier) => ((false, tier.order), tier.default),
            None => ((true, Order(None)), TierDefault::Deny),
        }
    }

    /// The policies that govern an endpoint in a direction, in order.
    fn governing(&self, endpoint: &Pod, direction: Direction) -> Vec<&Policy> {
        let mut policies: Vec<&Policy> = (self.cluster.policies.values())
            .map(AsRef::as_ref)
            .filter(|policy| policy.rules(direction).is_some())
            .filter(|policy| self.in_scope(&endpoint.key.namespace, &policy.subject.namespaces))
            .filter(|policy| policy.subject.pods.matches(&endpoint.labels))
            .collect();
        policies.sort_by_key(|policy| {
            (self.tier(&policy.tier).0, policy.tier.clone(), policy.order, policy.id.tie_break())
        });
        policies
    }

    /// The verdict on one packet.
    pub(crate) fn judge(&self, endpoint: &Pod, direction: Direction, peer: IpAddr, traffic: Traffic) -> Judgement {
        let policies = self.governing(endpoint, direction);
        let decided = |verdict, policy: &PolicyId, cause| {
            (verdict, Some(RuleIdentity { direction, verdict, policy: policy.clone(), cause }))
        };
        for tier in policies.chunk_by(|one, other| one.tier == other.tier) {
            let rules = tier
                .iter()
                .flat_map(|policy| policy.rules(direction).into_iter().flatten().map(move |rule| (policy, rule)));
            let mut matching = rules.filter(|(_, rule)| {
                rule.action != Action::Log && self.rule_matches(rule, direction, endpoint, peer, traffic)
            });
            match matching.next() {
                Some((policy, rule)) if rule.action == Action::Allow => {
                    return decided(Verdict::Allow, &policy.id, RuleCause::Rule(rule.origin));
                }
                Some((policy, rule)) if rule.action == Action::Deny => {
                    return decided(Verdict::Deny, &policy.id, RuleCause::Rule(rule.origin));
                }
                Some(_) => {}
                None if self.tier(&tier[0].tier).1 == TierDefault::Deny => {
                    return decided(Verdict::Deny, &tier[0].id, RuleCause::Isolation);
                }
                None => {}
            }
        }
        (Verdict::Allow, None)
    }

    /// Where a Service's port leads to; `None`: not known.
    pub(crate) fn backends(&self, service: &Service, port: &ServicePort, family: Family) -> Option<Vec<Backend>> {
        let slices: Vec<_> = self.cluster.slices.values().filter(|slice| slice.service == service.key).collect();
        let mut backends = Vec::new();
        if !slices.is_empty() {
            for slice in slices {
                for (name, protocol, number) in &slice.ports {
                    if *name == port.name && *protocol == port.protocol {
                        backends.extend(slice.addresses.iter().map(|ip| Backend { address: *ip, port: *number }));
                    }
                }
            }
        } else {
            let selector = service.selector.as_ref()?;
            for pod in self.cluster.pods.values().filter(|pod| pod.is_member()) {
                if pod.key.namespace != service.key.namespace || !selector.matches(&pod.labels) {
                    continue;
                }
                let number = match &port.target {
                    TargetPort::Number(number) => Some(*number),
                    TargetPort::Named(name) => (pod.ports.iter())
                        .find(|declared| declared.name == *name && declared.protocol == port.protocol)
                        .map(|declared| declared.number),
                };
                let Some(number) = number else { continue };
                backends.extend(pod.addresses.iter().map(|ip| Backend { address: *ip, port: number }));
            }
        }
        backends.retain(|backend| Family::of(&backend.address) == family);
        backends.sort_unstable();
        backends.dedup();
        Some(backends)
    }
}

use portcullis::model::TrafficMatch;

/// Protocols and ports worth a probe.
pub(crate) fn probes() -> Vec<Traffic> {
    let of =
        |protocol, ports: &[u16]| ports.iter().map(move |port| Traffic { protocol, port: *port }).collect::<Vec<_>>();
    let mut probes = of(Protocol::TCP, &[0, 53, 79, 80, 81, 90, 100, 101, 8080, u16::MAX]);
    probes.extend(of(Protocol::UDP, &[0, 53, 80, 90, u16::MAX]));
    probes.extend(of(Protocol::ICMP, &[0x0800, 0x0303]));
    probes.extend(of(Protocol(47), &[0]));
    probes
}
