//! Floods from a pod and to a pod, and more flows than there is room for.

use std::net::Ipv4Addr;
use std::time::Duration;

use portcullis_testbed::{ContinuousStream, Outcome, Probe, Protocol, Shape, Stream, leftovers_after};
use serde_json::json;

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan};
use crate::factor;
use crate::footprint::Footprint;
use crate::manifests::policy;
use crate::packets;

/// `a` sends, `b` receives, `c` and `d` have nothing to do with it.
const PODS: [(&str, usize); 6] = [("x/a", 0), ("x/a2", 0), ("x/a3", 0), ("x/b", 0), ("x/c", 0), ("x/d", 0)];
const SENDERS: [&str; 3] = ["x/a", "x/a2", "x/a3"];

fn cluster() -> LiveCluster {
    let mut plan = Plan::new(Shape::Routed, &PODS);
    plan.bed.nodes = 1;
    let cluster = LiveCluster::new(&plan);
    // Every pod is isolated in both directions; pods reach all but d, which only c reaches, and talk to pods only.
    let everybody = json!({
        "podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["d"]}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}]}], "egress": [{"to": [{"podSelector": {}}]}],
    });
    let d = json!({
        "podSelector": {"matchLabels": {"pod": "d"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "c"}}}]}],
    });
    cluster.enforce(&[policy("x", "everybody", &everybody), policy("x", "d", &d)]);
    cluster
}

fn stream(cluster: &LiveCluster, from: &str, to: &str) -> ContinuousStream {
    let to = cluster.pod(to).v4().unwrap();
    let stream = Stream::open(cluster.pod(from), to, 80, PATIENCE).unwrap();
    stream.run(Duration::from_millis(2), PATIENCE).unwrap()
}

fn ask(cluster: &LiveCluster, from: &str, to: &str) -> Outcome {
    let probe = Probe::new(cluster.pod(from), cluster.pod(to).v4().unwrap(), Protocol::Udp, 80);
    let denied = to == "x/d" && from != "x/c";
    probe.timeout(if denied { Duration::from_millis(200) } else { PATIENCE }).run()
}

fn event(agent: &Agent, event: &str) -> f64 {
    agent.metric("portcullis_flow_events_total", &[("event", event)])
}

/// Packets that a policy decided.
fn decided(agent: &Agent, labels: &[(&str, &str)]) -> f64 {
    agent.metric("portcullis_policy_packets_total", labels)
}

/// Runs a load while connections beside it and through it go on, and verdicts stay what they are.
fn under(cluster: &LiveCluster, what: &str, load: impl Fn()) {
    let (beside, through) = (stream(cluster, "x/c", "x/d"), stream(cluster, "x/c", "x/b"));
    let before = [beside.report().exchanges, through.report().exchanges];
    load();
    // Verdicts with the tables as the load has left them.
    assert_eq!(ask(cluster, "x/a", "x/d"), Outcome::Timeout, "{what}: a denied flow");
    assert!(ask(cluster, "x/c", "x/d").is_answer_of("x/d"), "{what}: an allowed flow beside the load");
    assert!(ask(cluster, "x/a", "x/b").is_answer_of("x/b"), "{what}: an allowed flow through the load");
    for ((stream, before), name) in [beside, through].into_iter().zip(before).zip(["beside", "through"]) {
        stream.wait_for_exchanges(before + 20, PATIENCE).unwrap();
        let report = stream.stop();
        assert!(report.broken.is_none() && report.timeouts == 0, "{what}: the connection {name} it: {report:?}");
        eprintln!("{what}: the connection {name} it had {} exchanges, {} resent", report.exchanges, report.retransmits);
    }
}

#[test]
fn floods_cost_nobody_else_anything_and_leave_nothing() {
    let cluster = cluster();
    let agent = &cluster.agents[0];
    let count = 150_000 * factor();
    let address = |pod: &str| cluster.pod(pod).v4().unwrap();

    // Once before anything is counted: what is allocated at first use is no leak.
    under(&cluster, "nothing", || {});
    let footprint = Footprint::of(agent);

    let allowed = [("policy_name", "everybody"), ("direction", "egress"), ("verdict", "allow")];
    let before = decided(agent, &allowed);
    under(&cluster, "a SYN flood from a pod", || {
        let frame = packets::frame(true, address("x/a"), address("x/b"));
        packets::send(cluster.pod("x/a"), frame, count, |frame, i| {
            packets::set_ports(frame, i as u16, 80 + (i >> 16) as u16);
        });
    });
    let judged = decided(agent, &allowed) - before;
    eprintln!("a SYN flood from a pod: {judged} of {count} judged, {} evicted", event(agent, "evicted"));
    assert!(judged >= count as f64 * 0.5, "{judged} of {count} were judged");

    let denied = [("policy_name", "everybody"), ("direction", "ingress"), ("verdict", "deny")];
    let (before, evicted) = (decided(agent, &denied), event(agent, "evicted"));
    under(&cluster, "a SYN flood to a pod", || {
        let outside = cluster.bed.outside();
        let mac = cluster.bed.fabric().mac("outside").unwrap();
        let mut frame = packets::frame(true, outside.v4().unwrap(), address("x/b"));
        frame[..6].copy_from_slice(&mac);
        packets::send(outside, frame, count, |frame, i| {
            // Any address but those of special meaning.
            packets::set_source(frame, Ipv4Addr::from(0x0b00_0000 + i as u32));
            packets::set_ports(frame, i as u16, 80);
        });
    });
    let judged = decided(agent, &denied) - before;
    eprintln!("a SYN flood to a pod: {judged} of {count} judged");
    assert!(judged >= count as f64 * 0.5 && judged <= count as f64, "{judged} of {count} were judged");
    // The connections and questions beside it are a few flows themselves.
    let more = event(agent, "evicted") - evicted;
    assert!(more < 50.0, "what is denied takes nobody's place, but {more} were evicted");
    footprint.await_no_more(agent, 4 << 10, "after the floods");

    let held = Footprint::of(agent);
    assert_eq!(leftovers_after(cluster.into_bed()), Vec::<String>::new());
    held.await_gone();
}

#[test]
fn a_million_flows_are_judged_and_evictions_are_counted() {
    let cluster = cluster();
    let agent = &cluster.agents[0];
    let address = |pod: &str| cluster.pod(pod).v4().unwrap();
    let each = 1_000_000 * factor() / SENDERS.len() as u64;
    let footprint = Footprint::of(agent);
    let allowed = |direction| [("policy_name", "everybody"), ("direction", direction), ("verdict", "allow")];
    let before = ["egress", "ingress"].map(|direction| decided(agent, &allowed(direction)));
    let (missing, dropped) = (event(agent, "row_missing"), agent.metric("portcullis_drops_total", &[]));
    under(&cluster, "a million flows", || {
        std::thread::scope(|scope| {
            for sender in SENDERS {
                let frame = packets::frame(false, address(sender), address("x/b"));
                let pod = cluster.pod(sender);
                scope.spawn(move || {
                    packets::send(pod, frame, each, |frame, i| {
                        // A prime number of ports beside 65,536 others: no pair comes twice.
                        packets::set_ports(frame, i as u16, 9000 + (i % 61) as u16);
                    });
                });
            }
        });
    });
    let sent = (each * SENDERS.len() as u64) as f64;
    let [out, into] = ["egress", "ingress"].map(|direction| decided(agent, &allowed(direction)));
    let (out, into) = (out - before[0], into - before[1]);
    let evicted = event(agent, "evicted");
    eprintln!("a million flows: {sent} sent, {out} judged as they left, {into} as they arrived, {evicted} evicted");
    assert!(out >= sent * 0.5 && into >= sent * 0.5, "{out} and {into} of {sent} were judged");
    // Each pod has room for 3,584 flows; those that nobody has used for their lifetime give way without a count.
    assert!(evicted > 1000.0 && evicted <= out + into, "{evicted} evicted");
    assert_eq!(event(agent, "row_missing"), missing, "rows are missing");
    // The one probe of a denied flow, and no more.
    assert!(agent.metric("portcullis_drops_total", &[]) - dropped < 10.0, "allowed packets were dropped");

    // The load is over: new flows find room or take the place of what nobody uses, and are all let through.
    for _ in 0..50 {
        assert!(ask(&cluster, "x/a", "x/b").is_answer_of("x/b"));
    }
    footprint.await_no_more(agent, 4 << 10, "after a million flows");
}
