//! The ClusterRole of `deploy/`: it is enough, nothing in it is too much, and what is missing is told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::enforcing::World;
use crate::objects::{policies, policy};
use crate::proxy::Fault;
use crate::server::PATIENCE;

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/portcullis";

/// A right by the resource's group, the resource and the verb.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Right {
    group: String,
    resource: String,
    verb: String,
}

/// What is deployed.
pub(crate) fn rights() -> Vec<Right> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(include_str!("../../../deploy/base/rbac.yaml")).unwrap();
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole").unwrap();
    let words = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule.as_object().unwrap().len(), 3, "more than groups, resources and verbs: {rule}");
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                rights.extend(words(rule, "verbs").into_iter().map(|verb| Right {
                    group: group.clone(),
                    resource: resource.clone(),
                    verb,
                }));
            }
        }
    }
    rights
}

/// A ClusterRole of these.
pub(crate) fn role(rights: &[Right]) -> Value {
    let rules = rights
        .iter()
        .map(|right| json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]}));
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "portcullis"},
        "rules": rules.collect::<Vec<_>>(),
    })
}

impl World {
    fn grant(&self, rights: &[Right]) {
        self.server.merge(ROLE, &json!({"rules": role(rights)["rules"]}));
    }

    fn agent_anew(&mut self, arguments: &[&str]) {
        let kubeconfig = self.server.kubeconfig("agent");
        self.agents[0] = Agent::new(self.bed.node(0), &kubeconfig, self.scratch.path(), arguments);
    }

    /// What an agent that begins says of itself when it may not read something.
    fn says_that_it_cannot(&mut self, right: &Right) {
        self.agent_anew(&["--node-taint", "keep"]);
        self.agents[0].spawn();
        let said = format!("cannot {} resource \"{}\"", right.verb, right.resource);
        let body = self.agents[0].await_ready(&said, |status, body| status == 503 && body.contains(&said));
        assert!(body.contains("ClusterRole"), "what to do: {body}");
    }

    /// Makes a policy that has no room, of another name each time.
    fn ask_too_much(&self, name: &str) {
        let blocks: Vec<Value> = (0..9).map(|net| json!({"ipBlock": {"cidr": format!("198.51.{net}.0/24")}})).collect();
        let wide = policy(name, &json!({"podSelector": {}, "ingress": [{"from": blocks}]}));
        self.server.create(&policies("x"), &wide);
    }

    fn await_event(&self, policy: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let about = |event: &Value| event["regarding"]["name"] == policy;
            if let Some(event) = self.events().into_iter().find(about) {
                return event;
            }
            assert!(Instant::now() < deadline, "no event on {policy}:\n{}", self.agents[0].log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_tainted(&self) -> bool {
        let node = self.server.get(&format!("/api/v1/nodes/{}", self.bed.node(0).name()));
        node["spec"]["taints"].to_string().contains("portcullis.io")
    }

    /// Without the right to patch it, the node keeps its taint; all else goes on.
    fn the_taint_stays(&mut self, right: &Right) {
        self.agent_anew(&["--max-ranges", "1"]);
        self.agents[0].start();
        self.agents[0].await_log("cannot take away the taint portcullis.io/agent-not-ready, so pods stay away");
        assert!(self.agents[0].log().contains(&format!("cannot {} resource", right.verb)), "{}", self.agents[0].log());
        self.ask_too_much("told");
        let event = self.await_event("told");
        assert_eq!(event["reason"], "PolicyNotEnforced", "{event}");
        assert!(event["note"].as_str().unwrap().contains("ranges"), "{event}");
        assert!(self.is_tainted());
        self.server.delete(&format!("{}/told", policies("x")));
    }

    /// Without the right to make Events, nobody is told of a policy that is not in force; all else goes on.
    fn nobody_is_told(&mut self, right: &Right) {
        self.agent_anew(&["--max-ranges", "1"]);
        self.agents[0].start();
        let deadline = Instant::now() + PATIENCE;
        while self.is_tainted() {
            assert!(Instant::now() < deadline, "the taint stays:\n{}", self.agents[0].log());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.ask_too_much("untold");
        self.agents[0].await_log("cannot make Events");
        let said = format!("cannot {} resource \\\"{}\\\"", right.verb, right.resource);
        assert!(self.agents[0].log().contains(&said), "{said}:\n{}", self.agents[0].log());
        assert!(self.events().iter().all(|event| event["regarding"]["name"] != "untold"));
        self.server.delete(&format!("{}/untold", policies("x")));
    }
}

#[test]
fn each_right_is_needed_and_what_is_missing_is_told() {
    let Some(mut world) = World::new(1) else { return };
    world.grant(&[]);
    world.agents[0].spawn();
    world.agents[0].await_ready("the refusal", |_, body| body.contains("forbidden") && body.contains("ClusterRole"));
    let all = rights();
    for missing in &all {
        let others: Vec<Right> = all.iter().filter(|right| *right != missing).cloned().collect();
        world.grant(&others);
        match (missing.resource.as_str(), missing.verb.as_str()) {
            (_, "watch") => world.says_that_it_cannot(missing),
            (_, "list") => {
                // Servers that have no streaming lists ask for it, such as Kubernetes 1.33 as it comes.
                world.server.proxy.fault("sendInitialEvents", Fault::Refuse(422, 0, "sendInitialEvents is forbidden"));
                world.says_that_it_cannot(missing);
                world.server.proxy.heal();
            }
            ("nodes", "patch") => world.the_taint_stays(missing),
            ("events", "create") => world.nobody_is_told(missing),
            _ => panic!("{missing:?} is granted, and nothing here shows what for"),
        }
    }
    world.grant(&all);
    world.ask_too_much("told-now");
    world.await_event("told-now");
    world.server.delete(&format!("{}/told-now", policies("x")));
    world.agents[0].await_ready("all rights", |status, _| status == 200);
}
