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
        (19, "ifb0", other("ifb"), None, Role::None, "what is redirected to an ifb comes back to where it was"),
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
        second_networks: false,
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

#[test]
fn a_device_becomes_an_exit_when_it_is_freed_and_none_when_it_is_enslaved() {
    // A virtual function under a netvsc (or net_failover), a card under a bond and a team; and a port of a bridge, which
    // stays an exit all the time.
    for (kind, expected) in [
        (LinkKind::Physical, Role::None),
        (LinkKind::Bond, Role::None),
        (LinkKind::Team, Role::None),
        (LinkKind::Bridge, Role::Exit),
        (LinkKind::Other("vrf".into()), Role::Exit),
    ] {
        let mut host = Host::default();
        host.link(2, "master", kind.clone());
        host.link(3, "slave", LinkKind::Physical);
        let mut matcher = matcher();
        matcher.links(host.now());
        expect(&matcher, 3, &Role::Exit, &format!("before {kind:?}"));
        host.snapshot.links.get_mut(&3).unwrap().master = Some(2);
        matcher.links(host.now());
        expect(&matcher, 3, &expected, &format!("enslaved to {kind:?}"));
        host.remove(2);
        matcher.links(host.now());
        expect(&matcher, 3, &Role::Exit, &format!("its master of {kind:?} is gone, as far as is known"));
        host.snapshot.links.get_mut(&3).unwrap().master = None;
        matcher.links(host.now());
        expect(&matcher, 3, &Role::Exit, &format!("freed from {kind:?}"));
    }
}

#[test]
fn ports_of_a_bridge_with_pods_are_exits_whatever_the_list_of_uplinks() {
    let mut host = Host::default();
    host.link(2, "eth0", LinkKind::Physical);
    host.link(3, "cbr0", LinkKind::Bridge);
    host.link(4, "docker0", LinkKind::Bridge);
    host.veth(5, "veth5", &["10.1.0.5"]);
    host.link(6, "vxlan0", LinkKind::Vxlan).master = Some(3);
    host.link(7, "tap0", LinkKind::Other("tun".into())).master = Some(4);
    host.snapshot.links.get_mut(&5).unwrap().master = Some(3);
    let mut matcher = matcher();
    let uplinks = Some(["eth0".to_owned()].into());
    matcher.configure(Config { pod_ranges: vec!["10.1.0.0/24".parse().unwrap()], uplinks, second_networks: false });
    matcher.links(host.now());
    for (ifindex, role, why) in [
        (5, Role::Pending, "surely a pod's"),
        (6, Role::Exit, "what enters by a port of the pods' bridge gets a stamp"),
        (7, Role::None, "a port of a bridge without pods, not named"),
        (3, Role::None, "a bridge"),
    ] {
        expect(&matcher, ifindex, &role, why);
    }
    host.remove(5);
    matcher.links(host.now());
    expect(&matcher, 6, &Role::None, "the last pod is gone");
}

/// The name of a second veth, its inner addresses, the host's routes to it; its role where second veths are the pod's, and
/// where they are networks; why.
type SecondVeth<'a> = (&'a str, Addresses, Addresses, Role, Option<Role>, &'a str);

#[test]
fn a_second_veth_of_a_pod_is_the_pods_or_a_network_of_its_own() {
    let azure = azure_veth_name("default", "b");
    let second = Role::Second { of: 5 };
    let table: &[SecondVeth<'_>] = &[
        ("veth6", &["192.0.2.6"], &[], second.clone(), Some(Role::Exit), "an address of its own"),
        ("veth6", &[], &[], second.clone(), Some(Role::Exit), "no address"),
        ("veth6", &["10.1.0.5"], &[], second.clone(), None, "the pod's address"),
        ("veth6", &["10.1.0.9"], &[], second.clone(), Some(endpoint("b")), "a neighbour's, which has no veth yet"),
        ("veth6", &["10.1.0.77"], &[], second.clone(), Some(Role::Pending), "one of the node's range that nobody has"),
        ("veth6", &[], &["10.1.0.5"], second, None, "the host's route to the pod"),
        ("veth6", &[], &["10.1.0.9"], endpoint("b"), Some(endpoint("b")), "the host's route to a neighbour"),
        (&azure, &[], &[], endpoint("b"), Some(endpoint("b")), "named for a neighbour"),
    ];
    for (name, inner, routes, as_pods, as_network, why) in table {
        for (second_networks, expected) in [(false, Some(as_pods)), (true, as_network.as_ref())] {
            let mut host = Host::default();
            host.veth(5, "veth5", &["10.1.0.5"]).route(5, &["10.1.0.5"]);
            host.veth(6, name, inner).route(6, routes).veth(7, "veth7", &["192.0.2.7"]);
            host.snapshot.links.get_mut(&6).unwrap().netnsid = Some(5);
            let mut matcher = Matcher::new(Config { second_networks, ..config() });
            matcher.pods([pod("a", &["10.1.0.5"]), pod("b", &["10.1.0.9"])]);
            matcher.links(host.now());
            let why = format!("{why}, networks {second_networks}");
            expect(&matcher, 5, &endpoint("a"), &format!("{why}: its own"));
            match expected {
                Some(role) => expect(&matcher, 6, role, &why),
                None => expect_closed(&matcher, 6, &why),
            }
            expect(&matcher, 7, &Role::Exit, &format!("{why}: into another namespace"));
            let is_said = |report: &Report| {
                matches!(report, Report::SecondInterface { ifindex: 6, .. } | Report::SecondNetwork { ifindex: 6, .. })
            };
            let is_second = matches!(expected, Some(Role::Second { .. } | Role::Exit));
            assert_eq!(matcher.reports().iter().any(is_said), is_second, "{why}: {:?}", matcher.reports());
        }
    }
}

#[test]
fn the_next_pods_veth_with_the_number_of_an_ended_ones_namespace_becomes_its_own() {
    let mut host = Host::default();
    host.veth(5, "veth5", &["10.1.0.5"]).veth(6, "veth6", &["10.1.0.9"]);
    host.snapshot.links.get_mut(&6).unwrap().netnsid = Some(5);
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.5"]), pod("b", &["10.1.0.9"])]);
    matcher.links(host.now());
    expect(&matcher, 6, &Role::Second { of: 5 }, "for all that is known");
    matcher.links(host.remove(5).now());
    expect(&matcher, 6, &endpoint("b"), "once the veth before is gone");
}
