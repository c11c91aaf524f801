//! What the watches make of a real server, good or bad.

use std::time::{Duration, Instant};

use portcullis::k8s::Kind;
use portcullis_testbed::{Families, Testbed, TestbedOptions};
use serde_json::json;

use crate::followed::{Followed, timing};
use crate::objects::{namespace, node, pod_at, pods, policies, policy, service, slice};
use crate::proxy::{Fault, MOMENT};
use crate::server::{ApiServer, binaries};

fn bed() -> Testbed {
    Testbed::new(TestbedOptions { nodes: 1, families: Families::V4, ..TestbedOptions::default() }).unwrap()
}

fn allow_all() -> serde_json::Value {
    json!({"podSelector": {}, "ingress": [{}]})
}

#[test]
fn every_kind_is_followed_from_its_first_object_to_its_last() {
    let Some(binaries) = binaries() else { return };
    let bed = bed();
    let server = ApiServer::start(&binaries, bed.outside());
    server.create("/api/v1/namespaces", &namespace("x"));
    server.create("/api/v1/nodes", &node("n1", "192.0.2.1", &[]));
    server.create("/api/v1/nodes", &node("n2", "192.0.2.2", &[]));
    server.create(&pods("x"), &pod_at("before", "n1", &["10.1.0.1".into()]));
    let mut seen = Followed::in_sync(&server);
    assert_eq!(seen.pods(), ["x/before"]);
    assert_eq!(seen.cluster.nodes.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["n1"], "its own node alone");
    assert!(
        server.proxy.seen().iter().any(|request| request.contains("sendInitialEvents=true")),
        "by a streaming list"
    );

    // Added.
    server.create(&pods("x"), &pod_at("web", "n2", &["10.1.0.2".into()]));
    server.create("/api/v1/namespaces/x/services", &service("web"));
    server.create("/apis/discovery.k8s.io/v1/namespaces/x/endpointslices", &slice("web", "10.1.0.2"));
    server.create(&policies("x"), &policy("guard", &allow_all()));
    seen.until("what was added", |seen| {
        let cluster = &seen.cluster;
        let web = cluster.pods.values().find(|pod| &*pod.key.name == "web");
        web.is_some_and(|pod| pod.addresses.len() == 1 && pod.labels.get("pod") == Some("web"))
            && cluster.services.values().any(|service| &*service.key.name == "web" && service.cluster_ips.len() == 1)
            && cluster.slices.values().any(|slice| slice.addresses.len() == 1)
            && seen.policies() == ["guard"]
    });

    // Changed.
    server.merge(&format!("{}/web", pods("x")), &json!({"metadata": {"labels": {"tier": "front"}}}));
    server.merge("/api/v1/namespaces/x", &json!({"metadata": {"labels": {"team": "a"}}}));
    server.merge(&format!("{}/guard", policies("x")), &json!({"spec": {"ingress": [{}, {}]}}));
    server.merge("/api/v1/nodes/n1", &json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}}));
    seen.until("what was changed", |seen| {
        let cluster = &seen.cluster;
        cluster.pods.values().any(|pod| pod.labels.get("tier") == Some("front"))
            && cluster.namespaces["x"].labels.get("team") == Some("a")
            && cluster.policies.values().all(|policy| policy.ingress.as_ref().is_some_and(|rules| rules.len() == 3))
            && cluster.nodes["n1"].pod_cidrs.len() == 1
    });

    // A pod that ends leaves, though its object stays; one that is deleted leaves.
    server.merge(&format!("{}/before/status", pods("x")), &json!({"status": {"phase": "Succeeded"}}));
    seen.until("the end of a pod", |seen| seen.pods() == ["x/web"]);
    server.delete(&format!("{}/web", pods("x")));
    server.delete("/api/v1/namespaces/x/services/web");
    server.delete("/apis/discovery.k8s.io/v1/namespaces/x/endpointslices/web-1");
    server.delete(&format!("{}/guard", policies("x")));
    server.delete("/api/v1/nodes/n1");
    seen.until("what was deleted", |seen| {
        let cluster = &seen.cluster;
        cluster.pods.is_empty()
            && cluster.policies.is_empty()
            && cluster.nodes.is_empty()
            && !cluster.services.values().any(|service| &*service.key.name == "web")
            && !cluster.slices.values().any(|slice| &*slice.service.name == "web")
    });
    server.delete("/api/v1/namespaces/x");
    seen.until("the end of the namespace", |seen| !seen.cluster.namespaces.contains_key("x"));
    for kind in Kind::ALL {
        assert_eq!(seen.lists(kind), 1, "{kind}: all by one list and its watch");
    }
    assert!(seen.problems.is_empty(), "{:?}", seen.problems);
}

#[test]
fn what_was_missed_is_made_up_for() {
    let Some(binaries) = binaries() else { return };
    let bed = bed();
    let server = ApiServer::start(&binaries, bed.outside());
    server.create("/api/v1/namespaces", &namespace("x"));
    for name in ["stays", "goes"] {
        server.create(&policies("x"), &policy(name, &allow_all()));
    }
    let mut seen = Followed::in_sync(&server);

    // Cut connections go on from where they were.
    server.proxy.cut();
    server.create(&policies("x"), &policy("after-cut", &allow_all()));
    seen.until("what came after the cut", |seen| seen.policies().contains(&"after-cut".into()));
    assert_eq!(seen.lists(Kind::NetworkPolicy), 1, "without listing again");

    // The server dies; meanwhile, through another, one policy goes and one comes. What happened is forgotten (410).
    server.proxy.fault("networkpolicies", Fault::Hang);
    server.proxy.cut();
    server.delete(&format!("{}/goes", policies("x")));
    server.create(&policies("x"), &policy("comes", &allow_all()));
    server.compact();
    server.kill();
    seen.until("the loss", |seen| seen.report.trouble().is_some_and(|trouble| trouble.contains("since")));
    assert!(seen.policies().contains(&"goes".into()), "what was known stays");
    assert!(seen.complete && seen.report.all_listed(), "and once read is read");
    server.run();
    server.proxy.heal();
    server.proxy.cut();
    seen.until("contact again", |seen| seen.report.trouble().is_none() && seen.lists(Kind::NetworkPolicy) == 2);
    seen.until("what was missed", |seen| seen.policies() == ["after-cut", "comes", "stays"]);

    // A watch that died in silence is noticed.
    drop(seen);
    let mut seen = Followed::new(&server, portcullis::k8s::Timing { silence: Duration::from_secs(2), ..timing() });
    // Real servers are silent for longer, so that no kind stays in sync: each silence is told as a loss.
    seen.until("the first sync", |seen| seen.complete);
    server.proxy.mute();
    server.create(&policies("x"), &policy("unheard", &allow_all()));
    seen.take(MOMENT);
    assert!(!seen.policies().contains(&"unheard".into()), "the connection is silent");
    server.proxy.heal();
    seen.until("what the silence hid", |seen| seen.policies().contains(&"unheard".into()));

    // Without streaming lists: pages, and the same.
    drop(seen);
    server.proxy.fault(
        "sendInitialEvents",
        Fault::Refuse(422, 0, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"),
    );
    for index in 0..600 {
        server.create("/api/v1/namespaces/x/services", &service(&format!("s-{index}")));
    }
    server.proxy.seen();
    let mut seen = Followed::in_sync(&server);
    let requests = server.proxy.seen();
    assert!(
        requests.iter().any(|request| request.contains("services") && request.contains("continue=")),
        "{requests:?}"
    );
    assert!(seen.cluster.services.len() >= 600, "{} services of more than one page", seen.cluster.services.len());
    server.delete(&format!("{}/unheard", policies("x")));
    seen.until("a deletion after pages", |seen| seen.policies() == ["after-cut", "comes", "stays"]);
}

#[test]
fn a_server_in_trouble_is_asked_gently_and_told_of() {
    let Some(binaries) = binaries() else { return };
    let bed = bed();
    let server = ApiServer::start(&binaries, bed.outside());
    let mut seen = Followed::in_sync(&server);
    let rows: [(Fault, &str); 3] = [
        (Fault::Refuse(500, 0, "etcd is on fire"), "answers 500: etcd is on fire"),
        (Fault::Refuse(429, 1, "too many requests"), "answers 429: too many requests"),
        (Fault::Hang, "no answer within 5 s"),
    ];
    for (fault, said) in rows {
        server.proxy.fault("pods", fault);
        server.proxy.cut();
        seen.until(said, |seen| {
            seen.report.trouble().is_some_and(|trouble| trouble.contains(said) && trouble.contains("(Pod)"))
        });
        server.proxy.seen();
        let begun = Instant::now();
        // A batch that is still on its way ends a look early.
        while begun.elapsed() < Duration::from_secs(2) {
            seen.take(Duration::from_millis(100));
        }
        let asked = server.proxy.seen().iter().filter(|request| request.contains("/pods")).count();
        // Waits of at least 50, 100, 200 ms and so on: never one request after another.
        assert!(asked <= 8, "{said}: asked {asked} times in {:?}", begun.elapsed());
        server.proxy.heal();
        server.proxy.cut();
        seen.until("contact again", |seen| seen.report.trouble().is_none());
    }
    assert!(seen.report.states()[0].failures >= 3, "{:?}", seen.report.states());
}

#[test]
fn hostile_objects_stop_nobody() {
    let Some(binaries) = binaries() else { return };
    let bed = bed();
    let server = ApiServer::start(&binaries, bed.outside());
    server.create("/api/v1/nodes", &node("n1", "192.0.2.1", &[]));
    server.create("/api/v1/namespaces", &namespace("x"));
    server.create(&policies("x"), &policy("first", &allow_all()));
    let mut seen = Followed::in_sync(&server);

    // What a server does accept.
    let label = "l".repeat(63);
    let mut pod = pod_at("labelled", "n1", &["10.1.0.1".into()]);
    pod["metadata"]["labels"] = json!({ label.as_str(): label });
    server.create(&pods("x"), &pod);
    let rules: Vec<_> = (0..10_000).map(|port| json!({"ports": [{"port": 1 + port}]})).collect();
    server.create(&policies("x"), &policy("many-rules", &json!({"podSelector": {}, "ingress": rules})));
    let peers = vec![json!({"podSelector": {}}); 100_000];
    server.create(&policies("x"), &policy("many-peers", &json!({"podSelector": {}, "ingress": [{"from": peers}]})));
    seen.until("all of them", |seen| {
        let rules = |name: &str| {
            let policy = seen.cluster.policies.values().find(|policy| &*policy.id.name == name);
            policy.and_then(|policy| policy.ingress.as_ref()).map(Vec::len)
        };
        seen.pods() == ["x/labelled"] && rules("many-rules") == Some(10_001) && rules("many-peers") == Some(2)
    });

    // What none would send: types that are wrong, in a watch and in a list, an object without a name, a line that is none.
    server.proxy.rewrite(|target, line| match target {
        target if target.contains("networkpolicies") => {
            line.replace(r#""ingress":[{"ports":[{"protocol":"TCP","port":7}]}]"#, r#""ingress":"seven""#)
        }
        target if target.contains("namespaces") => line.replace(r#""name":"nameless""#, r#""name":null"#),
        target if target.contains("services") && line.contains("garbled") => "{]\n".into(),
        _ => line,
    });
    server.proxy.cut();
    server.merge(
        &format!("{}/first", policies("x")),
        &json!({"spec": {"ingress": [{"ports": [{"protocol": "TCP", "port": 7}]}]}}),
    );
    server.create("/api/v1/namespaces", &namespace("nameless"));
    server.create("/api/v1/namespaces/x/services", &service("garbled"));
    server.create("/api/v1/namespaces", &namespace("y"));
    server.create("/api/v1/namespaces/x/services", &service("after"));
    server.create(&policies("x"), &policy("last", &allow_all()));
    seen.until("what is good", |seen| {
        seen.policies().contains(&"last".into())
            && seen.cluster.namespaces.contains_key("y")
            && seen.cluster.services.values().any(|service| &*service.key.name == "after")
            && seen.problems.len() == 2
    });
    let first = seen.cluster.policies.values().find(|policy| &*policy.id.name == "first").unwrap();
    assert_eq!(first.ingress.as_ref().unwrap().len(), 2, "its last good version: one rule and the implied one");
    seen.problems.sort();
    assert!(seen.problems[0].starts_with("NetworkPolicy x/first: spec.ingress: "), "{:?}", seen.problems);
    assert!(seen.problems[0].ends_with("its last good version stays in force"), "{:?}", seen.problems);
    assert!(seen.problems[1].starts_with("a Namespace whose name cannot be read"), "{:?}", seen.problems);

    // An agent that starts now has never seen a good version.
    drop(seen);
    let seen = Followed::in_sync(&server);
    assert!(!seen.policies().contains(&"first".into()) && seen.policies().contains(&"last".into()));
    assert!(seen.problems.iter().any(|problem| problem.ends_with("so it is not enforced")), "{:?}", seen.problems);
}
