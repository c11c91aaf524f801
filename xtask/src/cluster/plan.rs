//! What a cluster is to be: its nodes, their addresses, and how pods are connected.

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Addresses of Services.
pub(super) const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Addresses of pods; each node has a part of them.
pub(super) const POD_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/48";
/// Where the API server is, and the next hop of every node.
pub(super) const CONTROL_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(super) const CONTROL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x99, 0, 0, 0, 0, 1);
/// This machine's own address in the nodes' network.
pub(super) const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);
pub(super) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x99, 0, 0, 0, 0, 0xfe);
/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;

/// The most nodes: a node's number is a byte of its addresses, and one machine has no use for more.
pub(super) const MOST_NODES: u8 = 50;

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cni {
    /// Routed, with the host's interfaces named by the pods' names, as Azure CNI does
    #[default]
    Azv,
    /// Routed, with random names
    Ptp,
    /// By a bridge, as kubenet does
    Bridge,
}

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Proxy {
    #[default]
    Iptables,
    Nftables,
}

impl Proxy {
    /// As kube-proxy's configuration names it.
    pub(super) const fn mode(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// The whole of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) nodes: u8,
    pub(super) cni: Cni,
    pub(super) proxy: Proxy,
}

impl Plan {
    pub(super) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.nodes).map(Node)
    }

    /// Every machine: the control plane, then the nodes.
    pub(super) fn machines(&self) -> impl Iterator<Item = Machine> + use<> {
        std::iter::once(Machine::Control).chain(self.nodes().map(Machine::Node))
    }
}

/// A node, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(u8);

impl Node {
    pub(super) fn name(self) -> String {
        format!("node{}", self.0)
    }

    pub(super) const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 10 + self.0)
    }

    pub(super) const fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x99, 0, 0, 0, 0, 0x10 + self.0 as u16)
    }

    pub(super) fn pods_v4(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    pub(super) fn pods_v6(self) -> String {
        format!("fd00:10:244:{:x}::/64", self.0)
    }
}

/// Something with namespaces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    Control,
    Node(Node),
}

impl Machine {
    pub(super) fn name(self) -> String {
        match self {
            Self::Control => "control".into(),
            Self::Node(node) => node.name(),
        }
    }

    /// The name of its network namespace under `/run/netns`.
    pub(super) fn namespace(self) -> String {
        format!("{}{}", super::state::PREFIX, self.name())
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        if name == "control" {
            return Some(Self::Control);
        }
        let number = name.strip_prefix("node")?.parse().ok()?;
        (1..=MOST_NODES).contains(&number).then_some(Self::Node(Node(number)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_machine_has_a_name_and_addresses_of_its_own() {
        let plan = Plan { nodes: MOST_NODES, cni: Cni::Azv, proxy: Proxy::Iptables };
        let mut seen: BTreeSet<String> = [CONTROL_V4.to_string(), HOST_V4.to_string()].into();
        seen.extend([CONTROL_V6.to_string(), HOST_V6.to_string()]);
        for node in plan.nodes() {
            for word in [node.name(), node.v4().to_string(), node.v6().to_string(), node.pods_v4(), node.pods_v6()] {
                assert!(seen.insert(word.clone()), "{word} is used twice");
            }
        }
        for machine in plan.machines() {
            assert_eq!(Machine::named(&machine.name()), Some(machine), "{}", machine.name());
        }
        assert_eq!(Machine::named("node0"), None);
    }
}
