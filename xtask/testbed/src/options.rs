//! What a testbed looks like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Proxy;

/// How a node's pods are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As Azure CNI does it: each pod's host veth stands alone, with a host route to the pod.
    Routed,
    /// As kubenet does it: host veths are ports of the bridge `cbr0`, which holds the pods' gateway.
    Bridged,
}

/// Which address families nodes and pods have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Families {
    pub(crate) fn has_v4(self) -> bool {
        self != Self::V6
    }

    pub(crate) fn has_v6(self) -> bool {
        self != Self::V4
    }

    /// The addresses, of those given, that belong to these families.
    pub(crate) fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let v4 = self.has_v4().then_some(IpAddr::V4(v4));
        let v6 = self.has_v6().then_some(IpAddr::V6(v6));
        v4.into_iter().chain(v6).collect()
    }
}

/// How host veths are named in the routed shape (in the bridged shape they are always `veth` and a random number).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VethNames {
    /// `azv` and the first 11 hex digits of SHA-1 of `namespace.pod`: a pod made anew gets its old name.
    Azure,
    /// `veth` and a random number.
    Random,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct TestbedOptions {
    /// How many nodes, at most 200.
    pub nodes: usize,
    /// How pods are connected.
    pub shape: Shape,
    /// Whether bridged frames pass iptables (`net.bridge.bridge-nf-call-iptables` and its siblings). kube-proxy needs
    /// it in the bridged shape. Without effect on a kernel that has no br_netfilter.
    pub br_netfilter: bool,
    /// Whether `cbr0` is promiscuous. kubenet's is by default, for pods that reach themselves through a Service; with
    /// br_netfilter that has not worked since Linux 6.9 (commit 751de2012eaf): a frame that was translated inside the
    /// bridge is forwarded and also goes up through the bridge, that copy without its connection-tracking entry, so
    /// that it arrives twice, once with its source not masqueraded.
    pub promiscuous_bridge: bool,
    /// Whether the ports of `cbr0` send frames back where they came from (`hairpinMode` of the CNI's bridge
    /// plugin, `--hairpin-mode=hairpin-veth` of kubenet); pods reach themselves through a Service only with it.
    pub hairpin_ports: bool,
    /// Address families.
    pub families: Families,
    /// The MTU of every link, in bytes; at least 1280.
    pub mtu: u32,
    /// Names of host veths.
    pub veth_names: VethNames,
    /// How Services are translated.
    pub proxy: Proxy,
    /// `rp_filter` of all of a node's interfaces; `None` leaves the kernel's default.
    pub rp_filter: Option<u8>,
}

impl Default for TestbedOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            shape: Shape::Routed,
            br_netfilter: true,
            promiscuous_bridge: false,
            hairpin_ports: true,
            families: Families::Dual,
            mtu: 1500,
            veth_names: VethNames::Azure,
            proxy: Proxy::IptablesNft,
            rp_filter: None,
        }
    }
}

impl TestbedOptions {
    /// The default with another shape.
    #[must_use]
    pub fn shaped(shape: Shape) -> Self {
        Self { shape, ..Self::default() }
    }
}
