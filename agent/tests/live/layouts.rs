//! An agent whose tables have another layout than those of the agent before it: it makes its own, and takes the others away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use portcullis::dataplane::LAYOUT;
use portcullis_testbed::{Node, Outcome, Probe, Protocol, Shape, Stream};
use serde_json::json;

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 3] = [("x/a", 0), ("x/b", 0), ("x/c", 0)];

fn is_denied(cluster: &LiveCluster, patience: u64) -> bool {
    let to = cluster.pod("x/b").v4().unwrap();
    let probe = Probe::new(cluster.pod("x/a"), to, Protocol::Tcp, 80).timeout(Duration::from_millis(patience));
    probe.run() == Outcome::Timeout
}

/// The ids of the TCX programs on each hook of a node.
fn hooks(node: &Node) -> BTreeMap<String, Vec<u32>> {
    let listed = node.namespace().tool("ip", &["-o", "link", "show"]).unwrap();
    let name = |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
    let mut found = BTreeMap::new();
    for device in listed.lines().map(name) {
        for (hook, direction) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
            let (_, programs) = node.namespace().run(|| Ok(SchedClassifier::query_tcx(&device, hook)?)).unwrap();
            let ids: Vec<u32> = programs.iter().map(aya::programs::ProgramInfo::id).collect();
            if !ids.is_empty() {
                found.insert(format!("{device} {direction}"), ids);
            }
        }
    }
    found
}

/// Makes what an agent has left that of another layout.
fn age(pin_dir: &Path) {
    std::fs::rename(pin_dir.join(LAYOUT), pin_dir.join("v1")).unwrap();
}

#[test]
fn what_an_agent_of_another_layout_has_left_goes_once_the_new_ones_programs_are_everywhere() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let context = format!("{shape:?}");
        let mut cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let node = cluster.bed.node(0).clone();
        let from = json!([{"podSelector": {"matchLabels": {"pod": "c"}}}]);
        let subject = json!({"matchLabels": {"pod": "b"}});
        let spec = json!({"podSelector": subject, "policyTypes": ["Ingress"], "ingress": [{"from": from}]});
        cluster.manifests.write("guard", &[policy("x", "guard", &spec)]);
        cluster.enforce(&[]);
        let server = cluster.pod("x/b").v4().unwrap();
        let stream = Stream::open(cluster.pod("x/c"), server, 80, PATIENCE).unwrap();
        let stream = stream.run(Duration::from_millis(4), Duration::from_millis(600)).unwrap();
        stream.wait_for_exchanges(5, PATIENCE).unwrap();

        cluster.agents[0].terminate();
        let before = hooks(&node);
        assert!(before.len() >= 6 && before.values().all(|ids| ids.len() == 1), "{context}: {before:?}");
        let pins = cluster.agents[0].pin_dir().to_owned();
        age(&pins);
        cluster.agents[0].spawn();
        let denied = std::thread::scope(|scope| {
            let agent = &cluster.agents[0];
            let ready = scope.spawn(|| agent.await_ready());
            let mut denied = true;
            while !ready.is_finished() {
                denied &= is_denied(&cluster, 50);
            }
            ready.join().unwrap();
            denied
        });
        assert!(denied, "{context}: while the new agent takes over");
        assert!(!pins.join("v1").exists() && pins.join(LAYOUT).exists(), "{context}");
        let after = hooks(&node);
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{context}");
        for (hook, ids) in &after {
            assert!(ids.len() == 1 && *ids != before[hook], "{context}, {hook}: {ids:?}, before {:?}", before[hook]);
        }
        assert!(is_denied(&cluster, 400), "{context}: by the new programs");
        stream.wait_for_exchanges(5, PATIENCE).unwrap_or_else(|error| panic!("{context}: {error:#}"));

        // Uninstalling takes every layout, and only in the pins' own namespace.
        cluster.agents[0].terminate();
        age(&pins);
        let refused = cluster.agents[1].run_command(&["uninstall", "--pin-dir", pins.to_str().unwrap()]);
        assert!(!refused.status.success(), "{context}: uninstall from another namespace");
        assert!(is_denied(&cluster, 400), "{context}: after it was refused");
        cluster.agents.iter_mut().skip(1).for_each(Agent::terminate);
        cluster.agents.iter().for_each(Agent::uninstall);
        assert!(!pins.exists(), "{context}: pins are left");
        assert_eq!(hooks(&node), BTreeMap::new(), "{context}: what is left");
        assert!(!is_denied(&cluster, 4000), "{context}: uninstalled");
        drop(stream);
    }
}
