//! The testbed as a whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::node::{Plan, routes_to_pods};
use crate::pod::choose_addresses;
use crate::service::Service;
use crate::{Host, Namespace, Node, Pod, PodOptions, TestbedOptions, leftovers, lock};

/// The nodes' default gateway.
pub(crate) const FABRIC_V4: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 1);
/// The nodes' default gateway.
pub(crate) const FABRIC_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x224, 0, 0, 0, 0, 1);

/// The range of all pods' IPv4 addresses.
pub const POD_RANGE_V4: &str = "10.244.0.0/16";
/// The range of all pods' IPv6 addresses.
pub const POD_RANGE_V6: &str = "fd00:10:244::/48";
/// The range from which Services take their IPv4 addresses, by custom.
pub const SERVICE_RANGE_V4: &str = "10.0.0.0/16";
/// The range from which Services take their IPv6 addresses, by custom.
pub const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";
/// The range of the outside host's IPv4 addresses (RFC 5737, TEST-NET-3): addresses added to it are reachable.
pub const OUTSIDE_RANGE_V4: &str = "203.0.113.0/24";
/// The range of the outside host's IPv6 addresses (RFC 3849, documentation).
pub const OUTSIDE_RANGE_V6: &str = "2001:db8:113::/64";

const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);

/// Nodes, their pods, and a world outside. All of it goes when this is dropped, and when the process ends.
pub struct Testbed {
    id: String,
    pub(crate) options: TestbedOptions,
    fabric: Host,
    outside: Host,
    nodes: Vec<Node>,
    pods: Mutex<Vec<Pod>>,
    pub(crate) services: Mutex<Vec<Service>>,
}

impl Testbed {
    /// Builds it.
    ///
    /// # Errors
    /// Without root, without one of `ip`, `iptables`, `nft`, or when the kernel lacks something: what, and where.
    pub fn new(options: TestbedOptions) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("pc{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ensure!(options.mtu >= 1280, "an MTU of {} is less than the 1280 bytes that IPv6 needs", options.mtu);
        let fabric = make_fabric(&id, &options).context("cannot make the fabric")?;
        let outside = make_outside(&id, &fabric, &options).context("cannot make the outside host")?;
        let nodes = (0..options.nodes)
            .map(|index| {
                Node::new(&id, index, fabric.namespace(), &options).with_context(|| format!("cannot make node {index}"))
            })
            .collect::<Result<Vec<Node>>>()?;
        for node in &nodes {
            for other in nodes.iter().filter(|other| other.index() != node.index()) {
                node.route_to(other, &options)?;
            }
        }
        Ok(Self { id, options, fabric, outside, nodes, pods: Mutex::default(), services: Mutex::default() })
    }

    /// The prefix of the names of its namespaces, for [`crate::leftovers_of`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its nodes, by number.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    ///
    /// # Panics
    /// When there is no such node, like an index out of range.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// A host beyond the fabric, whose address belongs to no node and no pod. It has routes to everything.
    #[must_use]
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The network between the nodes: its bridge `fabric` has a port `node<number>` for each and routes to `outside`.
    #[must_use]
    pub fn fabric(&self) -> &Host {
        &self.fabric
    }

    /// Makes a pod on the node of number `node`; `name` is `namespace/name`.
    ///
    /// # Errors
    /// When there is such a pod already, an address or port is taken, or the kernel refuses something.
    pub fn add_pod(&self, node: usize, name: &str, options: PodOptions) -> Result<Pod> {
        let node = self.nodes.get(node).with_context(|| format!("there is no node {node}"))?;
        let mut pods = lock(&self.pods);
        ensure!(!pods.iter().any(|pod| pod.name() == name), "there is a pod {name} already");
        let taken: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses()).collect();
        let addresses = choose_addresses(node, &options, &self.options, &taken)?;
        let pod = Pod::new(&self.id, node, name, addresses, &options, &self.options)
            .with_context(|| format!("cannot make pod {name}"))?;
        pods.push(pod.clone());
        Ok(pod)
    }

    /// Takes a pod away: its servers end, its veth and its routes go. Its addresses and name may be given again.
    ///
    /// # Errors
    /// When its veth is gone already.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        lock(&self.pods).retain(|have| have.name() != pod.name());
        pod.disconnect().with_context(|| format!("cannot remove pod {}", pod.name()))
    }

    /// Its pods, in the order in which they were made.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        lock(&self.pods).clone()
    }

    /// For a person who wants to look around: each host, its addresses, and how to enter its namespace.
    #[must_use]
    pub fn describe(&self) -> String {
        let pods = self.pods();
        let hosts = [&self.fabric, &self.outside].into_iter();
        let hosts = hosts.chain(self.nodes.iter().map(|node| &**node)).chain(pods.iter().map(|pod| &**pod));
        hosts
            .map(|host| {
                let addresses: Vec<String> = host.addresses().iter().map(ToString::to_string).collect();
                format!("{:24} {:40} nsenter --net={}\n", host.name(), addresses.join(" "), host.namespace().path())
            })
            .collect()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        for pod in lock(&self.pods).drain(..) {
            pod.shut_down();
        }
        for node in &self.nodes {
            node.shut_down();
        }
        self.outside.shut_down();
        self.fabric.shut_down();
        // The namespaces, and all that is in them, go with their last descriptor: see `Namespace`.
    }
}

fn make_fabric(id: &str, options: &TestbedOptions) -> Result<Host> {
    let namespace = Namespace::new(&format!("{id}-fabric"))?;
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let mut commands = vec![
        format!("link add fabric mtu {} type bridge mcast_snooping 0", options.mtu),
        "link set fabric up".to_owned(),
    ];
    if options.families.has_v4() {
        commands.push(format!("addr add {FABRIC_V4}/16 dev fabric"));
    }
    if options.families.has_v6() {
        commands.push(format!("addr add {FABRIC_V6}/64 dev fabric nodad"));
    }
    for index in 0..options.nodes {
        commands.extend(routes_to_pods(Plan::new(index)?, options));
    }
    namespace.ip(commands)?;
    // The fabric stands for a physical network, on which no iptables look.
    if crate::br_netfilter_available() {
        for key in ["iptables", "ip6tables"] {
            namespace.sysctl(&format!("net/bridge/bridge-nf-call-{key}"), "0")?;
        }
    }
    Ok(Host::new("fabric", namespace, "fabric", options.families.pick(FABRIC_V4, FABRIC_V6)))
}

fn make_outside(id: &str, fabric: &Host, options: &TestbedOptions) -> Result<Host> {
    let namespace = Namespace::new(&format!("{id}-outside"))?;
    let mtu = options.mtu;
    let mut in_fabric = vec![
        format!("link add outside mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", namespace.path()),
        "link set outside up".to_owned(),
    ];
    let mut inside = vec!["link set eth0 up".to_owned()];
    if options.families.has_v4() {
        in_fabric.push("addr add 203.0.113.1/24 dev outside".to_owned());
        inside.push(format!("addr add {OUTSIDE_V4}/24 dev eth0"));
        inside.push("route add default via 203.0.113.1".to_owned());
    }
    if options.families.has_v6() {
        in_fabric.push("addr add 2001:db8:113::1/64 dev outside nodad".to_owned());
        inside.push(format!("addr add {OUTSIDE_V6}/64 dev eth0 nodad"));
        inside.push("route add default via 2001:db8:113::1".to_owned());
    }
    fabric.namespace().ip(in_fabric)?;
    namespace.ip(inside)?;
    let outside = Host::new("outside", namespace, "eth0", options.families.pick(OUTSIDE_V4, OUTSIDE_V6));
    outside.await_link("eth0")?;
    fabric.await_link("outside")?;
    Ok(outside)
}

/// Names what of this testbed is still there, after it was dropped; see [`crate::leftovers()`].
#[must_use]
pub fn leftovers_after(bed: Testbed) -> Vec<String> {
    let id = bed.id.clone();
    drop(bed);
    leftovers::leftovers_of(&id)
}
