//! Which devices are exits.

use super::*;

#[test]
fn every_device_but_loopback_bridges_and_what_is_enslaved_to_an_attached_master() {
    let other = |kind: &str| LinkKind::Other(kind.to_owned());
    // Index, name, kind, master, expected, why.
    let table = [
        (1, "lo", LinkKind::Loopback, None, Role::None, "loopback leads nowhere"),
        (2, "eth0", LinkKind::Physical, None, Role::Exit, "a network card"),
        (3, "enP1s1", LinkKind::Physical, Some(2), Role::None, "the virtual function under a netvsc"),
        (4, "cbr0", LinkKind::Bridge, None, Role::None, "a bridge master: its ports are exits"),
        (5, "eth1", LinkKind::Physical, Some(4), Role::Exit, "a card that is a bridge port"),
        (6, "bond0", LinkKind::Bond, None, Role::Exit, "a bond"),
        (7, "eth2", LinkKind::Physical, Some(6), Role::None, "enslaved to a bond"),
        (8, "team0", LinkKind::Team, Some(4), Role::Exit, "a team that is a bridge port"),
        (9, "eth3", LinkKind::Physical, Some(8), Role::None, "enslaved to a team"),
        (10, "eth0.5", LinkKind::Vlan, None, Role::Exit, "a VLAN; eth0 below it stays an exit"),
        (11, "vxlan0", LinkKind::Vxlan, Some(4), Role::Exit, "a tunnel that is a bridge port"),
        (12, "macvlan0", other("macvlan"), None, Role::Exit, "a macvlan"),
        (13, "wg0", other("wireguard"), None, Role::Exit, "a tunnel without Ethernet"),
        (14, "vrf0", other("vrf"), None, Role::Exit, "a VRF"),
        (15, "eth4", LinkKind::Physical, Some(14), Role::Exit, "enslaved to a VRF: packets leave here"),
        (16, "eth5", LinkKind::Physical, Some(99), Role::Exit, "its master is not known yet"),
        (17, "veth0", LinkKind::Veth, Some(4), Role::Exit, "a veth whose other end is in this namespace"),
        (18, "kube-ipvs0", other("dummy"), None, Role::Exit, "a dummy: harmless"),
    ];
    let mut host = Host::default();
    for (ifindex, name, kind, master, ..) in &table {
        host.link(*ifindex, name, kind.clone()).master = *master;
    }
    let mut matcher = matcher();
    matcher.links(host.now());
    for (ifindex, name, _, _, role, why) in &table {
        expect(&matcher, *ifindex, role, &format!("{name}: {why}"));
    }
}

#[test]
fn a_list_of_uplinks_narrows_the_exits_but_never_the_pods() {
    let mut host = Host::default();
    host.link(2, "eth0", LinkKind::Physical);
    host.link(3, "wg0", LinkKind::Other("wireguard".into()));
    host.link(4, "bond0", LinkKind::Bond);
    host.link(5, "eth1", LinkKind::Physical).master = Some(4);
    host.veth(6, "veth6", &["10.1.0.6"]).veth(7, "veth7", &["10.1.0.7"]).veth(8, "veth8", &["192.0.2.8"]);
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.6"])]);
    matcher.links(host.now());
    expect(&matcher, 5, &Role::None, "the bond above it is attached");

    let config = Config {
        pod_ranges: vec!["10.1.0.0/24".parse().unwrap()],
        uplinks: Some(["eth0".to_owned(), "eth1".to_owned()].into()),
    };
    matcher.configure(config);
    for (ifindex, role, why) in [
        (2, Role::Exit, "named"),
        (3, Role::None, "not named"),
        (4, Role::None, "not named"),
        (5, Role::Exit, "named, and the bond above it is not attached any more"),
        (6, endpoint("a"), "a pod's veth"),
        (7, Role::Pending, "surely a pod's veth"),
        (8, Role::None, "a veth of something else, not named"),
    ] {
        expect(&matcher, ifindex, &role, why);
    }
}
