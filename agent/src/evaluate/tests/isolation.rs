//! Who is isolated, by what, and which rule is named when several admit.

use crate::evaluate::fixture::*;
use crate::model::{Change, Object, Pod};

/// Pods x/a, x/b and y/a with these policies.
fn cluster(policies: Vec<Object>) -> crate::index::Cluster {
    mk_cluster(["x/a", "x/b", "y/a"].map(mk_pod), policies)
}

#[test]
fn isolation_is_per_direction() {
    let ingress_only = || mk_policy("x/p", with("pod=a")).ingress(vec![]).done();
    let egress_only = || mk_policy("x/p", with("pod=a")).egress(vec![]).done();
    let rows = [
        ("no policy", vec![], "allow no-policy", "allow no-policy"),
        ("Ingress isolates ingress alone", vec![ingress_only()], "deny x/p", "allow no-policy"),
        ("Egress isolates egress alone", vec![egress_only()], "allow no-policy", "deny x/p"),
        (
            "a policy of another namespace isolates nobody here",
            vec![mk_policy("y/p", everything()).ingress(vec![]).egress(vec![]).done()],
            "allow no-policy",
            "allow no-policy",
        ),
        (
            "a policy whose selector misses isolates nobody",
            vec![mk_policy("x/p", with("pod=c")).ingress(vec![]).egress(vec![]).done()],
            "allow no-policy",
            "allow no-policy",
        ),
    ];
    for (why, policies, into_a, out_of_a) in rows {
        let cluster = cluster(policies);
        assert_eq!(ingress(&cluster, "x/b", "x/a", TCP_80), into_a, "{why}: ingress of x/a");
        assert_eq!(egress(&cluster, "x/a", "x/b", TCP_80), out_of_a, "{why}: egress of x/a");
    }
}

#[test]
fn both_sides_must_allow() {
    let out = mk_policy("x/out", with("pod=a")).egress(vec![allow(vec![pods_of("x", with("pod=b"))], vec![])]).done();
    let cluster = cluster(vec![out, mk_policy("x/in", with("pod=b")).ingress(vec![]).done()]);
    assert_eq!(egress(&cluster, "x/a", "x/b", TCP_80), "allow x/out#0", "the source's egress allows");
    assert_eq!(ingress(&cluster, "x/a", "x/b", TCP_80), "deny x/in", "the destination's ingress denies");
    assert!(!passes(&cluster, "x/a", "x/b", TCP_80), "one denial is enough");
    assert!(passes(&cluster, "x/b", "y/a", TCP_80), "pods that nothing isolates talk");
}

#[test]
fn policies_add_up_and_the_first_that_admits_is_named() {
    let all = || vec![allow(vec![], vec![])];
    let from_y = || allow(vec![pods_in(namespace_named("y"), everything())], vec![]);
    let policy = |name: &str, rules| mk_policy(name, with("pod=a")).ingress(rules).done();
    let rows = [
        ("nothing after nothing", vec![policy("x/b", vec![]), policy("x/a", vec![])], "deny x/a"),
        ("one that admits beside one that does not", vec![policy("x/a", vec![]), policy("x/b", all())], "allow x/b#0"),
        ("two that admit: by name", vec![policy("x/b", all()), policy("x/a", all())], "allow x/a#0"),
        (
            "order of the string name/namespace/kind, in which - comes before /",
            vec![policy("x/p", all()), policy("x/p-1", all())],
            "allow x/p-1#0",
        ),
        ("the first rule that matches", vec![policy("x/a", vec![from_y(), allow(vec![], vec![])])], "allow x/a#1"),
        (
            "a rule that admits everything stands before one that matches too",
            vec![policy("x/a", vec![allow(vec![], vec![]), allow(vec![pods_of("x", everything())], vec![])])],
            "allow x/a#0",
        ),
    ];
    for (why, policies, expected) in rows {
        assert_eq!(ingress(&cluster(policies), "x/b", "x/a", TCP_80), expected, "{why}");
    }
}

#[test]
fn a_pod_cannot_be_kept_from_itself() {
    let closed = || mk_policy("x/p", with("pod=a")).ingress(vec![]).egress(vec![]).done();
    let rules = || vec![allow(vec![pods_of("x", everything())], vec![])];
    let open = || mk_policy("x/p", with("pod=a")).ingress(rules()).egress(rules()).done();
    let later = || mk_policy("x/z", with("pod=a")).ingress(rules()).egress(rules()).done();
    let rows = [
        ("not isolated", vec![], "allow no-policy"),
        ("isolated: implied", vec![closed()], "allow x/p#self"),
        ("a rule of the spec that admits it comes first", vec![open()], "allow x/p#0"),
        ("an implied rule comes before rules of later policies", vec![closed(), later()], "allow x/p#self"),
    ];
    for (why, policies, expected) in rows {
        let cluster = cluster(policies);
        assert_eq!(egress(&cluster, "x/a", "x/a", TCP_80), expected, "{why}: egress");
        assert_eq!(ingress(&cluster, "x/a", "x/a", TCP_80), expected, "{why}: ingress");
    }
    let replica = {
        let mut pod = mk_pod("x/a2");
        pod.labels = labels("pod=a");
        pod
    };
    let cluster = mk_cluster([mk_pod("x/a"), replica], [closed()]);
    assert_eq!(ingress(&cluster, "x/a2", "x/a", TCP_80), "deny x/p", "a replica is another pod");
}

#[test]
fn pods_that_are_no_members_are_not_isolated() {
    let closed = || mk_policy("x/p", everything()).ingress(vec![]).egress(vec![]).done();
    let elsewhere = || Pod { node: Some("n2".into()), ..mk_pod("x/a") };
    let rows = [
        ("host network", Pod { host_network: true, ..elsewhere() }),
        ("finished", Pod { finished: true, ..elsewhere() }),
    ];
    for (why, pod) in rows {
        let mut cluster = cluster(vec![closed()]);
        cluster.apply(Change::Set(Object::Pod(pod)));
        assert_eq!(ingress(&cluster, "y/a", "x/a", TCP_80), "allow no-policy", "{why}: ingress");
        assert_eq!(egress(&cluster, "x/a", "y/a", TCP_80), "allow no-policy", "{why}: egress");
    }
}
