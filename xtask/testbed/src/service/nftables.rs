//! The rules of kube-proxy's nftables mode (kubernetes pkg/proxy/nftables/README.md): verdict maps from address,
//! protocol and port to a chain for each Service.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::Result;

use super::{ExternalTrafficPolicy, Masquerade, Rules, Split, Unserved};
use crate::Namespace;

/// Replaces the whole of our table in one transaction.
pub(super) fn apply(namespace: &Namespace, v4: bool, rules: &[Rules<'_>]) -> Result<()> {
    let family = if v4 { "ip" } else { "ip6" };
    let table = table(family, rules);
    // `delete` fails on a table that is not there, so it is made first.
    namespace.nft(&format!("add table {family} kube-proxy\ndelete table {family} kube-proxy\n{table}"))
}

fn table(family: &str, rules: &[Rules<'_>]) -> String {
    let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    let (mut services, mut ports, mut refused, mut refused_ports) = (vec![], vec![], vec![], vec![]);
    let mut chains = String::new();
    for rules in rules {
        let (key, service) = (&rules.key, rules.service);
        if let Some(verdict) = rules.verdict_on_external() {
            let verdict = if verdict == Unserved::Dropped { "drop" } else { "goto reject-chain" };
            let at = |address| format!("{address} . {} . {} : {verdict}", service.protocol, service.port);
            refused.extend(rules.external_ips.iter().map(at));
            let at = |port| format!("{} . {port} : {verdict}", service.protocol);
            refused_ports.extend(service.node_port.map(at));
        }
        let at = |address: &std::net::IpAddr| format!("{address} . {} . {}", service.protocol, service.port);
        if rules.backends.is_empty() {
            refused.extend(rules.vips.iter().map(|vip| format!("{} : goto reject-chain", at(vip))));
            continue;
        }
        services.extend(rules.vips.iter().map(|vip| format!("{} : goto service-{key}", at(vip))));
        services.extend(rules.external_ips.iter().map(|ip| format!("{} : goto external-{key}", at(ip))));
        ports.extend(service.node_port.map(|port| format!("{} . {port} : goto external-{key}", service.protocol)));
        service_chains(&mut chains, family, rules);
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        _ => format!("elements = {{ {} }}", list.join(", ")),
    };
    format!(
        "table {family} kube-proxy {{
map service-ips {{ type {address} . inet_proto . inet_service : verdict; {services} }}
map service-nodeports {{ type inet_proto . inet_service : verdict; {ports} }}
map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; {refused} }}
map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; {refused_ports} }}
chain reject-chain {{ reject; }}
chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
chain masquerading {{
meta mark & 0x4000 == 0 return
meta mark set meta mark ^ 0x4000
masquerade fully-random
}}
{chains}
chain services {{
{family} daddr . meta l4proto . th dport vmap @service-ips
fib daddr type local meta l4proto . th dport vmap @service-nodeports
}}
chain service-endpoints-check {{ {family} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
chain nodeport-endpoints-check {{
fib daddr type local meta l4proto . th dport vmap @no-endpoint-nodeports
}}
chain filter-input {{
type filter hook input priority filter
ct state new jump nodeport-endpoints-check
ct state new jump service-endpoints-check
}}
chain filter-forward {{ type filter hook forward priority filter; ct state new jump service-endpoints-check; }}
chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump service-endpoints-check; }}
chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
chain nat-output {{ type nat hook output priority -100; jump services; }}
chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
",
        services = elements(&services),
        ports = elements(&ports),
        refused = elements(&refused),
        refused_ports = elements(&refused_ports),
    )
}

/// The chains of one Service; those that are jumped to come first, as nft wants it.
fn service_chains(text: &mut String, family: &str, rules: &Rules<'_>) {
    let (key, service) = (&rules.key, rules.service);
    for backend in &rules.backends {
        let chain = endpoint_chain(rules, backend);
        let _ = write!(
            text,
            "chain {chain} {{
{family} saddr {} jump mark-for-masquerade
meta l4proto {} dnat to {backend}
}}
",
            backend.ip(),
            service.protocol,
        );
    }
    let mut marks = String::new();
    for vip in &rules.vips {
        let from = match service.masquerade {
            Masquerade::All => String::new(),
            Masquerade::FromOutsidePods => format!("{family} saddr != {} ", rules.pod_range()),
        };
        let _ = writeln!(
            marks,
            "{from}{family} daddr {vip} {} dport {} jump mark-for-masquerade",
            service.protocol, service.port
        );
    }
    let _ = writeln!(text, "chain service-{key} {{\n{marks}{}\n}}", spread(rules, &rules.backends));
    let external = match service.external_traffic_policy {
        ExternalTrafficPolicy::Cluster => format!("jump mark-for-masquerade\ngoto service-{key}"),
        ExternalTrafficPolicy::Local => format!(
            "{family} saddr {} goto service-{key}\n\
             fib saddr type local jump mark-for-masquerade\nfib saddr type local goto service-{key}\n{}",
            rules.pod_range(),
            spread(rules, rules.external_backends()),
        ),
    };
    let _ = writeln!(text, "chain external-{key} {{\n{external}\n}}");
}

fn spread(rules: &Rules<'_>, backends: &[SocketAddr]) -> String {
    let numbers = match rules.service.split {
        Split::Random => "random",
        Split::InTurn => "inc",
        Split::BySourcePort => return by_source_port(rules, backends),
    };
    let chains: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(at, backend)| format!("{at} : goto {}", endpoint_chain(rules, backend)))
        .collect();
    match backends.len() {
        0 => String::new(),
        count => format!("numgen {numbers} mod {count} vmap {{ {} }}", chains.join(", ")),
    }
}

fn by_source_port(rules: &Rules<'_>, backends: &[SocketAddr]) -> String {
    let Some(last) = backends.last() else { return String::new() };
    let chains: Vec<String> = backends
        .iter()
        .map(|backend| {
            let ports = rules.source_ports(backend);
            format!("{}-{} : goto {}", ports.start(), ports.end(), endpoint_chain(rules, backend))
        })
        .collect();
    format!("th sport vmap {{ {} }}\ngoto {}", chains.join(", "), endpoint_chain(rules, last))
}

fn endpoint_chain(rules: &Rules<'_>, backend: &SocketAddr) -> String {
    format!("endpoint-{}", super::key_of(&format!("{} {backend}", rules.service.name)))
}
