//! The scenarios, as data: see `../scenarios/README.md`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::LiveCluster;
use crate::manifests::{self, Labels, split};
use crate::table::{Table, parse_port};

const FILES: [(&str, &str); 5] = [
    ("ingress.yaml", include_str!("../scenarios/ingress.yaml")),
    ("ports.yaml", include_str!("../scenarios/ports.yaml")),
    ("updates.yaml", include_str!("../scenarios/updates.yaml")),
    ("egress.yaml", include_str!("../scenarios/egress.yaml")),
    ("protocols.yaml", include_str!("../scenarios/protocols.yaml")),
];

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) number: u32,
    pub(crate) title: String,
    pods: Vec<String>,
    ports: Vec<String>,
    /// Only in scenarios about egress.
    pub(crate) isolate: Option<Isolate>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Isolate {
    #[serde(default)]
    clients: Vec<String>,
    #[serde(default)]
    servers: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    policies: Vec<Policy>,
    #[serde(default)]
    namespace_labels: BTreeMap<String, Labels>,
    #[serde(default)]
    pod_labels: BTreeMap<String, Labels>,
    expect: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    namespace: String,
    name: String,
    spec: Value,
}

/// Whether the pods of a scenario are isolated beyond what it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    AsWritten,
    ClientInBothDirections,
    ServerInBothDirections,
    BothInBothDirections,
}

/// Every scenario, in the order of their numbers, with the addresses of a cluster's pods filled in.
pub(crate) fn all(address: &dyn Fn(&str) -> String) -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for (file, text) in FILES {
        let filled = fill(text, address);
        let read: Vec<Scenario> =
            serde_saphyr::from_multiple(&filled).unwrap_or_else(|error| panic!("{file}: {error}"));
        scenarios.extend(read);
    }
    scenarios.sort_by_key(|scenario| scenario.number);
    scenarios
}

/// Replaces each `${name}`.
fn fill(text: &str, address: &dyn Fn(&str) -> String) -> String {
    let mut parts = text.split("${");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').unwrap();
        filled.push_str(&address(name));
        filled.push_str(rest);
    }
    filled
}

impl Scenario {
    /// Runs it, and returns what was not as expected, for a person to read.
    pub(crate) fn run(&self, cluster: &LiveCluster, isolation: Isolation) -> Vec<String> {
        let ports: Vec<_> = self.ports.iter().map(|port| parse_port(port)).collect();
        let mut failures = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            let mut policies: Vec<Value> = step
                .policies
                .iter()
                .map(|policy| manifests::policy(&policy.namespace, &policy.name, &policy.spec))
                .collect();
            let mut table = Table::all_allowed(&self.pods, &ports);
            step.expect.iter().for_each(|line| table.apply(line));
            if let Some(isolate) = &self.isolate {
                isolate.add(isolation, &mut policies, &mut table, step);
            }
            cluster.label(&step.namespace_labels, &step.pod_labels);
            cluster.enforce(&policies);
            let wrong = cluster.check(&table);
            if !wrong.is_empty() {
                failures.push(format!(
                    "scenario {} ({}), step {}, {isolation:?}: {} wrong:\n  {}\n{table}",
                    self.number,
                    self.title,
                    number + 1,
                    wrong.len(),
                    wrong.join("\n  ")
                ));
            }
        }
        cluster.label(&BTreeMap::new(), &BTreeMap::new());
        cluster.enforce(&[]);
        failures
    }
}

impl Isolate {
    fn add(&self, isolation: Isolation, policies: &mut Vec<Value>, table: &mut Table, step: &Step) {
        let (clients, servers): (&[String], &[String]) = match isolation {
            Isolation::AsWritten => (&[], &[]),
            Isolation::ClientInBothDirections => (&self.clients, &[]),
            Isolation::ServerInBothDirections => (&[], &self.servers),
            Isolation::BothInBothDirections => (&self.clients, &self.servers),
        };
        for client in clients {
            let (namespace, name) = split(client);
            let spec = json!({"podSelector": {"matchLabels": {"pod": name}}, "policyTypes": ["Ingress"]});
            policies.push(manifests::policy(namespace, &format!("isolate-client-{name}"), &spec));
            table.apply(&format!("deny * -> {client}"));
        }
        for server in servers {
            let (namespace, name) = split(server);
            let mut spec = json!({
                "podSelector": {"matchLabels": {"pod": name}}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}],
            });
            // A rule that admits everybody would undo the scenario's own.
            if step.policies.iter().any(|policy| policy.namespace == namespace && policy.spec.get("ingress").is_some())
            {
                spec = json!({"podSelector": {"matchLabels": {"pod": name}}, "policyTypes": ["Egress"]});
            }
            policies.push(manifests::policy(namespace, &format!("isolate-server-{name}"), &spec));
            table.apply(&format!("deny {server} -> *"));
        }
    }
}

#[test]
fn every_case_of_the_suite_is_there_once() {
    let scenarios = all(&|_| "192.0.2.1".to_owned());
    let numbers: Vec<u32> = scenarios.iter().map(|scenario| scenario.number).collect();
    assert_eq!(numbers, (1..=48).collect::<Vec<u32>>());
}
