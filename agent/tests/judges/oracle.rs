//! What the policies say should become of a packet, by the evaluator.

use std::fmt;
use std::net::IpAddr;

use portcullis::evaluate::{Evaluator, NodeView, Party, PeerView};
use portcullis::model::{
    Backend, Cause, Decision, Direction, Family, NamespaceScope, Pod, Service, ServicePort, TargetPort, Traffic,
    Verdict,
};
use portcullis::state::{LocalId, RuleCause, RuleIdentity, ServiceKeyPort};
use portcullis_common::packet::Drop;

use super::journey::{Answer, Journey, Source, Target, What};
use super::packets::Load;
use super::world::World;

/// An address and port of a Service.
#[derive(Clone)]
pub(crate) struct Frontend {
    pub(crate) at: ServiceKeyPort,
    pub(crate) service: Service,
    pub(crate) port: ServicePort,
}

impl fmt::Debug for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of Service {}", self.at.port, self.service.key)
    }
}

impl Frontend {
    /// A packet to it that is like another.
    pub(crate) fn load(&self, like: Load) -> Load {
        match (self.at.protocol.0, like) {
            (17, _) => Load::Udp(self.at.port),
            (_, Load::Data(_)) => Load::Data(self.at.port),
            _ => Load::Syn(self.at.port),
        }
    }

    pub(crate) fn takes(&self, load: Load) -> bool {
        let traffic = load.traffic(self.at.address.is_ipv4());
        (traffic.protocol, traffic.port) == (self.at.protocol, self.at.port)
    }
}

/// All Services' addresses and ports of a family.
pub(crate) fn frontends(world: &World, family: Family) -> Vec<Frontend> {
    let mut found = Vec::new();
    for service in world.cluster.services.values() {
        for port in &service.ports {
            let mut at = |address: &IpAddr, number| {
                let at = ServiceKeyPort { address: *address, protocol: port.protocol, port: number };
                if Family::of(address) == family {
                    found.push(Frontend { at, service: (**service).clone(), port: port.clone() });
                }
            };
            service.cluster_ips.iter().chain(&service.external_ips).for_each(|address| at(address, port.port));
            if let Some(number) = port.node_port {
                world.node.addresses.iter().for_each(|address| at(address, number));
            }
        }
    }
    found
}

/// Where a Service's port leads to, sorted; `None`: nobody knows.
pub(crate) fn backends(world: &World, frontend: &Frontend) -> Option<Vec<Backend>> {
    let Frontend { at, service, port } = frontend;
    let slices: Vec<_> = world.cluster.slices.values().filter(|slice| slice.service == service.key).collect();
    let mut backends = Vec::new();
    for slice in &slices {
        let ports = slice.ports.iter().filter(|(name, protocol, _)| (name, *protocol) == (&port.name, port.protocol));
        for (_, _, number) in ports {
            backends.extend(slice.addresses.iter().map(|address| Backend { address: *address, port: *number }));
        }
    }
    if slices.is_empty() {
        let selector = service.selector.as_ref()?;
        let selected = world.cluster.pods.values().filter(|pod| {
            pod.is_member() && pod.key.namespace == service.key.namespace && selector.matches(&pod.labels)
        });
        for pod in selected {
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Named(name) => {
                    let declared =
                        |known: &&portcullis::model::NamedPort| known.name == *name && known.protocol == port.protocol;
                    pod.ports.iter().find(declared).map(|known| known.number)
                }
            };
            let Some(number) = number else { continue };
            backends.extend(pod.addresses.iter().map(|address| Backend { address: *address, port: number }));
        }
    }
    backends.retain(|backend| backend.address.is_ipv4() == at.address.is_ipv4());
    backends.sort();
    backends.dedup();
    Some(backends)
}

/// The evaluator, asked about packets.
pub(crate) struct Oracle<'a> {
    pub(crate) world: &'a World,
    /// The tables have settled. Before, what reaches a Service may be left to the packet's exit.
    pub(crate) settled: bool,
    evaluator: Evaluator<'a>,
    nodes: NodeView<'a>,
}

impl<'a> Oracle<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        Self { world, settled: true, evaluator: Evaluator::new(&world.cluster), nodes: NodeView::of(&world.cluster) }
    }

    pub(crate) fn pod(&self, id: &LocalId) -> &'a Pod {
        &self.world.local.iter().find(|local| local.id == *id).unwrap().pod
    }

    /// The party that has an address.
    fn party(&self, address: IpAddr) -> Party<'a> {
        self.world.member_at(address).map_or(Party::Address(address), Party::Pod)
    }

    /// What an endpoint's policies say of traffic to an address.
    pub(crate) fn egress(&self, id: &LocalId, to: IpAddr, traffic: Traffic) -> Decision {
        let pod = self.pod(id);
        let view = self.nodes.view(pod, Direction::Egress, self.party(to), Family::of(&to));
        self.evaluator.decide(pod, Direction::Egress, &view, traffic)
    }

    /// What they say of traffic from whoever sent it.
    pub(crate) fn ingress(&self, id: &LocalId, source: &Source, from: IpAddr, traffic: Traffic) -> Decision {
        let pod = self.pod(id);
        let family = Family::of(&from);
        let view = match source {
            Source::Local(sender) => self.nodes.view(pod, Direction::Ingress, Party::Pod(self.pod(sender)), family),
            Source::Node => self.nodes.view(pod, Direction::Ingress, Party::Address(from), family),
            Source::Outside => match self.party(from) {
                Party::Pod(peer) => self.nodes.view(pod, Direction::Ingress, Party::Pod(peer), family),
                // From outside, the node's own address is that of a client whose own was rewritten.
                Party::Address(_) => PeerView { pod: None, ..NodeView::masqueraded(from) },
            },
        };
        self.evaluator.decide(pod, Direction::Ingress, &view, traffic)
    }

    /// Whether the policies of the pod that sent a packet deny its final destination.
    pub(crate) fn denies_egress(&self, journey: &Journey) -> bool {
        let Source::Local(id) = &journey.source else { return false };
        let traffic = journey.arrives.traffic(journey.arrives_at.is_ipv4());
        self.egress(id, journey.arrives_at, traffic).verdict == Verdict::Deny
    }

    /// Whether some policy governs the endpoint's egress.
    fn is_egress_isolated(&self, id: &LocalId) -> bool {
        let pod = self.pod(id);
        self.world.cluster.policies.values().any(|policy| {
            policy.egress.is_some()
                && policy.subject.pods.matches(&pod.labels)
                && match &policy.subject.namespaces {
                    NamespaceScope::Named(name) => *name == pod.key.namespace,
                    // The generators make no other selector of namespaces for subjects.
                    NamespaceScope::Matching(_) => true,
                }
        })
    }

    fn is_translatable(&self, address: IpAddr) -> bool {
        let mut services = self.world.cluster.services.values();
        let of_service =
            services.any(|service| service.cluster_ips.iter().chain(&service.external_ips).any(|ip| *ip == address));
        let mut ranges = self.world.node.service_ranges.iter();
        of_service || self.world.node.addresses.contains(&address) || ranges.any(|range| range.contains(&address))
    }

    /// Every answer that is right. There are two where endpoints share tables though one of them is itself a backend, and
    /// none where the design leaves it open (a Service without backends).
    pub(crate) fn answers(&self, journey: &Journey) -> Vec<Answer> {
        let mut answers = self.in_order(journey);
        answers.iter_mut().for_each(|answer| answer.counted.sort());
        answers
    }

    fn in_order(&self, journey: &Journey) -> Vec<Answer> {
        let v4 = journey.sent_to.is_ipv4();
        let mut answer = Answer { dropped: None, counted: Vec::new(), hooks: 0 };
        let arriving = journey.arrives.traffic(v4);
        let mut early = Vec::new();
        if let Source::Local(id) = &journey.source {
            answer.hooks += 1;
            if matches!(journey.sent.traffic(v4).protocol.0, 4 | 41 | 47) {
                answer.dropped = Some(Drop::TUNNEL);
                return vec![answer];
            }
            let isolated = self.is_egress_isolated(id);
            let deferred = isolated && self.is_translatable(journey.sent_to);
            let decision = self.egress(id, journey.arrives_at, arriving);
            let of_node = self.world.own_node && self.world.node.addresses.contains(&journey.sent_to);
            if deferred && of_node && journey.frontend.is_none() && decision.verdict == Verdict::Deny {
                let counted = vec![what(&decision, Direction::Egress)];
                return vec![Answer { dropped: Some(Drop::POLICY), counted, hooks: 1 }];
            }
            if deferred && let Some(frontend) = &journey.frontend {
                match self.denied_at_once(id, frontend) {
                    Reached::Nobody(whats, certain) => {
                        let at_once = |what| Answer { dropped: Some(Drop::POLICY), counted: vec![what], hooks: 1 };
                        early = whats.into_iter().map(at_once).collect();
                        if certain {
                            return early;
                        }
                    }
                    Reached::NoBackends => return Vec::new(),
                    Reached::Somebody => {}
                }
            }
            let judged_at_exit = (deferred || journey.unstamped) && journey.target != Target::Nowhere;
            if !deferred {
                answer.counted.push(what(&decision, Direction::Egress));
                if decision.verdict == Verdict::Deny {
                    answer.dropped = Some(Drop::POLICY);
                    return vec![answer];
                }
            }
            if judged_at_exit {
                answer.counted.push(what(&decision, Direction::Egress));
                if decision.verdict == Verdict::Deny {
                    answer.hooks += 1;
                    answer.dropped = Some(Drop::POLICY);
                    return early.into_iter().chain([answer]).collect();
                }
            }
        }
        if journey.source == Source::Outside {
            answer.hooks += 1;
        }
        match &journey.target {
            Target::Local(id) => {
                answer.hooks += 1;
                let decision = self.ingress(id, &journey.source, journey.seen_from, arriving);
                answer.counted.push(what(&decision, Direction::Ingress));
                let masqueraded = journey.source == Source::Outside
                    && !journey.unstamped
                    && self.world.node.addresses.contains(&journey.seen_from);
                let why = if masqueraded { Drop::MASQUERADED } else { Drop::POLICY };
                answer.dropped = (decision.verdict == Verdict::Deny).then_some(why);
            }
            Target::Away => answer.hooks += 1,
            Target::Nowhere => {}
        }
        early.into_iter().chain([answer]).collect()
    }

    fn denied_at_once(&self, id: &LocalId, frontend: &Frontend) -> Reached {
        let Some(backends) = backends(self.world, frontend) else { return Reached::Somebody };
        if backends.is_empty() {
            return Reached::NoBackends;
        }
        let decisions = backends.iter().map(|backend| {
            self.egress(id, backend.address, Traffic { protocol: frontend.at.protocol, port: backend.port })
        });
        let decisions: Vec<Decision> = decisions.collect();
        // Processes of this node behind a Service, which are beyond all exits, close it where they are denied.
        let of_node = |backend: &Backend| self.world.node.addresses.contains(&backend.address);
        let mut judged = backends.iter().zip(&decisions);
        let here = judged.find(|(backend, decision)| of_node(backend) && decision.verdict == Verdict::Deny);
        let here = here.map(|(_, decision)| what(decision, Direction::Egress));
        if decisions.iter().any(|decision| decision.verdict == Verdict::Allow) {
            return here.map_or(Reached::Somebody, |here| Reached::Nobody(vec![here], true));
        }
        let alike = backends.iter().all(|backend| self.world.local_at(backend.address).is_none());
        let certain = here.is_some() || self.settled && alike;
        let first = what(&decisions[0], Direction::Egress);
        // What counts it where another endpoint of the same tables is itself a backend.
        let other = here.filter(|here| !alike && *here != first);
        Reached::Nobody(std::iter::once(first).chain(other).collect(), certain)
    }
}

enum Reached {
    NoBackends,
    Somebody,
    /// What denies the first backend (or another that may count), and whether the tables must know.
    Nobody(Vec<What>, bool),
}

/// A decision in the words of counters.
pub(crate) fn what(decision: &Decision, direction: Direction) -> What {
    let verdict = decision.verdict;
    match &decision.cause {
        Cause::NoPolicy => What::NoPolicy,
        Cause::NodeProcess => What::NodeProcess,
        Cause::Rule { policy, origin } => {
            let cause = RuleCause::Rule(*origin);
            What::Rule(RuleIdentity { direction, verdict, policy: policy.clone(), cause })
        }
        Cause::Isolation { policy } => {
            What::Rule(RuleIdentity { direction, verdict, policy: policy.clone(), cause: RuleCause::Isolation })
        }
    }
}
