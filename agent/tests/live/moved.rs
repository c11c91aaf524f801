//! Addresses that move from one pod to another while flows of the first are open, and what the kernel's connection table
//! still knows of them.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use portcullis_testbed::{Host, Pod, PodOptions, Protocol, Shape};
use serde_json::{Value, json};

use crate::attacks::next_hop;
use crate::cluster::{LiveCluster, Plan};
use crate::frames::{self, Addresses, Hop};
use crate::hooks::await_that;
use crate::lasting::{Flow, Opening, Speaks, all_pass, dropped, none_pass, settled};
use crate::manifests::{self, Labels, policy};

/// x/client talks to servers on both nodes, and servers on its node are talked to by clients on both.
const PODS: [(&str, usize); 3] = [("x/client", 0), ("x/server", 0), ("x/other", 1)];
const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];
const TARGET: u16 = 7000;
const MARK: &[u8] = b"in the middle of somebody's connection";

fn cluster(shape: Shape) -> LiveCluster {
    // Its Services are why nodes track connections.
    LiveCluster::new(&Plan { ports: vec![(Protocol::Tcp, 80)], ..Plan::new(shape, &PODS) })
}

/// The pods that there are; those with a role in their name's place have it as a label.
fn write_pods(cluster: &LiveCluster) {
    let role = |pod: &Pod| {
        let name = pod.name().split_once('/').unwrap().1;
        let role = name.split_once('-').map_or(name, |(role, _)| role);
        Labels::from([("role".to_owned(), role.to_owned())])
    };
    let objects: Vec<Value> = cluster.bed.pods().iter().map(|pod| manifests::pod(pod, &[], Some(&role(pod)))).collect();
    cluster.manifests.write("pods", &objects);
}

/// Makes the pods that there are known, with these policies, and waits until they are in force on every pod.
fn enforce(cluster: &LiveCluster, policies: &[Value]) {
    write_pods(cluster);
    cluster.enforce(policies);
    for pod in cluster.bed.pods() {
        let agent = &cluster.agents[pod.node().index()];
        await_that(&format!("{}'s enforcement", pod.name()), || {
            let status = agent.status();
            let endpoints = status["endpoints"].as_array().unwrap();
            endpoints.iter().any(|endpoint| endpoint["pod"] == pod.name() && endpoint["state"] == "enforced")
        });
    }
}

/// Takes a pod away, and gives its addresses to a new one.
fn replace(cluster: &LiveCluster, pod: &Pod, name: &str) -> Pod {
    cluster.bed.remove_pod(pod).unwrap();
    let options = PodOptions::default().at_v4(pod.v4().unwrap()).at_v6(pod.v6().unwrap());
    cluster.bed.add_pod(pod.node().index(), name, options).unwrap()
}

fn with_role(role: &str) -> Value {
    json!([{"podSelector": {"matchLabels": {"role": role}}}])
}

/// Clients may reach servers, and servers admit clients; both are isolated both ways. Nothing restricts anybody else.
fn policies() -> Vec<Value> {
    let both = json!(["Ingress", "Egress"]);
    let subject = |role: &str| json!({"matchLabels": {"role": role}});
    vec![
        policy(
            "x",
            "clients",
            &json!({"podSelector": subject("client"), "policyTypes": both, "egress": [{"to": with_role("server")}]}),
        ),
        policy(
            "x",
            "servers",
            &json!({"podSelector": subject("server"), "policyTypes": both, "ingress": [{"from": with_role("client")}]}),
        ),
    ]
}

fn open(from: &Host, server: &Host, ways: &[(Protocol, Speaks)]) -> Vec<Flow> {
    let mut flows = Vec::new();
    for address in server.addresses() {
        for &(protocol, speaks) in ways {
            let to = SocketAddr::new(address, TARGET);
            let opening = Opening { from, source_port: None, to, servers: &[server], target: TARGET };
            flows.push(opening.open(protocol, speaks));
        }
    }
    flows
}

/// Who takes what comes to these ports.
fn listen(host: &Host, ports: &[u16]) -> Vec<UdpSocket> {
    let bind = |port: &u16| {
        let socket = host.namespace().run(|| Ok(UdpSocket::bind(("::", *port))?)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    ports.iter().map(bind).collect()
}

fn heard(sockets: &[UdpSocket]) -> usize {
    sockets.iter().filter(|socket| socket.recv(&mut [0; 64]).is_ok()).count()
}

#[test]
fn an_address_that_moved_to_a_pod_that_may_not_be_reached_ends_flows_to_it() {
    for shape in SHAPES {
        let cluster = cluster(shape);
        write_pods(&cluster);
        let client = cluster.pod("x/client");
        for (node, where_) in [(0, "near"), (1, "far")] {
            let context = format!("{shape:?}, {where_}");
            let server = cluster.bed.add_pod(node, &format!("x/server-{where_}"), PodOptions::default()).unwrap();
            enforce(&cluster, &policies());
            let mut flows = open(client, &server, &[(Protocol::Tcp, Speaks::Opener), (Protocol::Udp, Speaks::Opener)]);
            all_pass(&context, &mut flows);
            let stranger = replace(&cluster, &server, &format!("x/stranger-{where_}"));
            let sockets = listen(&stranger, &[TARGET]);
            enforce(&cluster, &policies());
            // If anything came to the stranger its kernel would refuse the connection.
            none_pass(&context, &cluster, &mut flows);
            assert_eq!(heard(&sockets), 0, "{context}: datagrams that the stranger has got");
            // And it may be reached again by who may reach it.
            let again = replace(&cluster, &stranger, &format!("x/server-again-{where_}"));
            let sockets = listen(&again, &[TARGET]);
            enforce(&cluster, &policies());
            for address in again.addresses() {
                let to = SocketAddr::new(address, TARGET);
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                // On a bridge the client has to learn the new pod's MAC address first.
                await_that(&format!("{context}: what is allowed to {address}"), || {
                    client.namespace().run(|| Ok(UdpSocket::bind(any)?.send_to(b"hello", to)?)).unwrap();
                    heard(&sockets) > 0
                });
            }
            cluster.bed.remove_pod(&again).unwrap();
        }
    }
}

#[test]
fn an_address_that_moved_to_a_pod_that_is_not_admitted_ends_flows_from_it() {
    for shape in SHAPES {
        let cluster = cluster(shape);
        write_pods(&cluster);
        let server = cluster.pod("x/server");
        for (node, where_) in [(0, "near"), (1, "far")] {
            let context = format!("{shape:?}, {where_}");
            let client = cluster.bed.add_pod(node, &format!("x/client-{where_}"), PodOptions::default()).unwrap();
            enforce(&cluster, &policies());
            let mut flows = open(
                &client,
                server,
                &[(Protocol::Tcp, Speaks::Both), (Protocol::Udp, Speaks::Opener), (Protocol::Udp, Speaks::Server)],
            );
            all_pass(&context, &mut flows);
            let ports: Vec<(u16, bool)> = flows
                .iter()
                .filter(|flow| flow.protocol == Protocol::Udp)
                .map(|flow| (flow.source_port(), flow.name.contains("at [")))
                .collect();
            let stranger = replace(&cluster, &client, &format!("x/stranger-{where_}"));
            enforce(&cluster, &policies());
            // What the server goes on sending does not come to the stranger.
            let sockets = listen(&stranger, &ports.iter().map(|(port, _)| *port).collect::<Vec<_>>());
            flows.iter_mut().for_each(|flow| flow.speaks(Speaks::Server));
            none_pass(&context, &cluster, &mut flows);
            assert_eq!(heard(&sockets), 0, "{context}: datagrams that the stranger has got");
            drop(sockets);
            // And what the stranger sends in the flow's place does not come to the server.
            let before = dropped(&cluster);
            for (port, v6) in &ports {
                let address = server.addresses().into_iter().find(|address| address.is_ipv6() == *v6).unwrap();
                let any: IpAddr = if *v6 { [0_u16; 8].into() } else { [0; 4].into() };
                let send = || Ok(UdpSocket::bind((any, *port))?.send_to(&[0; 8], SocketAddr::new(address, TARGET))?);
                stranger.namespace().run(send).unwrap();
            }
            await_that("the drop of the stranger's datagrams", || dropped(&cluster) >= before + ports.len() as f64);
            flows
                .iter_mut()
                .filter(|flow| flow.protocol == Protocol::Udp)
                .for_each(|flow| flow.hears_nothing(&context));
            drop(flows);
            cluster.bed.remove_pod(&stranger).unwrap();
        }
    }
}

/// The kernel's connection table outlives pods. If what it knows of an address were taken for the new pod's own, a
/// stranger's packets would pass as answers.
#[test]
fn what_a_pod_has_only_by_its_address_lets_nobody_in() {
    for shape in SHAPES {
        let cluster = cluster(shape);
        let context = format!("{shape:?}");
        let other = cluster.pod("x/other");
        let closed = json!({"podSelector": {"matchLabels": {"role": "new"}}, "policyTypes": ["Ingress"]});
        let old = cluster.bed.add_pod(0, "x/old", PodOptions::default()).unwrap();
        enforce(&cluster, &[policy("x", "closed", &closed)]);
        // Connections that the old pod has opened.
        let mut flows = open(&old, other, &[(Protocol::Tcp, Speaks::Both)]);
        all_pass(&context, &mut flows);
        settled(&context, &flows);
        let new = replace(&cluster, &old, "x/new");
        enforce(&cluster, &[policy("x", "closed", &closed)]);
        let reads = || cluster.agents[0].log().matches("read the kernel's connection table").count();
        assert!(reads() > 0, "this test needs RUST_LOG=portcullis=debug");
        let capture = new.capture("eth0").unwrap();
        let hop = Hop {
            from: other.mac("eth0").unwrap(),
            to: match shape {
                Shape::Routed => next_hop(shape, &new),
                Shape::Bridged => cluster.bed.node(1).mac(portcullis_testbed::BRIDGE).unwrap(),
            },
        };
        // The first ones make the agent look into the table; what it has found there would let the next ones in.
        for round in 0..3 {
            let (seen, before) = (reads(), dropped(&cluster));
            for (flow, address) in flows.iter().zip(other.addresses()) {
                let own = new.addresses().into_iter().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap();
                let ports = (TARGET, flow.source_port());
                other.inject("eth0", &frames::tcp_ack(hop, Addresses(address, own), ports, MARK)).unwrap();
            }
            await_that("the drop of the other side's packets", || {
                let is_there = |bytes: &[u8]| bytes.windows(MARK.len()).any(|window| window == MARK);
                let soon = std::time::Duration::from_millis(1);
                let arrived = capture.next_matching(soon, |frame| !frame.outgoing && is_there(&frame.bytes)).unwrap();
                assert_eq!(arrived, None, "{context}, {round}: has come to the new pod");
                dropped(&cluster) >= before + flows.len() as f64
            });
            if round == 0 {
                await_that("the agent's look into the connection table", || reads() > seen);
            }
        }
    }
}
