//! A small cluster that never changes but for one policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use portcullis::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers};
use portcullis::convert;
use portcullis::index::Cluster;
use portcullis::model::{Change, Object};
use portcullis::state::{Desired, LocalId};
use portcullis_packets::Parties;
use serde_json::{Value, json};

/// Who may send and receive, with an address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) addresses: [&'static str; 2],
}

const fn host(name: &'static str, v4: &'static str, v6: &'static str) -> Host {
    Host { name, addresses: [v4, v6] }
}

/// The pods of this node: their place here is the order of their devices.
///
/// `client` may reach servers at TCP 80 and a block outside at UDP 53, and accepts TCP 81 from servers; `server` accepts
/// TCP 80 to 90 from clients; nothing restricts `free`; `denied` may neither send nor receive anything.
pub(crate) const PODS: [Host; 4] = [
    host("client", "10.1.0.10", "fd00:1::a"),
    host("server", "10.1.0.11", "fd00:1::b"),
    host("free", "10.1.0.12", "fd00:1::c"),
    host("denied", "10.1.0.13", "fd00:1::d"),
];
/// A pod that nobody may reach and that may reach nobody.
pub(crate) const DENIED: usize = 3;
/// This node.
pub(crate) const NODE: Host = host("node", "172.18.0.1", "fd00:18::1");
/// Everybody beyond the uplink.
pub(crate) const AWAY: [Host; 4] = [
    host("remote server", "10.1.1.20", "fd00:1:1::14"),
    host("other node", "172.18.0.2", "fd00:18::2"),
    host("allowed outsider", "192.0.2.7", "2001:db8::7"),
    host("denied outsider", "198.51.100.1", "2001:db8:1::1"),
];
/// Services: `part` has backends that the client may reach and others, `whole` only such.
pub(crate) const SERVICES: [Host; 2] =
    [host("part", "10.96.0.1", "fd00:96::1"), host("whole", "10.96.0.2", "fd00:96::2")];

impl Host {
    pub(crate) fn address(&self, v4: bool) -> IpAddr {
        let text = self.addresses[usize::from(!v4)];
        text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }
}

/// A client and a server of a family.
pub(crate) fn parties(v4: bool) -> Parties {
    Parties { from: PODS[0].address(v4), to: PODS[1].address(v4), client: 40123, server: 80 }
}

/// The tables before a change of policy, and after it: the client may not reach servers any more.
pub(crate) static DESIRED: LazyLock<[Desired; 2]> = LazyLock::new(|| {
    let mut compiler = Compiler::new(Numbers::default(), BTreeMap::new());
    [false, true].map(|changed| {
        let mut cluster = Cluster::default();
        for document in documents(changed) {
            if let Some(object) = object(&document) {
                cluster.apply(Change::Set(object));
            }
        }
        let addresses: BTreeSet<IpAddr> = [true, false].map(|v4| NODE.address(v4)).into();
        let ours = cluster.pods.values().filter(|pod| pod.node.as_deref() == Some("n1"));
        let local: Vec<LocalPod> = ours
            .map(|pod| LocalPod { id: LocalId { pod: pod.key.clone(), uid: pod.uid.clone() }, pod: Arc::clone(pod) })
            .collect();
        let ranges = ["10.96.0.0/16", "fd00:96::/112"].iter().filter_map(|range| range.parse().ok()).collect();
        let node = NodeFacts { addresses, service_ranges: ranges };
        let input = Input { cluster: &cluster, local: &local, node: &node };
        compiler.compile(&input, &Dirty::all()).clone()
    })
});

fn object(document: &Value) -> Option<Object> {
    fn parse<T: for<'a> serde::Deserialize<'a>>(document: &Value) -> Option<T> {
        serde_json::from_value(document.clone()).ok()
    }
    Some(match document["kind"].as_str()? {
        "Pod" => Object::Pod(convert::pod(&parse(document)?).ok()?.value),
        "Node" => Object::Node(convert::node(&parse(document)?).ok()?.value),
        "Service" => Object::Service(convert::service(&parse(document)?).ok()?.value),
        "EndpointSlice" => Object::EndpointSlice(convert::endpoint_slice(&parse(document)?).ok()?.value?),
        _ => Object::Policy(convert::network_policy(&parse(document)?).ok()?.value),
    })
}

fn documents(changed: bool) -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "namespace": "x", "uid": name, "labels": {"app": name}});
    let pod = |host: &Host, app: &str, node: &str| {
        let mut metadata = meta(host.name);
        metadata["labels"]["app"] = json!(app);
        let ips = host.addresses.map(|ip| json!({"ip": ip}));
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": node, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIPs": ips},
        })
    };
    let node = |name: &str, host: &Host| {
        let listed = host.addresses.map(|ip| json!({"type": "InternalIP", "address": ip}));
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": listed}})
    };
    let policy = |name: &str, spec: Value| json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(name), "spec": spec});
    let app = |name: &str| json!({"podSelector": {"matchLabels": {"app": name}}});
    let to_servers = json!({"to": [app("server")], "ports": [{"protocol": "TCP", "port": 80}]});
    let to_block = json!({
        "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8::/48"}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "SCTP", "port": 80}],
    });
    let egress = if changed { json!([to_block]) } else { json!([to_servers, to_block]) };
    let mut documents: Vec<Value> = PODS.iter().map(|host| pod(host, host.name, "n1")).collect();
    documents.extend([
        pod(&AWAY[0], "server", "n2"),
        node("n1", &NODE),
        node("n2", &AWAY[1]),
        policy(
            "client",
            json!({
                "podSelector": {"matchLabels": {"app": "client"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [app("server")], "ports": [{"port": 81}]}],
                "egress": egress,
            }),
        ),
        policy(
            "server",
            json!({
                "podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [app("client")], "ports": [{"port": 80, "endPort": 90}]}],
            }),
        ),
        policy(
            "denied",
            json!({
                "podSelector": {"matchLabels": {"app": "denied"}},
                "policyTypes": ["Ingress", "Egress"],
            }),
        ),
    ]);
    let backends: [[&Host; 2]; 2] = [[&PODS[1], &PODS[DENIED]], [&PODS[1], &AWAY[0]]];
    for (service, backends) in SERVICES.iter().zip(backends) {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(service.name),
            "spec": {"clusterIPs": service.addresses, "ports": [{"port": 80, "nodePort": 30080}]},
        }));
        for (family, place) in [("IPv4", 0), ("IPv6", 1)] {
            let endpoints = backends.map(|backend| json!({"addresses": [backend.addresses[place]]}));
            let name = format!("{}-{place}", service.name);
            let mut metadata = meta(&name);
            metadata["labels"] = json!({"kubernetes.io/service-name": service.name});
            documents.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
                "addressType": family, "endpoints": endpoints, "ports": [{"port": 80, "protocol": "TCP"}],
            }));
        }
    }
    documents
}
