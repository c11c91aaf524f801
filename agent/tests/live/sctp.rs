//! SCTP associations between sockets of the kernel's own SCTP, through policy; the testbed's SCTP is half a handshake.

mod association;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portcullis_testbed::{Pod, Protocol, Service, Shape};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;
use association::{Association, Echo, Received, socket};

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];
/// The policy's port, and one that it does not name.
const PORTS: [u16; 2] = [7000, 7001];
/// The Services' port.
const FRONT: u16 = 70;
/// Streams of ten, the number that a socket asks for by default.
const STREAMS: [u16; 3] = [0, 3, 9];
/// Long enough for any answer on a busy machine; only failures cost it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is denied costs it.
const MOMENT: Duration = Duration::from_millis(1500);

/// An address of a server, by which it is reached.
#[derive(Clone)]
struct Way {
    what: String,
    to: IpAddr,
    /// By the Service in front of it.
    translated: bool,
    /// Whether the server is on the clients' node.
    is_near: bool,
}

impl Way {
    /// Where the server's port is by this way.
    fn place(&self, port: u16) -> SocketAddr {
        let front = if port == PORTS[0] { FRONT } else { FRONT + 1 };
        SocketAddr::new(self.to, if self.translated { front } else { port })
    }

    fn open(&self, from: &Pod, port: u16, patience: Duration) -> Option<Association> {
        Association::open(from, 0, self.place(port), patience)
    }

    fn must_open(&self, from: &Pod, own_port: u16, port: u16) -> Association {
        let opened = Association::open(from, own_port, self.place(port), PATIENCE);
        opened.unwrap_or_else(|| panic!("{}, port {port}: no association of {}", self.what, from.name()))
    }
}

/// Whether what is sent on these streams comes back on them.
fn echoes(association: &Association, streams: &[u16], patience: Duration) -> bool {
    association.wait_at_most(patience);
    streams.iter().all(|&stream| {
        let message = format!("hello on stream {stream}").into_bytes();
        association.send(stream, &message).is_ok() && association.receive() == Received::Message(stream, message)
    })
}

/// Asks many at once, since what is denied takes long to be told from what is late.
fn all_at_once<T: Sync>(of: &[T], ask: impl Fn(&T) -> bool + Sync) -> Vec<bool> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = of.iter().map(|one| scope.spawn(|| ask(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Shuts an association down, and waits until both sides have.
fn ends(way: &Way, association: Association) {
    association.wait_at_most(PATIENCE);
    association.shut_down();
    assert_eq!(association.receive(), Received::End, "{}: it has not ended", way.what);
}

/// x/b admits x/a on this port; x/a may send nothing else than that, to x/b or y/b.
fn policies(port: u16) -> Vec<Value> {
    let ports = json!([{"protocol": "SCTP", "port": port}]);
    let client = json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}},
        "podSelector": {"matchLabels": {"pod": "a"}},
    }]);
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": client, "ports": ports}],
    });
    let servers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]);
    let client = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": servers, "ports": ports}],
    });
    vec![policy("x", "server", &server), policy("x", "client", &client)]
}

fn ways(cluster: &LiveCluster) -> Vec<Way> {
    let (mut ways, mut services) = (Vec::new(), Vec::new());
    for (at, server) in (0_u8..).zip(["x/b", "y/b"]) {
        let pod = cluster.pod(server);
        let vips: [IpAddr; 2] = [[10, 0, 7, at].into(), [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x700 + u16::from(at)].into()];
        for (port, front) in PORTS.into_iter().zip([FRONT, FRONT + 1]) {
            let service = Service::new(&format!("x/sctp-{at}-{port}")).port(Protocol::Sctp, front);
            services.push((vips.into_iter().fold(service, Service::vip), port, vec![pod]));
        }
        let direct = pod.addresses().into_iter().map(|to| (to, false));
        ways.extend(direct.chain(vips.map(|to| (to, true))).map(|(to, translated)| {
            let what = format!("{server} {} {to}", if translated { "by its Service" } else { "at" });
            Way { what, to, translated, is_near: server == "x/b" }
        }));
    }
    cluster.expose_all(services);
    ways
}

#[test]
fn associations_are_what_policy_says() {
    if let Err(error) = socket(true) {
        // The guests of the kernel matrix have it, so it is tested somewhere.
        assert!(std::env::var_os("PORTCULLIS_GUEST").is_none(), "no SCTP: {error}");
        eprintln!("skipped: this kernel has no SCTP: {error}");
        return;
    }
    for shape in [Shape::Routed, Shape::Bridged] {
        let plan = Plan { agents: false, ports: Vec::new(), ..Plan::new(shape, &PODS) };
        let mut cluster = LiveCluster::new(&plan);
        let before = before_agents(&cluster);
        // On the other node the kernel does nothing that it does not do on this one.
        cluster.start_first_agents(1, &[], &first_policies());
        with_agents(&cluster, shape, &before);
    }
}

/// What is there before agents are.
pub(crate) struct Before {
    ways: Vec<Way>,
    /// Associations of x/a, with their ports.
    older: Vec<(String, u16, Association)>,
    _servers: Vec<Echo>,
}

/// Starts servers and opens associations. All come about, so that what is denied later is known to be.
pub(crate) fn before_agents(cluster: &LiveCluster) -> Before {
    let servers: Vec<Echo> = ["x/b", "y/b"].map(|server| Echo::new(cluster.pod(server), &PORTS)).into();
    let ways = ways(cluster);
    let older = without_policy(cluster, &ways);
    Before { ways, older, _servers: servers }
}

/// What agents must be started with.
pub(crate) fn first_policies() -> Vec<Value> {
    policies(PORTS[0])
}

pub(crate) fn with_agents(cluster: &LiveCluster, shape: Shape, before: &Before) {
    older_ones(&before.older);
    judge(cluster, &before.ways);
    eprintln!("judged {} ways to SCTP servers of {shape:?} pods", before.ways.len());
}

fn without_policy(cluster: &LiveCluster, ways: &[Way]) -> Vec<(String, u16, Association)> {
    let mut opened = Vec::new();
    for way in ways {
        for port in PORTS {
            let association = way.must_open(cluster.pod("x/a"), 0, port);
            assert!(echoes(&association, &STREAMS, PATIENCE), "{}, port {port}: no echo without policy", way.what);
            opened.push((format!("{}, port {port}", way.what), port, association));
        }
        assert!(
            way.open(cluster.pod("x/c"), PORTS[0], PATIENCE).is_some(),
            "{}: another pod, without policy",
            way.what
        );
    }
    opened
}

/// Those that are older than the agent go on where policy allows them, and end where it does not.
fn older_ones(older: &[(String, u16, Association)]) {
    let patience = |port: u16| if port == PORTS[0] { PATIENCE } else { MOMENT };
    let heard = all_at_once(older, |(_, port, association)| echoes(association, &[1], patience(*port)));
    for ((what, port, _), heard) in older.iter().zip(heard) {
        assert_eq!(heard, *port == PORTS[0], "{what}, older than the agent");
    }
}

fn judge(cluster: &LiveCluster, ways: &[Way]) {
    let (client, other) = (cluster.pod("x/a"), cluster.pod("x/c"));
    let open: Vec<Association> = ways.iter().map(|way| way.must_open(client, 0, PORTS[0])).collect();
    for (way, association) in ways.iter().zip(&open) {
        assert!(echoes(association, &STREAMS, PATIENCE), "{}: no echo", way.what);
    }
    // The client's policy ends the one before it leaves, the server's the other where it arrives.
    let mut denied: Vec<(&Way, &Pod, u16)> = ways.iter().map(|way| (way, client, PORTS[1])).collect();
    denied.extend(ways.iter().filter(|way| way.is_near).map(|way| (way, other, PORTS[0])));
    let opened = all_at_once(&denied, |(way, from, port)| way.open(from, *port, MOMENT).is_some());
    for ((way, from, port), opened) in denied.iter().zip(opened) {
        assert!(!opened, "{}, port {port}: {} is not denied", way.what, from.name());
    }
    // SHUTDOWN, its answer and the end of it pass; the ports may be used again for a new association.
    let ended: Vec<Association> = ways.iter().map(|way| way.must_open(client, 0, PORTS[0])).collect();
    for (way, association) in ways.iter().zip(ended) {
        let own_port = association.own_port();
        ends(way, association);
        let again = way.must_open(client, own_port, PORTS[0]);
        assert!(echoes(&again, &STREAMS, PATIENCE), "{}: no echo from the port {own_port}, used again", way.what);
    }
    // A change of policy ends what is open, and opens what it allows.
    cluster.enforce(&policies(PORTS[1]));
    let heard = all_at_once(&open, |association| echoes(association, &[1], MOMENT));
    for (way, heard) in ways.iter().zip(heard) {
        assert!(!heard, "{}: it goes on though policy denies it now", way.what);
        let association = way.must_open(client, 0, PORTS[1]);
        assert!(echoes(&association, &STREAMS, PATIENCE), "{}, port {}: no echo", way.what, PORTS[1]);
    }
    let again = all_at_once(ways, |way| way.open(client, PORTS[0], MOMENT).is_some());
    for (way, opened) in ways.iter().zip(again) {
        assert!(!opened, "{}: a new one, though policy denies it now", way.what);
    }
}
