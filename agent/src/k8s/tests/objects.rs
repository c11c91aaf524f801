//! Single objects, as servers write them and as they should never be.

use serde_json::{Value, json};

use super::super::failure::Failure;
use super::super::kind::Kind;
use super::super::object::{Marker, MarkerDetails, Outcome, read, read_key};
use crate::convert;
use crate::model::{Object, ObjectKey};

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u-1", "resourceVersion": "42", "generation": 3,
            "labels": {"app": "web"}, "annotations": {"a": "b"}, "finalizers": null,
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {
            "nodeName": "n1", "hostNetwork": false,
            "containers": [
                {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 80}], "env": [{"name": "x"}]},
                {"name": "bare", "ports": null},
            ],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]},
                {"name": "setup", "ports": [{"name": "early", "containerPort": 1}]},
            ],
            "tolerations": [{"operator": "Exists"}],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn full<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a test's own object")
}

/// What is read lightly means what the whole object means.
#[test]
fn reduced_objects_mean_what_whole_ones_mean() {
    let node = json!({
        "metadata": {"name": "n1", "uid": "u", "resourceVersion": "1"},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"], "taints": [{"key": "k", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}],
            "images": [{"names": ["a"], "sizeBytes": 5}]},
    });
    let service = json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http", "nodePort": 30080}], "externalIPs": ["203.0.113.1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}},
    });
    let slice = json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "web-0"}, "zone": "1"},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false}},
            {"addresses": ["10.0.0.3"]},
        ],
    });
    let namespace =
        json!({"metadata": {"name": "shop", "labels": {"team": "a"}}, "spec": {"finalizers": ["kubernetes"]}});
    let rows: [(Kind, Value, Object); 5] = [
        (Kind::Pod, pod(), Object::Pod(convert::pod(&full(pod())).unwrap().value)),
        (Kind::Node, node.clone(), Object::Node(convert::node(&full(node)).unwrap().value)),
        (Kind::Service, service.clone(), Object::Service(convert::service(&full(service)).unwrap().value)),
        (
            Kind::EndpointSlice,
            slice.clone(),
            Object::EndpointSlice(convert::endpoint_slice(&full(slice)).unwrap().value.unwrap()),
        ),
        (Kind::Namespace, namespace.clone(), Object::Namespace(convert::namespace(&full(namespace)).unwrap().value)),
    ];
    for (kind, value, expected) in rows {
        let (_, found) = read(kind, &value.to_string());
        match found.unwrap().outcome {
            Outcome::Accepted(Some(object), _) => assert_eq!(object, expected, "{kind}"),
            other => panic!("{kind}: {other:?}"),
        }
    }
    let (version, found) = read(Kind::Pod, &pod().to_string());
    let identity = found.unwrap().identity;
    assert_eq!((version.as_deref(), identity.uid.as_str(), identity.generation), (Some("42"), "u-1", 3));
}

/// Wrong types anywhere: the object is named, and the field.
#[test]
fn wrong_types_are_told_with_their_field() {
    let with = |pointer: &str, value: Value| {
        let mut pod = pod();
        *pod.pointer_mut(pointer).unwrap() = value;
        pod
    };
    let policy = |spec: Value| json!({"metadata": {"name": "p", "namespace": "shop", "uid": "u"}, "spec": spec});
    let rows = [
        (Kind::Pod, with("/spec/containers", json!("none")), "Pod shop/web-0", "spec.containers"),
        (
            Kind::Pod,
            with("/spec/containers/0/ports/0/containerPort", json!("80")),
            "Pod shop/web-0",
            "spec.containers[0].ports[0].containerPort",
        ),
        (Kind::Pod, with("/status/podIPs/1/ip", json!("fd00::x")), "Pod shop/web-0", "status.podIPs[1].ip"),
        (Kind::Pod, with("/metadata/labels/app", json!("x".repeat(64))), "Pod shop/web-0", "metadata.labels[app]"),
        (
            Kind::NetworkPolicy,
            policy(json!({"podSelector": {}, "ingress": [{"from": 5}]})),
            "NetworkPolicy shop/p",
            "spec.ingress[0].from",
        ),
        (
            Kind::NetworkPolicy,
            policy(json!({"podSelector": {}, "inngress": []})),
            "NetworkPolicy shop/p",
            "spec.inngress",
        ),
        (Kind::NetworkPolicy, policy(json!("all")), "NetworkPolicy shop/p", "spec"),
    ];
    for (kind, value, object, field) in rows {
        let (_, found) = read(kind, &value.to_string());
        let found = found.unwrap_or_else(|invalid| panic!("{value}: {invalid}"));
        assert_eq!(found.key.to_string(), object, "{value}");
        match found.outcome {
            Outcome::Refused(invalid) => assert_eq!(invalid[0].field, field, "{value}: {invalid:?}"),
            accepted @ Outcome::Accepted(..) => panic!("{value}: {accepted:?}"),
        }
    }
    for value in [json!({}), json!({"metadata": {"name": 5}}), json!([]), json!({"metadata": {"name": "x"}})] {
        let (_, found) = read(Kind::Pod, &value.to_string());
        assert!(found.is_err(), "it has no name: {value}");
    }
    let (_, key) = read_key(Kind::Node, r#"{"metadata": {"name": "n1"}, "spec": "broken"}"#);
    assert_eq!(key.unwrap(), ObjectKey::Node("n1".into()), "what is deleted is known by its name alone");
}

#[test]
fn answers_with_errors_are_understood() {
    let other = |reason: &str, code, seconds: Option<u64>| Failure::Other {
        reason: reason.into(),
        code,
        retry_after: seconds.map(std::time::Duration::from_secs),
    };
    let failure = |code, reason: &str, message: &str, seconds: Option<u32>| {
        let details = seconds.map(|retry_after_seconds| MarkerDetails { retry_after_seconds });
        let (reason, message) = (reason.to_owned(), message.to_owned());
        Failure::of_marker(Marker { code, reason, message, details, ..Marker::default() }, None)
    };
    let old = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    let rows = [
        (410, "Expired", "too old resource version: 1 (5)", None, Failure::Expired),
        (410, "Gone", "", None, Failure::Expired),
        (422, "Invalid", old, None, Failure::NoStreamingLists),
        (429, "TooManyRequests", "slow down", Some(7), other("the API server answers 429: slow down", 429, Some(7))),
        (500, "InternalError", "", Some(0), other("the API server answers 500: InternalError", 500, None)),
    ];
    for (code, reason, message, retry_after, expected) in rows {
        assert_eq!(failure(code, reason, message, retry_after), expected, "{code} {reason}");
    }
    for code in [401, 403] {
        let failure = failure(code, "", "pods is forbidden", None);
        assert!(matches!(&failure, Failure::Refused(said) if said.contains("pods is forbidden")), "{failure:?}");
    }
}
