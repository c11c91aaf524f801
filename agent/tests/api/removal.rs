//! `portcullis uninstall --daemonset`, as the chart's Job runs it: what it says of nodes that are clean, late, or away.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_testbed::{Families, Testbed, TestbedOptions};
use serde_json::{Value, json};

use crate::objects::{namespace, node, pod_at, pods};
use crate::server::{ApiServer, PATIENCE, binaries};

const SETS: &str = "/apis/apps/v1/namespaces/portcullis/daemonsets";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A cluster of two nodes, one of which does not answer. Nobody plays its controllers but the test.
struct World {
    server: ApiServer,
    bed: Testbed,
}

impl World {
    fn new() -> Option<Self> {
        let binaries = binaries()?;
        let options = TestbedOptions { nodes: 1, families: Families::V4, ..TestbedOptions::default() };
        let bed = Testbed::new(options).unwrap();
        let server = ApiServer::start(&binaries, bed.outside());
        server.create("/api/v1/namespaces", &namespace("portcullis"));
        for (name, ready, taints) in [("n1", "True", &["portcullis.io/agent-not-ready"][..]), ("n2", "Unknown", &[])] {
            let mut object = node(name, "192.0.2.1", taints);
            object["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
            server.create("/api/v1/nodes", &object);
        }
        let mut set: Value = serde_saphyr::from_str(include_str!("../../../deploy/base/daemonset.yaml")).unwrap();
        // What the kustomization adds.
        let labels = set.pointer("/spec/selector/matchLabels").unwrap().clone();
        set["spec"]["template"]["metadata"]["labels"] = labels;
        server.create(SETS, &set);
        let world = Self { server, bed };
        world.allow("roles", "Role", &["get", "watch", "patch"], &["list"]);
        world.allow_nodes();
        Some(world)
    }

    /// The rights of the chart's Job in its namespace.
    fn allow(&self, plural: &str, kind: &str, sets: &[&str], of_pods: &[&str]) {
        let place = format!("{RBAC}/namespaces/portcullis");
        let rules = json!([
            {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["portcullis"], "verbs": sets},
            {"apiGroups": [""], "resources": ["pods"], "verbs": of_pods},
        ]);
        self.bind(&place, plural, kind, &rules);
    }

    fn allow_nodes(&self) {
        let rules = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]);
        self.bind(RBAC, "clusterroles", "ClusterRole", &rules);
    }

    fn bind(&self, place: &str, plural: &str, kind: &str, rules: &Value) {
        let version = "rbac.authorization.k8s.io/v1";
        let role = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "uninstall"}, "rules": rules});
        self.server.create(&format!("{place}/{plural}"), &role);
        self.server.create(
            &format!("{place}/{}bindings", plural.trim_end_matches('s')),
            &json!({
                "apiVersion": version, "kind": format!("{kind}Binding"), "metadata": {"name": "uninstall"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "uninstall"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}],
            }),
        );
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command: Command = self.bed.outside().command(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["uninstall", "--daemonset=portcullis/portcullis"]).args(arguments);
        command.env("KUBECONFIG", self.server.kubeconfig("agent")).env("NO_COLOR", "1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What the DaemonSet's controller says once it has seen the change.
    fn count(&self, updated: u64, ready: u64) {
        let deadline = Instant::now() + PATIENCE;
        let place = format!("{SETS}/portcullis");
        let set = loop {
            let set = self.server.get(&place);
            if set.pointer("/spec/template/spec/initContainers/0/name") == Some(&json!("uninstall")) {
                break set;
            }
            assert!(Instant::now() < deadline, "the DaemonSet is not changed: {set}");
            std::thread::sleep(Duration::from_millis(50));
        };
        let status = json!({"status": {
            "observedGeneration": set["metadata"]["generation"], "currentNumberScheduled": 2, "numberMisscheduled": 0,
            "desiredNumberScheduled": 2, "updatedNumberScheduled": updated, "numberReady": ready,
        }});
        self.server.merge(&format!("{place}/status"), &status);
    }

    /// A pod of the DaemonSet, as an agent or as what uninstalls.
    fn add_pod(&self, name: &str, node: &str, uninstalls: bool) {
        let mut pod = pod_at(name, node, &["192.0.2.1".to_owned()]);
        pod["metadata"]["labels"] =
            json!({"app.kubernetes.io/name": "portcullis", "app.kubernetes.io/component": "agent"});
        if uninstalls {
            pod["spec"]["initContainers"] = json!([{"name": "uninstall", "image": "portcullis"}]);
        }
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        self.server.create(&pods("portcullis"), &pod);
    }
}

fn end(child: Child) -> (bool, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn nodes_that_are_away_are_named_and_left_only_if_asked() {
    let Some(world) = World::new() else { return };
    world.add_pod("clean", "n1", true);
    world.add_pod("away", "n2", false);
    // A pod that uninstalls and another one for the agent that cannot end: of two, one is updated.
    let child = world.start(&["--timeout=3"]);
    world.count(1, 1);
    let (success, _, said) = end(child);
    assert!(!success && said.contains("1 of 2 nodes were clean after 3 s"), "{said}");
    assert!(said.contains("n2 (the node is not Ready; pod away: Running)") && !said.contains("n1 ("), "{said}");
    assert!(said.contains("--unready-nodes leave"), "what to do: {said}");

    let child = world.start(&["--unready-nodes=leave"]);
    let (success, answer, said) = end(child);
    assert!(success && answer.contains("1 nodes are clean"), "{answer}{said}");
    assert!(said.contains("left as it is") && said.contains("n2"), "{said}");
    assert!(said.contains("portcullis.io/agent-not-ready-") && said.contains("n1"), "the taint: {said}");

    // A node that is ready and late is waited for, whatever is left of the others.
    world
        .server
        .merge("/api/v1/nodes/n2/status", &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    let (success, _, said) = end(world.start(&["--unready-nodes=leave", "--timeout=15"]));
    assert!(!success && said.contains("n2 (pod away: Running)"), "{said}");

    // A node that is gone is no longer counted, by the controller.
    world.server.delete("/api/v1/nodes/n2");
    let place = format!("{SETS}/portcullis/status");
    world.server.merge(&place, &json!({"status": {"desiredNumberScheduled": 1}}));
    let (success, answer, said) = end(world.start(&["--timeout=60"]));
    assert!(success && answer.contains("1 nodes are clean"), "{answer}{said}");
}
