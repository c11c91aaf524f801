//! How a pod's veth is found.

use super::*;

#[test]
fn azure_names_are_the_hash_of_namespace_and_name() {
    // printf 'default.nginx' | sha1sum
    assert_eq!(azure_veth_name("default", "nginx"), "azvc440f455693");
    assert_ne!(azure_veth_name("a", "b-c"), azure_veth_name("a-b", "c"), "the dot keeps namespace and name apart");
}

#[test]
fn each_kind_of_evidence_finds_the_pod_in_either_order() {
    let azure = azure_veth_name("default", "a");
    // Veth's name, inner addresses, host routes, the pod's addresses, expected role, why.
    #[rustfmt::skip]
    let table: &[(&str, Addresses, Addresses, Addresses, Role, &str)] = &[
        ("veth1", &["10.1.0.1"], &[], &["10.1.0.1"], endpoint("a"), "IPv4 address inside"),
        ("veth1", &["fe80::1", "fd00:1::1"], &[], &["fd00:1::1"], endpoint("a"), "IPv6 address inside"),
        ("veth1", &["10.1.0.1"], &[], &["10.1.0.1", "fd00:1::1"], endpoint("a"), "one of a dual-stack pod's is enough"),
        ("veth1", &["10.9.0.1"], &[], &["10.9.0.1"], endpoint("a"), "an address out of no range of the node"),
        ("veth1", &[], &["10.1.0.1"], &["10.1.0.1"], endpoint("a"), "host route /32"),
        ("veth1", &[], &["fd00:1::1"], &["fd00:1::1"], endpoint("a"), "host route /128"),
        (&azure, &[], &[], &[], endpoint("a"), "the Azure name before there is any address"),
        ("veth1", &["10.1.0.9"], &[], &["10.1.0.1"], Role::Pending, "an address of the node's range and no pod's"),
        ("veth1", &[], &["10.1.0.9"], &["10.1.0.1"], Role::Pending, "a route of the node's range and no pod's"),
        ("azv0123456789a", &[], &[], &["10.1.0.1"], Role::Pending, "an Azure name of no pod known yet"),
        ("azvirtual0", &[], &[], &["10.1.0.1"], Role::Exit, "only begins like an Azure name"),
        ("veth1", &["192.0.2.1"], &[], &["10.1.0.1"], Role::Exit, "something else's veth"),
        ("veth1", &[], &[], &["10.1.0.1"], Role::Exit, "nothing known of it yet"),
        ("veth1", &["127.0.0.1", "fe80::1"], &[], &["10.1.0.1"], Role::Exit, "addresses that are everywhere"),
    ];
    for (name, inner, routes, addresses, role, why) in table {
        let mut host = Host::default();
        host.veth(5, name, inner).route(5, routes);
        let mut pod_first = matcher();
        pod_first.pods([pod("a", addresses)]);
        pod_first.links(host.now());
        expect(&pod_first, 5, role, &format!("{why} (pod first)"));
        let mut link_first = matcher();
        link_first.links(host.now());
        link_first.apply_pod(pod("a", addresses));
        expect(&link_first, 5, role, &format!("{why} (link first)"));
        let mut address_last = matcher();
        address_last.apply_pod(pod("a", &[]));
        address_last.links(Host::default().veth(5, name, &[]).now());
        address_last.links(host.now());
        address_last.apply_pod(pod("a", addresses));
        expect(&address_last, 5, role, &format!("{why} (addresses last)"));
    }
}

#[test]
fn a_veth_whose_peer_is_in_this_namespace_is_never_an_endpoint() {
    let azure = azure_veth_name("default", "a");
    let mut host = Host::default();
    host.veth(5, &azure, &["10.1.0.1"]).route(5, &["10.1.0.1"]);
    host.snapshot.links.get_mut(&5).unwrap().netnsid = None;
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.1"])]);
    matcher.links(host.now());
    expect(&matcher, 5, &Role::Exit, "whatever its name, routes and addresses");
}

#[test]
fn a_device_of_another_kind_is_never_an_endpoint() {
    let mut host = Host::default();
    host.link(5, "eth0", LinkKind::Physical).netnsid = Some(1);
    host.route(5, &["10.1.0.1"]);
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.1"])]);
    matcher.links(host.now());
    expect(&matcher, 5, &Role::Exit, "a host route over the network card to a pod elsewhere");
}

#[test]
fn a_rename_keeps_the_match_and_a_reused_index_does_not() {
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    expect(&matcher, 5, &endpoint("a"), "first match");
    host.snapshot.links.get_mut(&5).unwrap().name = azure_veth_name("default", "b");
    matcher.links(host.now());
    expect(&matcher, 5, &endpoint("a"), "renamed, even to what Azure CNI calls another pod's");
    matcher.links(host.remove(5).veth(5, "veth5", &["10.1.0.2"]).now());
    expect(&matcher, 5, &endpoint("b"), "another device of the same index, with no snapshot between");
    assert_eq!(matcher.endpoints()[&5].incarnation, 2, "the match names the device that it is for");
}

#[test]
fn links_and_pods_that_go_and_come_again_are_matched_again() {
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("a", &["10.1.0.1"])]);
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    matcher.links(host.remove(5).now());
    assert!(matcher.endpoints().is_empty() && matcher.roles().is_empty(), "the link went: {:?}", matcher.roles());
    matcher.links(host.veth(9, "veth5", &["10.1.0.1"]).now());
    expect(&matcher, 9, &endpoint("a"), "the pod's next sandbox");
    matcher.delete_pod(&id("a"));
    assert!(matcher.endpoints()[&9].pod_gone, "the object went first");
    matcher.apply_pod(pod("a", &["10.1.0.1"]));
    assert!(!matcher.endpoints()[&9].pod_gone, "and came again");
}

#[test]
fn a_pod_created_anew_gets_its_own_veth_and_the_old_one_stays_the_old_pod() {
    let old = LocalPod { id: PodId { uid: "old".into(), ..id("a") }, addresses: vec![ip("10.1.0.1")] };
    let with = |address| LocalPod { id: PodId { uid: "new".into(), ..id("a") }, addresses: vec![ip(address)] };
    for (address, why) in [("10.1.0.2", "another address"), ("10.1.0.1", "the same address")] {
        let new = with(address);
        for object_first in [true, false] {
            let mut host = Host::default();
            let mut matcher = matcher();
            matcher.pods([old.clone()]);
            matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
            if object_first {
                matcher.pods([new.clone()]);
                matcher.links(host.veth(6, "veth6", &[address]).now());
            } else {
                matcher.links(host.veth(6, "veth6", &[address]).now());
                matcher.delete_pod(&old.id);
                matcher.apply_pod(new.clone());
            }
            expect(&matcher, 5, &Role::Endpoint(old.id.clone()), why);
            assert!(matcher.endpoints()[&5].pod_gone, "{why}: its object is gone");
            expect(&matcher, 6, &Role::Endpoint(new.id.clone()), why);
            assert!(matcher.reports().is_empty(), "{why}: nothing is wrong: {:?}", matcher.reports());
        }
    }
}

#[test]
fn an_ending_pod_and_its_successor_may_share_an_address() {
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("old", &["10.1.0.1"])]);
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    matcher.links(host.remove(5).veth(6, "veth6", &["10.1.0.1"]).now());
    expect(&matcher, 6, &endpoint("old"), "no other pod is known for the address");
    matcher.links(host.remove(6).now());
    matcher.apply_pod(pod("new", &["10.1.0.1"]));
    matcher.links(host.veth(7, "veth7", &["10.1.0.1"]).now());
    expect(&matcher, 7, &endpoint("new"), "the one that never had a veth");

    let mut host = Host::default();
    let mut unknown = super::matcher();
    unknown.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    unknown.pods([pod("old", &["10.1.0.1"]), pod("new", &["10.1.0.1"])]);
    expect(&unknown, 5, &Role::Pending, "nothing decides between them");
    assert!(matches!(unknown.reports(), [Report::Ambiguous { .. }]), "{:?}", unknown.reports());
    unknown.delete_pod(&id("old"));
    expect(&unknown, 5, &endpoint("new"), "only one is left");
}

#[test]
fn a_veth_that_is_quicker_than_its_pods_object_is_that_pods_when_it_comes() {
    let anew = PodId { uid: "another".into(), ..id("old") };
    let anew = LocalPod { id: anew, addresses: vec![ip("10.1.0.1")] };
    let named = azure_veth_name("default", "old");
    type Step = fn(&mut Host, &mut Matcher);
    let nothing: Step = |_, _| ();
    let deleted: Step = |_, m| m.delete_pod(&id("old"));
    let later: Step = |host, m| m.links(host.inner(6, &["10.1.0.1", "10.1.0.2"]).now());
    let elsewhere: Step = |host, m| m.links(host.veth(7, "veth7", &["10.1.0.1"]).now());
    for (what, veth, inner, step, new, becomes) in [
        ("by the first address inside", "veth6", "10.1.0.1", nothing, pod("new", &["10.1.0.1"]), true),
        ("the object before it is gone", "veth6", "10.1.0.1", deleted, pod("new", &["10.1.0.1"]), true),
        ("by its name, a pod created anew", &*named, "10.1.0.1", deleted, anew.clone(), true),
        ("by its name, the object before it still there", &named, "10.1.0.1", nothing, anew, true),
        ("by an address that was added inside", "veth6", "10.1.0.1", later, pod("new", &["10.1.0.2"]), false),
        ("its name is that of the pod before", &named, "10.1.0.1", nothing, pod("new", &["10.1.0.1"]), false),
        ("another address", "veth6", "10.1.0.1", deleted, pod("new", &["10.1.0.3"]), false),
        ("another veth has come", "veth6", "10.1.0.1", elsewhere, pod("new", &["10.1.0.1"]), false),
    ] {
        let mut host = Host::default();
        let mut matcher = matcher();
        matcher.pods([pod("old", &["10.1.0.1"])]);
        matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
        matcher.links(host.remove(5).veth(6, veth, &[inner]).now());
        expect(&matcher, 6, &endpoint("old"), what);
        step(&mut host, &mut matcher);
        expect(&matcher, 6, &endpoint("old"), what);
        matcher.apply_pod(new.clone());
        let expected = if becomes { Role::Endpoint(new.id.clone()) } else { endpoint("old") };
        expect(&matcher, 6, &expected, what);
        // And stays it.
        matcher.delete_pod(&new.id);
        matcher.apply_pod(pod("third", &["10.1.0.1"]));
        if becomes {
            expect(&matcher, 6, &expected, what);
        }
    }
}

#[test]
fn finished_pods_and_pods_on_the_hosts_network_are_no_endpoints() {
    let model = |host_network, finished| crate::model::Pod {
        key: PodKey::new("default", "a"),
        uid: "uid-a".into(),
        labels: crate::model::Labels::default(),
        addresses: vec![ip("10.1.0.1")],
        node: None,
        host_network,
        finished,
        ports: Vec::new(),
    };
    assert_eq!(LocalPod::of(&model(false, false)), Some(pod("a", &["10.1.0.1"])));
    assert_eq!(LocalPod::of(&model(true, false)), None, "on the host's network");
    assert_eq!(LocalPod::of(&model(false, true)), None, "finished");
}

#[test]
fn the_address_of_a_pod_that_has_ended_is_no_evidence_against_a_name() {
    let (old, new) = (azure_veth_name("default", "old"), azure_veth_name("default", "new"));
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("old", &["10.1.0.1"])]);
    matcher.links(host.veth(5, &old, &["10.1.0.1"]).now());
    expect(&matcher, 5, &endpoint("old"), "its own veth");
    // Its sandbox ends, and the next pod gets its address before the API says anything of either.
    matcher.links(host.remove(5).veth(6, &new, &["10.1.0.1"]).route(6, &["10.1.0.1"]).now());
    expect(&matcher, 6, &Role::Pending, "named for a pod that is not known");
    let [report] = matcher.reports() else { panic!("one report: {:?}", matcher.reports()) };
    assert!(report.to_string().contains("default/old"), "{report}");
    matcher.apply_pod(pod("new", &[]));
    expect(&matcher, 6, &endpoint("new"), "known, though its address is not");
    matcher.apply_pod(pod("new", &["10.1.0.1"]));
    matcher.delete_pod(&id("old"));
    expect(&matcher, 6, &endpoint("new"), "for good");
}

#[test]
fn an_address_that_a_pod_had_before_gives_it_a_second_veth_only_when_no_other_pod_can_have_it() {
    // Whether the host routes the address, what the other pod says at last, whose the veth is then, and why.
    let rows: &[(bool, Addresses, &str, &str)] = &[
        (false, &["10.1.0.1"], "new", "it is the other's address now"),
        (true, &["10.1.0.1"], "new", "likewise, by the host's route"),
        (false, &["10.1.0.7"], "old", "the other has one of its own"),
        (true, &["10.1.0.7"], "old", "likewise, by the host's route"),
    ];
    for (routed, addresses, owner, why) in rows {
        let mut host = Host::default();
        let mut matcher = matcher();
        matcher.pods([pod("old", &["10.1.0.1"]), pod("new", &[])]);
        matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
        expect(&matcher, 5, &endpoint("old"), "a first veth waits for nobody");
        host.remove(5).veth(6, "veth6", &["10.1.0.1"]);
        if *routed {
            host.route(6, &["10.1.0.1"]);
        }
        matcher.links(host.now());
        expect(&matcher, 6, &Role::Pending, why);
        assert!(
            matches!(matcher.reports(), [Report::Ambiguous { pods, .. }] if pods.len() == 2),
            "{:?}",
            matcher.reports()
        );
        matcher.apply_pod(pod("new", addresses));
        expect(&matcher, 6, &endpoint(owner), why);
    }
    // An address that is news of the pod is proof enough.
    let mut host = Host::default();
    let mut matcher = matcher();
    matcher.pods([pod("old", &["10.1.0.1"]), pod("new", &[])]);
    matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
    matcher.links(host.remove(5).veth(6, "veth6", &["10.1.0.8"]).now());
    matcher.apply_pod(pod("old", &["10.1.0.8"]));
    expect(&matcher, 6, &endpoint("old"), "its sandbox was made anew, with another address");
}

#[test]
fn finished_pods_claim_nothing() {
    let finished = |finished| crate::model::Pod {
        key: PodKey::new("default", "old"),
        uid: "uid-old".into(),
        labels: crate::model::Labels::default(),
        addresses: vec![ip("10.1.0.1")],
        node: None,
        host_network: false,
        finished,
        ports: Vec::new(),
    };
    for (is_finished, owner) in [(true, "new"), (false, "old")] {
        let mut host = Host::default();
        let mut matcher = matcher();
        let old = LocalPod::of(&finished(is_finished));
        let new = pod("new", if is_finished { &["10.1.0.1"] } else { &["10.1.0.2"] });
        matcher.pods(old.into_iter().chain([new]));
        matcher.links(host.veth(5, "veth5", &["10.1.0.1"]).now());
        expect(&matcher, 5, &endpoint(owner), if is_finished { "a finished pod" } else { "one that runs" });
    }
}
