//! What a pod can write is only a hint for the first match.

use super::*;

#[test]
fn nothing_done_inside_the_namespace_and_no_deletion_changes_a_match() {
    type Step = fn(&mut Host, &mut Matcher);
    let table: &[(&str, Step)] = &[
        ("adds a neighbour's address", |host, m| m.links(host.inner(5, &["10.1.0.1", "10.1.0.2"]).now())),
        ("replaces its address by a neighbour's", |host, m| m.links(host.inner(5, &["10.1.0.2"]).now())),
        ("flushes its addresses", |host, m| m.links(host.inner(5, &[]).now())),
        ("swaps addresses with its neighbour", |host, m| {
            m.links(host.inner(5, &["10.1.0.2"]).inner(6, &["10.1.0.1"]).now());
        }),
        ("takes a free pod's address", |host, m| {
            m.apply_pod(pod("c", &["10.1.0.3"]));
            m.links(host.inner(5, &["10.1.0.3"]).now());
        }),
        ("moves its interface to a namespace it made", |host, m| {
            let link = host.snapshot.links.get_mut(&5).unwrap();
            (link.netnsid, link.peer_ifindex) = (Some(77), Some(3));
            m.links(host.inner(5, &["10.1.0.2"]).now());
        }),
        ("moves its interface to where no address can be read", |host, m| {
            let link = host.snapshot.links.get_mut(&5).unwrap();
            (link.netnsid, link.peer_addresses) = (None, None);
            m.links(host.now());
        }),
        ("its Pod object is deleted", |_, m| m.delete_pod(&id("a"))),
        ("all Pod objects are deleted, then it takes a neighbour's address", |host, m| {
            m.pods([]);
            m.links(host.inner(5, &["10.1.0.2"]).now());
            m.pods([pod("b", &["10.1.0.2"])]);
        }),
        ("its Pod object's address changes to the neighbour's", |_, m| m.apply_pod(pod("a", &["10.1.0.2"]))),
    ];
    for (what, step) in table {
        let mut host = Host::default();
        let mut matcher = matcher();
        matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
        matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).veth(6, "veth6", &["10.1.0.2"]).now());
        step(&mut host, &mut matcher);
        expect(&matcher, 5, &endpoint("a"), what);
        expect(&matcher, 6, &endpoint("b"), what);
        assert_eq!(matcher.endpoints().len(), 2, "{what}");
    }
}

#[test]
fn a_foreign_address_inside_a_matched_pod_is_reported() {
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).veth(6, "veth6", &["10.1.0.2"]).now());
    assert!(matcher.reports().is_empty(), "{:?}", matcher.reports());
    matcher.links(host.inner(5, &["10.1.0.1", "10.1.0.2"]).now());
    let [report] = matcher.reports() else { panic!("one report: {:?}", matcher.reports()) };
    let text = report.to_string();
    for word in ["veth5", "default/a", "10.1.0.2", "default/b"] {
        assert!(text.contains(word), "the report names {word}: {text}");
    }
    matcher.links(host.inner(5, &["10.1.0.1"]).now());
    assert!(matcher.reports().is_empty(), "it is over: {:?}", matcher.reports());
}

#[test]
fn of_two_veths_with_one_address_the_older_keeps_the_pod() {
    for pod_first in [true, false] {
        let mut host = Host::default();
        let mut matcher = matcher();
        if pod_first {
            matcher.pods([pod("a", &["10.1.0.1"])]);
        }
        // The older one has the higher index.
        matcher.links(host.veth(9, "veth9", &["10.1.0.1"]).now());
        matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
        matcher.pods([pod("a", &["10.1.0.1"])]);
        expect(&matcher, 9, &endpoint("a"), "the older keeps it");
        expect_closed(&matcher, 5, "the newer is closed");
        matcher.links(host.remove(9).now());
        expect(&matcher, 5, &endpoint("a"), "only one is left");
        assert!(matcher.reports().is_empty(), "{:?}", matcher.reports());
    }
}

#[test]
fn the_hosts_evidence_outranks_what_a_pod_can_write() {
    let azure = azure_veth_name("default", "a");
    // Name, routes, inner addresses of veth 5; its role; why. Pod b's own veth 6 is newer each time.
    let table: &[(&str, Addresses, Addresses, Role, &str)] = &[
        ("veth5", &["10.1.0.1"], &["10.1.0.2"], endpoint("a"), "route against inner address"),
        (&azure, &[], &["10.1.0.2"], endpoint("a"), "name against inner address"),
        (&azure, &["10.1.0.1"], &["10.1.0.2"], endpoint("a"), "name and route against inner address"),
        ("veth5", &["10.1.0.1"], &[], endpoint("a"), "route, and inner addresses flushed"),
        ("veth5", &["10.1.0.1"], &["10.1.0.1", "10.1.0.2"], endpoint("a"), "a neighbour's address beside the own"),
        ("veth5", &[], &["10.1.0.1", "10.1.0.2"], endpoint("a"), "two addresses, one of which is taken"),
    ];
    for (name, routes, inner, role, why) in table {
        let mut host = Host::default();
        host.veth(5, name, inner).route(5, routes).veth(6, "veth6", &["10.1.0.2"]);
        let mut matcher = matcher();
        matcher.links(host.now());
        matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
        expect(&matcher, 5, role, why);
        expect(&matcher, 6, &endpoint("b"), &format!("{why}: the neighbour is itself"));
    }
}

#[test]
fn the_hosts_evidence_for_a_newer_veth_beats_an_older_veths_inner_address() {
    let mut host = Host::default();
    host.veth(5, "veth5", &["10.1.0.2"]).veth(6, "veth6", &["10.1.0.2"]).route(6, &["10.1.0.2"]);
    let mut matcher = matcher();
    matcher.links(host.now());
    matcher.pods([pod("b", &["10.1.0.2"])]);
    expect(&matcher, 6, &endpoint("b"), "the host routes the address there");
    expect_closed(&matcher, 5, "it only says so itself");
}

#[test]
fn a_veth_that_the_host_gives_to_a_taken_pod_does_not_become_another_by_its_inner_address() {
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    matcher.links(host.veth(6, "veth6", &["10.1.0.2"]).route(6, &["10.1.0.1"]).now());
    expect(&matcher, 5, &endpoint("a"), "matched first");
    expect_closed(&matcher, 6, "the host says it is pod a, which is taken");
}

#[test]
fn name_and_route_that_disagree_are_reported_and_the_name_decides() {
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("a", &[]), pod("b", &["10.1.0.2"])]);
    matcher.links(host.veth(5, &azure_veth_name("default", "a"), &[]).route(5, &["10.1.0.2"]).now());
    expect(&matcher, 5, &endpoint("a"), "the name");
    assert!(matches!(matcher.reports(), [Report::NameAgainstRoute { .. }]), "{:?}", matcher.reports());
}

#[test]
fn routes_to_several_pods_are_an_uplink_not_a_pod() {
    let mut host = Host::default();
    host.veth(5, "eth0", &["192.0.2.1"]).route(5, &["10.1.0.1", "10.1.0.2"]);
    host.veth(6, "eth1", &["10.1.0.1"]).route(6, &["10.1.0.1", "fd00:1::1"]);
    let mut matcher = Matcher::new(Config::default());
    matcher.links(host.now());
    matcher.pods([pod("a", &["10.1.0.1", "fd00:1::1"]), pod("b", &["10.1.0.2"])]);
    expect(&matcher, 5, &Role::Exit, "routes to two pods");
    expect(&matcher, 6, &endpoint("a"), "two routes to one pod");
}

#[test]
fn between_unmatched_veths_the_first_address_seen_inside_counts_before_age() {
    let mut host = Host::default();
    let mut matcher = matcher();
    // The address of a pod to come is put on before that pod's veth exists and before either pod's address is reported.
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    matcher.links(host.inner(5, &["10.1.0.2"]).now());
    matcher.links(host.veth(6, "veth6", &["10.1.0.2"]).now());
    matcher.pods([pod("b", &["10.1.0.2"])]);
    expect(&matcher, 6, &endpoint("b"), "it had the address from the start");
    expect_closed(&matcher, 5, "it took the address later");
    matcher.links(host.inner(5, &["10.1.0.1"]).now());
    matcher.apply_pod(pod("a", &["10.1.0.1"]));
    expect(&matcher, 5, &endpoint("a"), "closed is no match: with its own address it is itself");
}

#[test]
fn an_adopted_match_holds_against_everything_seen_later() {
    let mut host = Host::default();
    host.veth(5, "veth5", &["10.1.0.2"]).veth(6, "veth6", &["10.1.0.1"]);
    let mut matcher = matcher();
    matcher.adopt(5, id("a"));
    matcher.adopt(6, id("b"));
    matcher.adopt(7, id("c"));
    matcher.links(host.now());
    assert!(!matcher.endpoints()[&5].pod_gone, "before the pods are known none is gone");
    matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"]), pod("c", &["10.1.0.3"])]);
    expect(&matcher, 5, &endpoint("a"), "swapped while no agent ran");
    expect(&matcher, 6, &endpoint("b"), "swapped while no agent ran");
    matcher.links(host.veth(7, "veth7", &["10.1.0.9"]).now());
    expect(&matcher, 7, &Role::Pending, "it was not there at the first snapshot: this is another device");
    matcher.links(host.remove(5).veth(5, "veth5", &["10.1.0.1"]).now());
    assert_eq!(matcher.endpoints()[&5].evidence, Evidence::InnerAddress, "adoption ends with the link");
}

#[test]
fn until_its_object_names_addresses_only_the_hosts_routes_stand_for_them() {
    let veth = azure_veth_name("default", "a");
    let rows: &[(&str, Addresses, Addresses, Addresses)] = &[
        ("nothing but what is inside", &["10.1.0.1"], &[], &[]),
        ("the host's route", &[], &["10.1.0.1"], &["10.1.0.1"]),
        ("both families", &["10.1.0.9"], &["10.1.0.1", "fd00:1::1"], &["10.1.0.1", "fd00:1::1"]),
        ("another pod's address", &[], &["10.1.0.2", "fd00:1::1"], &["fd00:1::1"]),
        ("several routes of a family", &[], &["10.1.0.1", "10.1.0.3", "fd00:1::1"], &["fd00:1::1"]),
    ];
    for (what, inner, routes, expected) in rows {
        let mut host = Host::default();
        let mut matcher = matcher();
        matcher.pods([pod("a", &[]), pod("b", &["10.1.0.2"])]);
        matcher.links(host.veth(5, &veth, inner).route(5, routes).now());
        expect(&matcher, 5, &endpoint("a"), what);
        let expected: Vec<IpAddr> = expected.iter().map(|address| ip(address)).collect();
        assert_eq!(matcher.routed_addresses(5), expected, "{what}");
    }
}
