//! What is known of the namespace, changed by notifications and by dumps.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::parse::{self, Route, RouteKind};
use crate::endpoints::{Link, LinkKind, LocalAddress, Snapshot};

/// The state. It outlives sockets, so that a device keeps its incarnation over a restart of the session.
#[derive(Debug, Default)]
pub(super) struct Table {
    links: BTreeMap<u32, Link>,
    routes: BTreeSet<Route>,
    appeared: u64,
}

/// What a notification leaves to be asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    /// Everything: something was lost or could not be read.
    pub(super) all: bool,
    /// The routes: the kernel removes some without a word.
    pub(super) routes: bool,
    /// These devices: what is known of them may be old.
    pub(super) links: BTreeSet<u32>,
    /// The addresses on the other end of these veths.
    pub(super) peers: BTreeSet<u32>,
}

impl Table {
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { links: self.links.clone(), ..Snapshot::default() };
        for route in &self.routes {
            match route.kind {
                RouteKind::Local => {
                    snapshot.local.insert(LocalAddress { network: route.network, ifindex: route.ifindex });
                }
                RouteKind::Host => {
                    snapshot.host_routes.entry(route.ifindex).or_default().insert(route.network.addr());
                }
            }
        }
        snapshot
    }

    /// Applies one notification, as it came from the socket.
    pub(super) fn notified(&mut self, message: &[u8], stale: &mut Stale) {
        let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "a netlink notification cannot be read; reading everything again");
                stale.all = true;
                return;
            }
        };
        let replaces = message.header.flags & NLM_F_REPLACE != 0;
        let NetlinkPayload::InnerMessage(message) = message.payload else {
            return;
        };
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = parse::link(&message) {
                    self.link_seen(link, stale);
                }
            }
            RouteNetlinkMessage::DelLink(message) => {
                if let Some(link) = parse::link(&message) {
                    self.link_gone(link.ifindex, stale);
                }
            }
            RouteNetlinkMessage::NewRoute(message) => {
                // `ip route replace` says only what is new, not what it replaced.
                stale.routes |= replaces;
                self.routes.extend(parse::route(&message));
            }
            RouteNetlinkMessage::DelRoute(message) => {
                if let Some(route) = parse::route(&message) {
                    self.routes.remove(&route);
                }
            }
            // With an address go the routes that prefer it as source, silently (fib_sync_down_addr).
            RouteNetlinkMessage::DelAddress(_) => stale.routes = true,
            _ => {}
        }
    }

    /// A device as a notification or the answer to a request describes it: new, or changed.
    pub(super) fn link_seen(&mut self, mut link: Link, stale: &mut Stale) {
        match self.links.get_mut(&link.ifindex) {
            Some(known) => {
                link.incarnation = known.incarnation;
                if (known.peer_ifindex, known.netnsid) == (link.peer_ifindex, link.netnsid) {
                    link.peer_addresses = known.peer_addresses.take();
                    link.peer_mac = known.peer_mac;
                }
                // IPv4 routes of a device that goes down are removed silently (fib_sync_down_dev).
                stale.routes |= known.up != link.up;
            }
            None => {
                self.appeared += 1;
                link.incarnation = self.appeared;
            }
        }
        if link.kind == LinkKind::Veth {
            stale.peers.insert(link.ifindex);
            // Back from another namespace: what is known of the end that stayed may be old.
            if link.netnsid.is_none()
                && let Some(peer) = link.peer_ifindex
                && self.links.get(&peer).is_some_and(|peer| peer.netnsid.is_some())
            {
                stale.links.insert(peer);
            }
        }
        self.links.insert(link.ifindex, link);
    }

    /// A device is gone: deleted, or moved to another namespace.
    pub(super) fn link_gone(&mut self, ifindex: u32, stale: &mut Stale) {
        self.links.remove(&ifindex);
        self.routes.retain(|route| route.ifindex != ifindex);
        stale.links.remove(&ifindex);
        stale.peers.remove(&ifindex);
        // The other end of a pair may stay, when this one was moved.
        let peers = self.links.values().filter(|link| link.netnsid.is_none() && link.peer_ifindex == Some(ifindex));
        stale.links.extend(peers.map(|link| link.ifindex));
    }

    /// Takes a full dump of the devices; what is `unread` is there, and stays as it was known. A device that is still
    /// the same keeps its incarnation: notifications may have been lost, so an index alone does not prove it. Its kind
    /// and its name or MAC do; a pod can change none of them (the kernel counts indexes upwards, so a device made on a
    /// used index was asked for by number).
    pub(super) fn links_dumped(&mut self, dumped: Vec<Link>, unread: &BTreeSet<u32>, stale: &mut Stale) {
        let now: BTreeMap<u32, Link> = dumped.into_iter().map(|link| (link.ifindex, link)).collect();
        let gone: Vec<u32> = self
            .links
            .values()
            .filter(|known| !unread.contains(&known.ifindex))
            .filter(|known| !now.get(&known.ifindex).is_some_and(|link| same_device(known, link)))
            .map(|known| known.ifindex)
            .collect();
        for ifindex in gone {
            self.link_gone(ifindex, stale);
        }
        for link in now.into_values() {
            self.link_seen(link, stale);
        }
    }

    /// Takes a full dump of the routes.
    pub(super) fn routes_dumped(&mut self, routes: BTreeSet<Route>) {
        self.routes = routes;
    }

    /// Whether no address is known on the other end of a veth that a pod could be known by.
    pub(super) fn is_bare(&self, ifindex: u32) -> bool {
        self.links.get(&ifindex).is_none_or(|link| link.pod_addresses().next().is_none())
    }

    /// All veths with the peer in a namespace that has a number here: ifindex, the peer's index there, the number.
    pub(super) fn foreign_veths(&self) -> impl Iterator<Item = (u32, u32, i32)> {
        self.links.values().filter(|link| link.kind == LinkKind::Veth).filter_map(|link| {
            let netnsid = link.netnsid.filter(|netnsid| *netnsid >= 0)?;
            Some((link.ifindex, link.peer_ifindex?, netnsid))
        })
    }

    /// Where the peer of a veth is, if it is in a namespace that has a number here: its index there, and the number.
    pub(super) fn peer_of(&self, ifindex: u32) -> Option<(u32, i32)> {
        self.foreign_veths().find(|(veth, ..)| *veth == ifindex).map(|(_, peer, netnsid)| (peer, netnsid))
    }

    /// Takes the addresses on the other end of a veth; `None` when they could not be read.
    pub(super) fn peer_addresses(&mut self, ifindex: u32, addresses: Option<Vec<IpNet>>) {
        if let Some(link) = self.links.get_mut(&ifindex) {
            link.peer_addresses = addresses;
        }
    }

    /// Whether the Ethernet address on the other end of a veth is to be read: until it is known together with an address
    /// that a pod could be known by. Whatever it becomes later the pod has written.
    pub(super) fn wants_peer_mac(&self, ifindex: u32) -> bool {
        self.is_bare(ifindex) || self.links.get(&ifindex).is_some_and(|link| link.peer_mac.is_none())
    }

    /// Takes that; `None` when it could not be read.
    pub(super) fn peer_mac(&mut self, ifindex: u32, mac: Option<[u8; 6]>) {
        if let Some(link) = self.links.get_mut(&ifindex) {
            link.peer_mac = mac;
        }
    }
}

fn same_device(known: &Link, link: &Link) -> bool {
    known.kind == link.kind && (known.name == link.name || (known.mac.is_some() && known.mac == link.mac))
}
