//! Flows that the programs have not seen begin, or have forgotten: what the kernel's own connection table tells of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use portcullis_testbed::{Pod, Protocol, Service, Shape, Stream};
use serde_json::{Value, json};

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

/// x/a is the client of them all.
const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("y/b", 1), ("z/b", 0)];
const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];
/// Where servers listen that only their side sends anything from.
const TARGET: u16 = 7000;
/// The port of the Service before them.
const FRONT: u16 = 8080;
/// The Service's addresses.
const VIPS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 4, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 4, 1)),
];
/// Longer than any answer of a flow that is let through takes, TCP's first two repetitions included.
const SOON: Duration = Duration::from_secs(3);
/// Long enough for what is let through to arrive.
const MOMENT: Duration = Duration::from_millis(600);

/// A TCP connection on which only the server sends.
struct Push {
    name: String,
    server: TcpStream,
    client: TcpStream,
    sent: u64,
}

impl Push {
    /// Opens one from `from` to an address behind which are these servers.
    fn open(from: &Pod, to: SocketAddr, servers: &[&Pod]) -> Self {
        let listeners: Vec<(&Pod, TcpListener)> = servers
            .iter()
            .map(|server| {
                let address = server.addresses().into_iter().find(|address| address.is_ipv4() == to.is_ipv4()).unwrap();
                let listen = || Ok(TcpListener::bind((address, TARGET))?);
                (*server, server.namespace().run(listen).unwrap())
            })
            .collect();
        let client = from.namespace().run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?)).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (pod, listener) in &listeners {
                listener.set_nonblocking(true).unwrap();
                if let Ok((server, _)) = listener.accept() {
                    server.set_nonblocking(false).unwrap();
                    let name = format!("{} at {to} to {}", pod.name(), from.name());
                    return Self { name, server, client, sent: 0 };
                }
            }
            assert!(Instant::now() < deadline, "nobody has accepted the connection to {to}");
            std::thread::yield_now();
        }
    }

    /// The server sends; whether the client has received it within this time.
    fn arrives(&mut self, within: Duration) -> bool {
        self.sent += 1;
        self.server.write_all(&self.sent.to_be_bytes()).unwrap();
        self.client.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 8];
        match self.client.read_exact(&mut bytes) {
            Ok(()) => {
                assert_eq!(u64::from_be_bytes(bytes), self.sent, "{}: in order", self.name);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }
}

fn all_arrive(context: &str, pushes: &mut [Push]) {
    for push in pushes {
        assert!(push.arrives(SOON), "{context}, {}: what the server sends does not arrive", push.name);
    }
}

/// Nothing arrives that the servers send, after it has had time to.
fn none_arrive(context: &str, pushes: &mut [Push]) {
    for push in pushes {
        assert!(!push.arrives(MOMENT), "{context}, {}: what the server sends arrives", push.name);
    }
}

/// To each server's addresses, and to the Service whose backends are both.
fn pushes(cluster: &LiveCluster) -> Vec<Push> {
    let client = cluster.pod("x/a");
    let servers = [cluster.pod("x/b"), cluster.pod("y/b")];
    let mut pushes = Vec::new();
    for server in servers {
        for address in server.addresses() {
            pushes.push(Push::open(client, SocketAddr::new(address, TARGET), &[server]));
        }
    }
    // In turn, so each backend has one.
    for vip in VIPS {
        for _ in servers {
            pushes.push(Push::open(client, SocketAddr::new(vip, FRONT), &servers));
        }
    }
    pushes
}

fn cluster(shape: Shape, agents: bool, arguments: &[&str]) -> LiveCluster {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let cluster = LiveCluster::new(&Plan { agents, arguments, ..Plan::new(shape, &PODS) });
    let service = VIPS.into_iter().fold(Service::new("x/many"), Service::vip).port(Protocol::Tcp, FRONT).in_turn();
    cluster.expose(service, TARGET, &[cluster.pod("x/b"), cluster.pod("y/b")]);
    cluster
}

/// The client isolated in both directions; it may reach the servers of these namespaces, by a rule for each.
fn client_may_reach(namespaces: &[&str]) -> Value {
    let rule = |namespace: &&str| {
        let labels = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
        json!({"to": [{"namespaceSelector": labels, "podSelector": {"matchLabels": {"pod": "b"}}}]})
    };
    let rules: Vec<Value> = namespaces.iter().map(rule).collect();
    let subject = json!({"matchLabels": {"pod": "a"}});
    policy("x", "client", &json!({"podSelector": subject, "policyTypes": ["Ingress", "Egress"], "egress": rules}))
}

/// The servers isolated in these directions; they admit the client, or nobody.
fn servers(types: &[&str], admit: bool) -> Vec<Value> {
    let from = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}}]);
    let rules: Vec<Value> = admit.then(|| json!({"from": from})).into_iter().collect();
    let spec = json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": types, "ingress": rules});
    ["x", "y"].map(|namespace| policy(namespace, "servers", &spec)).to_vec()
}

fn all_allowed() -> Vec<Value> {
    let mut policies = servers(&["Ingress", "Egress"], true);
    policies.push(client_may_reach(&["x", "y"]));
    policies
}

#[test]
fn a_server_goes_on_sending_on_connections_that_are_older_than_the_agent() {
    for shape in SHAPES {
        let mut cluster = cluster(shape, false, &[]);
        let mut open = pushes(&cluster);
        all_arrive("before the agent", &mut open);
        cluster.start_agents(&[], &all_allowed());
        all_arrive(&format!("{shape:?}, the agent runs"), &mut open);
        // Tables of another layout are none.
        for agent in &mut cluster.agents {
            agent.terminate();
            agent.uninstall();
        }
        all_arrive(&format!("{shape:?}, uninstalled"), &mut open);
        cluster.agents.iter_mut().for_each(Agent::start);
        all_arrive(&format!("{shape:?}, installed again"), &mut open);
    }
}

#[test]
fn a_connection_that_ingress_policy_denies_does_not_go_on_as_the_servers_own() {
    for shape in SHAPES {
        let mut cluster = cluster(shape, false, &[]);
        let mut open = pushes(&cluster);
        all_arrive("before the agent", &mut open);
        // The servers may send to anybody, so a connection that they had opened would be theirs to go on with.
        cluster.start_agents(&[], &servers(&["Ingress"], false));
        none_arrive(&format!("{shape:?}, the servers admit nobody"), &mut open);
    }
}

#[test]
fn an_isolated_client_goes_on_hearing_the_backends_that_it_may_reach() {
    for shape in SHAPES {
        let cluster = cluster(shape, true, &[]);
        cluster.enforce(&[]);
        let mut open = pushes(&cluster);
        all_arrive(&format!("{shape:?}, nobody isolated"), &mut open);
        // One backend by one rule, the other by another: each reply needs the word of an exit that has seen no packet yet.
        cluster.enforce(&[client_may_reach(&["x", "y"])]);
        all_arrive(&format!("{shape:?}, both allowed"), &mut open);
        cluster.enforce(&[client_may_reach(&["x"])]);
        let (mut allowed, mut denied): (Vec<Push>, Vec<Push>) =
            open.into_iter().partition(|push| push.name.starts_with("x/b"));
        none_arrive(&format!("{shape:?}, y denied"), &mut denied);
        all_arrive(&format!("{shape:?}, x allowed"), &mut allowed);
        cluster.enforce(&[client_may_reach(&[])]);
        none_arrive(&format!("{shape:?}, all denied"), &mut allowed);
    }
}

/// Entries live for seconds; the kernel remembers connections as long as ever.
const SHORT: [&str; 4] = ["--flow-lifetime", "tcp-established=3s", "--flow-lifetime", "tcp-syn-received=3s"];

#[test]
fn forgotten_connections_are_taken_up_in_the_direction_in_which_they_were_opened() {
    for shape in SHAPES {
        let mut cluster = cluster(shape, true, &SHORT);
        cluster.enforce(&all_allowed());
        let mut open = pushes(&cluster);
        let context = format!("{shape:?}");
        all_arrive(&context, &mut open);
        // Idle for longer than their lifetimes: nothing can be awaited but time itself.
        let idle = || std::thread::sleep(Duration::from_millis(3500));
        idle();
        all_arrive(&format!("{context}, after a pause"), &mut open);
        cluster.agents.iter_mut().for_each(Agent::terminate);
        idle();
        cluster.agents.iter_mut().for_each(Agent::start);
        all_arrive(&format!("{context}, after a pause without an agent"), &mut open);

        // A connection that has been forgotten and is denied now: the server may send to anybody, so what it sends first
        // passes as its own, but only until the agent has read who opened it.
        idle();
        cluster.enforce(&servers(&["Ingress"], false));
        // Two, since TCP soon waits for longer between its repetitions than entries live here.
        let mut open = [open.pop().unwrap(), open.swap_remove(0)];
        for push in &mut open {
            let deadline = Instant::now() + PATIENCE;
            while push.arrives(MOMENT) {
                assert!(Instant::now() < deadline, "{context}, {}: goes on though it is denied", push.name);
            }
        }
        none_arrive(&format!("{context}, forgotten and denied"), &mut open);
    }
}

#[test]
fn request_and_response_lose_nothing_when_tables_are_made_anew() {
    for shape in SHAPES {
        let mut cluster = cluster(shape, true, &[]);
        cluster.enforce(&all_allowed());
        let client = cluster.pod("x/a").clone();
        let mut streams = Vec::new();
        for server in ["x/b", "y/b"] {
            for address in cluster.pod(server).addresses() {
                let stream = Stream::open(&client, address, 80, PATIENCE).unwrap();
                streams.push((format!("{server} at {address}"), stream.run(Duration::from_millis(4), MOMENT).unwrap()));
            }
        }
        for round in 0..3 {
            for agent in &mut cluster.agents {
                agent.terminate();
                agent.uninstall();
                agent.start();
            }
            for (name, stream) in &streams {
                let context = format!("{shape:?}, round {round}, {name}");
                stream.wait_for_exchanges(5, PATIENCE).unwrap_or_else(|error| panic!("{context}: {error:#}"));
            }
            // A busy machine makes TCP send again what was not lost: only the programs know what was.
            for agent in &cluster.agents {
                let drops = agent.drops();
                let denied: Vec<_> = (agent.metrics().into_iter())
                    .filter(|sample| sample.has(&[("verdict", "deny")]) && sample.value > 0.0)
                    .collect();
                assert!(drops.is_empty(), "{shape:?}, round {round}: dropped {drops:?}: {denied:?}");
            }
        }
    }
}
