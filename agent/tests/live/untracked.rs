//! Nodes whose kernels track no connections, since no rule asks for it: nothing but the programs knows of flows.

use std::net::SocketAddr;

use portcullis_testbed::{Host, Protocol, Shape};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan};
use crate::lasting::{Flow, Opening, Speaks, all_pass, dropped, none_pass, settled};
use crate::manifests::policy;

const PODS: [(&str, usize); 3] = [("x/a", 0), ("y/b", 0), ("z/b", 1)];
const TARGET: u16 = 7000;

/// The client may reach, and be admitted by, the servers of these namespaces; all are isolated both ways.
fn policies(namespaces: &[&str]) -> Vec<Value> {
    let both = json!(["Ingress", "Egress"]);
    let peer = |namespace: &&str, pod: &str| {
        json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "podSelector": {"matchLabels": {"pod": pod}},
        })
    };
    let to: Vec<Value> = namespaces.iter().map(|namespace| json!({"to": [peer(namespace, "b")]})).collect();
    let client = json!({"podSelector": {}, "policyTypes": both, "egress": to});
    let server = json!({"podSelector": {}, "policyTypes": both, "ingress": [{"from": [peer(&"x", "a")]}]});
    vec![policy("x", "client", &client), policy("y", "server", &server), policy("z", "server", &server)]
}

fn flows(cluster: &LiveCluster, speakers: &[(Protocol, Speaks)]) -> Vec<Flow> {
    let mut flows = Vec::new();
    for name in ["y/b", "z/b"] {
        let server: &Host = cluster.pod(name);
        for address in server.addresses() {
            for &(protocol, speaks) in speakers {
                let to = SocketAddr::new(address, TARGET);
                let opening =
                    Opening { from: cluster.pod("x/a"), source_port: None, to, servers: &[server], target: TARGET };
                flows.push(opening.open(protocol, speaks));
            }
        }
    }
    flows
}

/// Connections that the kernels of the nodes know of.
fn tracked(cluster: &LiveCluster) -> u32 {
    let of = |node: &Host| {
        let read = || Ok(std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?);
        node.namespace().run(read).map_or(0, |text| text.trim().parse::<u32>().unwrap())
    };
    cluster.bed.nodes().iter().map(|node| of(node)).sum()
}

const ALL: [(Protocol, Speaks); 3] =
    [(Protocol::Tcp, Speaks::Both), (Protocol::Udp, Speaks::Opener), (Protocol::Udp, Speaks::Server)];
/// Those that show who has opened them without anybody's word.
const TELLING: [(Protocol, Speaks); 2] = [(Protocol::Tcp, Speaks::Both), (Protocol::Udp, Speaks::Opener)];

#[test]
fn flows_live_and_end_with_policy_on_nodes_that_track_no_connections() {
    let mut cluster = LiveCluster::new(&Plan { agents: false, ports: Vec::new(), ..Plan::new(Shape::Routed, &PODS) });
    let mut older = flows(&cluster, &TELLING);
    all_pass("before the agents", &mut older);
    cluster.start_agents(&[], &policies(&["y", "z"]));
    all_pass("older than the agents", &mut older);
    let mut open = flows(&cluster, &ALL);
    all_pass("under policy", &mut open);
    let before = dropped(&cluster);
    for (what, wanted) in [("free", Vec::new()), ("isolated", policies(&["z", "y"]))] {
        cluster.enforce(&wanted);
        all_pass(what, &mut older);
        all_pass(what, &mut open);
    }
    for end in [Agent::terminate as fn(&mut Agent), Agent::kill] {
        cluster.agents.iter_mut().for_each(end);
        all_pass("no agent", &mut open);
        cluster.agents.iter_mut().for_each(Agent::start);
        all_pass("another agent", &mut open);
        all_pass("another agent", &mut older);
    }
    open.append(&mut older);
    settled("before the end", &open);
    assert_eq!(dropped(&cluster), before, "nothing was lost: {:?}", cluster.agents[0].drops());
    // New tables, whose flows nobody can tell them of.
    for agent in &mut cluster.agents {
        agent.terminate();
        agent.uninstall();
        agent.start();
    }
    let (mut telling, silent): (Vec<Flow>, Vec<Flow>) =
        open.into_iter().partition(|flow| !flow.name.ends_with("Server"));
    drop(silent);
    all_pass("new tables", &mut telling);
    cluster.enforce(&policies(&["y"]));
    let (mut allowed, mut denied): (Vec<Flow>, Vec<Flow>) = telling.into_iter().partition(|flow| flow.server == "y/b");
    none_pass("z/b is denied", &cluster, &mut denied);
    all_pass("y/b is allowed", &mut allowed);
    assert_eq!(tracked(&cluster), 0, "connections that some kernel has tracked");
}
