//! Nodes.

use k8s_openapi::api::core::v1;

use super::field::{Converted, Field, Findings, Invalid};
use super::{address, meta, names};
use crate::model::Node;

/// A Node: its InternalIP and ExternalIP addresses (host names are no addresses) and its pods' ranges.
///
/// # Errors
/// What an API server would refuse: a name of the wrong form, an address or range that is none.
pub fn node(object: &v1::Node) -> Result<Converted<Node>, Vec<Invalid>> {
    let mut findings = Findings::default();
    let name = meta::name(&object.metadata, names::dns_subdomain, &mut findings);
    meta::labels(&object.metadata, &mut findings);
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let status = Field::Top("status");
    let list = status.field("addresses");
    let mut addresses = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        if matches!(entry.type_.as_str(), "InternalIP" | "ExternalIP") {
            let entry_field = list.at(index);
            addresses.extend(address::address(&entry.address, &entry_field.field("address"), &mut findings));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let pod_cidrs = pod_cidrs(object, &mut findings);
    findings.finish(name.map(|name| Node { name, addresses, pod_cidrs }))
}

fn pod_cidrs(object: &v1::Node, findings: &mut Findings) -> Vec<ipnet::IpNet> {
    let Some(node) = &object.spec else { return Vec::new() };
    let spec = Field::Top("spec");
    match node.pod_cidrs.as_deref() {
        Some(listed) if !listed.is_empty() => {
            let list = spec.field("podCIDRs");
            let cidrs = listed.iter().enumerate();
            cidrs.filter_map(|(index, text)| address::cidr(text, &list.at(index), findings)).collect()
        }
        _ => {
            let single = node.pod_cidr.as_deref().filter(|text| !text.is_empty());
            single.and_then(|text| address::cidr(text, &spec.field("podCIDR"), findings)).into_iter().collect()
        }
    }
}
