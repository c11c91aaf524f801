//! The objects of a large cluster, as their authors and kubelets write them. The same number always gives the same object.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Policies of one namespace.
const POLICIES: u32 = 5;
/// Services of one namespace.
const SERVICES: u32 = 2;
/// Deployments of one namespace; every tenth pod is of a StatefulSet, whose pods differ in their labels.
const APPS: u32 = 10;
/// What namespaces belong to.
const TEAMS: u32 = 50;
/// Where pods of other nodes have their addresses, and Services theirs.
const PODS_AT: u32 = 0x0a80_0000;
const SERVICES_AT: u32 = 0x0a00_0100;

/// How large the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) pods: u32,
    pub(crate) policies: u32,
    pub(crate) nodes: u32,
    /// Of the pods, those of the node under test.
    pub(crate) local: u32,
}

impl Size {
    pub(crate) fn namespaces(&self) -> u32 {
        self.policies.div_ceil(POLICIES).max(1)
    }

    pub(crate) fn services(&self) -> u32 {
        self.namespaces() * SERVICES
    }

    /// Pods that run elsewhere.
    pub(crate) fn remote(&self) -> u32 {
        self.pods.saturating_sub(self.local)
    }
}

/// The name of a namespace.
pub(crate) fn namespace_name(number: u32) -> String {
    format!("team-{}-project-{number}", number % TEAMS)
}

pub(crate) fn namespace(number: u32) -> Value {
    let labels = json!({"team": format!("team-{}", number % TEAMS), "environment": environment(number)});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace_name(number), "labels": labels}})
}

fn environment(number: u32) -> &'static str {
    if number.is_multiple_of(3) { "production" } else { "staging" }
}

pub(crate) fn node(number: u32) -> Value {
    let address = Ipv4Addr::from(0x0af0_0000 + number);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(number), "labels": {"kubernetes.io/os": "linux", "agentpool": "nodepool1"}},
        "spec": {"providerID": format!("azure:///virtualMachines/{number}")},
        "status": {"addresses": [{"type": "InternalIP", "address": address.to_string()}]},
    })
}

fn node_name(number: u32) -> String {
    format!("aks-nodepool1-{number:08}-vmss")
}

/// Who a pod is: namespace, app, and its number among the pods of its namespace.
#[derive(Clone, Copy, Debug)]
struct Place {
    namespace: u32,
    app: u32,
    index: u32,
}

fn place(size: &Size, number: u32) -> Place {
    let index = number / size.namespaces();
    Place { namespace: number % size.namespaces(), app: index % APPS, index }
}

/// A pod of another node. Numbers beyond those of the cluster are pods that come later.
pub(crate) fn pod(size: &Size, number: u32) -> Value {
    let place = place(size, number);
    let Place { namespace, app, index } = place;
    let name = match app {
        9 => format!("app-9-{}", index / APPS),
        _ => format!("app-{app}-{:08x}-{number:05x}", template(place)),
    };
    let node = node_name(number.wrapping_mul(7919) % size.nodes.max(1));
    let address = Ipv4Addr::from(PODS_AT + number);
    pod_at(&namespace_name(namespace), &name, labels(place, &name), &node, &address.to_string(), app)
}

/// A pod of the node under test.
pub(crate) fn local_pod(size: &Size, number: u32, node: &str, address: &str) -> Value {
    let (namespace, name) = local_name(size, number);
    // Half of them are named by others' policies.
    let place = Place { namespace: number % size.namespaces(), app: 3 + number % 2, index: number };
    pod_at(&namespace, &name, labels(place, &name), node, address, place.app)
}

/// Namespace and name of a pod of the node under test.
pub(crate) fn local_name(size: &Size, number: u32) -> (String, String) {
    (namespace_name(number % size.namespaces()), format!("local-{number}"))
}

/// What a Deployment's ReplicaSet is called after.
fn template(place: Place) -> u32 {
    (place.namespace * APPS + place.app).wrapping_mul(0x9e37_79b1)
}

fn labels(place: Place, name: &str) -> Value {
    let Place { namespace, app, index } = place;
    let mut labels = json!({
        "app": format!("app-{app}"),
        "app.kubernetes.io/managed-by": "Helm",
        "tier": if app.is_multiple_of(2) { "front" } else { "back" },
        "version": format!("v{}", namespace % 3),
    });
    if app == 9 {
        labels["statefulset.kubernetes.io/pod-name"] = name.into();
        labels["apps.kubernetes.io/pod-index"] = (index / APPS).to_string().into();
    } else {
        labels["pod-template-hash"] = format!("{:08x}", template(place)).into();
    }
    labels
}

fn pod_at(namespace: &str, name: &str, labels: Value, node: &str, address: &str, app: u32) -> Value {
    let started = "2026-01-01T00:00:00Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": started});
    let image = format!("registry.example.com/teams/app-{app}:1.{app}.0");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "server", "image": image, "imagePullPolicy": "IfNotPresent",
                "ports": [{"name": "http", "containerPort": 8000 + app}, {"name": "metrics", "containerPort": 9090}],
                "env": [
                    {"name": "APP", "value": format!("app-{app}")},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 10},
            }],
            "tolerations": [{
                "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300,
            }],
        },
        "status": {
            "phase": "Running", "hostIP": "10.240.0.4", "podIP": address, "podIPs": [{"ip": address}],
            "qosClass": "Burstable", "startTime": started,
            "conditions": [
                condition("PodScheduled"), condition("Initialized"), condition("ContainersReady"), condition("Ready"),
            ],
            "containerStatuses": [{
                "name": "server", "image": image, "imageID": format!("sha256:{app:064x}"), "ready": true, "started": true,
                "restartCount": 0, "containerID": format!("containerd://{app:064x}"),
                "state": {"running": {"startedAt": started}},
            }],
        },
    })
}

/// Namespace and name of a policy.
pub(crate) fn policy_name(size: &Size, number: u32) -> (String, String) {
    let (namespace, kind) = (number % size.namespaces(), number / size.namespaces());
    let name = ["default-deny-but-here", "front-end", "other-team", "dns", "outside"];
    (namespace_name(namespace), format!("{}-{kind}", name[(kind % POLICIES) as usize]))
}

/// A policy; `port` makes versions of it that differ. The first kinds select all pods of their namespace, the others one
/// tier, and all say in both directions what the first rule says.
pub(crate) fn policy(size: &Size, number: u32, port: u16) -> Value {
    let (namespace, name) = policy_name(size, number);
    let place = number % size.namespaces();
    let kind = number / size.namespaces() % POLICIES;
    let tcp = |port: Value| json!([{"protocol": "TCP", "port": port}]);
    let (peer, ports) = match kind {
        0 => (json!({"podSelector": {}}), json!([])),
        1 => (json!({"podSelector": {"matchLabels": {"app": "app-1"}}}), tcp(json!("http"))),
        2 => {
            let team = json!({"matchLabels": {"team": format!("team-{}", (place + 1) % TEAMS)}});
            let front = json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["front"]}]});
            let ports = json!([{"protocol": "TCP", "port": port, "endPort": port + 10}]);
            (json!({"namespaceSelector": team, "podSelector": front}), ports)
        }
        3 => {
            let dns = json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]);
            (json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "app-3"}}}), dns)
        }
        _ => {
            let net = format!("203.0.{}.0/24", place % 250);
            (json!({"ipBlock": {"cidr": net, "except": [format!("203.0.{}.16/28", place % 250)]}}), tcp(json!(443)))
        }
    };
    let subject = if kind < 3 { json!({}) } else { json!({"matchLabels": {"tier": "front"}}) };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "podSelector": subject, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [peer], "ports": ports}], "egress": [{"to": [peer], "ports": ports}],
        },
    })
}

/// Namespace and name of a Service.
fn service_name(size: &Size, number: u32) -> (String, String) {
    (namespace_name(number % size.namespaces()), format!("app-{}", number / size.namespaces()))
}

pub(crate) fn service(size: &Size, number: u32) -> Value {
    let (namespace, name) = service_name(size, number);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": name}, "clusterIP": Ipv4Addr::from(SERVICES_AT + number).to_string(),
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    })
}

/// The backends of a Service, as the controller would write them.
pub(crate) fn slice(size: &Size, number: u32) -> Value {
    let (namespace, service) = service_name(size, number);
    let (place, app) = (number % size.namespaces(), number / size.namespaces());
    let in_namespace = (place..size.remote()).step_by(size.namespaces() as usize);
    let pods = in_namespace.filter(|pod| pod / size.namespaces() % APPS == app).take(100);
    let endpoints: Vec<Value> = pods
        .map(|pod| {
            let address = Ipv4Addr::from(PODS_AT + pod).to_string();
            json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8000 + app}],
    })
}
