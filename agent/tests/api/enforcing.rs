//! From the API server to packets: agents on the testbed's nodes.

use std::time::{Duration, Instant};

use portcullis_testbed::{Families, Pod, PodOptions, Probe, Protocol, Testbed, TestbedOptions};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::objects::{namespace, node, pod, pods, policies, policy};
use crate::proxy::Fault;
use crate::rights::{rights, role};
use crate::server::{ApiServer, PATIENCE, binaries};

pub(crate) struct World {
    // Agents go before the namespaces that they run in.
    pub(crate) agents: Vec<Agent>,
    pub(crate) server: ApiServer,
    pods: Vec<Pod>,
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) bed: Testbed,
}

impl World {
    /// A pod x/a on the first node, x/b on the second, and so on; all serve TCP on 80.
    pub(crate) fn new(nodes: usize) -> Option<Self> {
        let binaries = binaries()?;
        let options = TestbedOptions { nodes, families: Families::V4, ..TestbedOptions::default() };
        let bed = Testbed::new(options).unwrap();
        let server = ApiServer::start(&binaries, bed.outside());
        server.create("/api/v1/namespaces", &namespace("x"));
        let mut pods = Vec::new();
        for (index, name) in ["x/a", "x/b", "x/c"].into_iter().take(nodes).enumerate() {
            let machine = bed.node(index);
            let taints = ["portcullis.io/agent-not-ready", "example.com/other"];
            server.create("/api/v1/nodes", &node(machine.name(), &machine.v4().unwrap().to_string(), &taints));
            pods.push(bed.add_pod(index, name, PodOptions::default().serving(Protocol::Tcp, 80)).unwrap());
        }
        for one in &pods {
            server.create(&crate::objects::pods("x"), &pod(one));
        }
        server.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role(&rights()));
        server.create(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            &json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "portcullis"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "portcullis"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}],
            }),
        );
        let scratch = tempfile::tempdir().unwrap();
        let kubeconfig = server.kubeconfig("agent");
        let agents = (0..nodes).map(|index| Agent::new(bed.node(index), &kubeconfig, scratch.path(), &[])).collect();
        Some(Self { agents, server, pods, scratch, bed })
    }

    /// Whether x/b is answered by x/a.
    fn passes(&self) -> bool {
        let probe = Probe::new(&self.pods[1], self.pods[0].v4().unwrap(), Protocol::Tcp, 80);
        probe.timeout(Duration::from_millis(500)).run().is_answer_of(self.pods[0].name())
    }

    /// Waits until packets from x/b to x/a pass, or do not.
    fn until(&self, what: &str, passes: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.passes() != passes {
            assert!(Instant::now() < deadline, "{what}: packets still {}", if passes { "do not pass" } else { "pass" });
        }
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let listed = self.server.get("/apis/events.k8s.io/v1/namespaces/x/events");
        listed["items"].as_array().unwrap().clone()
    }
}

fn deny() -> Value {
    policy("guard", &json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]}))
}

#[test]
fn policy_in_the_api_server_is_policy_on_the_wire() {
    let Some(mut world) = World::new(2) else { return };
    assert!(world.passes(), "without agents");
    world.agents[0].start();
    world.agents[1].start();
    assert!(world.passes(), "without policy");

    world.server.create(&policies("x"), &deny());
    world.until("a policy is added", false);
    let status = world.agents[0].status();
    assert_eq!(status["endpoints"][0]["ingress"]["policies"], json!(["NetworkPolicy x/guard"]), "{status}");
    let allow = json!({"spec": {"ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]}});
    world.server.merge(&format!("{}/guard", policies("x")), &allow);
    world.server.merge(&format!("{}/b", pods("x")), &json!({"metadata": {"labels": {"friend": "yes"}}}));
    world.until("the client gets the label that the policy asks for", true);
    world.server.merge(&format!("{}/b", pods("x")), &json!({"metadata": {"labels": {"friend": "no"}}}));
    world.until("and loses it", false);
    world.server.merge(
        &format!("{}/guard", policies("x")),
        &json!({"spec": {"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}]}}),
    );
    world.server.merge("/api/v1/namespaces/x", &json!({"metadata": {"labels": {"team": "a"}}}));
    world.until("the namespace gets the label that the policy asks for", true);
    world.server.merge("/api/v1/namespaces/x", &json!({"metadata": {"labels": {"team": null}}}));
    world.until("and loses it", false);
    world.server.delete(&format!("{}/guard", policies("x")));
    world.until("the policy is deleted", true);

    // The taint goes, and no other.
    let taints = |world: &World, index: usize| {
        let node = world.server.get(&format!("/api/v1/nodes/{}", world.bed.node(index).name()));
        node["spec"]["taints"].to_string()
    };
    for index in 0..2 {
        let deadline = Instant::now() + PATIENCE;
        while taints(&world, index).contains("portcullis.io") {
            assert!(Instant::now() < deadline, "{}\n{}", taints(&world, index), world.agents[index].log());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(taints(&world, index).contains("example.com/other"), "{}", taints(&world, index));
    }
    world.agents[1].terminate();
}

#[test]
fn what_is_in_force_outlives_the_api_server() {
    let Some(mut world) = World::new(2) else { return };
    world.server.create(&policies("x"), &deny());
    world.agents[0].start();
    world.until("policy from the start", false);
    world.server.kill();
    let said = world.agents[0].await_ready("the loss", |status, body| status == 503 && body.contains("since"));
    assert!(said.contains("not in sync with the API server"), "{said}");
    assert!(!world.passes(), "the last state is enforced");
    let (_, metrics) = world.agents[0].get("/metrics").unwrap();
    assert!(metrics.contains("portcullis_source_in_sync{kind=\"Pod\"} 0"), "{metrics}");

    // A new agent knows nothing yet, and changes nothing.
    world.agents[0].terminate();
    assert!(!world.passes(), "without an agent");
    world.agents[0].spawn();
    let said = world.agents[0].await_ready("an answer", |status, _| status == 503);
    assert!(said.contains("not everything has been read") || said.contains("nothing has been read"), "{said}");
    assert!(!world.passes(), "before anything has been read");
    assert_eq!(world.agents[0].get("/healthz").unwrap().0, 200, "it waits, and lives");

    // It waits for every kind.
    world.server.proxy.fault("networkpolicies", Fault::Refuse(500, 0, "not yet"));
    world.server.run();
    let said = world.agents[0].await_ready("all kinds but one", |_, body| body.contains("(NetworkPolicy)"));
    assert!(!world.passes(), "{said}");
    world.server.proxy.heal();
    world.agents[0].await_ready("ready", |status, _| status == 200);
    assert!(!world.passes(), "with everything read");
    world.server.delete(&format!("{}/guard", policies("x")));
    world.until("the policy is deleted", true);
}

#[test]
fn a_policy_that_cannot_be_enforced_gets_one_event() {
    let Some(mut world) = World::new(3) else { return };
    world.server.proxy.rewrite(|target, line| match target.contains("networkpolicies") {
        // A field that a later version of the API may have.
        true => line.replace(r#""policyTypes":["Egress"]"#, r#""policyTypes":["Egress"],"later":true"#),
        false => line,
    });
    for agent in &mut world.agents {
        agent.start();
    }
    let strange = policy("strange", &json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    let made = world.server.create(&policies("x"), &strange);
    let deadline = Instant::now() + PATIENCE;
    // Three agents have asked for it to be made.
    let mut asked = 0;
    while asked < 3 {
        asked += world
            .server
            .proxy
            .seen()
            .iter()
            .filter(|request| request.starts_with("POST") && request.contains("events"))
            .count();
        assert!(Instant::now() < deadline, "{asked} asked for an event:\n{}", world.agents[0].log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let events = world.events();
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = &events[0];
    assert_eq!(event["regarding"]["uid"], made["metadata"]["uid"], "{event}");
    assert_eq!(
        (event["type"].as_str(), event["regarding"]["name"].as_str()),
        (Some("Warning"), Some("strange")),
        "{event}"
    );
    assert!(event["note"].as_str().unwrap().contains("spec.later"), "{event}");

    // Put right, it is not told again; wrong anew, it is.
    world.server.merge(&format!("{}/strange", policies("x")), &json!({"spec": {"policyTypes": ["Ingress"]}}));
    world.server.merge(&format!("{}/strange", policies("x")), &json!({"spec": {"policyTypes": ["Egress"]}}));
    while world.events().len() < 2 {
        assert!(Instant::now() < deadline, "{:#?}", world.events());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn it_does_not_start_beside_cilium() {
    let Some(mut world) = World::new(1) else { return };
    world.bed.node(0).namespace().ip(["link add cilium_host type veth peer name cilium_net"]).unwrap();
    world.agents[0].spawn();
    let (success, said) = world.agents[0].await_end();
    assert!(!success && said.contains("Cilium") && said.contains("--beside-cilium"), "{said}");
    let kubeconfig = world.server.kubeconfig("agent");
    world.agents[0] = Agent::new(world.bed.node(0), &kubeconfig, world.scratch.path(), &["--beside-cilium"]);
    world.agents[0].start();
}

#[test]
fn large_policies_are_enforced_like_small_ones() {
    let Some(mut world) = World::new(2) else { return };
    world.agents[0].start();
    world.server.create(&policies("x"), &deny());
    world.until("isolation", false);
    let selector = json!({"matchLabels": {"pod": "a"}});
    let rules: Vec<Value> = (0..10_000).map(|port| json!({"ports": [{"port": 1 + port}]})).collect();
    world.server.create(&policies("x"), &policy("many-rules", &json!({"podSelector": selector, "ingress": rules})));
    world.until("one of ten thousand rules", true);
    world.server.delete(&format!("{}/many-rules", policies("x")));
    world.until("without them", false);
    let peers = vec![json!({"podSelector": {}}); 100_000];
    world
        .server
        .create(&policies("x"), &policy("many-peers", &json!({"podSelector": selector, "ingress": [{"from": peers}]})));
    world.until("one of a hundred thousand peers", true);
    world.server.delete(&format!("{}/many-peers", policies("x")));
    world.until("without them", false);
}
