//! Shared builders; the tables are in the files beside.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::*;
use crate::model::PodKey;

mod exits;
mod matching;
mod orders;
mod trust;

/// Addresses as a table's row writes them.
type Addresses = &'static [&'static str];

/// A node's devices, changed step by step as the kernel would.
#[derive(Debug, Clone, Default)]
struct Host {
    snapshot: Snapshot,
    appeared: u64,
}

impl Host {
    /// Adds a device that is up.
    fn link(&mut self, ifindex: u32, name: &str, kind: LinkKind) -> &mut Link {
        self.appeared += 1;
        let link = Link {
            ifindex,
            incarnation: self.appeared,
            name: name.to_owned(),
            kind,
            layer: LinkLayer::Ethernet,
            mac: Some([2, 0, 0, 0, 0, 1]),
            up: true,
            master: None,
            peer_ifindex: None,
            netnsid: None,
            peer_addresses: None,
            peer_mac: None,
            tunnel_port: None,
        };
        self.snapshot.links.insert(ifindex, link);
        self.snapshot.links.get_mut(&ifindex).unwrap()
    }

    /// Adds a veth to another namespace, with these addresses inside.
    fn veth(&mut self, ifindex: u32, name: &str, inner: &[&str]) -> &mut Self {
        let link = self.link(ifindex, name, LinkKind::Veth);
        link.peer_ifindex = Some(2);
        link.netnsid = Some(i32::try_from(ifindex).unwrap());
        self.inner(ifindex, inner)
    }

    fn inner(&mut self, ifindex: u32, inner: &[&str]) -> &mut Self {
        let addresses = inner.iter().map(|address| IpNet::from(ip(address))).collect();
        self.snapshot.links.get_mut(&ifindex).unwrap().peer_addresses = Some(addresses);
        self
    }

    fn route(&mut self, ifindex: u32, routes: &[&str]) -> &mut Self {
        let routes: BTreeSet<IpAddr> = routes.iter().map(|address| ip(address)).collect();
        self.snapshot.host_routes.insert(ifindex, routes);
        self
    }

    fn remove(&mut self, ifindex: u32) -> &mut Self {
        self.snapshot.links.remove(&ifindex);
        self.snapshot.host_routes.remove(&ifindex);
        self
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::new(self.snapshot.clone())
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn id(name: &str) -> PodId {
    PodId { key: PodKey::new("default", name), uid: format!("uid-{name}").into() }
}

fn pod(name: &str, addresses: &[&str]) -> LocalPod {
    LocalPod { id: id(name), addresses: addresses.iter().map(|address| ip(address)).collect() }
}

fn config() -> Config {
    Config {
        pod_ranges: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        uplinks: None,
        second_networks: false,
    }
}

fn matcher() -> Matcher {
    Matcher::new(config())
}

fn endpoint(name: &str) -> Role {
    Role::Endpoint(id(name))
}

#[track_caller]
fn expect(matcher: &Matcher, ifindex: u32, role: &Role, why: &str) {
    assert_eq!(matcher.roles().get(&ifindex), Some(role), "{why}; reports: {:?}", matcher.reports());
}

#[track_caller]
fn expect_closed(matcher: &Matcher, ifindex: u32, why: &str) {
    assert!(matches!(matcher.roles().get(&ifindex), Some(Role::Closed { .. })), "{why}: {:?}", matcher.roles());
    let reported =
        matcher.reports().iter().any(|report| matches!(report, Report::Contested { ifindex: i, .. } if *i == ifindex));
    assert!(reported, "{why}: it must be reported, not only closed: {:?}", matcher.reports());
}
