//! An agent that starts where another has ended: what that one enforced holds until the new one knows what there is.

use portcullis_testbed::{Outcome, Probe, Protocol, Shape};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/d", 0)];

/// Only this pod may reach x/b.
fn guard(client: &str) -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"pod": client}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": [{"from": from}],
    });
    policy("x", "guard", &spec)
}

fn ask(cluster: &LiveCluster, from: &str, to: &str) -> Outcome {
    let address = cluster.pod(to).v4().unwrap();
    Probe::new(cluster.pod(from), address, Protocol::Tcp, 80).timeout(std::time::Duration::from_millis(400)).run()
}

/// Of x/a and x/c only this one reaches x/b.
fn assert_only(cluster: &LiveCluster, client: &str, when: &str) {
    for from in ["a", "c"] {
        let outcome = ask(cluster, &format!("x/{from}"), "x/b");
        let expected = if from == client { outcome.is_answer_of("x/b") } else { outcome == Outcome::Timeout };
        assert!(expected, "{when}: x/{from} to x/b: {outcome:?}");
    }
}

fn await_kept(agent: &Agent, count: f64) {
    let kept = [("state", "kept")];
    agent.await_metrics(&format!("{count} kept endpoints"), |samples| {
        samples.iter().any(|sample| sample.name == "portcullis_endpoints" && sample.has(&kept) && sample.value == count)
    });
}

fn kept_pods(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let endpoints = status["endpoints"].as_array().unwrap();
    let kept = endpoints.iter().filter(|endpoint| endpoint["state"] == "kept");
    kept.map(|endpoint| endpoint["pod"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_restart_while_policy_cannot_be_read_opens_nothing() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let mut cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        cluster.manifests.write("guard", &[guard("c")]);
        cluster.enforce(&[]);
        assert_only(&cluster, "c", "before");

        // A file that does not parse: anything may be in it.
        cluster.agents[0].terminate();
        cluster.manifests.write_text("guard", "apiVersion: networking.k8s.io/v1\nkind: [NetworkPolicy\n");
        let everybody_else = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        cluster.write_policies(&[policy("y", "new", &everybody_else)]);
        cluster.agents[0].spawn();
        // x/b and the fence's pod; nothing was enforced on the others, and what is known applies to them.
        cluster.agents[0].await_serving();
        await_kept(&cluster.agents[0], 2.0);
        assert_only(&cluster, "c", "a file does not parse");
        assert_eq!(
            ask(&cluster, "x/a", "y/d"),
            Outcome::Timeout,
            "a pod that nothing was enforced on has what is known"
        );
        let (status, body) = cluster.agents[0].get("/readyz");
        assert_eq!(status, 503, "{body}");
        assert!(body.contains("kept from before") && body.contains("guard.yaml"), "{body}");
        assert!(kept_pods(&cluster.agents[0]).contains(&"x/b".to_owned()), "{}", cluster.agents[0].status());

        // Again, by an agent that finds what was kept, and y/d under policy.
        cluster.agents[0].kill();
        cluster.agents[0].spawn();
        cluster.agents[0].await_serving();
        await_kept(&cluster.agents[0], 3.0);
        assert_only(&cluster, "c", "a second restart");

        cluster.manifests.write("guard", &[guard("a")]);
        cluster.agents[0].await_ready();
        await_kept(&cluster.agents[0], 0.0);
        assert_only(&cluster, "a", "repaired");

        // A policy that is refused: of it the name is known, so that others' pods do not wait.
        cluster.agents[0].terminate();
        let mut refused = guard("c");
        refused["spec"]["ingress"][0]["from"][0] = json!({"ipBlock": {"cidr": "10.0.0.0/33"}});
        cluster.manifests.write("guard", &[refused]);
        cluster.agents[0].spawn();
        cluster.agents[0].await_serving();
        await_kept(&cluster.agents[0], 1.0);
        assert_eq!(kept_pods(&cluster.agents[0]), ["x/b"]);
        assert_only(&cluster, "a", "the policy is refused");
        cluster.manifests.delete("guard");
        cluster.agents[0].await_ready();
        assert!(ask(&cluster, "x/c", "x/b").is_answer_of("x/b"), "the refused policy is gone");

        // One that never was in force keeps nobody.
        cluster.agents[0].terminate();
        let mut never = guard("c");
        never["metadata"]["name"] = "never".into();
        never["spec"]["policyTypes"] = json!(["Sideways"]);
        cluster.manifests.write("never", &[never]);
        cluster.agents[0].start();
        assert_eq!(kept_pods(&cluster.agents[0]), Vec::<String>::new());
    }
}

#[test]
fn two_agents_on_one_pin_directory_or_uninstall_beside_one_are_refused() {
    let cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    cluster.manifests.write("guard", &[guard("c")]);
    cluster.enforce(&[]);
    let agent = &cluster.agents[0];
    let pins = agent.pin_dir().to_str().unwrap();
    let folder = cluster.manifests.path().to_str().unwrap();
    let socket = cluster.scratch.path().join("other.sock");
    let second = agent.run_command(&[
        "run",
        "--manifests",
        folder,
        "--pin-dir",
        pins,
        "--listen",
        "127.0.0.1:9298",
        "--socket",
        socket.to_str().unwrap(),
    ]);
    let uninstall = agent.run_command(&["uninstall", "--pin-dir", pins]);
    for (what, output) in [("a second agent", second), ("uninstall", uninstall)] {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{what}: {told}");
        assert!(told.contains("is in use by another agent") && told.contains(pins), "{what}: {told}");
    }
    assert_only(&cluster, "c", "the first goes on");
}

#[test]
fn an_index_that_another_device_has_meanwhile_is_no_endpoint() {
    let mut cluster = LiveCluster::new(&Plan::new(Shape::Routed, &PODS));
    cluster.enforce(&[]);
    let endpoint = |cluster: &LiveCluster, ifindex: &str| {
        let status = cluster.agents[0].status();
        let endpoints = status["endpoints"].as_array().unwrap().clone();
        endpoints.iter().any(|endpoint| endpoint["ifindex"].as_u64() == ifindex.parse().ok())
    };
    let node = cluster.bed.node(0).clone();
    let veth = cluster.pod("x/b").veth().to_owned();
    let shown = node.namespace().tool("ip", &["-o", "link", "show", "dev", &veth]).unwrap();
    let ifindex = shown.split(':').next().unwrap().to_owned();
    assert!(endpoint(&cluster, &ifindex), "x/b is there");
    cluster.agents[0].terminate();
    node.namespace()
        .ip([format!("link del {veth}"), format!("link add other0 index {ifindex} type veth peer name other1")])
        .unwrap();
    cluster.agents[0].start();
    assert!(!endpoint(&cluster, &ifindex), "{}", cluster.agents[0].status());
    assert!(ask(&cluster, "x/a", "x/c").is_answer_of("x/c"), "the others are");
}

#[test]
fn a_first_pass_that_fails_enforces_what_was_and_hooks_the_exits() {
    let mut plan = Plan::new(Shape::Routed, &PODS);
    plan.arguments = ["--max-ranges", "64"].map(str::to_owned).into();
    let mut cluster = LiveCluster::new(&plan);
    cluster.manifests.write("guard", &[guard("c")]);
    cluster.enforce(&[]);
    cluster.agents[0].terminate();
    // What an agent had in force stays where the next finds no room for what it is to enforce.
    let peers: Vec<Value> = (0..200).map(|i| json!({"ipBlock": {"cidr": format!("198.18.{i}.0/24")}})).collect();
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]});
    cluster.manifests.write("large", &[policy("y", "large", &spec)]);
    cluster.agents[0].spawn();
    cluster.agents[0].await_serving();
    cluster.agents[0].await_metrics("a pass that finds no room", |samples| {
        let full = [("result", "table-full")];
        samples.iter().any(|s| s.name == "portcullis_updates_total" && s.has(&full) && s.value > 0.0)
    });
    assert_only(&cluster, "c", "no room");
    let status = cluster.agents[0].status();
    assert!(status["exits"].to_string().contains("eth0"), "{status}");
    cluster.manifests.delete("large");
    cluster.manifests.write("guard", &[guard("a")]);
    cluster.agents[0].await_ready();
    assert_only(&cluster, "a", "room again");
}
