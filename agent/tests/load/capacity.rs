//! Tables at their capacity: what has no room changes nothing that is in force, is told, and goes in when there is room.

use std::time::Duration;

use portcullis_testbed::{Outcome, PodOptions, Probe, Protocol, Shape};
use serde_json::{Value, json};

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::{self, policy};

const PODS: [(&str, usize); 3] = [("x/a", 0), ("x/b", 0), ("x/c", 0)];

fn cluster(arguments: &[&str]) -> LiveCluster {
    let mut plan = Plan::new(Shape::Routed, &PODS);
    plan.bed.nodes = 1;
    plan.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    LiveCluster::new(&plan)
}

fn ask(cluster: &LiveCluster, from: &str, timeout: Duration) -> Outcome {
    Probe::new(cluster.pod(from), cluster.pod("x/b").v4().unwrap(), Protocol::Udp, 80).timeout(timeout).run()
}

/// b is asked by a and by nobody else, or by c.
fn check(cluster: &LiveCluster, friend: &str, stranger: &str, when: &str) {
    assert!(ask(cluster, friend, PATIENCE).is_answer_of("x/b"), "{when}: {friend} asks x/b");
    assert_eq!(ask(cluster, stranger, Duration::from_millis(200)), Outcome::Timeout, "{when}: {stranger} asks x/b");
}

fn friend_of_b(friend: &str) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": friend}}}]}],
    });
    policy("x", "b", &spec)
}

fn problems(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let problems = status["problems"].as_array().unwrap();
    problems.iter().map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

/// A policy for c that needs much of one table.
type Large = fn() -> Vec<Value>;

fn large(peers: Vec<Value>) -> Vec<Value> {
    let rules: Vec<Value> = peers;
    let spec = json!({"podSelector": {"matchLabels": {"pod": "c"}}, "policyTypes": ["Ingress"], "ingress": rules});
    vec![policy("x", "large", &spec)]
}

fn many_rules() -> Vec<Value> {
    large((0..200).map(|i| json!({"ports": [{"protocol": "TCP", "port": 1000 + i}]})).collect())
}

fn many_ranges() -> Vec<Value> {
    let block = |i: u32| json!({"ipBlock": {"cidr": format!("198.18.{i}.0/24")}});
    large(vec![json!({"from": (0..200).map(block).collect::<Vec<_>>()})])
}

/// Each range has a class of its own, each port another, and a verdict for each pair that a rule names.
fn many_rows() -> Vec<Value> {
    let rule = |i: u32| {
        json!({
            "from": [{"ipBlock": {"cidr": format!("198.18.{}.0/24", i % 250)}}],
            "ports": [{"protocol": "TCP", "port": 1000 + i}],
        })
    };
    large((0..600).map(rule).collect())
}

/// Pods that b's policy is about. The policies need no more room, the addresses do.
fn many_pods() -> Vec<Value> {
    let pod = |i: u32| {
        let address = format!("10.250.{}.{}", i / 250, i % 250 + 1);
        let mut object = manifests::pod_at(&format!("x/many-{i}"), "elsewhere", &[address], &[], None);
        object["metadata"]["labels"]["pod"] = "a".into();
        object
    };
    (0..600).map(pod).collect()
}

#[test]
fn a_full_table_leaves_the_old_policy_in_force_and_is_told_and_recovers() {
    let rows: [(&str, &[&str], Large); 4] = [
        ("rules", &["--max-rules", "64"], many_rules),
        ("ranges", &["--max-ranges", "64"], many_ranges),
        ("rows", &["--max-rows", "256"], many_rows),
        ("addresses", &["--max-addresses", "128"], many_pods),
    ];
    for (table, arguments, large) in rows {
        let cluster = cluster(arguments);
        let agent = &cluster.agents[0];
        cluster.enforce(&[friend_of_b("a")]);
        check(&cluster, "x/a", "x/c", table);

        cluster.manifests.write("large", &large());
        let result = [("result", "table-full")];
        agent.await_metrics(&format!("{table}: a change that finds no room"), |samples| {
            samples.iter().any(|s| s.name == "portcullis_updates_total" && s.has(&result) && s.value > 0.0)
        });
        let told = problems(agent);
        let expected = format!("the {table} table is full");
        assert!(told.iter().any(|problem| problem.contains(&expected)), "{table}: {told:?}");
        assert_eq!(agent.get("/readyz").0, 503, "{table}: readiness");
        assert_eq!(agent.metric("portcullis_synced", &[]), 0.0, "{table}: in sync");
        check(&cluster, "x/a", "x/c", &format!("{table}, full"));

        cluster.manifests.write("large", &[]);
        cluster.enforce(&[friend_of_b("c")]);
        agent.await_ready();
        check(&cluster, "x/c", "x/a", &format!("{table}, room again"));
        assert_eq!(problems(agent), Vec::<String>::new(), "{table}: problems");
        assert_eq!(agent.metric("portcullis_flow_events_total", &[("event", "row_missing")]), 0.0, "{table}");
    }
}

#[test]
fn a_pod_too_many_is_closed_and_told_and_taken_in_when_another_goes() {
    // The three pods, and the one that tells when policy is in force.
    let cluster = cluster(&["--max-endpoints", "5"]);
    let agent = &cluster.agents[0];
    cluster.enforce(&[friend_of_b("a")]);
    let add = |name: &str| {
        let pod = cluster.bed.add_pod(0, name, PodOptions::default().serving(Protocol::Udp, 80)).unwrap();
        let file = name.replace('/', "-");
        cluster.manifests.write(&file, &[manifests::pod(&pod, &[(Protocol::Udp, 80)], None)]);
        (pod, file)
    };
    let enforced = |count: f64| {
        agent.await_metrics(&format!("{count} pods enforced"), |samples| {
            let state = [("state", "enforced")];
            samples.iter().any(|s| s.name == "portcullis_endpoints" && s.has(&state) && s.value == count)
        });
    };
    let (fifth, file) = add("x/fifth");
    enforced(5.0);
    let to = |pod: &portcullis_testbed::Pod, timeout| {
        Probe::new(cluster.pod("x/a"), pod.v4().unwrap(), Protocol::Udp, 80).timeout(timeout).run()
    };
    assert!(to(&fifth, PATIENCE).is_answer_of("x/fifth"), "the last that has room");

    let (sixth, _) = add("x/sixth");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !problems(agent).iter().any(|problem| problem.contains("room for 5 endpoints only")) {
        assert!(std::time::Instant::now() < deadline, "the pod without room is not told of: {:?}", problems(agent));
    }
    assert_eq!(to(&sixth, Duration::from_millis(300)), Outcome::Timeout, "closed, not open");
    assert!(to(&fifth, PATIENCE).is_answer_of("x/fifth"), "the others go on");
    check(&cluster, "x/a", "x/c", "with a pod too many");

    cluster.manifests.write(&file, &[]);
    cluster.bed.remove_pod(&fifth).unwrap();
    enforced(5.0);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !problems(agent).is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", problems(agent));
    }
    assert!(to(&sixth, PATIENCE).is_answer_of("x/sixth"), "taken in");
}
