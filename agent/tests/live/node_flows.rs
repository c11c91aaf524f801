//! Flows that processes of nodes open to pods (probes, `exec`, `logs`), and flows of pods that the node masquerades.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_testbed::{Host, Masquerade, Probe, Protocol, Service, Shape};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::lasting::{Flow, Opening, Speaks, all_pass, dropped, none_pass, settled};
use crate::manifests::policy;

/// x/a and x/b on the first node, y/b on the other.
const PODS: [(&str, usize); 3] = [("x/a", 0), ("x/b", 0), ("y/b", 1)];
const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];
const TARGET: u16 = 7000;
const FRONT: u16 = 8080;
const HTTP: u16 = 8000;

fn cluster(shape: Shape, agents: bool) -> LiveCluster {
    let ports = vec![(Protocol::Tcp, 80)];
    LiveCluster::new(&Plan { agents, ports, ..Plan::new(shape, &PODS) })
}

/// Pods of this name isolated both ways, with these rules.
fn isolated(namespace: &str, pod: &str, ingress: &Value, egress: &Value) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": pod}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress, "egress": egress,
    });
    policy(namespace, &format!("{pod}-isolated"), &spec)
}

fn blocks(addresses: &[IpAddr]) -> Vec<Value> {
    let block = |address: &IpAddr| json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}});
    addresses.iter().map(block).collect()
}

/// A server of a pod that answers HTTP as a probe wants it, until dropped.
struct HttpServer(Arc<AtomicBool>);

impl HttpServer {
    fn start(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let listener = host.namespace().run(|| Ok(TcpListener::bind(("::", HTTP))?)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let serve = move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((mut connection, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                connection.set_nonblocking(false)?;
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && connection.read(&mut byte)? > 0 {
                    request.extend(byte);
                }
                connection.write_all(b"HTTP/1.0 200 OK\r\n\r\nready")?;
            }
            Ok(())
        };
        host.namespace().thread("http", serve).unwrap();
        Self(stop)
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// TCP of which both sides or only the server speaks, as `logs --follow` does it, and UDP.
const WAYS: [(Protocol, Speaks); 4] = [
    (Protocol::Tcp, Speaks::Both),
    (Protocol::Tcp, Speaks::Server),
    (Protocol::Udp, Speaks::Opener),
    (Protocol::Udp, Speaks::Server),
];

/// A Service for TCP and one for UDP.
fn expose(cluster: &LiveCluster, name: &str, last: u8, backend: &str, change: impl Fn(Service) -> Service) {
    for (protocol, more) in [(Protocol::Tcp, 0), (Protocol::Udp, 1)] {
        let service = Service::new(&format!("x/{name}-{protocol}")).port(protocol, FRONT);
        let service = service.vip(vip(last + more, true)).vip(vip(last + more, false));
        cluster.expose(change(service), TARGET, &[cluster.pod(backend)]);
    }
}

fn vip(last: u8, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 0, 4, last).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 4, last.into()).into()
    }
}

/// On all [`WAYS`] to an address of each family, of this port for each protocol.
fn open(from: &Host, server: &Host, to: impl Fn(Protocol, bool) -> SocketAddr) -> Vec<Flow> {
    let mut flows = Vec::new();
    for v4 in [true, false] {
        for (protocol, speaks) in WAYS {
            let opening = Opening { from, source_port: None, to: to(protocol, v4), servers: &[server], target: TARGET };
            flows.push(opening.open(protocol, speaks));
        }
    }
    flows
}

fn direct(host: &Host) -> impl Fn(Protocol, bool) -> SocketAddr {
    let addresses = host.addresses();
    move |_, v4| SocketAddr::new(*addresses.iter().find(|address| address.is_ipv4() == v4).unwrap(), TARGET)
}

fn through(last: u8) -> impl Fn(Protocol, bool) -> SocketAddr {
    move |protocol, v4| SocketAddr::new(vip(if protocol == Protocol::Tcp { last } else { last + 1 }, v4), FRONT)
}

#[test]
fn flows_of_the_pods_own_node_survive_whatever_policy_says_and_those_of_other_nodes_do_not() {
    for shape in SHAPES {
        let mut cluster = cluster(shape, false);
        expose(&cluster, "near", 10, "x/a", |service| service);
        let (pod, node, other) = (cluster.pod("x/a").clone(), cluster.bed.node(0).clone(), cluster.bed.node(1).clone());
        let _http = HttpServer::start(&pod);
        let mut own = open(&node, &pod, direct(&pod));
        own.extend(open(&node, &pod, through(10)));
        // What the pod opens to a process of its node.
        own.extend(open(&pod, &node, direct(&node)));
        let mut others = open(&other, &pod, direct(&pod));
        let all = |context: &str, own: &mut [Flow]| {
            all_pass(context, own);
            for to in pod.addresses() {
                let probe = Probe::new(&node, to, Protocol::Tcp, 80).timeout(crate::agent::PATIENCE).run();
                assert!(probe.is_answer_of("x/a"), "{context}: a TCP probe of {to}: {probe:?}");
                let (status, body) = node.http_get(SocketAddr::new(to, HTTP), "/healthz").unwrap();
                assert_eq!((status, body.as_str()), (200, "ready"), "{context}: an HTTP probe of {to}");
            }
        };
        let nothing = json!([]);
        let admitted = json!([{"from": blocks(&other.addresses())}]);
        let admits_other = [isolated("x", "a", &admitted, &nothing)];
        let admits_nobody = [isolated("x", "a", &nothing, &nothing)];
        let reaches_b =
            [isolated("x", "a", &nothing, &json!([{"to": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}]))];
        all(&format!("{shape:?}, before the agent"), &mut own);
        all_pass("before the agent", &mut others);
        // Older than the agent, and selected by a policy at once.
        cluster.start_agents(&[], &admits_other);
        for (what, policies) in [("isolated", &admits_other[..]), ("free", &[]), ("isolated again", &admits_other)] {
            let context = format!("{shape:?}, {what}");
            cluster.enforce(policies);
            all(&context, &mut own);
            all_pass(&context, &mut others);
        }
        settled("others", &others);
        let before = dropped(&cluster);
        for (what, policies) in [("nobody is admitted", &admits_nobody), ("it may reach a pod", &reaches_b)] {
            let context = format!("{shape:?}, {what}");
            cluster.enforce(policies);
            all(&context, &mut own);
            assert_eq!(dropped(&cluster), before, "{context}: nothing is lost");
        }
        none_pass(&format!("{shape:?}, another node's process"), &cluster, &mut others);
        all(&format!("{shape:?}, at last"), &mut own);
    }
}

/// What comes back to a masqueraded pod cannot tell whose it is: the stamp has told when the flow was opened, and the entry
/// keeps it.
#[test]
fn flows_that_the_node_masquerades_are_judged_again_at_a_reply() {
    for shape in SHAPES {
        let cluster = cluster(shape, true);
        let (a, b, far) = (cluster.pod("x/a").clone(), cluster.pod("x/b").clone(), cluster.pod("y/b").clone());
        let everywhere = |service: Service| Service { masquerade: Masquerade::All, ..service };
        expose(&cluster, "near", 10, "x/b", everywhere);
        expose(&cluster, "far", 20, "y/b", everywhere);
        expose(&cluster, "itself", 30, "x/a", |service| service);
        for (protocol, port) in [(Protocol::Tcp, 30_001), (Protocol::Udp, 30_002)] {
            let service = Service::new(&format!("x/port-{protocol}")).port(protocol, port).node_port(port);
            cluster.expose(service.vip([10, 0, 4, if protocol == Protocol::Tcp { 40 } else { 41 }]), TARGET, &[&b]);
        }
        let nodes = cluster.bed.node(0).addresses();
        let by_port = |protocol, v4: bool| {
            let address = nodes.iter().find(|address| address.is_ipv4() == v4).unwrap();
            SocketAddr::new(*address, if protocol == Protocol::Tcp { 30_001 } else { 30_002 })
        };
        // The bridge's address is what connections to pods of the same bridge are masqueraded as.
        let mut as_whom = nodes.clone();
        as_whom.extend(["10.244.0.1", "fd00:10:244::1"].map(|address| address.parse::<IpAddr>().unwrap()));
        let pods = |pods: &[&str]| {
            json!([{"to": [{
                "namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": pods}]},
            }]}])
        };
        let nobody = json!([]);
        let client = |reaches: &Value| isolated("x", "a", &nobody, reaches);
        let near = |admits: &Value| isolated("x", "b", admits, &nobody);
        let far_one = |admits: &Value| isolated("y", "b", admits, &nobody);
        let from_a = json!([{"from": [{"podSelector": {"matchLabels": {"pod": "a"}}}]}]);
        let from_node = json!([{"from": blocks(&as_whom)}]);
        let to_b = pods(&["b"]);
        let all_allowed = [client(&to_b), near(&from_a), far_one(&from_node)];
        let ends: [(&str, [Value; 3], &[&str]); 4] = [
            ("the near server admits nobody", [client(&to_b), near(&nobody), far_one(&from_node)], &["x/b"]),
            // By its stamp the client is known, so the node's address does not admit it.
            ("the near server admits its node", [client(&to_b), near(&from_node), far_one(&from_node)], &["x/b"]),
            ("the far server admits pods only", [client(&to_b), near(&from_a), far_one(&pods_from())], &["y/b"]),
            ("the client may reach nobody", [client(&nobody), near(&from_a), far_one(&from_node)], &["x/b", "y/b"]),
        ];
        for (what, policies, servers) in ends {
            let context = format!("{shape:?}, {what}");
            cluster.enforce(&all_allowed);
            let mut flows = open(&a, &b, through(10));
            flows.extend(open(&a, &far, through(20)));
            flows.extend(open(&a, &b, by_port));
            flows.extend(open(&a, &a, through(30)));
            all_pass(&context, &mut flows);
            settled(&context, &flows);
            let before = dropped(&cluster);
            let (mut denied, mut allowed): (Vec<Flow>, Vec<Flow>) =
                flows.into_iter().partition(|flow| servers.contains(&flow.server.as_str()));
            cluster.enforce(&policies);
            // Only replies, at first.
            allowed
                .iter_mut()
                .filter(|flow| flow.protocol == Protocol::Tcp)
                .for_each(|flow| flow.speaks(Speaks::Server));
            all_pass(&context, &mut allowed);
            settled(&context, &allowed);
            assert_eq!(dropped(&cluster), before, "{context}: nothing of what is allowed is dropped");
            none_pass(&context, &cluster, &mut denied);
            allowed.iter_mut().filter(|flow| flow.protocol == Protocol::Tcp).for_each(|flow| flow.speaks(Speaks::Both));
            all_pass(&context, &mut allowed);
        }
    }
}

/// Who has these labels, which a masqueraded client's address has not.
fn pods_from() -> Value {
    json!([{"from": [{"namespaceSelector": {}, "podSelector": {}}]}])
}
