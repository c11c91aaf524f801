//! What is left when the agent is taken away: nothing of ours, and everything of others.

use aya::programs::{SchedClassifier, TcAttachType};
use portcullis_testbed::{Node, Outcome, Probe, Protocol, Shape, leftovers_after};
use serde_json::json;

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 3] = [("x/a", 0), ("x/b", 0), ("y/b", 1)];

fn devices(node: &Node) -> Vec<String> {
    let listed = node.namespace().tool("ip", &["-o", "link", "show"]).unwrap();
    let name = |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
    listed.lines().map(name).collect()
}

/// Every TCX program and every filter on a node's devices, as text.
fn programs(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for device in devices(node) {
        for (hook, direction) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
            let (_, programs) = node.namespace().run(|| Ok(SchedClassifier::query_tcx(&device, hook)?)).unwrap();
            found
                .extend(programs.iter().map(|program| format!("{device} {direction} tcx {:?}", program.name_as_str())));
            let filters = node.namespace().tool("tc", &["filter", "show", "dev", &device, direction]).unwrap();
            found.extend(filters.lines().map(|line| format!("{device} {direction} {}", line.trim())));
        }
    }
    found
}

fn ask(cluster: &LiveCluster) -> Outcome {
    let to = cluster.pod("x/b").v4().unwrap();
    Probe::new(cluster.pod("x/a"), to, Protocol::Tcp, 80).timeout(std::time::Duration::from_millis(400)).run()
}

#[test]
fn uninstall_removes_what_is_ours_and_nothing_else() {
    for attach in ["auto", "clsact"] {
        for shape in [Shape::Routed, Shape::Bridged] {
            let context = format!("{attach}, {shape:?}");
            let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(shape, &PODS) });
            let node = cluster.bed.node(0).clone();
            // Somebody else's filter, with a qdisc of their own, on a pod's veth and on the uplink.
            for device in [cluster.pod("x/b").veth(), "eth0"] {
                let tc = |arguments: &[&str]| node.namespace().tool("tc", arguments).unwrap();
                tc(&["qdisc", "add", "dev", device, "clsact"]);
                for direction in ["ingress", "egress"] {
                    // One instruction of classic BPF: return 0, which is no match.
                    let filter = ["prio", "7", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0"];
                    tc(&[&["filter", "add", "dev", device, direction][..], &filter].concat());
                }
            }
            let foreign = programs(&node);
            assert!(!foreign.is_empty());

            let spec = json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]});
            let arguments = ["--attach".to_owned(), attach.to_owned()];
            cluster.start_agents(&arguments, &[policy("x", "deny", &spec)]);
            assert_eq!(ask(&cluster), Outcome::Timeout, "{context}: while the agent runs");
            let with = programs(&node);
            // Two on each pod's veth and on eth0 at least.
            assert!(with.len() >= foreign.len() + 2 * 4, "{context}: {with:#?}");
            assert_eq!(with.iter().any(|line| line.contains(" tcx ")), attach == "auto", "{context}: {with:#?}");

            cluster.agents.iter_mut().for_each(Agent::terminate);
            assert_eq!(ask(&cluster), Outcome::Timeout, "{context}: after the agent");
            // Node 1's namespace has no right to node 0's pins.
            let pins = cluster.agents[0].pin_dir().to_str().unwrap().to_owned();
            let refused = cluster.agents[1].run_command(&["uninstall", "--pin-dir", &pins]);
            assert!(!refused.status.success(), "{context}: uninstall from another namespace");
            assert_eq!(ask(&cluster), Outcome::Timeout, "{context}: after it was refused");

            cluster.agents.iter().for_each(Agent::uninstall);
            assert_eq!(programs(&node), foreign, "{context}: what is left");
            assert!(!cluster.agents[0].pin_dir().exists(), "{context}: {pins} is left");
            assert!(ask(&cluster).is_answer_of("x/b"), "{context}: after uninstall");
            cluster.agents.iter().for_each(Agent::uninstall);

            // And the agent may come back.
            cluster.agents[0].start();
            assert_eq!(ask(&cluster), Outcome::Timeout, "{context}: installed again");
            drop(node);
            assert_eq!(leftovers_after(cluster.into_bed()), Vec::<String>::new(), "{context}");
        }
    }
}
