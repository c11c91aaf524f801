//! Ways around a policy that lead through the node: its ports, its translation, its masquerade, a pod's own addresses.
//! Each is open without an agent.

use std::net::IpAddr;
use std::time::Duration;

use portcullis_testbed::{ExternalTrafficPolicy, Host, Outcome, Pod, Probe, Protocol, Service, Shape, probe_all};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::frames::{self, Addresses, Hop};
use crate::manifests::policy;

const PODS: [(&str, usize); 6] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("x/d", 0), ("y/a", 1), ("y/b", 1)];
const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];

/// A question, and whether it is answered where the agents enforce. Without agents all are.
struct Row {
    what: String,
    probe: Probe,
    answered: bool,
}

fn row(what: &str, from: &Host, to: IpAddr, (protocol, port): (Protocol, u16), answered: bool) -> Row {
    let what = format!("{what}: {} to {to} {protocol} {port}", from.name());
    Row { what, probe: Probe::new(from, to, protocol, port).timeout(Duration::from_millis(400)), answered }
}

/// Asks all, those that were not answered once more with more patience, and fails with every row that is wrong.
fn judge(context: &str, rows: &[Row], agents: bool) {
    let outcomes = probe_all(&rows.iter().map(|row| row.probe.clone()).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        let expected = row.answered || !agents;
        let again = || row.probe.clone().timeout(Duration::from_secs(5)).run();
        let outcome = if expected && outcome == Outcome::Timeout { again() } else { outcome };
        let right = if expected { matches!(outcome, Outcome::Answered(_)) } else { outcome == Outcome::Timeout };
        if !right {
            wrong.push(format!(
                "{}: expected {}, got {outcome:?}",
                row.what,
                if expected { "an answer" } else { "none" }
            ));
        }
    }
    assert!(wrong.is_empty(), "{context}, agents {agents}:\n{}", wrong.join("\n"));
}

fn pod_peer(namespace: &str, pod: &str) -> Value {
    json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": {"pod": pod}},
    })
}

/// x/a is isolated in both directions, and may reach these only.
fn client_may_reach(peers: &[Value]) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"], "egress": [{"to": peers}],
    });
    policy("x", "client", &spec)
}

/// x/b admits these only.
fn server_admits(peers: &[Value]) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}],
    });
    policy("x", "server", &spec)
}

/// In both shapes, without and with agents, and with agents that know nothing of Services but their addresses' range.
fn everywhere(test: impl Fn(&LiveCluster, Shape, bool)) {
    for shape in SHAPES {
        for (agents, known_services) in [(false, true), (true, true), (true, false)] {
            let cluster = LiveCluster::new(&Plan { agents, known_services, ..Plan::new(shape, &PODS) });
            test(&cluster, shape, agents);
        }
    }
}

#[test]
fn a_node_port_is_no_detour_to_a_denied_pod() {
    everywhere(node_ports);
}

pub(crate) fn node_ports(cluster: &LiveCluster, shape: Shape, agents: bool) {
    let client = cluster.pod("x/a");
    let node = cluster.bed.node(0);
    node.serve(Protocol::Tcp, 9000).unwrap();
    let mut rows = Vec::new();
    let mut node_addresses = node.addresses();
    if shape == Shape::Bridged {
        node_addresses.extend(["10.244.0.1".parse::<IpAddr>().unwrap(), "fd00:10:244::1".parse().unwrap()]);
    }
    let backends = [("x/b", true), ("x/c", false), ("y/a", true), ("y/b", false)];
    let mut services = Vec::new();
    for (port, (backend, allowed)) in (30_001..).zip(backends) {
        let service = Service::new(&format!("x/node-port-{port}")).vip([10, 0, 1, 1]).port(Protocol::Tcp, port);
        services.push((service.node_port(port), 80, vec![cluster.pod(backend)]));
        for &to in &node_addresses {
            let what = format!("the node's port of {backend}");
            rows.push(row(&what, client, to, (Protocol::Tcp, port), allowed));
        }
        for to in cluster.bed.node(1).addresses() {
            let what = format!("another node's port of {backend}");
            rows.push(row(&what, client, to, (Protocol::Tcp, port), false));
        }
    }
    cluster.expose_all(services);
    for &to in &node_addresses {
        rows.push(row("the node itself", client, to, (Protocol::Tcp, 9000), true));
    }
    cluster.enforce(&[client_may_reach(&[pod_peer("x", "b"), pod_peer("y", "a")])]);
    judge(&format!("{shape:?}"), &rows, agents);
}

#[test]
fn a_denied_backend_that_answers_is_not_heard() {
    everywhere(denied_backends);
}

pub(crate) fn denied_backends(cluster: &LiveCluster, shape: Shape, agents: bool) {
    let (client, allowed) = (cluster.pod("x/a"), cluster.pod("x/b"));
    cluster.enforce(&[client_may_reach(&[pod_peer("x", "b")])]);
    for (at, denied) in (0..).zip([cluster.pod("x/c"), cluster.pod("y/b")]) {
        let context = format!("{shape:?}, {} denied, agents {agents}", denied.name());
        let name = format!("x/mixed-{at}");
        let vip = IpAddr::from([10, 0, 2, 10 + at]);
        let service = Service::new(&name).vip(vip).port(Protocol::Udp, 8080).in_turn();
        cluster.expose(service, 80, &[denied, allowed]);
        cluster.enforce(&[client_may_reach(&[pod_peer("x", "b")])]);

        // The first flow goes to the first backend: the kernel's connection table has its way back open now.
        let source_port = 5000 + u16::from(at);
        let question = Probe::new(client, vip, Protocol::Udp, 8080).source_port(source_port);
        let expected = if agents { Outcome::Timeout } else { Outcome::Answered(denied.name().to_owned()) };
        assert_eq!(question.run(), expected, "{context}");
        let heard = answer_is_heard(cluster, shape, denied, client, source_port, b"an answer nobody asked for");
        assert_eq!(heard, !agents, "{context}: whether the denied backend's answer arrives");

        let second = question.clone().source_port(source_port + 100).run();
        assert!(second.is_answer_of(allowed.name()), "{context}: the allowed backend: {second:?}");
        let heard = answer_is_heard(cluster, shape, allowed, client, source_port + 100, b"one more answer");
        assert!(heard, "{context}: the allowed backend's second answer");
    }
}

/// Whether a datagram that a backend sends by itself, as an answer to a flow through a Service, comes to the client.
fn answer_is_heard(
    cluster: &LiveCluster,
    shape: Shape,
    backend: &Pod,
    client: &Pod,
    port: u16,
    payload: &[u8],
) -> bool {
    let capture = client.capture("eth0").unwrap();
    let node = backend.node();
    let to = match shape {
        Shape::Routed => [0xaa; 6],
        Shape::Bridged if node.index() == client.node().index() => client.mac("eth0").unwrap(),
        Shape::Bridged => cluster.bed.node(node.index()).mac(portcullis_testbed::BRIDGE).unwrap(),
    };
    let hop = Hop { from: backend.mac("eth0").unwrap(), to };
    let addresses = Addresses(backend.v4().unwrap().into(), client.v4().unwrap().into());
    backend.inject("eth0", &frames::udp(hop, addresses, (80, port), payload)).unwrap();
    let wanted = |bytes: &[u8]| bytes.windows(payload.len()).any(|window| window == payload);
    capture.next_matching(Duration::from_millis(400), |frame| wanted(&frame.bytes)).unwrap().is_some()
}

#[test]
fn a_masqueraded_client_is_judged_as_the_node_address_it_carries() {
    everywhere(|cluster, shape, agents| {
        let (outside, server) = (cluster.bed.outside(), cluster.pod("x/b"));
        let (node, other) = (cluster.bed.node(0), cluster.bed.node(1));
        let node_port = |name: &str, port: u16, policy: ExternalTrafficPolicy| {
            let service = Service::new(name).vip([10, 0, 3, 1]).port(Protocol::Tcp, port).node_port(port);
            cluster.expose(service.external_traffic_policy(policy), 80, &[server]);
        };
        node_port("x/cluster", 30_001, ExternalTrafficPolicy::Cluster);
        node_port("x/local", 30_002, ExternalTrafficPolicy::Local);
        let block = |address: IpAddr| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
        };
        let blocks = |host: &Host| host.addresses().into_iter().map(block).collect::<Vec<Value>>();
        // A connection from the node leaves by the bridge with the bridge's address.
        let mut node_blocks = blocks(node);
        node_blocks.extend(["10.244.0.1", "fd00:10:244::1"].map(|address| block(address.parse().unwrap())));

        for (admitted, peers, [masqueraded, kept]) in [
            ("nobody", vec![pod_peer("x", "c")], [false, false]),
            ("the node's address", node_blocks, [true, false]),
            ("the client's address", blocks(outside), [false, true]),
        ] {
            cluster.enforce(&[server_admits(&peers)]);
            let mut rows = Vec::new();
            for v4 in [true, false] {
                let of = |host: &Host| {
                    if v4 { IpAddr::from(host.v4().unwrap()) } else { IpAddr::from(host.v6().unwrap()) }
                };
                let tcp = |port: u16| (Protocol::Tcp, port);
                rows.push(row("masqueraded", outside, of(node), tcp(30_001), masqueraded));
                rows.push(row("masqueraded by another node", outside, of(other), tcp(30_001), false));
                rows.push(row("not masqueraded", outside, of(node), tcp(30_002), kept));
                rows.push(row("directly", outside, of(server), tcp(80), kept));
                rows.push(row("a masqueraded pod of the node", cluster.pod("x/d"), of(node), tcp(30_001), false));
                rows.push(row("the node itself", node, of(server), tcp(80), true));
                rows.push(row("another node", other, of(server), tcp(80), false));
            }
            judge(&format!("{shape:?}, {admitted} admitted"), &rows, agents);
        }
    });
}

#[test]
fn a_pod_cannot_change_what_it_is_by_its_addresses() {
    everywhere(|cluster, shape, agents| {
        let pod = |name: &str| cluster.pod(name);
        let (a, b, c, d) = (pod("x/a"), pod("x/b"), pod("x/c"), pod("x/d"));
        cluster.enforce(&[client_may_reach(&[pod_peer("x", "b")]), server_admits(&[pod_peer("x", "c")])]);
        let tcp = (Protocol::Tcp, 80);
        // What the cluster knows them by, whatever they do.
        let (own_a, own_b, own_d, far) = (a.addresses(), b.addresses(), d.addresses(), pod("y/b").addresses());
        let all = |when: &str| {
            let mut rows = Vec::new();
            for &to in &own_b {
                rows.push(row("admitted", c, to, tcp, true));
                rows.push(row("denied at the server", d, to, tcp, false));
                rows.push(row("denied at the server", a, to, tcp, false));
            }
            rows.extend(far.iter().map(|&to| row("denied at the client", a, to, tcp, false)));
            judge(&format!("{shape:?}, {when}"), &rows, agents);
        };
        all("at first");
        if !agents {
            return;
        }
        // The server takes an address of nobody, the client one of a pod that may do everything.
        b.add_address([10, 244, 0, 99].into()).unwrap();
        own_d.iter().for_each(|address| a.add_address(*address).unwrap());
        all("with further addresses");
        for &own in &own_b {
            b.del_address(own).unwrap();
            b.add_address(own).unwrap();
        }
        restore_routes(shape, b);
        all("after its own went and came again");
        // The client gives its own away and keeps only the other pod's.
        own_a.iter().for_each(|address| a.del_address(*address).unwrap());
        restore_routes(shape, a);
        let rows: Vec<Row> =
            far.iter().map(|&to| row("denied at the client, in another's name alone", a, to, tcp, false)).collect();
        judge(&format!("{shape:?}"), &rows, agents);
        let status = cluster.agents[0].status();
        let endpoints = status["endpoints"].as_array().unwrap();
        for (pod, name) in [(a, "x/a"), (b, "x/b")] {
            let found = endpoints.iter().find(|endpoint| endpoint["veth"] == pod.veth()).unwrap();
            assert_eq!(found["pod"], name, "{shape:?}: {found}");
        }
    });
}

/// The kernel takes a pod's default route away with the last address that it can be used from.
fn restore_routes(shape: Shape, pod: &Pod) {
    let (v4, v6) = match shape {
        Shape::Routed => (portcullis_testbed::ROUTED_GATEWAY_V4, portcullis_testbed::ROUTED_GATEWAY_V6),
        Shape::Bridged => ("10.244.0.1", "fd00:10:244::1"),
    };
    // Bridged, the whole range is on the link; routed, only the gateway is.
    let (v4_link, v6_link) = match shape {
        Shape::Routed => (v4, v6),
        Shape::Bridged => ("10.244.0.0/24", "fd00:10:244::/64"),
    };
    for (link, gateway) in [(v4_link, v4), (v6_link, v6)] {
        let commands =
            [format!("route replace {link} dev eth0"), format!("route replace default via {gateway} dev eth0")];
        pod.namespace().ip(commands).unwrap();
    }
}
