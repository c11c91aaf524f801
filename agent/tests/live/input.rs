//! Manifests that cannot be understood: the last good version stays in force, and somebody is told.

use portcullis_testbed::{Outcome, Probe, Protocol, Shape};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 2] = [("x/a", 0), ("x/b", 0)];

/// Nobody may reach x/b.
fn guard(ingress: &Value) -> Value {
    let spec = json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": ingress});
    policy("x", "guard", &spec)
}

fn ask(cluster: &LiveCluster) -> Outcome {
    let to = cluster.pod("x/b").v4().unwrap();
    Probe::new(cluster.pod("x/a"), to, Protocol::Tcp, 80).timeout(std::time::Duration::from_millis(300)).run()
}

#[test]
fn a_bad_policy_leaves_the_last_good_version_in_force() {
    let cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    let agent = &cluster.agents[0];
    cluster.manifests.write("guard", &[guard(&json!([]))]);
    cluster.enforce(&[]);
    assert_eq!(ask(&cluster), Outcome::Timeout, "the good version");

    // Each admits everybody to somebody who overlooks what is wrong with it.
    for (what, field, ingress) in [
        ("endPort below port", "endPort", json!([{}, {"ports": [{"port": 80, "endPort": 79}]}])),
        ("endPort with a named port", "endPort", json!([{}, {"ports": [{"port": "web", "endPort": 90}]}])),
        ("a bad CIDR", "cidr", json!([{}, {"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}])),
        (
            "except that is no strict subset",
            "except",
            json!([{}, {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}]),
        ),
        (
            "an unknown operator",
            "operator",
            json!([{}, {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]}]),
        ),
        ("an unknown field", "froms", json!([{}, {"froms": []}])),
        ("an unknown protocol", "protocol", json!([{}, {"ports": [{"port": 80, "protocol": "QUIC"}]}])),
    ] {
        let problems = |cluster: &LiveCluster| cluster.agents[0].metric("portcullis_manifest_problems_total", &[]);
        let before = problems(&cluster);
        cluster.manifests.write("guard", &[guard(&ingress)]);
        cluster.enforce(&[]);
        assert_eq!(ask(&cluster), Outcome::Timeout, "{what}: the good version stays");
        assert!(problems(&cluster) > before, "{what}: is counted");
        let log = agent.log();
        let told = log.lines().rev().find(|line| line.contains("ERROR") && line.contains("guard.yaml"));
        assert!(told.is_some_and(|line| line.contains(field)), "{what}: {field} is not named in {told:?}\n{log}");
    }

    cluster.manifests.write_text("guard", "apiVersion: networking.k8s.io/v1\nkind: [NetworkPolicy\n");
    cluster.enforce(&[]);
    assert_eq!(ask(&cluster), Outcome::Timeout, "a file that does not parse removes nothing");
    cluster.manifests.write("guard", &[guard(&json!([{}]))]);
    cluster.enforce(&[]);
    assert!(ask(&cluster).is_answer_of("x/b"), "a good version again");
    cluster.manifests.write("guard", &[guard(&json!([]))]);
    cluster.enforce(&[]);
    assert_eq!(ask(&cluster), Outcome::Timeout, "and the first one");
    cluster.manifests.delete("guard");
    cluster.enforce(&[]);
    assert!(ask(&cluster).is_answer_of("x/b"), "without the file");
}

#[test]
fn a_policy_that_never_was_valid_is_reported_and_the_rest_goes_on() {
    let cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    let bad = json!({"podSelector": {}, "policyTypes": ["Sideways"]});
    let good = json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]});
    cluster.enforce(&[policy("x", "never-valid", &bad), policy("x", "good", &good)]);
    assert_eq!(ask(&cluster), Outcome::Timeout, "the good one is in force");
    let log = cluster.agents[0].log();
    let told = log.lines().any(|line| line.contains("ERROR") && line.contains("never-valid"));
    assert!(told, "the bad one is named\n{log}");
}
