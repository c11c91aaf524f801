//! Pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::field::{Converted, Field, Findings, Invalid};
use super::{address, meta, names, port};
use crate::model::{Family, NamedPort, Pod};

/// A Pod. One without status counts as running.
///
/// # Errors
/// What an API server would refuse: names, labels, ports or addresses of the wrong form, two addresses of one family.
pub fn pod(object: &v1::Pod) -> Result<Converted<Pod>, Vec<Invalid>> {
    let mut findings = Findings::default();
    let key = meta::key(&object.metadata, names::dns_subdomain, &mut findings);
    let labels = meta::labels(&object.metadata, &mut findings);
    let status = object.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let addresses = status.map(|status| addresses(status, &mut findings)).unwrap_or_default();
    let spec = object.spec.as_ref();
    let ports = spec.map(|spec| ports(spec, &mut findings)).unwrap_or_default();
    let value = key.map(|key| Pod {
        key,
        uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
        labels,
        addresses,
        node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty()).map(Into::into),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        ports,
    });
    if value.as_ref().is_some_and(|pod| pod.is_member() && pod.addresses.is_empty()) {
        let status = Field::Top("status");
        findings.warn(&status.field("podIPs"), "the pod has no address: only selectors match it until it has one");
    }
    findings.finish(value)
}

/// `status.podIPs`, or `status.podIP` where only that is set.
fn addresses(status: &v1::PodStatus, findings: &mut Findings) -> Vec<IpAddr> {
    let top = Field::Top("status");
    let listed: Vec<&str> = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str()).collect();
    if listed.is_empty() {
        let single = status.pod_ip.as_deref().filter(|text| !text.is_empty());
        return single.and_then(|text| address::address(text, &top.field("podIP"), findings)).into_iter().collect();
    }
    let list = top.field("podIPs");
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, text) in listed.into_iter().enumerate() {
        let entry = list.at(index);
        let Some(address) = address::address(text, &entry.field("ip"), findings) else { continue };
        let family = Family::of(&address);
        if addresses.iter().any(|known| Family::of(known) == family) {
            findings.refuse(&entry, format!("{address} is a second {family} address: a pod has one of each family"));
        } else {
            addresses.push(address);
        }
    }
    addresses
}

/// The ports that containers declare. Init containers that restart ("sidecars") run as long as the pod and count; the
/// others have ended when the pod serves. Containers come first, as kube-proxy's and kubelet's `FindPort` has it.
fn ports(spec: &v1::PodSpec, findings: &mut Findings) -> Vec<NamedPort> {
    let top = Field::Top("spec");
    let containers = top.field("containers");
    let init_containers = top.field("initContainers");
    let mut ports = Vec::new();
    for (index, container) in spec.containers.iter().enumerate() {
        container_ports(container, &containers.at(index), &mut ports, findings);
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        if container.restart_policy.as_deref() == Some("Always") {
            container_ports(container, &init_containers.at(index), &mut ports, findings);
        }
    }
    ports
}

fn container_ports(container: &v1::Container, field: &Field<'_>, ports: &mut Vec<NamedPort>, findings: &mut Findings) {
    let list = field.field("ports");
    let mut names_here = BTreeSet::new();
    for (index, declared) in container.ports.iter().flatten().enumerate() {
        let entry = list.at(index);
        let name = declared.name.as_deref().unwrap_or_default();
        let name_field = entry.field("name");
        if !name.is_empty() {
            findings.check(&name_field, names::port_name(name));
            if !names_here.insert(name) {
                findings.refuse(&name_field, format!("{name:?} is already the name of another port of this container"));
            }
        }
        let number = port::number(declared.container_port, &entry.field("containerPort"), findings);
        let protocol = port::protocol_or_empty(declared.protocol.as_deref(), &entry.field("protocol"), findings);
        let (Some(number), Some(protocol)) = (number, protocol) else { continue };
        let port = NamedPort { name: name.into(), protocol, number };
        if ports.contains(&port) {
            continue;
        }
        let taken = ports.iter().find(|known| known.name == port.name && known.protocol == protocol);
        if let Some(taken) = taken.filter(|_| !name.is_empty()) {
            findings.warn(
                &name_field,
                format!("{name:?} is already port {} of another container, which keeps the name", taken.number),
            );
            // The port is still declared, only not under this name.
            ports.push(NamedPort { name: "".into(), ..port });
        } else {
            ports.push(port);
        }
    }
}
