//! The objects of a cluster as YAML files in a folder, rewritten as a person or a tool would: a new file, then a rename.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use portcullis_testbed::{Node, Pod, Protocol};
use serde_json::{Value, json};

/// Labels by key.
pub(crate) type Labels = BTreeMap<String, String>;

/// A folder of manifests; removed when dropped.
pub(crate) struct Manifests {
    folder: tempfile::TempDir,
}

impl Manifests {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("portcullis-live-").tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.yaml"))
    }

    /// Replaces the file `name`.yaml by one document for each object.
    pub(crate) fn write(&self, name: &str, objects: &[Value]) {
        let documents: Vec<String> = objects.iter().map(|object| serde_saphyr::to_string(object).unwrap()).collect();
        self.write_text(name, &documents.join("---\n"));
    }

    /// Replaces the file `name`.yaml by this text.
    pub(crate) fn write_text(&self, name: &str, text: &str) {
        // The agent leaves files alone whose names begin with a dot.
        let draft = self.path().join(format!(".{name}.draft"));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, self.file(name)).unwrap();
    }

    pub(crate) fn delete(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }
}

/// Splits `namespace/name`.
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap()
}

fn merged(mut labels: Labels, extra: Option<&Labels>) -> Labels {
    labels.extend(extra.cloned().unwrap_or_default());
    labels
}

pub(crate) fn namespace(name: &str, extra: Option<&Labels>) -> Value {
    let labels = merged(Labels::from([("kubernetes.io/metadata.name".into(), name.into())]), extra);
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub(crate) fn node(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses().iter().map(|address| json!({"type": "InternalIP", "address": address.to_string()})).collect();
    let mut ranges = Vec::new();
    if node.v4().is_ok() {
        ranges.push(node.pod_cidr_v4());
    }
    if node.v6().is_ok() {
        ranges.push(node.pod_cidr_v6());
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": addresses},
    })
}

/// The name of a container port of the upstream suite.
pub(crate) fn port_name(protocol: Protocol, port: u16) -> String {
    format!("serve-{port}-{protocol}")
}

/// The protocol as Kubernetes writes it.
pub(crate) fn protocol_name(protocol: Protocol) -> String {
    protocol.to_string().to_uppercase()
}

/// A pod with the label `pod`, one container for each port, and the addresses that it has in the testbed.
pub(crate) fn pod(pod: &Pod, ports: &[(Protocol, u16)], extra: Option<&Labels>) -> Value {
    let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
    pod_at(pod.name(), pod.node().name(), &addresses, ports, extra)
}

/// Like [`pod`], at these addresses.
pub(crate) fn pod_at(
    pod: &str,
    node: &str,
    addresses: &[String],
    ports: &[(Protocol, u16)],
    extra: Option<&Labels>,
) -> Value {
    let (namespace, name) = split(pod);
    let labels = merged(Labels::from([("pod".into(), name.into())]), extra);
    let containers: Vec<Value> = ports
        .iter()
        .map(|&(protocol, port)| {
            let name = port_name(protocol, port);
            let port = json!({"name": name, "containerPort": port, "protocol": protocol_name(protocol)});
            json!({"name": name, "image": "server", "ports": [port]})
        })
        .collect();
    let pod_ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}"), "labels": labels},
        "spec": {"nodeName": node, "containers": containers},
        "status": {"phase": "Running", "podIP": addresses.first(), "podIPs": pod_ips},
    })
}

/// A Service in front of some pods, and its EndpointSlices. `ports` are service ports and target ports.
pub(crate) fn service(name: &str, vips: &[IpAddr], ports: &[(Protocol, u16, u16)], backends: &[Pod]) -> Vec<Value> {
    let (namespace, name) = split(name);
    let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
    let named = |protocol: Protocol, port: u16| format!("{protocol}-{port}");
    let service_ports: Vec<Value> = ports
        .iter()
        .map(|&(protocol, port, target)| {
            json!({"name": named(protocol, port), "protocol": protocol_name(protocol), "port": port, "targetPort": target})
        })
        .collect();
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": vips[0], "clusterIPs": vips, "ports": service_ports},
    })];
    for v4 in [true, false] {
        let endpoints: Vec<Value> = backends
            .iter()
            .flat_map(|pod| {
                let of_family = pod.addresses().into_iter().filter(move |address| address.is_ipv4() == v4);
                of_family.map(|address| {
                    let (namespace, name) = split(pod.name());
                    json!({
                        "addresses": [address.to_string()], "nodeName": pod.node().name(),
                        "conditions": {"ready": true, "serving": true, "terminating": false},
                        "targetRef": {"kind": "Pod", "namespace": namespace, "name": name},
                    })
                })
            })
            .collect();
        if endpoints.is_empty() {
            continue;
        }
        let family = if v4 { "IPv4" } else { "IPv6" };
        let slice_ports: Vec<Value> = ports
            .iter()
            .map(|&(protocol, port, target)| {
                json!({"name": named(protocol, port), "protocol": protocol_name(protocol), "port": target})
            })
            .collect();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", family.to_lowercase()), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family, "endpoints": endpoints, "ports": slice_ports,
        }));
    }
    objects
}

/// A NetworkPolicy.
pub(crate) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}
