//! Exits of every kind that this kernel has, beside the veths and tunnels of other tests: a macvlan on an uplink, a VLAN, a
//! bond. Whatever devices a packet leaves by, it is judged once.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use portcullis_testbed::{Host, Namespace, Node, Outcome, Probe, Protocol, Service, Shape, pinned_source_ports};
use serde_json::json;

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan};
use crate::hooks::await_that;
use crate::lasting::{Opening, Speaks, all_pass, none_pass};
use crate::manifests::policy;

const PODS: [(&str, usize); 2] = [("x/a", 0), ("x/b", 0)];
const TARGET: u16 = 7000;
const FRONT: u16 = 8080;
/// Datagrams to each destination.
const COUNT: u16 = 20;
/// The device that packets leave by.
const UPLINK: &str = "up1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Macvlan,
    Vlan,
    Bond,
}

impl Kind {
    /// Makes the device on a node, up to a network to `outside`, and gives the other end's device.
    fn make(self, node: &Node, outside: &Host) -> &'static str {
        let path = outside.namespace().path();
        let cable = |own: &str, other: &str| {
            [format!("link add {own} type veth peer name {other} netns {path}"), format!("link set {own} up")]
        };
        let mut near = cable("eth1", "eth1").to_vec();
        let mut far = vec!["link set eth1 up".to_owned()];
        match self {
            Self::Macvlan => near.push(format!("link add {UPLINK} link eth1 type macvlan mode bridge")),
            Self::Vlan => {
                near.push(format!("link add link eth1 name {UPLINK} type vlan id 5"));
                far.push("link add link eth1 name far1 type vlan id 5".to_owned());
            }
            Self::Bond => {
                // The other end is a switch, as for any bond of this mode.
                near.extend(cable("eth2", "eth2"));
                near.push(format!("link add {UPLINK} type bond mode active-backup miimon 50"));
                for port in ["eth1", "eth2"] {
                    near.extend([format!("link set {port} down"), format!("link set {port} master {UPLINK}")]);
                }
                far.push("link add far1 type bridge mcast_snooping 0".to_owned());
                far.extend(["eth1", "eth2"].map(|port| format!("link set {port} master far1 up")));
            }
        }
        near.push(format!("link set {UPLINK} up"));
        let at = if self == Self::Macvlan { "eth1" } else { "far1" };
        far.push(format!("link set {at} up"));
        node.namespace().ip(near).unwrap();
        outside.namespace().ip(far).unwrap();
        at
    }

    /// Which of the node's devices are exits then, and which are not.
    const fn exits(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Macvlan | Self::Vlan => (&[UPLINK, "eth1"], &[]),
            Self::Bond => (&[UPLINK], &["eth1", "eth2"]),
        }
    }

    fn is_there(self) -> bool {
        let Ok(namespace) = Namespace::new("kinds") else { return false };
        let kind = match self {
            Self::Macvlan => "link add link one name kind0 type macvlan",
            Self::Vlan => "link add link one name kind0 type vlan id 5",
            Self::Bond => "link add kind0 type bond",
        };
        namespace.ip(["link add one type veth peer name two", kind]).is_ok()
    }
}

/// An address of the network beyond the device: 1 is the node's, 2 and 3 are outside.
fn beyond(v4: bool, last: u8) -> IpAddr {
    if v4 {
        Ipv4Addr::new(198, 51, 100, last).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, last.into()).into()
    }
}

fn vip(protocol: Protocol, v4: bool) -> IpAddr {
    let last: u16 = if protocol == Protocol::Tcp { 1 } else { 2 };
    if v4 {
        IpAddr::from([10, 0, 4, last as u8])
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x400 + last).into()
    }
}

fn exits(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    status["exits"].as_array().unwrap().iter().map(|exit| exit["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn packets_that_leave_by_a_macvlan_are_judged_once() {
    judged_once(Kind::Macvlan);
}

#[test]
fn packets_that_leave_by_a_vlan_are_judged_once() {
    judged_once(Kind::Vlan);
}

#[test]
fn packets_that_leave_by_a_bond_are_judged_once() {
    judged_once(Kind::Bond);
}

fn judged_once(kind: Kind) {
    if !kind.is_there() {
        eprintln!("skipped: this kernel has no devices of the kind {kind:?}");
        return;
    }
    for attach in ["auto", "clsact"] {
        let context = format!("{kind:?}, {attach}");
        let mut cluster =
            LiveCluster::new(&Plan { agents: false, ports: Vec::new(), ..Plan::new(Shape::Routed, &PODS) });
        let policies = [client(true), server()];
        cluster.start_agents(&["--attach".to_owned(), attach.to_owned()], &policies);
        let (node, outside) = (cluster.bed.node(0).clone(), cluster.bed.outside().clone());
        // While the agent runs, as uplinks come.
        let far = kind.make(&node, &outside);
        lead(&cluster, &node, &outside, far);
        let (wanted, unwanted) = kind.exits();
        await_that(&format!("{context}: the exits"), || {
            let found = exits(&cluster.agents[0]);
            wanted.iter().all(|name| found.contains(&(*name).to_owned()))
                && !unwanted.iter().any(|name| found.contains(&(*name).to_owned()))
        });
        counted_once(&context, &cluster);
        answered(&context, &cluster);
        admitted(&context, &cluster);
    }
}

/// One of the two hosts beyond the device.
fn admitted_blocks() -> [serde_json::Value; 2] {
    [true, false].map(|v4| block(beyond(v4, 2)))
}

/// x/a may reach that one, or nobody.
fn client(reaches: bool) -> serde_json::Value {
    let rules: Vec<serde_json::Value> = reaches.then(|| json!({"to": admitted_blocks()})).into_iter().collect();
    let subject = json!({"matchLabels": {"pod": "a"}});
    policy("x", "client", &json!({"podSelector": subject, "policyTypes": ["Ingress", "Egress"], "egress": rules}))
}

/// x/b admits that one.
fn server() -> serde_json::Value {
    let subject = json!({"matchLabels": {"pod": "b"}});
    let rules = json!([{"from": admitted_blocks()}]);
    policy("x", "server", &json!({"podSelector": subject, "policyTypes": ["Ingress"], "ingress": rules}))
}

fn block(address: IpAddr) -> serde_json::Value {
    json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}})
}

/// Addresses, routes, and Services whose backends are beyond the device, which no manifest tells of.
fn lead(cluster: &LiveCluster, node: &Node, outside: &Host, far: &str) {
    let mut inside = Vec::new();
    for v4 in [true, false] {
        let (length, nodad) = if v4 { (24, "") } else { (64, " nodad") };
        node.namespace().ip([format!("addr add {}/{length} dev {UPLINK}{nodad}", beyond(v4, 1))]).unwrap();
        for last in [2, 3] {
            inside.push(format!("addr add {}/{length} dev {far}{nodad}", beyond(v4, last)));
        }
        let pods = if v4 { node.pod_cidr_v4() } else { node.pod_cidr_v6() };
        inside.push(format!("route add {pods} via {} dev {far}", beyond(v4, 1)));
    }
    outside.namespace().ip(inside).unwrap();
    let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let mut service = Service::new(&format!("x/beyond-{protocol}")).port(protocol, FRONT).by_source_port();
        for v4 in [true, false] {
            service.vips.push(vip(protocol, v4));
            service.backends.extend([2, 3].map(|last| SocketAddr::new(beyond(v4, last), TARGET)));
        }
        service
    });
    cluster.bed.services(services).unwrap();
}

/// Each destination beyond the device, directly and behind the Service: the address and port, the client's port, and who
/// it is.
fn destinations(protocol: Protocol) -> Vec<(SocketAddr, u16, IpAddr)> {
    let mut all = Vec::new();
    for v4 in [true, false] {
        for (at, last) in [2, 3].into_iter().enumerate() {
            let who = beyond(v4, last);
            let port = *pinned_source_ports(at).start();
            all.push((SocketAddr::new(who, TARGET), port, who));
            all.push((SocketAddr::new(vip(protocol, v4), FRONT), port + 1, who));
        }
    }
    all
}

fn is_allowed(who: IpAddr) -> bool {
    [true, false].iter().any(|v4| who == beyond(*v4, 2))
}

fn packets(agent: &Agent, verdict: &str) -> f64 {
    let labels = [("policy_name", "client"), ("direction", "egress"), ("verdict", verdict)];
    agent.metric("portcullis_policy_packets_total", &labels)
}

fn counted_once(context: &str, cluster: &LiveCluster) {
    let (agent, client) = (&cluster.agents[0], cluster.pod("x/a"));
    let listener = |who: IpAddr| {
        let socket = cluster.bed.outside().namespace().run(|| Ok(UdpSocket::bind((who, TARGET))?)).unwrap();
        socket.set_nonblocking(true).unwrap();
        (who, socket)
    };
    let listeners: Vec<(IpAddr, UdpSocket)> =
        [(true, 2), (true, 3), (false, 2), (false, 3)].map(|(v4, last)| listener(beyond(v4, last))).into();
    let counted = || ["allow", "deny"].map(|verdict| packets(agent, verdict));
    for (to, port, who) in destinations(Protocol::Udp) {
        let mut expected = counted();
        expected[usize::from(!is_allowed(who))] += f64::from(COUNT);
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let send = || {
            let socket = UdpSocket::bind((any, port))?;
            for _ in 0..COUNT {
                socket.send_to(b"once", to)?;
            }
            Ok(())
        };
        client.namespace().run(send).unwrap();
        await_that(&format!("{context}: the count of what is sent to {to}, which is {who}"), || {
            let now = counted();
            let more = now.iter().zip(expected).any(|(now, expected)| *now > expected);
            assert!(!more, "{context}: {to}, which is {who}: allowed and denied {now:?}, should be {expected:?}");
            now == expected
        });
    }
    for (who, socket) in &listeners {
        let expected = if is_allowed(*who) { 2 * COUNT } else { 0 };
        let arrived = Cell::new(0);
        await_that(&format!("{context}: what is sent to {who}"), || {
            while socket.recv(&mut [0; 16]).is_ok() {
                arrived.set(arrived.get() + 1);
            }
            arrived.get() >= expected
        });
        assert_eq!(arrived.get(), expected, "{context}: of what is sent to {who}");
    }
}

/// Flows to whom the client may reach go on, in both directions, and end with that.
fn answered(context: &str, cluster: &LiveCluster) {
    let (client, outside) = (cluster.pod("x/a"), cluster.bed.outside());
    let mut flows = Vec::new();
    for (protocol, speaks) in [(Protocol::Tcp, Speaks::Both), (Protocol::Udp, Speaks::Server)] {
        for (to, port, who) in destinations(protocol).into_iter().filter(|(.., who)| is_allowed(*who)) {
            let opening =
                Opening { from: client, source_port: Some(port + 10), to, servers: &[outside], target: TARGET };
            flows.push(opening.open_at(Some(who), protocol, speaks));
        }
    }
    all_pass(context, &mut flows);
    cluster.enforce(&[self::client(false)]);
    none_pass(context, cluster, &mut flows);
}

/// From outside: in the pod's own direction, the source as it is.
fn admitted(context: &str, cluster: &LiveCluster) {
    let server = cluster.pod("x/b");
    server.serve(Protocol::Tcp, 80).unwrap();
    cluster.enforce(&[self::server()]);
    for to in server.addresses() {
        for (last, allowed) in [(2, true), (3, false)] {
            let patience = if allowed { crate::agent::PATIENCE } else { Duration::from_millis(300) };
            let probe = Probe::new(cluster.bed.outside(), to, Protocol::Tcp, 80).timeout(patience);
            let outcome = probe.source(beyond(to.is_ipv4(), last)).run();
            let right = if allowed { outcome.is_answer_of("x/b") } else { outcome == Outcome::Timeout };
            assert!(right, "{context}: {} to {to}: {outcome:?}", beyond(to.is_ipv4(), last));
        }
    }
}
