//! What the kernel says about this network namespace, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// The kind of a device, from `IFLA_INFO_KIND` (absent for hardware and netvsc) and the loopback flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a virtual Ethernet pair.
    Veth,
    /// A bridge master; its ports name it as their master.
    Bridge,
    /// A bonding master.
    Bond,
    /// A team master.
    Team,
    /// An 802.1Q device above another.
    Vlan,
    /// A VXLAN tunnel.
    Vxlan,
    /// `lo`.
    Loopback,
    /// A device of no kind: hardware, virtio, Hyper-V's netvsc, an SR-IOV function.
    Physical,
    /// Any other kind by the kernel's name for it (`macvlan`, `wireguard`, `dummy`, ...).
    Other(String),
}

/// What stands before the IP header of packets at a device, from the device's type (`ARPHRD_*` of linux/if_arp.h). Whether
/// it reports an address says nothing: some tunnels report one of four bytes, and wireguard none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: tunnels of IP (ipip, sit, gre, ip6tnl), tun, wireguard, PPP, raw IP.
    Ip,
    /// Something that nobody here can read (Infiniband, 802.15.4, CAN).
    Unknown,
}

/// One device of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's index of the device in this namespace. It may be reused once the device is gone.
    pub ifindex: u32,
    /// Rises with every device that appears; two devices that used the same `ifindex` one after the other differ in it,
    /// and of two devices the one with the smaller number was seen first.
    pub incarnation: u64,
    /// The device's present name. Renames are not a new incarnation.
    pub name: String,
    /// What the device is.
    pub kind: LinkKind,
    /// What stands before the IP header.
    pub layer: LinkLayer,
    /// The Ethernet address, for devices that have one.
    pub mac: Option<[u8; 6]>,
    /// Whether the device is administratively up (`IFF_UP`).
    pub up: bool,
    /// The bridge, bond, team, VRF or netvsc that this device is enslaved to.
    pub master: Option<u32>,
    /// For veths the other end's index **in the namespace where that end is** (`IFLA_LINK`).
    pub peer_ifindex: Option<u32>,
    /// The number that this namespace has given to the namespace of the other end (`IFLA_LINK_NETNSID`); `None` when
    /// the other end is in this namespace.
    pub netnsid: Option<i32>,
    /// The addresses of the other end, link-local ones included, each with its prefix length; `None` when they are not
    /// known (no veth, the peer in this namespace, the kernel did not answer).
    pub peer_addresses: Option<Vec<IpNet>>,
    /// The Ethernet address that a veth's other end had when it was first seen with an address that a pod could be known by
    /// (or was last seen with, before that); `None` as above.
    pub peer_mac: Option<[u8; 6]>,
    /// The UDP port on which the device takes packets to unwrap, if it is such a tunnel.
    pub tunnel_port: Option<u16>,
}

impl Link {
    /// The addresses on the other end that a pod could be known by. Link-local and loopback ones are everywhere and say
    /// nothing.
    pub fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.peer_addresses.iter().flatten().map(IpNet::addr).filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
        })
    }
}

/// An entry of this namespace's local table: packets to it end in this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// Nearly always a single address (/32 or /128); `127.0.0.0/8` and prefixes routed to the node otherwise.
    pub network: IpNet,
    /// The device that holds it. Services' addresses of kube-proxy in IPVS mode are on `kube-ipvs0`.
    pub ifindex: u32,
}

/// All that is known about this network namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every device by its index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of this node, both families, on any device.
    pub local: BTreeSet<LocalAddress>,
    /// Per device the destinations of its /32 and /128 unicast routes that go by no gateway: what a routing CNI writes
    /// for each pod. Only the host can write them.
    pub host_routes: BTreeMap<u32, BTreeSet<IpAddr>>,
}
