//! The other side of a connection, as one endpoint sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::index::Cluster;
use crate::model::{Direction, Family, Pod};

/// What is known of the other side.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerView<'a> {
    /// Its address in the family of the traffic; `None` for a pod that has none yet, which selectors alone match.
    pub address: Option<IpAddr>,
    /// The pod that it is, where it is one; host-network and finished pods count as none.
    pub pod: Option<&'a Pod>,
    /// For ingress: it is a process of the node that the endpoint runs on (a host-network pod of that node is one).
    pub node_process_of_own_node: bool,
    /// For egress: it is the node that the endpoint runs on.
    pub own_node_destination: bool,
    /// It is the endpoint itself.
    pub itself: bool,
}

impl<'a> PeerView<'a> {
    /// The pod, if it is one that selectors can match.
    #[must_use]
    pub fn member(&self) -> Option<&'a Pod> {
        self.pod.filter(|pod| pod.is_member())
    }
}

/// One side of a connection, seen by nobody in particular.
#[derive(Clone, Copy, Debug)]
pub enum Party<'a> {
    /// A pod, host-network ones too.
    Pod(&'a Pod),
    /// An address that is no pod's.
    Address(IpAddr),
}

impl<'a> Party<'a> {
    /// The pod, if it is one.
    #[must_use]
    pub const fn pod(&self) -> Option<&'a Pod> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Address(_) => None,
        }
    }

    /// Its address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| Family::of(address) == family;
        match self {
            Self::Pod(pod) => pod.addresses.iter().find(of_family).copied(),
            Self::Address(address) => Some(address).filter(of_family).copied(),
        }
    }

    /// The families in which two parties can talk: those that both have. A pod without any address (its manifest has no
    /// status) may get either, so it is taken to have those of the other side; two such pods are judged as IPv4 alone,
    /// for only selectors can match them and the families cannot differ.
    #[must_use]
    pub fn families(&self, other: &Self) -> Vec<Family> {
        let has = |party: &Self, family| party.has_no_address() || party.address(family).is_some();
        if self.has_no_address() && other.has_no_address() {
            return vec![Family::V4];
        }
        [Family::V4, Family::V6].into_iter().filter(|family| has(self, *family) && has(other, *family)).collect()
    }

    const fn has_no_address(&self) -> bool {
        match self {
            Self::Pod(pod) => pod.addresses.is_empty(),
            Self::Address(_) => false,
        }
    }
}

/// Which addresses are nodes' own.
#[derive(Clone, Debug, Default)]
pub struct NodeView<'a> {
    addresses: BTreeMap<&'a str, BTreeSet<IpAddr>>,
}

impl<'a> NodeView<'a> {
    /// From the nodes' objects and the host-network pods on them. An address that a Service has too (anybody may write it
    /// into `spec.externalIPs`) remains the node's.
    #[must_use]
    pub fn of(cluster: &'a Cluster) -> Self {
        let of_nodes = cluster.nodes.values().map(|node| (node.name.as_ref(), &node.addresses));
        let of_pods = cluster
            .pods
            .values()
            .filter(|pod| pod.host_network && !pod.finished)
            .filter_map(|pod| Some((pod.node.as_deref()?, &pod.addresses)));
        let mut addresses: BTreeMap<&'a str, BTreeSet<IpAddr>> = BTreeMap::new();
        for (node, of_node) in of_nodes.chain(of_pods) {
            addresses.entry(node).or_default().extend(of_node);
        }
        Self { addresses }
    }

    /// Whether an address is the node's own.
    #[must_use]
    pub fn holds(&self, node: &str, address: IpAddr) -> bool {
        self.addresses.get(node).is_some_and(|addresses| addresses.contains(&address))
    }

    /// The node that has an address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&'a str> {
        self.addresses.iter().find(|(_, addresses)| addresses.contains(&address)).map(|(node, _)| *node)
    }

    /// How an endpoint sees the other side of a connection in one family.
    ///
    /// An address of the endpoint's own node as source is taken for a process of that node. Clients from outside whose
    /// address was rewritten to the node's (NodePort and load balancers with externalTrafficPolicy Cluster) carry it
    /// too, and are judged as [`NodeView::masqueraded`] says.
    #[must_use]
    pub fn view(&self, endpoint: &Pod, direction: Direction, other: Party<'a>, family: Family) -> PeerView<'a> {
        let address = other.address(family);
        let itself = other.pod().is_some_and(|pod| pod.key == endpoint.key);
        let on_own_node = endpoint.is_member() && self.is_own_node(endpoint, other, address);
        PeerView {
            address,
            pod: other.pod().filter(|pod| pod.is_member()),
            node_process_of_own_node: on_own_node && direction == Direction::Ingress,
            own_node_destination: on_own_node && direction == Direction::Egress,
            itself,
        }
    }

    /// The view of a peer whose packets carry this address and nothing else that tells who sent them.
    #[must_use]
    pub fn masqueraded(address: IpAddr) -> PeerView<'a> {
        PeerView { address: Some(address), ..PeerView::default() }
    }

    fn is_own_node(&self, endpoint: &Pod, other: Party<'_>, address: Option<IpAddr>) -> bool {
        let Some(node) = endpoint.node.as_deref() else { return false };
        let is_nodes = match other {
            Party::Pod(pod) if !pod.host_network => return false,
            Party::Pod(pod) => pod.node.as_deref() == Some(node),
            Party::Address(_) => false,
        };
        is_nodes || address.is_some_and(|address| self.holds(node, address))
    }
}
