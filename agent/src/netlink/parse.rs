//! The kernel's messages as plain values.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBareUdp, InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};

use crate::endpoints::{Link, LinkKind, LinkLayer};

/// `RT_TABLE_LOCAL` of linux/rtnetlink.h.
const RT_TABLE_LOCAL: u32 = 255;

/// A route that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) kind: RouteKind,
    pub(super) network: IpNet,
    pub(super) ifindex: u32,
    /// With the table and the metric two routes to one destination are told apart.
    table: u32,
    metric: u32,
}

/// Why it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RouteKind {
    /// An entry of the local table.
    Local,
    /// A /32 or /128 to a device, without a gateway.
    Host,
}

/// A device, with no incarnation (0) and no addresses of its peer yet; `None` for messages that do not describe one:
/// those of bridges about their ports (AF_BRIDGE), whose RTM_DELLINK says only that a port left its bridge, and those
/// of wireless extensions, which carry no name.
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        ifindex: message.header.index,
        incarnation: 0,
        name: String::new(),
        kind: LinkKind::Physical,
        layer: layer(message.header.link_layer_type),
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        peer_ifindex: None,
        netnsid: None,
        peer_addresses: None,
        peer_mac: None,
        tunnel_port: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(master) => link.master = (*master != 0).then_some(*master),
            LinkAttribute::Link(peer) => link.peer_ifindex = (*peer != 0).then_some(*peer),
            LinkAttribute::LinkNetNsId(netnsid) => link.netnsid = Some(*netnsid),
            LinkAttribute::LinkInfo(info) => {
                for info in info {
                    match info {
                        LinkInfo::Kind(info_kind) => link.kind = kind(info_kind),
                        LinkInfo::Data(data) => link.tunnel_port = tunnel_port(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if message.header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    if link.kind != LinkKind::Veth {
        // For other kinds IFLA_LINK is the device below.
        link.peer_ifindex = None;
    }
    (!link.name.is_empty()).then_some(link)
}

/// A device's Ethernet address.
pub(super) fn mac(message: &LinkMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

/// The UDP port of a tunnel device that has one.
fn tunnel_port(data: &InfoData) -> Option<u16> {
    let port = match data {
        InfoData::Vxlan(data) => data.iter().find_map(|one| match one {
            InfoVxlan::Port(port) => Some(*port),
            _ => None,
        }),
        InfoData::Geneve(data) => data.iter().find_map(|one| match one {
            InfoGeneve::Port(port) => Some(*port),
            _ => None,
        }),
        InfoData::BareUdp(data) => data.iter().find_map(|one| match one {
            InfoBareUdp::Port(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    };
    port.filter(|port| *port != 0)
}

/// PPP's header and those of tunnels are put before the packet behind tc. A loopback device writes Ethernet headers.
fn layer(layer: LinkLayerType) -> LinkLayer {
    use LinkLayerType as Type;
    match layer {
        Type::Ether | Type::Loopback => LinkLayer::Ethernet,
        Type::None
        | Type::Rawip
        | Type::Ppp
        | Type::Tunnel
        | Type::Tunnel6
        | Type::Sit
        | Type::Ipgre
        | Type::Ip6gre => LinkLayer::Ip,
        _ => LinkLayer::Unknown,
    }
}

fn kind(kind: &InfoKind) -> LinkKind {
    match kind {
        InfoKind::Veth => LinkKind::Veth,
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Bond => LinkKind::Bond,
        InfoKind::Team => LinkKind::Team,
        InfoKind::Vlan => LinkKind::Vlan,
        InfoKind::Vxlan => LinkKind::Vxlan,
        other => LinkKind::Other(other.to_string()),
    }
}

/// A route of the local table, or a host route; `None` for all others.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    // Entries of the IPv6 exception cache, made by traffic.
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let (mut table, mut metric) = (u32::from(header.table), 0);
    let (mut destination, mut ifindex, mut gateway) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = Some(IpAddr::V6(*address)),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => gateway = true,
            _ => {}
        }
    }
    let network = IpNet::new(destination?, header.destination_prefix_length).ok()?;
    let ifindex = ifindex?;
    let kind = match header.kind {
        RouteType::Local if table == RT_TABLE_LOCAL => RouteKind::Local,
        RouteType::Unicast if network.prefix_len() == network.max_prefix_len() && !gateway => RouteKind::Host,
        _ => return None,
    };
    Some(Route { kind, network, ifindex, table, metric })
}

/// An interface's own address with its prefix length.
pub(super) fn address(message: &AddressMessage) -> Option<IpNet> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // On a point-to-point interface IFA_ADDRESS is the other side, and IFA_LOCAL is its own.
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    IpNet::new(address?, message.header.prefix_len).ok()
}
