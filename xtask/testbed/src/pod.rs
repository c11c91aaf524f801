//! Pods: a namespace each, connected to their node as the CNI of its shape connects them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use sha1::{Digest, Sha1};

use crate::host::host_prefix;
use crate::node::BRIDGE;
use crate::{Host, Namespace, Node, Protocol, Shape, TestbedOptions, VethNames};

/// The pods' IPv4 gateway in the routed shape; nobody has this address.
pub const ROUTED_GATEWAY_V4: &str = "169.254.1.1";
/// The pods' IPv6 gateway in the routed shape; nobody has this address.
pub const ROUTED_GATEWAY_V6: &str = "fe80::1234:5678:9abc";
/// The MAC address of every host veth in the routed shape.
pub const ROUTED_HOST_MAC: &str = "aa:aa:aa:aa:aa:aa";

/// What a pod shall be like; the default serves nothing and takes the next free addresses.
#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    /// What it serves.
    pub ports: Vec<(Protocol, u16)>,
    /// Its IPv4 address; `None` takes the next free one of the node's range.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address; `None` takes the next free one of the node's range.
    pub v6: Option<Ipv6Addr>,
    /// The index of its host veth; `None` takes the next that the kernel gives.
    pub veth_index: Option<u32>,
}

impl PodOptions {
    /// What `ip link add` is told of the index.
    fn index(&self) -> String {
        self.veth_index.map(|index| format!(" index {index}")).unwrap_or_default()
    }

    /// Serves one more port.
    #[must_use]
    pub fn serving(mut self, protocol: Protocol, port: u16) -> Self {
        self.ports.push((protocol, port));
        self
    }

    /// Has this IPv4 address.
    #[must_use]
    pub fn at_v4(mut self, address: Ipv4Addr) -> Self {
        self.v4 = Some(address);
        self
    }

    /// Has a host veth of this index.
    #[must_use]
    pub fn with_veth_index(mut self, index: u32) -> Self {
        self.veth_index = Some(index);
        self
    }

    /// Has this IPv6 address.
    #[must_use]
    pub fn at_v6(mut self, address: Ipv6Addr) -> Self {
        self.v6 = Some(address);
        self
    }
}

/// A pod of the testbed; see [`Host`] for what it can do. Its [`Host::name`] is `namespace/name`.
#[derive(Clone, Debug)]
pub struct Pod {
    host: Host,
    node: Node,
    veth: String,
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Pod {
    /// The node on which it runs.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The name of its host veth, on the node.
    #[must_use]
    pub fn veth(&self) -> &str {
        &self.veth
    }

    /// Makes the namespace, connects it, and starts what it serves.
    pub(crate) fn new(
        bed: &str,
        node: &Node,
        name: &str,
        addresses: Vec<IpAddr>,
        wanted: &PodOptions,
        options: &TestbedOptions,
    ) -> Result<Self> {
        let (kube_namespace, kube_name) =
            name.split_once('/').with_context(|| format!("pod name {name:?} is not of the form namespace/name"))?;
        let namespace = Namespace::new(&format!("{bed}-pod-{kube_namespace}.{kube_name}"))?;
        let veth = match (options.shape, options.veth_names) {
            (Shape::Routed, VethNames::Azure) => azure_veth_name(kube_namespace, kube_name),
            _ => random_veth_name(),
        };
        let host = Host::new(name, namespace, "eth0", addresses);
        let pod = Self { host, node: node.clone(), veth };
        match options.shape {
            Shape::Routed => pod.connect_routed(wanted, options)?,
            Shape::Bridged => pod.connect_bridged(wanted, options)?,
        }
        pod.await_link("eth0")?;
        pod.node.await_link(&pod.veth)?;
        for (protocol, port) in &wanted.ports {
            pod.serve(*protocol, *port)?;
        }
        Ok(pod)
    }

    /// Azure CNI's transparent mode: the pod sends everything to a gateway that does not exist, at the host veth's MAC
    /// address, and the node routes the pod's address to the veth.
    fn connect_routed(&self, wanted: &PodOptions, options: &TestbedOptions) -> Result<()> {
        let (mtu, veth) = (options.mtu, &self.veth);
        let index = wanted.index();
        self.node.namespace().ip([
            format!(
                "link add {veth}{index} mtu {mtu} address {ROUTED_HOST_MAC} type veth peer name eth0 mtu {mtu} netns {}",
                self.namespace().path()
            ),
            format!("link set {veth} up"),
        ])?;
        self.node.namespace().sysctl(&format!("net/ipv4/conf/{veth}/proxy_arp"), "1")?;
        let mut inside = vec!["link set eth0 up".to_owned()];
        let mut outside = Vec::new();
        for address in self.addresses() {
            let prefix = host_prefix(address);
            outside.push(format!("route add {prefix} dev {veth}"));
            let (gateway, nodad) =
                if address.is_ipv4() { (ROUTED_GATEWAY_V4, "") } else { (ROUTED_GATEWAY_V6, " nodad") };
            let scope = if address.is_ipv4() { " scope link" } else { "" };
            inside.push(format!("addr add {prefix} dev eth0{nodad}"));
            inside.push(format!("route add {} dev eth0{scope}", host_prefix(gateway.parse()?)));
            inside.push(format!("route add default via {gateway} dev eth0"));
            inside.push(format!("neigh add {gateway} lladdr {ROUTED_HOST_MAC} dev eth0 nud permanent"));
        }
        self.namespace().ip(inside)?;
        self.node.namespace().ip(outside)
    }

    /// kubenet: the pod is a port of the node's bridge, whose address is its gateway.
    fn connect_bridged(&self, wanted: &PodOptions, options: &TestbedOptions) -> Result<()> {
        let (mtu, veth) = (options.mtu, &self.veth);
        let index = wanted.index();
        self.node.namespace().ip([
            format!(
                "link add {veth}{index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
                self.namespace().path()
            ),
            format!("link set {veth} master {BRIDGE} up"),
        ])?;
        if options.hairpin_ports {
            self.node.namespace().ip([format!("link set {veth} type bridge_slave hairpin on")])?;
        }
        let mut inside = vec!["link set eth0 up".to_owned()];
        for address in self.addresses() {
            let (length, gateway, nodad) = if address.is_ipv4() {
                (24, IpAddr::V4(self.node.plan.pod_v4(1)), "")
            } else {
                (64, IpAddr::V6(self.node.plan.pod_v6(1)), " nodad")
            };
            inside.push(format!("addr add {address}/{length} dev eth0{nodad}"));
            inside.push(format!("route add default via {gateway} dev eth0"));
        }
        self.namespace().ip(inside)
    }

    /// Ends what runs in it and takes its veth away, and its routes with that.
    pub(crate) fn disconnect(&self) -> Result<()> {
        self.shut_down();
        self.node.namespace().ip([format!("link del {}", self.veth)])
    }
}

/// The addresses that a pod gets: those asked for, else the first of the node's range that no pod `taken` by has.
pub(crate) fn choose_addresses(
    node: &Node,
    wanted: &PodOptions,
    options: &TestbedOptions,
    taken: &[IpAddr],
) -> Result<Vec<IpAddr>> {
    let free = |make: &dyn Fn(u8) -> IpAddr| {
        // .1 is the bridge's; the others are given in order, so that tests are repeatable.
        (2..255).map(make).find(|address| !taken.contains(address)).context("the node's pod range is used up")
    };
    let mut addresses = Vec::new();
    if options.families.has_v4() {
        addresses.push(match wanted.v4 {
            Some(v4) => v4.into(),
            None => free(&|host| node.plan.pod_v4(host).into())?,
        });
    }
    if options.families.has_v6() {
        addresses.push(match wanted.v6 {
            Some(v6) => v6.into(),
            None => free(&|host| node.plan.pod_v6(host).into())?,
        });
    }
    ensure!(options.families.has_v4() || wanted.v4.is_none(), "an IPv4 address in a testbed without IPv4");
    ensure!(options.families.has_v6() || wanted.v6.is_none(), "an IPv6 address in a testbed without IPv6");
    Ok(addresses)
}

/// The name that Azure CNI gives a pod's host veth (Azure/azure-container-networking, cni/network/network.go).
#[must_use]
pub fn azure_veth_name(namespace: &str, pod: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{pod}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("azv{}", &hex[..11])
}

/// Unlike any name that this process has given before.
fn random_veth_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // An odd factor permutes the numbers, so that names look as random as container runtimes' do.
    format!("veth{:08x}", number.wrapping_add(std::process::id()).wrapping_mul(0x9e37_79b1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_names_are_those_of_sha1sum() {
        // printf %s default.web-0 | sha1sum
        assert_eq!(azure_veth_name("default", "web-0"), "azv0d7763386da");
        assert_eq!(azure_veth_name("default", "web-0").len(), 14, "interface names have at most 15 bytes");
    }

    #[test]
    fn random_names_differ() {
        let names: std::collections::BTreeSet<String> = (0..1000).map(|_| random_veth_name()).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 12 && name.starts_with("veth")));
    }
}
