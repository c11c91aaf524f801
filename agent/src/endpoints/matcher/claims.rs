//! What a veth's evidence says about the pod that it may be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::links::{Link, LinkKind, Snapshot};
use super::super::pods::{PodId, PodIndex, is_azure_veth_name};
use super::Evidence;

/// A veth that may be one of some pods.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) ifindex: u32,
    pub(super) incarnation: u64,
    pub(super) evidence: Evidence,
    /// In order and never empty.
    pub(super) pods: BTreeSet<PodId>,
    /// The addresses that speak for them; empty where the name does.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Whether the claim rests on an address that was the first seen inside the namespace, or does not rest on one.
    first: bool,
}

impl Claim {
    /// The claim by the strongest evidence that names a pod, or none.
    pub(super) fn of(
        link: &Link,
        snapshot: &Snapshot,
        pods: &PodIndex,
        first_seen: Option<&BTreeSet<IpAddr>>,
    ) -> Option<Self> {
        if !is_candidate(link) {
            return None;
        }
        let claim = |evidence, pods: BTreeSet<PodId>, addresses: BTreeSet<IpAddr>, first| Self {
            ifindex: link.ifindex,
            incarnation: link.incarnation,
            evidence,
            pods,
            addresses,
            first,
        };
        let named: BTreeSet<PodId> = pods.with_veth_name(&link.name).cloned().collect();
        if !named.is_empty() {
            return Some(claim(Evidence::Name, named, BTreeSet::new(), true));
        }
        if is_azure_veth_name(&link.name) {
            // Some pod's that is not known yet: none of those that are, whoever had its address before.
            return None;
        }
        let is_pods = |address: &IpAddr| pods.with_address(*address).next().is_some();
        let routes = snapshot.host_routes.get(&link.ifindex).into_iter().flatten();
        if let Some(routed) = routed_pods(routes.clone().copied(), pods) {
            let addresses = routes.copied().filter(is_pods).collect();
            return Some(claim(Evidence::HostRoute, routed, addresses, true));
        }
        let addresses: BTreeSet<IpAddr> = link.pod_addresses().filter(is_pods).collect();
        let first = addresses.iter().any(|address| first_seen.is_some_and(|seen| seen.contains(address)));
        let inner: BTreeSet<PodId> =
            addresses.iter().flat_map(|address| pods.with_address(*address)).cloned().collect();
        (!inner.is_empty()).then(|| claim(Evidence::InnerAddress, inner, addresses, first))
    }

    /// Smaller is stronger.
    pub(super) fn rank(&self) -> (Evidence, bool, u64, u32) {
        (self.evidence, !self.first, self.incarnation, self.ifindex)
    }
}

/// The pods that the host's routes to a device name: all routes that name any must agree on at least one pod, or the
/// device leads to several pods and is none of theirs.
fn routed_pods(routes: impl Iterator<Item = IpAddr>, pods: &PodIndex) -> Option<BTreeSet<PodId>> {
    routes
        .map(|address| pods.with_address(address).cloned().collect::<BTreeSet<_>>())
        .filter(|owners| !owners.is_empty())
        .reduce(|common, owners| &common & &owners)
        .filter(|common| !common.is_empty())
}

/// Whether a device can be a pod's at all: a veth whose other end is in another namespace.
pub(super) fn is_candidate(link: &Link) -> bool {
    link.kind == LinkKind::Veth && link.netnsid.is_some()
}
