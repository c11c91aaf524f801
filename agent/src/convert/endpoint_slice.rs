//! EndpointSlices.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1;

use super::field::{Converted, Field, Findings, Invalid};
use super::{address, meta, names, port};
use crate::model::{EndpointSlice, Family, Name};

/// Ties a slice to its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An EndpointSlice; `None` for one that belongs to no Service (it lacks the label `kubernetes.io/service-name`) or
/// holds host names, which nothing sends traffic to.
///
/// # Errors
/// What an API server would refuse: names, labels, ports or addresses of the wrong form or family.
pub fn endpoint_slice(object: &v1::EndpointSlice) -> Result<Converted<Option<EndpointSlice>>, Vec<Invalid>> {
    let mut findings = Findings::default();
    let key = meta::key(&object.metadata, names::dns_subdomain, &mut findings);
    let labels = meta::labels(&object.metadata, &mut findings);
    let family = match object.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            findings.refuse(
                &Field::Top("addressType"),
                if other.is_empty() {
                    "missing: use IPv4, IPv6 or FQDN".to_owned()
                } else {
                    format!("{other:?} is no address type: use IPv4, IPv6 or FQDN")
                },
            );
            None
        }
    };
    let addresses = family.map(|family| addresses(object, family, &mut findings));
    let ports = ports(object, &mut findings);
    let service = labels.get(SERVICE_LABEL).filter(|name| !name.is_empty());
    let value = key.map(|key| {
        let service = Name::new(key.namespace.clone(), service?);
        Some(EndpointSlice { key, service, addresses: addresses?, ports })
    });
    findings.finish(value)
}

/// Addresses that may receive traffic, as kube-proxy reads the conditions: ready (also when it is not told), or
/// serving while terminating, which it falls back on when nothing is ready.
fn addresses(object: &v1::EndpointSlice, family: Family, findings: &mut Findings) -> Vec<IpAddr> {
    let list = Field::Top("endpoints");
    let mut addresses = Vec::new();
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        let entry = list.at(index);
        let texts = entry.field("addresses");
        for (index, text) in endpoint.addresses.iter().enumerate() {
            let field = texts.at(index);
            let Some(address) = address::address(text, &field, findings) else { continue };
            if Family::of(&address) != family {
                findings.refuse(&field, format!("{address} is not of the slice's addressType, {family}"));
            } else if ready || (serving && terminating) {
                addresses.push(address);
            }
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn ports(
    object: &v1::EndpointSlice,
    findings: &mut Findings,
) -> Vec<(std::sync::Arc<str>, crate::model::Protocol, u16)> {
    let list = Field::Top("ports");
    let mut ports = Vec::new();
    for (index, declared) in object.ports.iter().flatten().enumerate() {
        let entry = list.at(index);
        let name = declared.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            findings.check(&entry.field("name"), names::dns_label(name));
        }
        let protocol = port::protocol_or_empty(declared.protocol.as_deref(), &entry.field("protocol"), findings);
        // A port without a number stands for all ports; kube-proxy sends nothing there, so it is no backend.
        let Some(number) = declared.port else { continue };
        let number = port::number(number, &entry.field("port"), findings);
        if let (Some(protocol), Some(number)) = (protocol, number) {
            ports.push((name.into(), protocol, number));
        }
    }
    ports
}
