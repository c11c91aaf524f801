//! A node: a namespace that forwards between its pods and the fabric.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::Path;

use anyhow::Result;

use crate::testbed::{FABRIC_V4, FABRIC_V6};
use crate::{Host, Namespace, Shape, TestbedOptions};

/// The bridge of the bridged shape.
pub const BRIDGE: &str = "cbr0";

/// A node's addresses, worked out from its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    index: u8,
}

impl Plan {
    pub(crate) fn new(index: usize) -> Result<Self> {
        anyhow::ensure!(index < 200, "a testbed has at most 200 nodes");
        Ok(Self { index: u8::try_from(index)? })
    }

    /// The first addresses of the subnet are the platform's, as in Azure.
    pub(crate) fn address_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 224, 0, self.index + 4)
    }

    pub(crate) fn address_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x224, 0, 0, 0, 0, u16::from(self.index) + 4)
    }

    /// The `host`th address of the node's pod range.
    pub(crate) fn pod_v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.index, host)
    }

    /// The `host`th address of the node's pod range.
    pub(crate) fn pod_v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(self.index), 0, 0, 0, u16::from(host))
    }

    pub(crate) fn pod_ranges(self) -> (String, String) {
        (format!("{}/24", self.pod_v4(0)), format!("{}/64", self.pod_v6(0)))
    }
}

/// A node of the testbed; see [`Host`] for what it can do.
#[derive(Clone, Debug)]
pub struct Node {
    host: Host,
    pub(crate) plan: Plan,
    index: usize,
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Node {
    /// Its number, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The range of its pods' IPv4 addresses, a /24.
    #[must_use]
    pub fn pod_cidr_v4(&self) -> String {
        self.plan.pod_ranges().0
    }

    /// The range of its pods' IPv6 addresses, a /64.
    #[must_use]
    pub fn pod_cidr_v6(&self) -> String {
        self.plan.pod_ranges().1
    }

    /// Whether an address lies in its pods' ranges.
    #[must_use]
    pub fn owns_pod_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.octets()[..3] == self.plan.pod_v4(0).octets()[..3],
            IpAddr::V6(v6) => v6.octets()[..8] == self.plan.pod_v6(0).octets()[..8],
        }
    }

    /// Makes the namespace, plugs it into the fabric's bridge and readies it for pods of the asked shape.
    pub(crate) fn new(bed: &str, index: usize, fabric: &Namespace, options: &TestbedOptions) -> Result<Self> {
        let plan = Plan::new(index)?;
        let name = format!("node{index}");
        let namespace = Namespace::new(&format!("{bed}-{name}"))?;
        let families = options.families;
        let mtu = options.mtu;
        fabric.ip([
            format!("link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", namespace.path()),
            format!("link set {name} master fabric up"),
        ])?;
        set_sysctls(&namespace, options)?;
        let mut commands = vec!["link set eth0 up".to_owned()];
        if families.has_v4() {
            commands.push(format!("addr add {}/16 dev eth0", plan.address_v4()));
            commands.push(format!("route add default via {FABRIC_V4}"));
        }
        if families.has_v6() {
            commands.push(format!("addr add {}/64 dev eth0 nodad", plan.address_v6()));
            commands.push(format!("route add default via {FABRIC_V6}"));
        }
        if options.shape == Shape::Bridged {
            commands.extend(bridge_commands(plan, options));
        }
        namespace.ip(commands)?;
        if options.shape == Shape::Bridged {
            set_bridge_sysctls(&namespace, options.br_netfilter)?;
        }
        let addresses = families.pick(plan.address_v4(), plan.address_v6());
        let host = Host::new(&name, namespace, "eth0", addresses);
        host.await_link("eth0")?;
        Ok(Self { host, plan, index })
    }

    /// Leads the pods of `other` to `other`.
    pub(crate) fn route_to(&self, other: &Self, options: &TestbedOptions) -> Result<()> {
        self.namespace().ip(routes_to_pods(other.plan, options))
    }
}

/// Routes to the pods of the node of `plan`, for anybody on the fabric.
pub(crate) fn routes_to_pods(plan: Plan, options: &TestbedOptions) -> Vec<String> {
    let (range_v4, range_v6) = plan.pod_ranges();
    let v4 = options.families.has_v4().then(|| format!("route add {range_v4} via {}", plan.address_v4()));
    let v6 = options.families.has_v6().then(|| format!("route add {range_v6} via {}", plan.address_v6()));
    v4.into_iter().chain(v6).collect()
}

fn set_sysctls(namespace: &Namespace, options: &TestbedOptions) -> Result<()> {
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    if let Some(rp_filter) = options.rp_filter {
        for scope in ["all", "default", "eth0"] {
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), &rp_filter.to_string())?;
        }
    }
    Ok(())
}

fn bridge_commands(plan: Plan, options: &TestbedOptions) -> Vec<String> {
    let mut commands = vec![format!("link add {BRIDGE} mtu {} type bridge", options.mtu)];
    if options.promiscuous_bridge {
        commands.push(format!("link set {BRIDGE} promisc on"));
    }
    commands.push(format!("link set {BRIDGE} up"));
    if options.families.has_v4() {
        commands.push(format!("addr add {}/24 dev {BRIDGE}", plan.pod_v4(1)));
    }
    if options.families.has_v6() {
        commands.push(format!("addr add {}/64 dev {BRIDGE} nodad", plan.pod_v6(1)));
    }
    commands
}

/// Each network namespace has its own copy of these since Linux 5.3.
fn set_bridge_sysctls(namespace: &Namespace, on: bool) -> Result<()> {
    if !br_netfilter_available() {
        return Ok(());
    }
    for key in ["iptables", "ip6tables"] {
        namespace.sysctl(&format!("net/bridge/bridge-nf-call-{key}"), if on { "1" } else { "0" })?;
    }
    Ok(())
}

/// Whether this kernel can pass bridged frames to iptables; tests of that have nothing to test where it cannot.
#[must_use]
pub fn br_netfilter_available() -> bool {
    Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}
