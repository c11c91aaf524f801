//! Flows that last while policy and labels change: where policy no longer allows them, they end with the change that says
//! so, and nothing of them is lost where it does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portcullis_testbed::{Host, Protocol, Service, Shape, pinned_source_ports};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::lasting::{Flow, Opening, Speaks, all_pass, dropped, none_pass, settled};
use crate::manifests::{Labels, policy};

/// x/a is the client, y/b and z/b are servers, near and far.
const PODS: [(&str, usize); 3] = [("x/a", 0), ("y/b", 0), ("z/b", 1)];
const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];
const TARGET: u16 = 7000;
const FRONT: u16 = 8080;

/// The Service's addresses: one for each protocol, since each is a Service of its own here.
fn vip(protocol: Protocol, v4: bool) -> IpAddr {
    let last = if protocol == Protocol::Tcp { 1 } else { 2 };
    if v4 {
        Ipv4Addr::new(10, 0, 4, last).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 4, last.into()).into()
    }
}

pub(crate) fn cluster(shape: Shape, agents: bool, arguments: &[&str]) -> LiveCluster {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let cluster = LiveCluster::new(&Plan { agents, arguments, ports: Vec::new(), ..Plan::new(shape, &PODS) });
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let service = Service::new(&format!("y/many-{protocol}")).port(protocol, FRONT).by_source_port();
        let service = [true, false].into_iter().fold(service, |service, v4| service.vip(vip(protocol, v4)));
        cluster.expose(service, TARGET, &[cluster.pod("y/b"), cluster.pod("z/b")]);
    }
    cluster.label(&namespaces(&[]), &pods(&[]));
    cluster
}

/// Labels of all namespaces, with some of them changed.
fn namespaces(changed: &[(&str, &str)]) -> BTreeMap<String, Labels> {
    labels("team", &[("x", "web"), ("y", "data"), ("z", "store")], changed)
}

/// Labels of all pods, with some of them changed.
fn pods(changed: &[(&str, &str)]) -> BTreeMap<String, Labels> {
    labels("role", &[("x/a", "front"), ("y/b", "db"), ("z/b", "cache")], changed)
}

fn labels(key: &str, usual: &[(&str, &str)], changed: &[(&str, &str)]) -> BTreeMap<String, Labels> {
    let all = usual
        .iter()
        .chain(changed)
        .map(|(name, value)| ((*name).to_owned(), Labels::from([(key.to_owned(), (*value).to_owned())])));
    all.collect()
}

fn peers(teams: &[&str], roles: &[&str]) -> Value {
    let among =
        |key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": "In", "values": values}]});
    json!([{"namespaceSelector": among("team", teams), "podSelector": among("role", roles)}])
}

/// What is in force: whom the client may reach, by role, and which servers admit it. Everybody is isolated both ways.
pub(crate) fn policies(roles: &[&str], servers: &[&str]) -> Vec<Value> {
    let both = json!(["Ingress", "Egress"]);
    let to = peers(&["data", "tables", "store"], roles);
    let subject = |pod: &str| json!({"matchLabels": {"pod": pod}});
    let client = json!({"podSelector": subject("a"), "policyTypes": both, "egress": [{"to": to}]});
    let mut policies = vec![policy("x", "client", &client)];
    for namespace in ["y", "z"] {
        let from = peers(&["web", "mobile"], &["front", "edge"]);
        let rules: Vec<Value> = servers.contains(&namespace).then(|| json!({"from": from})).into_iter().collect();
        let server = json!({"podSelector": subject("b"), "policyTypes": both, "ingress": rules});
        policies.push(policy(namespace, "server", &server));
    }
    policies
}

pub(crate) const ROLES: [&str; 4] = ["db", "cache", "queue", "disk"];

pub(crate) fn all_allowed() -> Vec<Value> {
    policies(&ROLES, &["y", "z"])
}

/// From the client to each server, and to each behind the Service, of both families: TCP, and UDP that only one end
/// sends, either of them.
pub(crate) fn flows(cluster: &LiveCluster) -> Vec<Flow> {
    let client = cluster.pod("x/a");
    let mut flows = Vec::new();
    for (at, name) in ["y/b", "z/b"].into_iter().enumerate() {
        let server: &Host = cluster.pod(name);
        for (protocol, speaks) in
            [(Protocol::Tcp, Speaks::Both), (Protocol::Udp, Speaks::Opener), (Protocol::Udp, Speaks::Server)]
        {
            for v4 in [true, false] {
                let direct = server.addresses().into_iter().find(|address| address.is_ipv4() == v4).unwrap();
                let by_service = SocketAddr::new(vip(protocol, v4), FRONT);
                for (to, source_port) in [(SocketAddr::new(direct, TARGET), None), (by_service, Some(pinned_port(at)))]
                {
                    let opening = Opening { from: client, source_port, to, servers: &[server], target: TARGET };
                    flows.push(opening.open(protocol, speaks));
                }
            }
        }
    }
    flows
}

/// A port of the client's that leads to a backend of the Service and was not used before.
fn pinned_port(at: usize) -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = pinned_source_ports(at);
    range.start() + NEXT.fetch_add(1, Ordering::Relaxed) % (range.end() - range.start() + 1)
}

/// Makes a change and these policies, and uses the flows until it is in force.
fn change(context: &str, cluster: &LiveCluster, flows: &mut [Flow], what: impl FnOnce(), wanted: &[Value]) {
    what();
    let fence = cluster.write_policies(wanted);
    loop {
        let passed = cluster.has_passed(&fence);
        all_pass(context, flows);
        if passed {
            return;
        }
    }
}

struct Change {
    what: &'static str,
    namespaces: &'static [(&'static str, &'static str)],
    pods: &'static [(&'static str, &'static str)],
    roles: &'static [&'static str],
    admitting: &'static [&'static str],
    /// Servers whose flows end.
    ends: &'static [&'static str],
}

const SAME: Change =
    Change { what: "nothing", namespaces: &[], pods: &[], roles: &ROLES, admitting: &["y", "z"], ends: &[] };

const CHANGES: [Change; 7] = [
    Change { what: "the servers' namespace has other labels", namespaces: &[("y", "gone")], ends: &["y/b"], ..SAME },
    Change { what: "the far server's namespace has", namespaces: &[("z", "gone")], ends: &["z/b"], ..SAME },
    Change { what: "the client's namespace has", namespaces: &[("x", "gone")], ends: &["y/b", "z/b"], ..SAME },
    Change { what: "a server has other labels", pods: &[("z/b", "gone")], ends: &["z/b"], ..SAME },
    Change { what: "the client has", pods: &[("x/a", "gone")], ends: &["y/b", "z/b"], ..SAME },
    Change { what: "the client may reach one", roles: &["db", "queue"], ends: &["z/b"], ..SAME },
    Change { what: "a server admits nobody", admitting: &["z"], ends: &["y/b"], ..SAME },
];

#[test]
fn flows_end_with_the_labels_and_rules_that_allowed_them_and_no_others() {
    for shape in SHAPES {
        let cluster = cluster(shape, true, &[]);
        for change in &CHANGES {
            let context = format!("{shape:?}, {}", change.what);
            cluster.label(&namespaces(&[]), &pods(&[]));
            cluster.enforce(&all_allowed());
            let mut all = flows(&cluster);
            all_pass(&context, &mut all);
            settled(&context, &all);
            let before = dropped(&cluster);
            let (mut denied, mut allowed): (Vec<Flow>, Vec<Flow>) =
                all.into_iter().partition(|flow| change.ends.contains(&flow.server.as_str()));
            let relabel = || cluster.label(&namespaces(change.namespaces), &pods(change.pods));
            let wanted = policies(change.roles, change.admitting);
            self::change(&context, &cluster, &mut allowed, relabel, &wanted);
            assert_eq!(dropped(&cluster), before, "{context}: nothing of what is allowed is dropped");
            none_pass(&context, &cluster, &mut denied);
            all_pass(&context, &mut allowed);
        }
    }
}

#[test]
fn flows_survive_changes_of_labels_and_rules_that_still_allow_them() {
    for shape in SHAPES {
        let cluster = cluster(shape, true, &[]);
        // Open before any policy selects a pod.
        cluster.enforce(&[]);
        let mut flows = flows(&cluster);
        all_pass("at first", &mut flows);
        let by_address = |namespace: &str, pod: &str, direction: &str| {
            let blocks = json!([{"ipBlock": {"cidr": "10.244.0.0/16"}}, {"ipBlock": {"cidr": "fd00:10:244::/48"}}]);
            let (rules, peers) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
            let spec = json!({
                "podSelector": {"matchLabels": {"pod": pod}}, "policyTypes": ["Ingress", "Egress"], rules: [{peers: blocks}],
            });
            policy(namespace, "by-address", &spec)
        };
        let addresses =
            [by_address("x", "a", "Egress"), by_address("y", "b", "Ingress"), by_address("z", "b", "Ingress")];
        let steps: [(&str, &[(&str, &str)], &[(&str, &str)], Vec<Value>); 7] = [
            ("isolated", &[], &[], all_allowed()),
            ("other labels of a server's namespace", &[("y", "tables")], &[], all_allowed()),
            ("other labels of the client's namespace", &[("x", "mobile"), ("y", "tables")], &[], all_allowed()),
            ("other labels of pods", &[], &[("x/a", "edge"), ("y/b", "queue"), ("z/b", "disk")], all_allowed()),
            ("by address as well", &[], &[], [all_allowed(), addresses.to_vec()].concat()),
            ("by address only", &[], &[("x/a", "gone"), ("y/b", "gone"), ("z/b", "gone")], addresses.to_vec()),
            ("free again", &[], &[], Vec::new()),
        ];
        for (what, teams, roles, wanted) in steps {
            let context = format!("{shape:?}, {what}");
            let relabel = || cluster.label(&namespaces(teams), &pods(roles));
            // What was written before must be in force: by address only, the labels may not come first.
            change(&context, &cluster, &mut flows, || (), &wanted);
            change(&context, &cluster, &mut flows, relabel, &wanted);
            assert_eq!(dropped(&cluster), 0.0, "{context}: {:?}", cluster.agents[0].drops());
        }
    }
}
