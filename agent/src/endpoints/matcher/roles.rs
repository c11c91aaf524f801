//! What follows from the matches: the role of every device, and what people should know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::exits::is_exit;
use super::super::links::{Link, LinkKind};
use super::super::pods::{PodId, is_azure_veth_name};
use super::super::report::Report;
use super::claims::{Claim, is_candidate};
use super::seconds::second_of;
use super::{Evidence, Matched, Matcher, Role};

impl Matcher {
    pub(super) fn decide_roles(&mut self, claims: &[Claim]) {
        let holders = self.holders();
        let claims: BTreeMap<u32, &Claim> = claims.iter().map(|claim| (claim.ifindex, claim)).collect();
        let namespaces = self.namespaces();
        let mut roles = BTreeMap::new();
        let mut reports = Vec::new();
        for link in self.snapshot.links.values() {
            let second = second_of(link, claims.get(&link.ifindex).copied(), &namespaces);
            let role = match (self.matched.get(&link.ifindex), claims.get(&link.ifindex)) {
                (Some(matched), _) => {
                    self.report_disagreement(link, matched, &mut reports);
                    Role::Endpoint(matched.pod.clone())
                }
                (None, _) if let Some((of, pod)) = second => {
                    reports.push(self.second_interface(link, *of, pod));
                    Role::Second { of: *of }
                }
                (None, Some(claim)) => self.unmet(link, claim, &holders, &mut reports),
                (None, None) if self.is_pending(link) => {
                    self.report_unknown_name(link, &mut reports);
                    Role::Pending
                }
                (None, None) if self.leads_to_pod(link, &mut reports) => Role::Exit,
                (None, None) if is_exit(link, &self.snapshot, self.config.uplinks.as_ref()) => Role::Exit,
                (None, None) => Role::None,
            };
            roles.insert(link.ifindex, role);
        }
        self.take_ports(&mut roles);
        self.roles = roles;
        self.reports = reports;
    }

    /// Every port of a bridge that pods hang on is an exit, whatever list narrows the others: what comes up that bridge
    /// without a stamp is dropped, so what enters by a port that is no pod's must get one.
    fn take_ports(&self, roles: &mut BTreeMap<u32, Role>) {
        let is_pod =
            |role: &Role| matches!(role, Role::Endpoint(_) | Role::Second { .. } | Role::Pending | Role::Closed { .. });
        let links = &self.snapshot.links;
        let above = |ifindex: &u32| links.get(ifindex).and_then(|link| link.master);
        let of_pods = roles.iter().filter(|(_, role)| is_pod(role)).filter_map(|(ifindex, _)| above(ifindex));
        let bridges: BTreeSet<u32> =
            of_pods.filter(|index| links.get(index).is_some_and(|link| link.kind == LinkKind::Bridge)).collect();
        for (ifindex, role) in roles.iter_mut().filter(|(_, role)| **role == Role::None) {
            if above(ifindex).is_some_and(|master| bridges.contains(&master)) {
                *role = Role::Exit;
            }
        }
    }

    /// The role of a veth that claims pods and got none.
    fn unmet(&self, link: &Link, claim: &Claim, holders: &BTreeMap<PodId, u32>, reports: &mut Vec<Report>) -> Role {
        let free = self.free(claim, holders);
        let taken = claim.pods.iter().find_map(|pod| holders.get(pod).map(|holder| (pod, *holder)));
        match taken {
            Some((pod, holder)) if free.is_empty() => {
                let holder_name =
                    self.snapshot.links.get(&holder).map(|holder| holder.name.clone()).unwrap_or_default();
                let report = Report::Contested {
                    ifindex: link.ifindex,
                    name: link.name.clone(),
                    pod: pod.clone(),
                    holder,
                    holder_name,
                };
                let reason = report.to_string();
                reports.push(report);
                Role::Closed { reason }
            }
            _ => {
                let pods = free.into_iter().cloned().collect();
                reports.push(Report::Ambiguous { ifindex: link.ifindex, name: link.name.clone(), pods });
                Role::Pending
            }
        }
    }

    /// A veth that is surely a pod's though no pod is known for it: by an address out of the node's ranges, or by a
    /// name that only Azure CNI gives.
    fn is_pending(&self, link: &Link) -> bool {
        if !is_candidate(link) {
            return false;
        }
        let in_ranges = |address: &IpAddr| self.config.pod_ranges.iter().any(|range| range.contains(address));
        is_azure_veth_name(&link.name)
            || link.pod_addresses().any(|address| in_ranges(&address))
            || self.snapshot.host_routes.get(&link.ifindex).is_some_and(|routes| routes.iter().any(in_ranges))
    }

    fn report_unknown_name(&self, link: &Link, reports: &mut Vec<Report>) {
        let owner = link.pod_addresses().find_map(|address| self.pods.with_address(address).next());
        if let Some(pod) = owner.filter(|_| is_azure_veth_name(&link.name)).cloned() {
            reports.push(Report::NamedForUnknown { ifindex: link.ifindex, name: link.name.clone(), pod });
        }
    }

    fn second_interface(&self, link: &Link, of: u32, pod: &PodId) -> Report {
        let first = self.snapshot.links.get(&of).map(|first| first.name.clone()).unwrap_or_default();
        Report::SecondInterface { ifindex: link.ifindex, name: link.name.clone(), pod: pod.clone(), first }
    }

    /// A veth into the namespace of a pod that has another, where that is a network of its own: the pod's policies do not
    /// know it.
    fn leads_to_pod(&self, link: &Link, reports: &mut Vec<Report>) -> bool {
        let Some(netnsid) = link.netnsid.filter(|netnsid| *netnsid >= 0 && is_candidate(link)) else { return false };
        let same = |ifindex: &u32| self.snapshot.links.get(ifindex).is_some_and(|other| other.netnsid == Some(netnsid));
        let pod = self.matched.iter().find(|(ifindex, _)| same(ifindex));
        let Some((_, Matched { pod, .. })) = pod else { return false };
        let exit = is_exit(link, &self.snapshot, self.config.uplinks.as_ref());
        reports.push(Report::SecondNetwork { ifindex: link.ifindex, name: link.name.clone(), pod: pod.clone() });
        exit
    }

    fn report_disagreement(&self, link: &Link, matched: &Matched, reports: &mut Vec<Report>) {
        let (ifindex, name, pod) = (link.ifindex, link.name.clone(), matched.pod.clone());
        let others = |address: IpAddr| {
            // While a pod and its successor share the address, it is the pod's own.
            let owners: Vec<&PodId> = self.pods.with_address(address).collect();
            if owners.contains(&&matched.pod) { None } else { owners.first().map(|owner| (*owner).clone()) }
        };
        if matched.evidence == Evidence::Name
            && let Some(routes) = self.snapshot.host_routes.get(&ifindex)
            && let Some(routed) = routes.iter().find_map(|address| others(*address))
        {
            let (name, pod) = (name.clone(), pod.clone());
            reports.push(Report::NameAgainstRoute { ifindex, name, pod, routed });
        }
        // A gone pod's address may belong to a successor already: that says nothing against the pod.
        if matched.pod_gone {
            return;
        }
        for address in link.pod_addresses() {
            if let Some(owner) = others(address) {
                let (name, pod) = (name.clone(), pod.clone());
                reports.push(Report::ForeignAddress { ifindex, name, pod, address, owner });
            }
        }
    }
}
