//! Services, translated on every node as kube-proxy translates them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::testbed::{POD_RANGE_V4, POD_RANGE_V6};
use crate::{Node, Protocol, Testbed, lock};

mod iptables;
mod nftables;

/// Which netfilter front end carries the translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// `iptables-nft` and `ip6tables-nft`.
    IptablesNft,
    /// `iptables-legacy` and `ip6tables-legacy`.
    IptablesLegacy,
    /// `nft`, as kube-proxy's nftables mode.
    Nftables,
}

/// Whose connections to a Service are masqueraded. A pod that reaches itself through a Service always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Those that do not come from a pod's address: kube-proxy with `--cluster-cidr`.
    FromOutsidePods,
    /// All: kube-proxy with `--masquerade-all`.
    All,
}

/// Which backends a connection to a node port or an external address gets, and whether it keeps its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalTrafficPolicy {
    /// Any backend; masqueraded, so that the backend sees the node's address.
    Cluster,
    /// Backends on the same node only; the source is kept.
    Local,
}

/// How connections are spread over the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// By chance, as kube-proxy does it.
    Random,
    /// In turn: on each node, the first connection goes to the first backend, the next one to the second.
    InTurn,
    /// By the client's port: see [`pinned_source_ports`]. Other ports get the last backend.
    BySourcePort,
}

/// The client's ports that get the `index`th backend of each family, of at most ten, with [`Split::BySourcePort`]. They
/// are below the kernel's ephemeral ports.
#[must_use]
pub fn pinned_source_ports(index: usize) -> std::ops::RangeInclusive<u16> {
    let first = 20_000 + 1_000 * u16::try_from(index.min(9)).unwrap_or(9);
    first..=first + 999
}

/// A Service of one port.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, by which it is replaced and removed.
    pub name: String,
    /// Its cluster addresses, at most one of each family matters to a cluster, any number here.
    pub vips: Vec<IpAddr>,
    /// Its load balancer's or external addresses.
    pub external_ips: Vec<IpAddr>,
    /// Its protocol: TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The addresses and ports behind it, of both families; each family is balanced by itself. With none, connections
    /// are refused.
    pub backends: Vec<SocketAddr>,
    /// The port on every node's addresses.
    pub node_port: Option<u16>,
    /// Whom to masquerade.
    pub masquerade: Masquerade,
    /// How node port and external addresses behave.
    pub external_traffic_policy: ExternalTrafficPolicy,
    /// How backends are chosen.
    pub split: Split,
}

impl Service {
    /// A TCP Service on port 80 without addresses and backends.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            vips: Vec::new(),
            external_ips: Vec::new(),
            protocol: Protocol::Tcp,
            port: 80,
            backends: Vec::new(),
            node_port: None,
            masquerade: Masquerade::FromOutsidePods,
            external_traffic_policy: ExternalTrafficPolicy::Cluster,
            split: Split::Random,
        }
    }

    /// With one more cluster address.
    #[must_use]
    pub fn vip(mut self, address: impl Into<IpAddr>) -> Self {
        self.vips.push(address.into());
        self
    }

    /// On this protocol and port.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16) -> Self {
        (self.protocol, self.port) = (protocol, port);
        self
    }

    /// With all of a host's addresses as backends, on `port`.
    #[must_use]
    pub fn backend(mut self, host: &crate::Host, port: u16) -> Self {
        self.backends.extend(host.addresses().into_iter().map(|address| SocketAddr::new(address, port)));
        self
    }

    /// With this node port.
    #[must_use]
    pub fn node_port(mut self, port: u16) -> Self {
        self.node_port = Some(port);
        self
    }

    /// With backends taken in turn.
    #[must_use]
    pub fn in_turn(mut self) -> Self {
        self.split = Split::InTurn;
        self
    }

    /// With backends chosen by the client's port.
    #[must_use]
    pub fn by_source_port(mut self) -> Self {
        self.split = Split::BySourcePort;
        self
    }

    /// With this external traffic policy.
    #[must_use]
    pub fn external_traffic_policy(mut self, policy: ExternalTrafficPolicy) -> Self {
        self.external_traffic_policy = policy;
        self
    }
}

/// One family of one Service on one node: what the back ends write down.
struct Rules<'a> {
    service: &'a Service,
    v4: bool,
    /// Unlike any other Service's; part of chain names.
    key: String,
    vips: Vec<IpAddr>,
    external_ips: Vec<IpAddr>,
    backends: Vec<SocketAddr>,
    /// The backends on this node.
    local_backends: Vec<SocketAddr>,
}

/// What becomes of connections that no backend may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unserved {
    /// There is no backend at all.
    Refused,
    /// There are backends on other nodes, and this node is to have none of theirs.
    Dropped,
}

impl Rules<'_> {
    fn pod_range(&self) -> &'static str {
        if self.v4 { POD_RANGE_V4 } else { POD_RANGE_V6 }
    }

    /// What becomes of connections to the node port and external addresses, where it is not to be served.
    fn verdict_on_external(&self) -> Option<Unserved> {
        match (self.backends.is_empty(), self.external_backends().is_empty()) {
            (true, _) => Some(Unserved::Refused),
            (false, true) => Some(Unserved::Dropped),
            (false, false) => None,
        }
    }

    /// The client's ports that get a backend, where they decide: the same ones in every chain that has the backend.
    fn source_ports(&self, backend: &SocketAddr) -> std::ops::RangeInclusive<u16> {
        pinned_source_ports(self.backends.iter().position(|have| have == backend).unwrap_or(0))
    }

    /// Backends of node port and external addresses.
    fn external_backends(&self) -> &[SocketAddr] {
        match self.service.external_traffic_policy {
            ExternalTrafficPolicy::Cluster => &self.backends,
            ExternalTrafficPolicy::Local => &self.local_backends,
        }
    }
}

impl Testbed {
    /// Installs a Service on every node, or replaces the one of the same name; each node changes in one step.
    /// Connections that are open keep their backend, as netfilter has it.
    ///
    /// # Errors
    /// When a rule is refused; the message holds the rules.
    pub fn service(&self, service: Service) -> Result<()> {
        self.services([service])
    }

    /// Like [`Self::service`], for many at once, which takes no longer than for one.
    ///
    /// # Errors
    /// As [`Self::service`].
    pub fn services(&self, wanted: impl IntoIterator<Item = Service>) -> Result<()> {
        let mut services = lock(&self.services);
        for service in wanted {
            ensure!(service.protocol != Protocol::Icmp, "service {}: ICMP is not translated", service.name);
            match services.iter_mut().find(|have| have.name == service.name) {
                Some(have) => *have = service,
                None => services.push(service),
            }
        }
        self.sync_services(&services)
    }

    /// Removes a Service from every node.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove_service(&self, name: &str) -> Result<()> {
        let mut services = lock(&self.services);
        let before = services.len();
        services.retain(|have| have.name != name);
        ensure!(services.len() < before, "there is no service {name}");
        self.sync_services(&services)
    }

    fn sync_services(&self, services: &[Service]) -> Result<()> {
        for node in self.nodes() {
            for v4 in [true, false] {
                let rules: Vec<Rules<'_>> = services.iter().map(|service| rules_of(service, v4, node)).collect();
                match self.options.proxy {
                    Proxy::IptablesNft => iptables::apply(node.namespace(), "nft", v4, &rules),
                    Proxy::IptablesLegacy => iptables::apply(node.namespace(), "legacy", v4, &rules),
                    Proxy::Nftables => nftables::apply(node.namespace(), v4, &rules),
                }
                .with_context(|| format!("cannot install services on {}", node.name()))?;
            }
        }
        Ok(())
    }
}

fn rules_of<'a>(service: &'a Service, v4: bool, node: &Node) -> Rules<'a> {
    let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect()
    };
    let backends: Vec<SocketAddr> = service.backends.iter().copied().filter(|to| to.is_ipv4() == v4).collect();
    let is_local = |to: &&SocketAddr| node.owns_pod_address(to.ip()) || node.addresses().contains(&to.ip());
    Rules {
        service,
        v4,
        key: key_of(&service.name),
        vips: of_family(&service.vips),
        external_ips: of_family(&service.external_ips),
        local_backends: backends.iter().filter(is_local).copied().collect(),
        backends,
    }
}

/// Sixteen capital letters and digits, as in kube-proxy's chain names (KUBE-SVC-...; iptables allows 28 bytes).
fn key_of(name: &str) -> String {
    use sha1::{Digest, Sha1};
    Sha1::digest(name).iter().take(8).map(|byte| format!("{byte:02X}")).collect()
}
