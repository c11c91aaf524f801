//! The rules of kube-proxy's iptables mode (kubernetes pkg/proxy/iptables/proxier.go), with its chain names.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::Result;

use super::{ExternalTrafficPolicy, Masquerade, Rules, Split, Unserved};
use crate::Namespace;

/// Built-in chains (with the chain of ours to which each leads) of the nat and the filter table.
const NAT_HOOKS: [(&str, &str); 3] =
    [("PREROUTING", "KUBE-SERVICES"), ("OUTPUT", "KUBE-SERVICES"), ("POSTROUTING", "KUBE-POSTROUTING")];
const FILTER_HOOKS: [(&str, &str); 3] =
    [("INPUT", "KUBE-SERVICES"), ("FORWARD", "KUBE-SERVICES"), ("OUTPUT", "KUBE-SERVICES")];

/// Brings the node's chains to `rules`, one commit for each table; chains that are not ours stay.
pub(super) fn apply(namespace: &Namespace, flavour: &str, v4: bool, rules: &[Rules<'_>]) -> Result<()> {
    let tables = format!("{}-{flavour}", if v4 { "iptables" } else { "ip6tables" });
    let saved = namespace.tool(&format!("{tables}-save"), &[])?;
    let mut nat = Table::default();
    nat_rules(&mut nat, rules);
    let mut filter = Table::default();
    filter_rules(&mut filter, v4, rules);
    let script = nat.script("nat", &NAT_HOOKS, &saved) + &filter.script("filter", &FILTER_HOOKS, &saved);
    // Legacy iptables locks a file that all namespaces share.
    let wait: &[&str] = if flavour == "legacy" { &["--wait=10"] } else { &[] };
    let arguments: Vec<&str> = ["--noflush"].iter().chain(wait).copied().collect();
    namespace.tool_with_input(&format!("{tables}-restore"), &arguments, &script).map(drop)
}

#[derive(Default)]
struct Table {
    chains: BTreeSet<String>,
    rules: String,
}

impl Table {
    /// Appends a rule; its chain is made, or emptied, when the script is committed.
    fn rule(&mut self, chain: &str, rule: &str) {
        self.chain(chain);
        let _ = writeln!(self.rules, "-A {chain} {rule}");
    }

    fn chain(&mut self, chain: &str) {
        self.chains.insert(chain.to_owned());
    }

    fn script(&self, table: &str, hooks: &[(&str, &str)], saved: &str) -> String {
        let start = format!("*{table}\n");
        // What the table holds now, in the form of iptables-save.
        let now = saved.split_once(&start).map_or("", |(_, rest)| rest.split("COMMIT").next().unwrap_or(""));
        let stale: Vec<&str> = now
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split_whitespace().next())
            .filter(|chain| chain.starts_with("KUBE-") && !self.chains.contains(*chain))
            .collect();
        let mut script = start;
        for chain in self.chains.iter().map(String::as_str).chain(stale.iter().copied()) {
            let _ = writeln!(script, ":{chain} - [0:0]");
        }
        for (hook, chain) in hooks {
            let jump = format!("-A {hook} -j {chain}");
            if !now.lines().any(|line| line == jump) {
                let _ = writeln!(script, "{jump}");
            }
        }
        script.push_str(&self.rules);
        for chain in stale {
            let _ = writeln!(script, "-X {chain}");
        }
        script + "COMMIT\n"
    }
}

fn nat_rules(table: &mut Table, rules: &[Rules<'_>]) {
    table.rule("KUBE-MARK-MASQ", "-j MARK --or-mark 0x4000");
    table.rule("KUBE-POSTROUTING", "-m mark ! --mark 0x4000/0x4000 -j RETURN");
    table.rule("KUBE-POSTROUTING", "-j MARK --xor-mark 0x4000");
    table.rule("KUBE-POSTROUTING", "-j MASQUERADE --random-fully");
    table.chain("KUBE-SERVICES");
    table.chain("KUBE-NODEPORTS");
    for rules in rules.iter().filter(|rules| !rules.backends.is_empty()) {
        service_rules(table, rules);
    }
    // The last one, as in kube-proxy: a Service's own address goes first.
    table.rule("KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
}

fn service_rules(table: &mut Table, rules: &Rules<'_>) {
    let service = rules.service;
    let (svc, svl) = (format!("KUBE-SVC-{}", rules.key), format!("KUBE-SVL-{}", rules.key));
    let ext = format!("KUBE-EXT-{}", rules.key);
    let port = format!("-p {0} -m {0} --dport {1}", service.protocol, service.port);
    for vip in &rules.vips {
        table.rule("KUBE-SERVICES", &format!("-d {vip} {port} -j {svc}"));
        let from = match service.masquerade {
            Masquerade::All => String::new(),
            Masquerade::FromOutsidePods => format!("! -s {} ", rules.pod_range()),
        };
        table.rule(&svc, &format!("{from}-d {vip} {port} -j KUBE-MARK-MASQ"));
    }
    for address in &rules.external_ips {
        table.rule("KUBE-SERVICES", &format!("-d {address} {port} -j {ext}"));
    }
    if let Some(node_port) = service.node_port {
        let port = format!("-p {0} -m {0} --dport {node_port}", service.protocol);
        table.rule("KUBE-NODEPORTS", &format!("{port} -j {ext}"));
    }
    match service.external_traffic_policy {
        ExternalTrafficPolicy::Cluster => {
            table.rule(&ext, "-j KUBE-MARK-MASQ");
            table.rule(&ext, &format!("-j {svc}"));
        }
        ExternalTrafficPolicy::Local => {
            // Pods reach all backends even so (kube-proxy: "pod traffic for external destinations").
            table.rule(&ext, &format!("-s {} -j {svc}", rules.pod_range()));
            table.rule(&ext, "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ");
            table.rule(&ext, &format!("-m addrtype --src-type LOCAL -j {svc}"));
            table.rule(&ext, &format!("-j {svl}"));
            spread(table, &svl, rules, rules.external_backends());
        }
    }
    spread(table, &svc, rules, &rules.backends);
    for backend in &rules.backends {
        let chain = endpoint_chain(rules, backend);
        table.rule(&chain, &format!("-s {} -j KUBE-MARK-MASQ", backend.ip()));
        table.rule(&chain, &format!("-p {0} -m {0} -j DNAT --to-destination {backend}", service.protocol));
    }
}

/// Sends what comes to `chain` to one of `backends`.
fn spread(table: &mut Table, chain: &str, rules: &Rules<'_>, backends: &[SocketAddr]) {
    table.chain(chain);
    for (at, backend) in backends.iter().enumerate() {
        let left = backends.len() - at;
        let share = match rules.service.split {
            _ if left == 1 => String::new(),
            Split::Random => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            // Each rule sees what those before it left over, so the n-th of them takes every one in `left`.
            Split::InTurn => format!("-m statistic --mode nth --every {left} --packet 0 "),
            Split::BySourcePort => {
                let ports = rules.source_ports(backend);
                format!("-p {0} -m {0} --sport {1}:{2} ", rules.service.protocol, ports.start(), ports.end())
            }
        };
        table.rule(chain, &format!("{share}-j {}", endpoint_chain(rules, backend)));
    }
}

fn endpoint_chain(rules: &Rules<'_>, backend: &SocketAddr) -> String {
    format!("KUBE-SEP-{}", super::key_of(&format!("{} {backend}", rules.service.name)))
}

/// Refuses, or drops, what goes to a Service without backends.
fn filter_rules(table: &mut Table, v4: bool, rules: &[Rules<'_>]) {
    table.chain("KUBE-SERVICES");
    let with = if v4 { "icmp-port-unreachable" } else { "icmp6-port-unreachable" };
    let refuse = format!("REJECT --reject-with {with}");
    for rules in rules {
        let service = rules.service;
        let port = |port: u16| format!("-p {0} -m {0} --dport {port}", service.protocol);
        if rules.backends.is_empty() {
            for vip in &rules.vips {
                table.rule("KUBE-SERVICES", &format!("-d {vip} {} -j {refuse}", port(service.port)));
            }
        }
        let external = match rules.verdict_on_external() {
            None => continue,
            Some(Unserved::Refused) => refuse.as_str(),
            Some(Unserved::Dropped) => "DROP",
        };
        for address in &rules.external_ips {
            table.rule("KUBE-SERVICES", &format!("-d {address} {} -j {external}", port(service.port)));
        }
        if let Some(node_port) = service.node_port {
            let rule = format!("-m addrtype --dst-type LOCAL {} -j {external}", port(node_port));
            table.rule("KUBE-SERVICES", &rule);
        }
    }
}
