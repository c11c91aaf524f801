//! Objects as their authors and kubelets write them.

use portcullis_testbed::Pod;
use serde_json::{Value, json};

/// Where NetworkPolicies of a namespace are.
pub(crate) fn policies(namespace: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
}

/// Where pods of a namespace are.
pub(crate) fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

pub(crate) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

pub(crate) fn node(name: &str, address: &str, taints: &[&str]) -> Value {
    let taints: Vec<Value> = taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": taints},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// A pod that runs at these addresses.
pub(crate) fn pod_at(name: &str, node: &str, addresses: &[String]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"pod": name}},
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false,
            "containers": [{"name": "server", "image": "server", "ports": [{"name": "http", "containerPort": 80}]}],
        },
        "status": {"phase": "Running", "podIP": addresses[0]["ip"], "podIPs": addresses},
    })
}

/// The object of a pod of the testbed.
pub(crate) fn pod(pod: &Pod) -> Value {
    let name = pod.name().split_once('/').unwrap().1;
    pod_at(name, pod.node().name(), &pod.addresses().iter().map(ToString::to_string).collect::<Vec<_>>())
}

pub(crate) fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec,
    })
}

/// A Service in front of pods with a label `pod`.
pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"pod": name}, "ports": [{"name": "http", "port": 80}]},
    })
}

pub(crate) fn slice(service: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    })
}
