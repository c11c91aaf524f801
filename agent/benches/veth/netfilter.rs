//! The same policy as rules of iptables and nftables: what is established is accepted first; then each pod has a chain,
//! whose rules name a peer and a port.

use std::fmt::Write;
use std::net::Ipv4Addr;

use portcullis_testbed::{Node, Pod};

use crate::Result;
use crate::bed::Means;
use crate::traffic::PORT;

/// The pod that rule `i` names.
pub(crate) fn peer(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 245, 0, 0)) + i)
}

/// Each rule's peer and port; the last names the other pod.
pub(crate) fn rules(count: u32, other: Ipv4Addr) -> impl Iterator<Item = (Ipv4Addr, u32)> {
    let peers = (0..count - 1).map(|i| (peer(i), 1000 + i));
    peers.chain([(other, u32::from(PORT))])
}

/// Puts the policy into force.
pub(crate) fn apply(node: &Node, client: &Pod, server: &Pod, means: Means) -> Result<()> {
    // Connections that are closed make room at once, in a table that all configurations share.
    let namespace = node.namespace();
    match means {
        Means::Nothing | Means::Agent(_) => return Ok(()),
        Means::IptablesSets(_) => {
            namespace.tool_with_input("ipset", &["restore"], &sets(client, server, means.rules())?)?;
            let script = iptables(client, server, means)?;
            namespace.tool_with_input("iptables-legacy-restore", &["--wait=60"], &script)?;
        }
        Means::Iptables(_) => {
            let script = iptables(client, server, means)?;
            namespace.tool_with_input("iptables-legacy-restore", &["--wait=60"], &script)?;
        }
        Means::Conntrack | Means::Nftables(_) | Means::NftablesMaps(_) => {
            namespace.nft(&nftables(client, server, means)?)?;
        }
    }
    namespace.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
    Ok(())
}

/// The rules of one pod: the other's address, and how the rule writes it.
fn sides(client: &Pod, server: &Pod) -> Result<[(&'static str, &'static str, Ipv4Addr); 2]> {
    Ok([("from-client", "dst", server.v4()?), ("to-server", "src", client.v4()?)])
}

fn sets(client: &Pod, server: &Pod, rules: u32) -> Result<String> {
    let mut script = String::new();
    for (at, (_, _, other)) in sides(client, server)?.into_iter().enumerate() {
        for (i, (address, _)) in self::rules(rules, other).enumerate() {
            writeln!(script, "create s{at}-{i} hash:net family inet hashsize 64\nadd s{at}-{i} {address}")?;
        }
    }
    Ok(script)
}

fn iptables(client: &Pod, server: &Pod, means: Means) -> Result<String> {
    let mut script = "*filter\n:from-client - [0:0]\n:to-server - [0:0]\n".to_owned();
    writeln!(script, "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
    writeln!(script, "-A FORWARD -m conntrack --ctstate INVALID -j DROP")?;
    writeln!(script, "-A FORWARD -i {} -j from-client", client.veth())?;
    writeln!(script, "-A FORWARD -o {} -j to-server", server.veth())?;
    for (at, (chain, side, other)) in sides(client, server)?.into_iter().enumerate() {
        for (i, (address, port)) in rules(means.rules(), other).enumerate() {
            let peer = match means {
                Means::IptablesSets(_) => format!("-m set --match-set s{at}-{i} {side}"),
                _ => format!("-{} {address}", &side[..1]),
            };
            writeln!(script, "-A {chain} -p tcp {peer} -m tcp --dport {port} -j RETURN")?;
        }
        writeln!(script, "-A {chain} -j DROP")?;
    }
    Ok(script + "COMMIT\n")
}

fn nftables(client: &Pod, server: &Pod, means: Means) -> Result<String> {
    let mut script = "table ip bench {\n".to_owned();
    let judged = means.rules() > 0;
    for (chain, side, other) in sides(client, server)?.into_iter().filter(|_| judged) {
        let side = if side == "dst" { "daddr" } else { "saddr" };
        let rules: Vec<(Ipv4Addr, u32)> = rules(means.rules(), other).collect();
        if matches!(means, Means::NftablesMaps(_)) {
            let elements: Vec<String> =
                rules.iter().map(|(address, port)| format!("{address} . {port} : return")).collect();
            writeln!(script, "map {chain} {{\ntype ipv4_addr . inet_service : verdict\n")?;
            writeln!(script, "elements = {{ {} }}\n}}", elements.join(", "))?;
            writeln!(script, "chain {chain} {{\nip {side} . tcp dport vmap @{chain}\ndrop\n}}")?;
        } else {
            writeln!(script, "chain {chain} {{")?;
            for (address, port) in rules {
                writeln!(script, "ip {side} {address} tcp dport {port} return")?;
            }
            writeln!(script, "drop\n}}")?;
        }
    }
    writeln!(script, "chain forward {{\ntype filter hook forward priority 0; policy accept;")?;
    writeln!(script, "ct state established,related accept\nct state invalid drop")?;
    if judged {
        writeln!(script, "iifname vmap {{ {} : jump from-client }}", client.veth())?;
        writeln!(script, "oifname vmap {{ {} : jump to-server }}", server.veth())?;
    }
    Ok(script + "}\n}")
}
