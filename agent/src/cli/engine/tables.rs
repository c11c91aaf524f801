//! Answers from compiled tables, by the decision that the packet programs make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_common::Address;
use portcullis_common::layout::rule;
use portcullis_common::packet::Headers;
use portcullis_common::verdict::{self, Asked};

use super::Engine;
use crate::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers};
use crate::evaluate::PeerView;
use crate::index::Cluster;
use crate::model::{Cause, Decision, Direction, PeerAtom, PeerMatch, Pod, PodKey, Policy, Traffic, Verdict};
use crate::state::image::Full;
use crate::state::memory::MemoryTables;
use crate::state::{Desired, LocalId, RuleCause, RuleNumber};

/// Pods of one node that share tables: below the number of slots.
const SHARE: usize = 1000;

/// Answers from the tables that each pod's node would have.
pub struct TablesEngine {
    tables: Vec<Tables>,
    /// Which tables a pod stands in, and its slot.
    places: BTreeMap<PodKey, (usize, u32)>,
    /// Addresses for pods that have none.
    stand_ins: BTreeMap<PodKey, [IpAddr; 2]>,
}

struct Tables {
    memory: MemoryTables,
    desired: Desired,
}

impl TablesEngine {
    /// Compiles the tables of every node, with all pods as known. Pods that name no node are together on one without
    /// addresses.
    ///
    /// # Errors
    /// A table cannot be made large enough.
    pub fn new(cluster: &Cluster) -> Result<Self, Full> {
        let stand_ins = stand_ins(cluster);
        let cluster = with_stand_ins(cluster, &stand_ins);
        let mut by_node: BTreeMap<Option<&str>, Vec<LocalPod>> = BTreeMap::new();
        for pod in cluster.pods.values().filter(|pod| pod.is_member()) {
            let id = LocalId { pod: pod.key.clone(), uid: pod.uid.clone() };
            by_node.entry(pod.node.as_deref()).or_default().push(LocalPod { id, pod: Arc::clone(pod) });
        }
        let mut engine = Self { tables: Vec::new(), places: BTreeMap::new(), stand_ins };
        for (name, pods) in by_node {
            let node = NodeFacts { addresses: addresses_of(&cluster, name), service_ranges: Vec::new() };
            for local in pods.chunks(SHARE) {
                let mut compiler = Compiler::new(Numbers::default(), BTreeMap::new());
                let desired = compiler.compile(&Input { cluster: &cluster, local, node: &node }, &Dirty::all()).clone();
                for problem in compiler.problems() {
                    tracing::warn!("{problem}");
                }
                let (memory, planner) = MemoryTables::holding(&desired)?;
                let number = engine.tables.len();
                let seats = planner.seats().iter().map(|(id, seat)| (id.pod.clone(), (number, seat.slot)));
                engine.places.extend(seats);
                engine.tables.push(Tables { memory, desired });
            }
        }
        Ok(engine)
    }

    /// The peer's address in the tables.
    fn address(&self, peer: &PeerView<'_>) -> Option<IpAddr> {
        let stand_in = |pod: &Pod| self.stand_ins.get(&pod.key).map(|[v4, _]| *v4);
        if peer.node_process_of_own_node {
            return Some(NODE);
        }
        peer.address.or_else(|| peer.pod.and_then(stand_in)).or(peer.own_node_destination.then_some(NODE))
    }
}

impl Engine for TablesEngine {
    fn decide(&self, endpoint: &Pod, direction: Direction, peer: &PeerView<'_>, traffic: Traffic) -> Decision {
        let no_policy = Decision { verdict: Verdict::Allow, cause: Cause::NoPolicy };
        // Host-network and finished pods are no endpoints.
        let Some((number, slot)) = self.places.get(&endpoint.key) else { return no_policy };
        let Some(Tables { memory, desired }) = self.tables.get(*number) else { return no_policy };
        let address = Address::from(self.address(peer).unwrap_or(NOBODY));
        let headers = Headers {
            v4: address.is_v4(),
            protocol: traffic.protocol.0,
            policy_port: traffic.port,
            ..Headers::default()
        };
        let asked = Asked::opener(&headers);
        let word = match direction {
            Direction::Egress => verdict::egress(memory, *slot, address, asked.at_exit()),
            Direction::Ingress => {
                let asked = asked.itself(peer.itself).may_be_node(peer.node_process_of_own_node);
                verdict::ingress(memory, *slot, address, asked)
            }
        };
        let verdict = if word.allows() { Verdict::Allow } else { Verdict::Deny };
        let cause = match word.rule() {
            rule::NODE_PROCESS => Cause::NodeProcess,
            number => desired.rules.get(&RuleNumber(number)).map_or(Cause::NoPolicy, |identity| match identity.cause {
                RuleCause::Rule(origin) => Cause::Rule { policy: identity.policy.clone(), origin },
                RuleCause::Isolation => Cause::Isolation { policy: identity.policy.clone() },
            }),
        };
        Decision { verdict, cause }
    }
}

/// Ranges that were never given to anybody: RFC 1112 section 4, RFC 4048.
const RESERVED: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::from_bits(0xf000_0000)), 4),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::from_bits(0x0200 << 112)), 7),
];

/// An address of every node, for host-network pods that have none.
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::from_bits(0xfeff_ffff));

/// The address of a peer that is no pod and has none.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::from_bits(0xf000_0000));

/// What a node holds: the addresses of its object and of host-network pods on it.
fn addresses_of(cluster: &Cluster, node: Option<&str>) -> BTreeSet<IpAddr> {
    let Some(name) = node else { return BTreeSet::new() };
    let of_object = cluster.nodes.get(name).into_iter().flat_map(|node| &node.addresses);
    let hosts = cluster.pods.values().filter(|pod| pod.host_network && !pod.finished && pod.node.as_deref() == node);
    of_object.chain(hosts.flat_map(|pod| &pod.addresses)).copied().chain([NODE]).collect()
}

/// Tables know peers by their addresses. A pod without one gets two of [`RESERVED`].
fn stand_ins(cluster: &Cluster) -> BTreeMap<PodKey, [IpAddr; 2]> {
    let bare = cluster.pods.values().filter(|pod| pod.is_member() && pod.addresses.is_empty());
    let numbered = (1_u32..).zip(bare);
    numbered
        .map(|(number, pod)| {
            let v4 = Ipv4Addr::from_bits(0xf000_0000 | number);
            let v6 = Ipv6Addr::from_bits(0x0200 << 112 | u128::from(number));
            (pod.key.clone(), [IpAddr::V4(v4), IpAddr::V6(v6)])
        })
        .collect()
}

/// The cluster with addresses for pods that have none. No range that a policy names covers what stands in: only selectors
/// match such pods.
fn with_stand_ins(cluster: &Cluster, stand_ins: &BTreeMap<PodKey, [IpAddr; 2]>) -> Cluster {
    let mut cluster = cluster.clone();
    for (key, addresses) in stand_ins {
        if let Some(pod) = cluster.pods.get_mut(key) {
            Arc::make_mut(pod).addresses = addresses.to_vec();
        }
    }
    for policy in cluster.policies.values_mut() {
        let Policy { ingress, egress, .. } = Arc::make_mut(policy);
        for rule in [ingress, egress].into_iter().flatten().flatten() {
            leave_reserved_out(&mut rule.peer);
        }
    }
    cluster
}

fn leave_reserved_out(peer: &mut PeerMatch) {
    match peer {
        PeerMatch::All(parts) | PeerMatch::Any(parts) => parts.iter_mut().for_each(leave_reserved_out),
        PeerMatch::Not(part) => leave_reserved_out(part),
        PeerMatch::Atom(PeerAtom::Cidr(net)) => {
            let net = *net;
            let reserved = RESERVED.into_iter().filter(|reserved| net.contains(reserved) || reserved.contains(&net));
            let reserved: Vec<PeerMatch> = reserved.map(|net| PeerMatch::Atom(PeerAtom::Cidr(net))).collect();
            if !reserved.is_empty() {
                let named = PeerMatch::Atom(PeerAtom::Cidr(net));
                *peer = PeerMatch::All(vec![named, PeerMatch::Not(Box::new(PeerMatch::Any(reserved)))]);
            }
        }
        PeerMatch::Atom(_) => {}
    }
}
