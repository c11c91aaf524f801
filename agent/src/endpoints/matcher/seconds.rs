//! Which veths are further ones of pods that have one.

use std::collections::BTreeMap;

use super::super::links::Link;
use super::super::pods::{PodId, is_azure_veth_name};
use super::claims::{Claim, is_candidate};
use super::{Evidence, Matcher};

/// The pods that have a veth, by the number of their network namespace, with that veth's ifindex.
pub(super) type Namespaces = BTreeMap<i32, (u32, PodId)>;

impl Matcher {
    /// Empty where second veths are networks of their own.
    pub(super) fn namespaces(&self) -> Namespaces {
        let mut namespaces = Namespaces::new();
        if !self.config.second_networks {
            for (ifindex, matched) in &self.matched {
                if let Some(netnsid) = self.namespace_of(*ifindex) {
                    namespaces.entry(netnsid).or_insert_with(|| (*ifindex, matched.pod.clone()));
                }
            }
        }
        namespaces
    }

    /// The number of the namespace behind a veth; `None` too where the second veths in it are not asked for.
    pub(super) fn namespace_of(&self, ifindex: u32) -> Option<i32> {
        let link = self.snapshot.links.get(&ifindex)?;
        if self.config.second_networks { None } else { netnsid(link) }
    }
}

/// The veth whose pod this one is a further veth of, and the pod. What a pod can write inside its namespace does not make it
/// another's; the host's name or routes do.
pub(super) fn second_of<'a>(
    link: &Link,
    claim: Option<&Claim>,
    namespaces: &'a Namespaces,
) -> Option<&'a (u32, PodId)> {
    let found = namespaces.get(&netnsid(link)?).filter(|(of, _)| *of != link.ifindex)?;
    let is_anothers = match claim {
        Some(claim) => claim.evidence < Evidence::InnerAddress && !claim.pods.contains(&found.1),
        None => is_azure_veth_name(&link.name),
    };
    (!is_anothers).then_some(found)
}

/// A veth's namespace, if this namespace has a number for it.
fn netnsid(link: &Link) -> Option<i32> {
    link.netnsid.filter(|netnsid| *netnsid >= 0 && is_candidate(link))
}
