//! The state machine that says which veth is which pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::links::{LinkKind, Snapshot};
use super::pods::{LocalPod, PodId, PodIndex};
use super::report::Report;

mod claims;
mod roles;
mod seconds;

use claims::Claim;
use seconds::second_of;

/// What the matcher is told about this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The ranges that this node's pods get addresses from (`spec.podCIDRs`, or a setting); empty where no range is the
    /// node's own, as on a node subnet, and then no veth is pending by its address.
    pub pod_ranges: Vec<IpNet>,
    /// The names of the only devices that are exits besides the pods' veths; `None` for all that qualify.
    pub uplinks: Option<BTreeSet<String>>,
    /// A pod's second veth leads to a network of its own, which policy does not know: an exit, not the pod's.
    pub second_networks: bool,
}

/// What a device is to the enforcement. Endpoints, their second veths, pending and closed veths are exits too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The host's end of this pod's veth.
    Endpoint(PodId),
    /// A further veth of the pod whose own veth has this ifindex: the same endpoint, over another device.
    Second {
        /// The pod's own veth.
        of: u32,
    },
    /// A veth that is surely a pod's, but it is not known (or not decided) whose.
    Pending,
    /// A veth that claims to be a pod which another veth already is: nothing may pass.
    Closed {
        /// Why, for people.
        reason: String,
    },
    /// Packets may leave the node here.
    Exit,
    /// Nothing is attached.
    None,
}

/// What a match rests on, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// An earlier run of the agent matched it, and the device has not gone since.
    Adopted,
    /// The host's end is named as Azure CNI names it for that pod.
    Name,
    /// The host routes the pod's address, as a /32 or /128 without a gateway, to the device.
    HostRoute,
    /// The pod's address is on the other end. The pod itself can write this.
    InnerAddress,
}

/// A veth that is an endpoint, until its link goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// The pod that it is.
    pub pod: PodId,
    /// The device's incarnation that was matched.
    pub incarnation: u64,
    /// What decided.
    pub evidence: Evidence,
    /// The Pod object is gone (or finished) and the link is still there: the last policy stays.
    pub pod_gone: bool,
    /// The pod had another veth before: this one may be its successor's, whose object has not come yet.
    pub second: bool,
}

/// Matches veths to pods. Inputs may come in any order and be repeated; each ends with all roles decided anew.
///
/// # Which evidence decides
///
/// 1. A match once made (or [adopted](Matcher::adopt)) stays until its link goes, whatever else is seen.
/// 2. What the host wrote outranks what a pod can write: first the Azure CNI name of the veth, then the host's routes
///    to the device, and only where neither names a pod the addresses found inside the namespace. A veth that the
///    host's evidence gives to one pod never becomes another by its inner addresses, not even when that pod is taken.
///    Routes to several pods (a veth that leads to other nodes) name no pod.
/// 3. A pod has one veth. Among unmatched veths that claim the same pod the stronger evidence wins, then the veth on
///    which the pod's address was the *first* address seen (the CNI sets the pod's own address before any of its
///    containers runs), then the older one. This is the only place where the order of events decides. The others are
///    [`Role::Closed`] and reported.
/// 4. A veth named as Azure CNI names them, for a pod that is not known (yet), is no other pod's, whatever addresses it has:
///    those of a pod that has just ended may be given to the next while the Pod object still has them.
/// 5. For the same reason an address that a pod had on a veth which is gone gives it a second veth (its sandbox was made
///    anew) only once every other pod of this node has told its addresses. Until then the veth is [`Role::Pending`].
/// 6. A veth that may be several free pods (two objects with one address while one of them ends) is that one which
///    never had a veth; if that leaves more than one it is [`Role::Pending`] and reported.
/// 7. A veth into the namespace of a pod that has one is that pod's [second](Role::Second), whatever addresses are inside,
///    unless the host's evidence gives it to another pod. That is asked anew each time: numbers of namespaces come again, and
///    for a moment the next pod's veth may have that of one that ends.
/// 8. The kernel is quicker than the API: a veth may appear while of its pod's address, or name, only the object of the
///    pod before is known. So the match of a pod's *second* veth is corrected, once, when a pod comes that never had
///    one and that no other veth claims, by evidence no weaker: the name, the host's routes, or the first address inside.
#[derive(Debug, Default)]
pub struct Matcher {
    config: Config,
    snapshot: Arc<Snapshot>,
    pods: PodIndex,
    pods_known: bool,
    adopted: BTreeMap<u32, PodId>,
    matched: BTreeMap<u32, Matched>,
    first_seen: BTreeMap<u32, FirstSeen>,
    /// Pods that have or had a veth, with the addresses that they had meanwhile.
    had_veth: BTreeMap<PodId, BTreeSet<IpAddr>>,
    roles: BTreeMap<u32, Role>,
    reports: Vec<Report>,
}

/// The first addresses seen inside a veth's namespace: of each family those of the first snapshot that had any.
#[derive(Debug)]
struct FirstSeen {
    incarnation: u64,
    addresses: BTreeSet<IpAddr>,
}

impl Matcher {
    /// A matcher that knows no link and no pod yet.
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes a new configuration: the node's ranges may become known, or change, while the agent runs.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.resolve();
    }

    /// Restores what an earlier run of the agent had matched, from what it pinned in the kernel. To be called before
    /// the first [`links`](Matcher::links), and only for devices that have not gone since (a pin on a device that has
    /// gone says so). Then a pod that swapped addresses while no agent ran is still itself. It is forgotten when the
    /// first snapshot has no veth of that index.
    pub fn adopt(&mut self, ifindex: u32, pod: PodId) {
        self.adopted.insert(ifindex, pod);
    }

    /// Takes what the kernel says now.
    pub fn links(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        self.forget_gone_links();
        self.take_adopted();
        self.remember_first_addresses();
        self.resolve();
    }

    /// Takes all pods that may run on this node, in place of those known before. Until this was called once, the pods
    /// are not completely known and no endpoint counts as [`pod_gone`](Matched::pod_gone).
    pub fn pods(&mut self, pods: impl IntoIterator<Item = LocalPod>) {
        self.pods = PodIndex::default();
        for pod in pods {
            self.pods.apply(pod);
        }
        self.pods_known = true;
        self.resolve();
    }

    /// Takes one pod that is new or has changed. Begin with [`pods`](Matcher::pods): each call decides all roles anew.
    pub fn apply_pod(&mut self, pod: LocalPod) {
        self.pods.apply(pod);
        self.resolve();
    }

    /// Takes the deletion (or the end) of one pod.
    pub fn delete_pod(&mut self, pod: &PodId) {
        self.pods.delete(pod);
        self.resolve();
    }

    /// The endpoints of this node by the ifindex of their host veth.
    pub fn endpoints(&self) -> &BTreeMap<u32, Matched> {
        &self.matched
    }

    /// The addresses that the host itself says are behind a veth: at most one of each family, by the routes of a routing
    /// CNI, which only the host can write, and none that is another pod's by its object. Until a pod's object names its
    /// addresses these may stand for them. What is found inside the namespace may not: the pod could have written it.
    pub fn routed_addresses(&self, ifindex: u32) -> Vec<IpAddr> {
        let routes = self.snapshot.host_routes.get(&ifindex);
        let is_free = |address: &&IpAddr| self.pods.with_address(**address).next().is_none();
        let of_family = |v4: bool| {
            let mut routed = routes.into_iter().flatten().filter(|address| address.is_ipv4() == v4);
            // Several routes of a family say that more than one pod is behind it.
            let single = routed.next().filter(|_| routed.next().is_none());
            single.filter(is_free).copied()
        };
        [of_family(true), of_family(false)].into_iter().flatten().collect()
    }

    /// The role of every device by its ifindex.
    pub fn roles(&self) -> &BTreeMap<u32, Role> {
        &self.roles
    }

    /// The conditions that hold now, in order of ifindex.
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    fn forget_gone_links(&mut self) {
        let links = &self.snapshot.links;
        let lives =
            |ifindex: &u32, incarnation: u64| links.get(ifindex).is_some_and(|link| link.incarnation == incarnation);
        self.matched.retain(|ifindex, matched| lives(ifindex, matched.incarnation));
        self.first_seen.retain(|ifindex, seen| lives(ifindex, seen.incarnation));
    }

    fn take_adopted(&mut self) {
        for (ifindex, pod) in std::mem::take(&mut self.adopted) {
            let Some(link) = self.snapshot.links.get(&ifindex) else {
                continue;
            };
            // The peer may have been moved by the pod: only the kind is the host's alone.
            if link.kind == LinkKind::Veth {
                let matched = Matched {
                    pod,
                    incarnation: link.incarnation,
                    evidence: Evidence::Adopted,
                    pod_gone: false,
                    second: false,
                };
                self.matched.entry(ifindex).or_insert(matched);
            }
        }
    }

    fn remember_first_addresses(&mut self) {
        for link in self.snapshot.links.values().filter(|link| link.kind == LinkKind::Veth) {
            let seen = self
                .first_seen
                .entry(link.ifindex)
                .or_insert_with(|| FirstSeen { incarnation: link.incarnation, addresses: BTreeSet::new() });
            for v4 in [true, false] {
                if !seen.addresses.iter().any(|address| address.is_ipv4() == v4) {
                    seen.addresses.extend(link.pod_addresses().filter(|address| address.is_ipv4() == v4));
                }
            }
        }
    }

    fn resolve(&mut self) {
        for matched in self.matched.values_mut() {
            matched.pod_gone = self.pods_known && !self.pods.contains(&matched.pod);
        }
        let mut claims = self.claims();
        self.grant(&claims);
        if self.correct() {
            claims = self.claims();
            self.grant(&claims);
        }
        for matched in self.matched.values() {
            let addresses = self.had_veth.entry(matched.pod.clone()).or_default();
            addresses.extend(self.pods.addresses(&matched.pod));
        }
        self.had_veth.retain(|pod, _| self.pods.contains(pod) || self.matched.values().any(|m| m.pod == *pod));
        self.decide_roles(&claims);
    }

    /// Gives second veths to the pods that they are, where these have come meanwhile and no other veth claims to be them.
    /// Tells whether that changed anything.
    fn correct(&mut self) -> bool {
        let holders = self.holders();
        let mut corrected: Vec<(u32, PodId, Evidence)> = Vec::new();
        for (ifindex, matched) in self.matched.iter().filter(|(_, matched)| matched.second) {
            let Some(link) = self.snapshot.links.get(ifindex) else { continue };
            let first = self.first_seen.get(ifindex).map(|seen| &seen.addresses);
            let Some(claim) = Claim::of(link, &self.snapshot, &self.pods, first) else { continue };
            // An address that was added later may be anybody's: the pod can write it.
            let is_sure = |pod: &PodId| {
                claim.evidence < Evidence::InnerAddress
                    || first.into_iter().flatten().any(|address| self.pods.with_address(*address).any(|of| of == pod))
            };
            let new = |pod: &&PodId| !self.had_veth.contains_key(*pod) && !holders.contains_key(*pod) && is_sure(pod);
            let mut candidates = claim.pods.iter().filter(new);
            if let (Some(pod), None, true) = (candidates.next(), candidates.next(), claim.evidence <= matched.evidence)
                && !corrected.iter().any(|(_, taken, _)| taken == pod)
            {
                corrected.push((*ifindex, pod.clone(), claim.evidence));
            }
        }
        let any = !corrected.is_empty();
        for (ifindex, pod, evidence) in corrected {
            if let Some(matched) = self.matched.get_mut(&ifindex) {
                (matched.pod, matched.evidence) = (pod, evidence);
                (matched.pod_gone, matched.second) = (false, false);
            }
        }
        any
    }

    /// The claims of all unmatched veths, the strongest first.
    fn claims(&self) -> Vec<Claim> {
        let unmatched = self.snapshot.links.values().filter(|link| !self.matched.contains_key(&link.ifindex));
        let mut claims: Vec<Claim> = unmatched
            .filter_map(|link| {
                let first = self.first_seen.get(&link.ifindex).map(|seen| &seen.addresses);
                Claim::of(link, &self.snapshot, &self.pods, first)
            })
            .collect();
        claims.sort_by_key(Claim::rank);
        claims
    }

    /// Gives pods to claims as long as one of them has a single free pod left. A pod that is given away may leave a
    /// single one to a stronger claim that had two, so each gift starts again from the strongest.
    fn grant(&mut self, claims: &[Claim]) {
        let mut holders = self.holders();
        let mut namespaces = self.namespaces();
        loop {
            let granted = claims.iter().find_map(|claim| {
                let link = self.snapshot.links.get(&claim.ifindex)?;
                if self.matched.contains_key(&claim.ifindex) || second_of(link, Some(claim), &namespaces).is_some() {
                    return None;
                }
                match self.free(claim, &holders).as_slice() {
                    [pod] => Some((claim, (*pod).clone())),
                    _ => None,
                }
            });
            let Some((claim, pod)) = granted else { return };
            holders.insert(pod.clone(), claim.ifindex);
            if let Some(netnsid) = self.namespace_of(claim.ifindex) {
                namespaces.entry(netnsid).or_insert_with(|| (claim.ifindex, pod.clone()));
            }
            let second = self.had_veth.contains_key(&pod);
            let matched =
                Matched { pod, incarnation: claim.incarnation, evidence: claim.evidence, pod_gone: false, second };
            self.matched.insert(claim.ifindex, matched);
        }
    }

    fn holders(&self) -> BTreeMap<PodId, u32> {
        self.matched.iter().map(|(ifindex, matched)| (matched.pod.clone(), *ifindex)).collect()
    }

    /// The pods of a claim that no veth is; of several those that never had a veth, if there are any. Where only an address
    /// speaks for a pod, which it had on a veth before, those too whose addresses are not known yet.
    fn free<'a>(&'a self, claim: &'a Claim, holders: &BTreeMap<PodId, u32>) -> Vec<&'a PodId> {
        let is_free = |pod: &&PodId| !holders.contains_key(*pod);
        let mut free: Vec<&PodId> = claim.pods.iter().filter(is_free).collect();
        if free.len() > 1 && free.iter().any(|pod| !self.had_veth.contains_key(*pod)) {
            free.retain(|pod| !self.had_veth.contains_key(*pod));
        }
        let [pod] = free.as_slice() else { return free };
        let had = self.had_veth.get(*pod).is_some_and(|had| claim.addresses.is_subset(had));
        if had && !claim.addresses.is_empty() {
            free.extend(self.pods.without_addresses().filter(is_free));
        }
        free
    }
}
