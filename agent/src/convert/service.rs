//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Converted, Field, Findings, Invalid};
use super::{address, meta, names, port, selector};
use crate::model::{Selector, Service, ServicePort, TargetPort};

/// A Service. One without a selector, or of type ExternalName, selects no pods.
///
/// # Errors
/// What an API server would refuse: names, labels, ports or addresses of the wrong form, ports that cannot be told
/// apart by name.
pub fn service(object: &v1::Service) -> Result<Converted<Service>, Vec<Invalid>> {
    let mut findings = Findings::default();
    // API servers before 1.34 ask for a letter in front (RFC 1035), later ones do not: names of both are accepted.
    let key = meta::key(&object.metadata, names::dns_label, &mut findings);
    meta::labels(&object.metadata, &mut findings);
    let default_spec = v1::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default_spec);
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    let cluster_ips = if external_name { Vec::new() } else { cluster_ips(spec, &mut findings) };
    // No proxy serves any address of an ExternalName.
    let external_ips = if external_name { Vec::new() } else { external_ips(object, spec, &mut findings) };
    let selector = pods(spec, &mut findings).filter(|_| !external_name);
    let ports = ports(spec, &mut findings);
    findings.finish(key.map(|key| Service { key, cluster_ips, external_ips, selector, ports }))
}

/// `spec.clusterIPs`, or `spec.clusterIP` where only that is set. "None" (a headless Service) is no address.
fn cluster_ips(spec: &v1::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let top = Field::Top("spec");
    let is_address = |text: &&str| !text.is_empty() && *text != "None";
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    if listed.is_empty() {
        let single = spec.cluster_ip.as_deref().filter(is_address);
        return single.and_then(|text| address::address(text, &top.field("clusterIP"), findings)).into_iter().collect();
    }
    let list = top.field("clusterIPs");
    let listed = listed.iter().map(String::as_str).enumerate().filter(|(_, text)| is_address(text));
    listed.filter_map(|(index, text)| address::address(text, &list.at(index), findings)).collect()
}

/// `spec.externalIPs`, and the addresses of load balancers (one that has only a host name gives none). An address with
/// `ipMode: Proxy` is the load balancer's alone: kube-proxy leaves it alone, and what a pod sends there leaves the node as to any
/// host outside (KEP-1860).
fn external_ips(object: &v1::Service, spec: &v1::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let top = Field::Top("spec");
    let list = top.field("externalIPs");
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        addresses.extend(address::address(text, &list.at(index), findings));
    }
    let status = Field::Top("status");
    let balancer = status.field("loadBalancer");
    let list = balancer.field("ingress");
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    for (index, entry) in ingress.and_then(|ingress| ingress.ingress.as_ref()).into_iter().flatten().enumerate() {
        let elsewhere = entry.ip_mode.as_deref() == Some("Proxy");
        if let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty() && !elsewhere) {
            addresses.extend(address::address(text, &list.at(index).field("ip"), findings));
        }
    }
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

fn pods(spec: &v1::ServiceSpec, findings: &mut Findings) -> Option<Selector> {
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    let top = Field::Top("spec");
    meta::check_labels(labels, &top.field("selector"), findings);
    Some(Selector::All(selector::equalities(labels).collect()))
}

fn ports(spec: &v1::ServiceSpec, findings: &mut Findings) -> Vec<ServicePort> {
    let top = Field::Top("spec");
    let list = top.field("ports");
    let declared = spec.ports.as_deref().unwrap_or_default();
    let mut known_names = BTreeSet::new();
    let mut ports = Vec::new();
    for (index, port) in declared.iter().enumerate() {
        let entry = list.at(index);
        let name = port.name.as_deref().unwrap_or_default();
        let name_field = entry.field("name");
        if !name.is_empty() {
            findings.check(&name_field, names::dns_label(name));
        } else if declared.len() > 1 {
            findings.refuse(&name_field, "missing: a Service of several ports must name each");
        }
        if !known_names.insert(name) && !name.is_empty() {
            findings.refuse(&name_field, format!("{name:?} is already the name of another port"));
        }
        ports.extend(service_port(port, name, &entry, findings));
    }
    ports
}

fn service_port(
    declared: &v1::ServicePort,
    name: &str,
    field: &Field<'_>,
    findings: &mut Findings,
) -> Option<ServicePort> {
    let protocol = port::protocol_or_empty(declared.protocol.as_deref(), &field.field("protocol"), findings);
    let number = port::number(declared.port, &field.field("port"), findings);
    let node_port = declared.node_port.filter(|port| *port != 0);
    let node_port = node_port.map(|node_port| port::number(node_port, &field.field("nodePort"), findings));
    let target_field = field.field("targetPort");
    let target = match &declared.target_port {
        // Left out, 0 and "" all mean "the same port" (the API server's defaulting).
        None | Some(IntOrString::Int(0)) => number.map(TargetPort::Number),
        Some(IntOrString::String(text)) if text.is_empty() => number.map(TargetPort::Number),
        Some(IntOrString::Int(target)) => port::number(*target, &target_field, findings).map(TargetPort::Number),
        Some(IntOrString::String(text)) => {
            findings.check(&target_field, names::port_name(text));
            Some(TargetPort::Named(text.as_str().into()))
        }
    };
    Some(ServicePort {
        name: name.into(),
        protocol: protocol?,
        port: number?,
        node_port: match node_port {
            Some(node_port) => Some(node_port?),
            None => None,
        },
        target: target?,
    })
}
