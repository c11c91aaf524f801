//! Pods that come and go.

use std::time::{Duration, Instant};

use portcullis_testbed::{Outcome, PodOptions, Probe, Protocol, Shape, leftovers_after};
use serde_json::json;

use crate::agent::{PATIENCE, Sample};
use crate::cluster::{LiveCluster, Plan};
use crate::factor;
use crate::footprint::Footprint;
use crate::manifests::{self, policy};

const PODS: [(&str, usize); 2] = [("x/a", 0), ("x/c", 0)];
/// Pods that live at the same time.
const BATCH: usize = 4;

/// Makes pods, asks them, takes them away; gives how many.
fn round(cluster: &LiveCluster, number: u64) -> u64 {
    let agent = &cluster.agents[0];
    let ports = [(Protocol::Udp, 80)];
    let resident = PODS.len() + 1;
    let pods: Vec<_> = (0..BATCH)
        .map(|i| {
            // Some names return, with another incarnation, as a StatefulSet's do; addresses return anyhow.
            let name = if i == 0 { "x/web-0".to_owned() } else { format!("x/web-{number}-{i}") };
            cluster.bed.add_pod(0, &name, PodOptions::default().serving(Protocol::Udp, 80)).unwrap()
        })
        .collect();
    let objects: Vec<_> = pods
        .iter()
        .map(|pod| {
            let mut object = manifests::pod(pod, &ports, None);
            object["metadata"]["uid"] = format!("{}-{number}", pod.name()).into();
            object["metadata"]["labels"]["app"] = "web".into();
            object
        })
        .collect();
    cluster.manifests.write("churn", &objects);
    let enforced = |count: usize| {
        move |samples: &[Sample]| {
            let endpoints = |state: &str| {
                let of_state = samples.iter().find(|s| s.name == "portcullis_endpoints" && s.has(&[("state", state)]));
                of_state.map_or(0.0, |sample| sample.value)
            };
            let others = endpoints("pending") + endpoints("closed") + endpoints("pod-gone");
            endpoints("enforced") == count as f64 && others == 0.0
        }
    };
    agent.await_metrics(&format!("round {number}: {BATCH} new pods"), enforced(resident + BATCH));
    for pod in &pods {
        let ask = |from: &str, timeout| {
            Probe::new(cluster.pod(from), pod.v4().unwrap(), Protocol::Udp, 80).timeout(timeout).run()
        };
        let (allowed, denied) = (ask("x/a", PATIENCE), ask("x/c", Duration::from_millis(30)));
        assert!(allowed.is_answer_of(pod.name()), "round {number}: x/a asked {}: {allowed:?}", pod.name());
        assert_eq!(denied, Outcome::Timeout, "round {number}: x/c asked {}", pod.name());
    }
    // In either order: the object first, or the device.
    if number.is_multiple_of(2) {
        cluster.manifests.write("churn", &[]);
    }
    pods.iter().for_each(|pod| cluster.bed.remove_pod(pod).unwrap());
    drop(pods);
    cluster.manifests.write("churn", &[]);
    agent.await_metrics(&format!("round {number}: the end of its pods"), enforced(resident));
    BATCH as u64
}

#[test]
fn pods_that_come_and_go_leave_nothing() {
    let mut plan = Plan::new(Shape::Routed, &PODS);
    plan.bed.nodes = 1;
    // Fewer slots than pods in all: they are used again.
    plan.arguments = ["--max-endpoints", "8"].map(String::from).to_vec();
    let cluster = LiveCluster::new(&plan);
    let agent = &cluster.agents[0];
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "a"}}}]}],
    });
    cluster.enforce(&[policy("x", "web", &spec)]);
    let mut made = (0..6).map(|number| round(&cluster, number)).sum::<u64>();
    let footprint = Footprint::of(agent);
    let begun = Instant::now();
    let mut number = 6;
    while begun.elapsed() < Duration::from_secs(15 * factor()) {
        made += round(&cluster, number);
        number += 1;
    }
    eprintln!("{made} pods came and went in {number} rounds");
    assert_eq!(agent.status()["problems"], json!([]), "problems");
    assert_eq!(agent.metric("portcullis_flow_events_total", &[("event", "row_missing")]), 0.0);
    footprint.await_no_more(agent, 6 << 10, "after the last pod");

    let held = Footprint::of(agent);
    assert_eq!(leftovers_after(cluster.into_bed()), Vec::<String>::new());
    held.await_gone();
}
