//! Random clusters as their manifests, so that every form of the API is met and a failing one can be replayed by hand.

use proptest::collection::vec;
use proptest::option::{self, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

/// The node that the tables are of, and another.
pub(crate) const OWN_NODE: &str = "n1";
pub(crate) const OTHER_NODE: &str = "n2";
/// Addresses of nodes.
pub(crate) const OWN_ADDRESSES: [&str; 2] = ["172.18.0.1", "fd00:18::1"];
pub(crate) const OTHER_ADDRESSES: [&str; 2] = ["172.18.0.2", "fd00:18::2"];
/// Addresses of nobody in the cluster.
pub(crate) const OUTSIDERS: [&str; 5] = ["192.0.2.7", "192.0.2.130", "198.51.100.1", "2001:db8::7", "2001:db8:1::1"];
const NAMESPACES: [&str; 3] = ["x", "y", "z"];

/// Sets the fields that are there.
fn with(mut object: Value, fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    for (name, value) in fields {
        if let Some(value) = value {
            object[name] = value;
        }
    }
    object
}

pub(crate) fn namespace_name() -> impl Strategy<Value = &'static str> {
    select(NAMESPACES.to_vec())
}

fn labels(keys: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = Value> {
    let chosen: Vec<_> =
        keys.iter().map(|(key, values)| weighted(0.6, select(values.to_vec())).prop_map(|v| (*key, v))).collect();
    chosen.prop_map(|chosen| {
        let set = chosen.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?))));
        Value::Object(set.collect())
    })
}

const POD_LABELS: &[(&str, &[&str])] = &[("app", &["a", "b", "c"]), ("role", &["f", "g"])];
const NAMESPACE_LABELS: &[(&str, &[&str])] = &[("team", &["r", "s"])];
const NAMESPACE_KEYS: &[(&str, &[&str])] = &[("team", &["r", "s"]), ("kubernetes.io/metadata.name", &NAMESPACES)];

/// A label selector: matchLabels, matchExpressions, both, or empty.
fn selector(keys: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = Value> {
    let expression = (select(keys.to_vec()), select(vec!["In", "NotIn", "Exists", "DoesNotExist"])).prop_flat_map(
        |((key, values), operator)| {
            subsequence(values.to_vec(), 1..=values.len()).prop_map(move |values| {
                let listed = operator.ends_with("In").then(|| json!(values));
                with(json!({"key": key, "operator": operator}), [("values", listed)])
            })
        },
    );
    let match_labels = prop_oneof![3 => Just(None), 2 => labels(keys).prop_map(Some)];
    let expressions = prop_oneof![2 => Just(None), 1 => vec(expression, 0..=2).prop_map(|list| Some(json!(list)))];
    (match_labels, expressions)
        .prop_map(|(labels, expressions)| with(json!({}), [("matchLabels", labels), ("matchExpressions", expressions)]))
}

const BLOCKS: &[(&str, &[&str])] = &[
    ("0.0.0.0/0", &["10.1.0.0/16", "10.1.0.11/32", "192.0.2.0/24", "172.18.0.0/30"]),
    ("10.1.0.0/16", &["10.1.0.10/31", "10.1.0.12/32"]),
    ("10.1.0.8/29", &["10.1.0.10/32"]),
    ("10.1.0.13/32", &[]),
    ("192.0.2.0/24", &["192.0.2.128/25", "192.0.2.7/32"]),
    ("172.18.0.0/16", &["172.18.0.1/32"]),
    ("10.96.0.0/16", &[]),
    ("::/0", &["fd00:1::/64", "2001:db8::/48"]),
    ("fd00:1::/64", &["fd00:1::b/128"]),
    ("2001:db8::/32", &["2001:db8::7/128"]),
];

fn block() -> impl Strategy<Value = Value> {
    select(BLOCKS.to_vec()).prop_flat_map(|(cidr, inside)| {
        subsequence(inside.to_vec(), 0..=inside.len()).prop_map(move |except| {
            let listed = (!except.is_empty()).then(|| json!(except));
            json!({"ipBlock": with(json!({"cidr": cidr}), [("except", listed)])})
        })
    })
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => selector(POD_LABELS).prop_map(|pods| json!({"podSelector": pods})),
        2 => selector(NAMESPACE_KEYS).prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        2 => (selector(POD_LABELS), selector(NAMESPACE_KEYS))
            .prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
        3 => block(),
    ]
}

fn protocol_name() -> impl Strategy<Value = Option<&'static str>> {
    select(vec![None, Some("TCP"), Some("TCP"), Some("UDP"), Some("SCTP")])
}

fn port() -> impl Strategy<Value = Value> {
    let number = select(vec![53_u16, 80, 90, 8080]);
    let numbered = (number, weighted(0.4, select(vec![0_u16, 10, 100, 9000, u16::MAX])));
    let numbered = numbered.prop_map(|(first, more)| {
        let last = more.map(|more| json!(first.saturating_add(more)));
        with(json!({"port": first}), [("endPort", last)])
    });
    let port = prop_oneof![
        1 => Just(json!({})),
        4 => numbered,
        3 => select(vec!["http", "dns", "sig"]).prop_map(|name| json!({"port": name})),
    ];
    (port, protocol_name())
        .prop_map(|(port, protocol)| with(port, [("protocol", protocol.map(|protocol| json!(protocol)))]))
}

/// A list that may be missing or empty.
fn list<S: Strategy<Value = Value>>(item: S, most: usize) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![2 => Just(None), 1 => Just(Some(json!([]))), 6 => vec(item, 1..=most).prop_map(|items| Some(json!(items)))]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    (list(peer(), 3), list(port(), 3)).prop_map(move |(from, ports)| with(json!({}), [(peers, from), ("ports", ports)]))
}

/// A NetworkPolicy of this name.
pub(crate) fn policy(name: String) -> impl Strategy<Value = Value> {
    let types =
        select(vec![None, Some(json!(["Ingress"])), Some(json!(["Egress"])), Some(json!(["Ingress", "Egress"]))]);
    (namespace_name(), selector(POD_LABELS), types, list(rule("from"), 3), list(rule("to"), 3)).prop_map(
        move |(namespace, pods, types, ingress, egress)| {
            let fields = [("policyTypes", types), ("ingress", ingress), ("egress", egress)];
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": namespace},
                "spec": with(json!({"podSelector": pods}), fields),
            })
        },
    )
}

pub(crate) fn namespace(name: &'static str) -> impl Strategy<Value = Value> {
    labels(NAMESPACE_LABELS).prop_map(
        move |labels| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
}

/// What a pod is besides an ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ordinary,
    HostNetwork,
    Finished,
}

fn declared() -> impl Strategy<Value = Value> {
    let http = weighted(0.6, select(vec![80_u16, 90, 8080])).prop_map(|port| port.map(|n| ("http", "TCP", n)));
    let dns = weighted(0.4, select(vec![53_u16, 90])).prop_map(|port| port.map(|n| ("dns", "UDP", n)));
    let sig = weighted(0.3, select(vec![80_u16, 7000])).prop_map(|port| port.map(|n| ("sig", "SCTP", n)));
    (http, dns, sig).prop_map(|(http, dns, sig)| {
        let ports = [http, dns, sig].into_iter().flatten();
        let ports =
            ports.map(|(name, protocol, number)| json!({"name": name, "protocol": protocol, "containerPort": number}));
        ports.collect()
    })
}

/// The pod of this number. Its addresses are its own, but for finished pods, which may have another's.
pub(crate) fn pod(number: usize) -> impl Strategy<Value = Value> {
    let kind = prop_oneof![8 => Just(Kind::Ordinary), 1 => Just(Kind::HostNetwork), 1 => Just(Kind::Finished)];
    let node = prop_oneof![3 => Just(OWN_NODE), 1 => Just(OTHER_NODE)];
    let families = select(vec![(true, true), (true, true), (true, false), (false, true), (false, false)]);
    (namespace_name(), labels(POD_LABELS), declared(), kind, node, families, 0..6_usize).prop_map(
        move |(namespace, labels, ports, kind, node, (v4, v6), other)| {
            let host = if kind == Kind::Finished { other } else { number };
            let addresses = match kind {
                Kind::HostNetwork if node == OWN_NODE => OWN_ADDRESSES.map(str::to_owned),
                Kind::HostNetwork => OTHER_ADDRESSES.map(str::to_owned),
                _ => [format!("10.1.0.{}", 10 + host), format!("fd00:1::{:x}", 10 + host)],
            };
            let has = [v4, v6];
            let ips = addresses.into_iter().zip(has).filter(|(_, has)| *has).map(|(ip, _)| json!({"ip": ip}));
            let phase = if kind == Kind::Finished { "Succeeded" } else { "Running" };
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": format!("p{number}"), "namespace": namespace, "uid": format!("u{number}"), "labels": labels},
                "spec": {
                    "nodeName": node,
                    "hostNetwork": kind == Kind::HostNetwork,
                    "containers": [{"name": "c", "ports": ports}],
                },
                "status": {"phase": phase, "podIPs": ips.collect::<Vec<_>>()},
            })
        },
    )
}

pub(crate) fn nodes() -> Vec<Value> {
    let node = |name: &str, addresses: [&str; 2]| {
        let listed = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": listed}})
    };
    vec![node(OWN_NODE, OWN_ADDRESSES), node(OTHER_NODE, OTHER_ADDRESSES)]
}

/// A Service of this number, and slices of its backends where it has any.
pub(crate) fn service(number: usize) -> impl Strategy<Value = Vec<Value>> {
    let target = prop_oneof![
        3 => select(vec![53_u16, 80, 90, 8080]).prop_map(|port| json!(port)),
        2 => Just(json!("http")),
    ];
    let node_port = option::weighted(0.4, Just(30000 + number));
    let families = select(vec![(true, true), (true, false), (false, true)]);
    let selector = weighted(0.7, labels(POD_LABELS));
    let external = weighted(0.15, select(vec!["203.0.113.1", "172.18.0.1"]));
    let backends = [10, 11, 12, 13].map(|host| [format!("10.1.0.{host}"), format!("fd00:1::{host:x}")]).concat();
    let backends: Vec<String> =
        backends.into_iter().chain(OUTSIDERS.map(str::to_owned)).chain(OWN_ADDRESSES.map(str::to_owned)).collect();
    let slice = weighted(0.4, (subsequence(backends, 0..=4), select(vec![80_u16, 90])));
    (namespace_name(), families, selector, target, node_port, select(vec!["TCP", "TCP", "UDP"]), external, slice)
        .prop_map(move |(namespace, (v4, v6), selector, target, node_port, protocol, external, slice)| {
            let name = format!("s{number}");
            let addresses = [format!("10.96.0.{}", 1 + number), format!("fd00:96::{}", 1 + number)];
            let ips: Vec<String> =
                addresses.into_iter().zip([v4, v6]).filter(|(_, has)| *has).map(|(address, _)| address).collect();
            let selector = selector.filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()));
            let external = external.filter(|_| number == 0).map(|address| json!([address]));
            let port = json!({"name": "main", "protocol": protocol, "port": 443 + number, "targetPort": target});
            let port = with(port, [("nodePort", node_port.map(|port| json!(port)))]);
            let spec = json!({"clusterIPs": ips, "ports": [port]});
            let mut documents = vec![json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": with(spec, [("selector", selector), ("externalIPs", external)]),
            })];
            for (family, v4) in [("IPv4", true), ("IPv6", false)] {
                let Some((addresses, target)) = &slice else { continue };
                let endpoints: Vec<Value> = addresses
                    .iter()
                    .filter(|address| address.contains('.') == v4)
                    .map(|address| json!({"addresses": [address]}))
                    .collect();
                documents.push(json!({
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": format!("{name}-{}", family.to_lowercase()),
                        "namespace": namespace,
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "addressType": family,
                    "endpoints": endpoints,
                    "ports": [{"name": "main", "protocol": protocol, "port": target}],
                }));
            }
            documents
        })
}
