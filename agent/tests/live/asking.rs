//! Questions to a running agent over its socket: what it says is what the manifests say.

use std::cell::Cell;
use std::process::Output;

use portcullis_testbed::Shape;
use serde_json::json;

use crate::agent::PATIENCE;
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 2] = [("x/a", 0), ("x/b", 0)];

/// Runs a command that asks the first node's agent.
fn ask(cluster: &LiveCluster, arguments: &[&str]) -> Output {
    let agent = &cluster.agents[0];
    let socket = cluster.scratch.path().join(format!("{}.sock", cluster.bed.nodes()[0].name()));
    let place = ["--socket", socket.to_str().unwrap(), "--pin-dir", agent.pin_dir().to_str().unwrap()];
    agent.run_command(&[arguments, &place].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_agent_answers_for_the_cluster_that_it_knows() {
    let cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 80}]}],
    });
    cluster.enforce(&[policy("x", "guard", &spec)]);

    let folder = ["--manifests", cluster.manifests.path().to_str().unwrap()];
    let questions: [&[&str]; 4] = [
        &["explain", "--from", "x/a", "--to", "x/b", "--port", "80"],
        &["explain", "--from", "x/a", "--to", "x/b", "--port", "81/udp", "-o", "json"],
        &["explain", "--from", "x/b", "--to", "192.0.2.1", "--protocol", "icmp"],
        &["matrix", "--namespace", "x", "-o", "json"],
    ];
    for question in questions {
        let (told, read) = (ask(&cluster, question), cluster.agents[0].run_command(&[question, &folder].concat()));
        assert_eq!(text(&told.stdout), text(&read.stdout), "{question:?}: {}", text(&told.stderr));
        assert!(!told.stdout.is_empty(), "{question:?}");
        assert_eq!(told.status.code(), Some(0), "{question:?}: {}", text(&told.stderr));
    }
    assert!(text(&ask(&cluster, questions[0]).stdout).contains("x/guard"), "the policy is named");

    let unknown = ask(&cluster, &["explain", "--from", "x/nobody", "--to", "x/b", "--port", "80"]);
    assert_eq!(unknown.status.code(), Some(1), "no answer");
    assert!(text(&unknown.stderr).contains("there is no pod x/nobody in the cluster"), "{}", text(&unknown.stderr));

    cluster.manifests.write_text("bad", "apiVersion: v1\nkind: [Pod\n");
    cluster.agents[0].await_metrics("the bad file", |samples| {
        samples.iter().any(|sample| sample.name == "portcullis_manifest_problems_total" && sample.value > 0.0)
    });
    assert_eq!(ask(&cluster, questions[0]).status.code(), Some(3), "an answer that leaves something out");
}

#[test]
fn the_level_of_a_running_agents_log() {
    let cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    let told = |arguments: &[&str]| text(&ask(&cluster, arguments).stdout);
    assert_eq!(told(&["log-level"]), "portcullis=debug\n", "as it was started");
    assert_eq!(told(&["log-level", "error"]), "error\n");
    let before = cluster.agents[0].log().lines().count();
    cluster.enforce(&[policy("x", "guard", &json!({"podSelector": {}}))]);
    let log = cluster.agents[0].log();
    let since: Vec<&str> = log.lines().skip(before).filter(|line| !line.contains("logging by another")).collect();
    assert_eq!(since, Vec::<&str>::new(), "a policy in force is no error");
    assert_eq!(told(&["log-level", "info,portcullis::reconcile=debug"]), "portcullis::reconcile=debug,info\n");
    let (seen, before) = (Cell::new(0), cluster.agents[0].log().matches("in force").count());
    cluster.enforce(&[]);
    let told_again = |line: &str| {
        seen.set(seen.get() + usize::from(line.contains("in force")));
        seen.get() > before
    };
    cluster.agents[0].process().wait_for_line(told_again, PATIENCE).unwrap();
    let refused = ask(&cluster, &["log-level", "loud"]);
    assert_eq!(refused.status.code(), Some(1), "no level");
    assert!(text(&refused.stderr).contains("loud"), "{}", text(&refused.stderr));
}
