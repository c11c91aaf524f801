//! Pods whose objects do not say which addresses they have.

use portcullis_testbed::{Outcome, Probe, Protocol, Shape};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests;

const PODS: [(&str, usize); 2] = [("x/a", 0), ("x/b", 0)];

fn ask(cluster: &LiveCluster, from: &str, to: &str) -> Outcome {
    let address = cluster.pod(to).v4().unwrap();
    Probe::new(cluster.pod(from), address, Protocol::Tcp, 80).timeout(std::time::Duration::from_millis(500)).run()
}

/// The pods' manifests, x/b with or without its addresses, and policies that say nothing of them but tell when the agents
/// know.
fn write_pods(cluster: &LiveCluster, with_addresses: bool) {
    let ports = [(Protocol::Tcp, 80), (Protocol::Udp, 80)];
    let mut pods: Vec<Value> = ["x/a", "x/b"].map(|name| manifests::pod(cluster.pod(name), &ports, None)).into();
    for node in cluster.bed.nodes() {
        pods.push(manifests::pod(cluster.pod(&format!("fence/{}", node.name())), &[], None));
    }
    if !with_addresses {
        pods[1]["status"] = json!({"phase": "Pending"});
    }
    cluster.manifests.write("pods", &pods);
}

fn state_of(cluster: &LiveCluster, pod: &str) -> String {
    let status = cluster.agents[0].status();
    let endpoints = status["endpoints"].as_array().unwrap().clone();
    let found = endpoints.iter().find(|endpoint| endpoint["pod"] == pod).unwrap();
    found["state"].as_str().unwrap().to_owned()
}

/// Whether x/b is held to its own address: what it sends from another does not arrive.
fn is_held_to_its_address(cluster: &LiveCluster) -> bool {
    let before = cluster.agents[0].metric("portcullis_drops_total", &[("reason", "source_address")]);
    let b = cluster.pod("x/b");
    b.namespace().ip(["address add 10.77.0.1/32 dev eth0"]).unwrap();
    let probe = Probe::new(b, cluster.pod("x/a").v4().unwrap(), Protocol::Udp, 80);
    drop(probe.source("10.77.0.1".parse().unwrap()).timeout(std::time::Duration::from_millis(100)).run());
    b.namespace().ip(["address del 10.77.0.1/32 dev eth0"]).unwrap();
    cluster.agents[0].metric("portcullis_drops_total", &[("reason", "source_address")]) > before
}

/// A pod that never had a status is recognised by Azure CNI's name of its veth, in the routed shape.
#[test]
fn a_pod_without_addresses_in_its_object_is_held_to_what_the_host_says_or_closed() {
    let mut cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    let reaches = |cluster: &LiveCluster| ask(cluster, "x/a", "x/b").is_answer_of("x/b");
    assert!(is_held_to_its_address(&cluster), "with addresses");

    write_pods(&cluster, false);
    cluster.enforce(&[]);
    assert!(reaches(&cluster) && is_held_to_its_address(&cluster), "they vanished");

    cluster.agents[0].terminate();
    cluster.agents[0].start();
    assert!(reaches(&cluster) && is_held_to_its_address(&cluster), "they vanished before a restart");

    cluster.agents[0].terminate();
    cluster.agents[0].uninstall();
    cluster.agents[0].start();
    assert_eq!(state_of(&cluster, "x/b"), "enforced", "the host's route says it");
    assert!(reaches(&cluster) && is_held_to_its_address(&cluster), "by the host's route");

    // Routes to more than the pod lead to it as well, but do not say which address is the pod's.
    let node = cluster.bed.node(0).clone();
    let b = cluster.pod("x/b").clone();
    let veth = b.veth();
    let (v4, v6) = (b.v4().unwrap(), b.v6().unwrap());
    let wide = u32::from(v4) & !1;
    cluster.agents[0].terminate();
    cluster.agents[0].uninstall();
    node.namespace()
        .ip([
            format!("route add {}/31 dev {veth}", std::net::Ipv4Addr::from(wide)),
            format!("route del {v4}/32 dev {veth}"),
            format!("route del {v6}/128 dev {veth}"),
        ])
        .unwrap();
    assert!(reaches(&cluster), "without an agent");
    cluster.agents[0].start();
    assert_eq!(state_of(&cluster, "x/b"), "pending", "{}", cluster.agents[0].status());
    assert_eq!(ask(&cluster, "x/a", "x/b"), Outcome::Timeout, "closed until its address is known");
    assert!(cluster.agents[0].status()["problems"].to_string().contains("x/b"), "and somebody is told");

    write_pods(&cluster, true);
    cluster.enforce(&[]);
    assert_eq!(state_of(&cluster, "x/b"), "enforced");
    assert!(reaches(&cluster) && is_held_to_its_address(&cluster), "known again");
}
