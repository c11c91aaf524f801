use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::{endpoint_slice, namespace, node, pod, service};
use super::{fields, parse, warned};
use crate::model::{NamedPort, Protocol, Selector, TargetPort};

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("the test's own address")).collect()
}

#[test]
fn a_pods_addresses_come_from_its_status() {
    let rows: &[(&str, Value, &[&str], &[&str])] = &[
        (
            "podIPs",
            json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "podIP": "10.9.9.9"}),
            &["10.0.0.1", "fd00::1"],
            &[],
        ),
        ("podIP alone", json!({"podIP": "10.0.0.1"}), &["10.0.0.1"], &[]),
        ("empty podIPs", json!({"podIPs": [], "podIP": "fd00::1"}), &["fd00::1"], &[]),
        ("an odd spelling", json!({"podIP": "010.0.0.1"}), &["10.0.0.1"], &["status.podIP"]),
        ("IPv4-mapped", json!({"podIPs": [{"ip": "::ffff:10.0.0.1"}]}), &["10.0.0.1"], &["status.podIPs[0].ip"]),
        ("no address", json!({"phase": "Running"}), &[], &["status.podIPs"]),
        ("no status", json!(null), &[], &["status.podIPs"]),
        ("finished without address", json!({"phase": "Succeeded"}), &[], &[]),
    ];
    for (what, status, expected, warnings) in rows {
        let converted = pod(&parse(json!({"metadata": {"name": "a"}, "status": status}))).expect(what);
        assert_eq!(converted.value.addresses, addresses(expected), "{what}");
        assert_eq!(warned(&converted), *warnings, "{what}");
    }
}

#[test]
fn a_pods_phase_and_network_say_whether_it_counts() {
    let rows: &[(&str, Value, Value, bool, bool)] = &[
        ("no status: running", json!({}), json!(null), false, false),
        ("Pending", json!({}), json!({"phase": "Pending"}), false, false),
        ("Running", json!({}), json!({"phase": "Running"}), false, false),
        ("Unknown", json!({}), json!({"phase": "Unknown"}), false, false),
        ("Succeeded", json!({}), json!({"phase": "Succeeded"}), true, false),
        ("Failed", json!({}), json!({"phase": "Failed"}), true, false),
        ("hostNetwork", json!({"hostNetwork": true}), json!(null), false, true),
        ("no hostNetwork", json!({"hostNetwork": false}), json!(null), false, false),
    ];
    for (what, spec, status, finished, host_network) in rows {
        let object = json!({"metadata": {"name": "a", "uid": "u"}, "spec": spec, "status": status});
        let converted = pod(&parse(object)).expect(what).value;
        assert_eq!((converted.finished, converted.host_network), (*finished, *host_network), "{what}");
        assert_eq!(&*converted.uid, "u");
    }
}

#[test]
fn a_pods_ports_are_those_of_containers_that_last() {
    let spec = json!({
        "nodeName": "n1",
        "containers": [
            {"name": "a", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]},
            {"name": "b", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]},
        ],
        "initContainers": [
            {"name": "once", "ports": [{"name": "gone", "containerPort": 1}]},
            {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 9, "protocol": "SCTP"}]},
        ],
    });
    let converted =
        pod(&parse(json!({"metadata": {"name": "a"}, "spec": spec, "status": {"podIP": "10.0.0.1"}}))).expect("valid");
    let port = |name: &str, protocol, number| NamedPort { name: name.into(), protocol, number };
    let expected = [
        port("http", Protocol::TCP, 80),
        port("", Protocol::UDP, 53),
        port("", Protocol::TCP, 8080),
        port("admin", Protocol::SCTP, 9),
    ];
    assert_eq!(converted.value.ports, expected, "a name goes to its first container");
    assert_eq!(warned(&converted), ["spec.containers[1].ports[0].name"]);
    assert_eq!(converted.value.node.as_deref(), Some("n1"));
}

#[test]
fn pods_that_an_api_server_refuses() {
    let port =
        |port: Value| json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "ports": [port]}]}});
    let status = |status: Value| json!({"metadata": {"name": "a"}, "status": status});
    let two = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "ports": [
        {"name": "x", "containerPort": 1}, {"name": "x", "containerPort": 2, "protocol": "UDP"}]}]}});
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("a bad name", json!({"metadata": {"name": "A"}}), &["metadata.name"]),
        ("a bad namespace", json!({"metadata": {"name": "a", "namespace": "-"}}), &["metadata.namespace"]),
        ("a bad label", json!({"metadata": {"name": "a", "labels": {"k/": "v"}}}), &["metadata.labels"]),
        ("port 0", port(json!({"containerPort": 0})), &["spec.containers[0].ports[0].containerPort"]),
        (
            "a bad protocol",
            port(json!({"containerPort": 1, "protocol": "tcp"})),
            &["spec.containers[0].ports[0].protocol"],
        ),
        ("a bad port name", port(json!({"containerPort": 1, "name": "1"})), &["spec.containers[0].ports[0].name"]),
        ("one name twice in a container", two, &["spec.containers[0].ports[1].name"]),
        ("no address", status(json!({"podIPs": [{"ip": "10.0.0"}]})), &["status.podIPs[0].ip"]),
        ("an address with a zone", status(json!({"podIP": "fe80::1%eth0"})), &["status.podIP"]),
        (
            "two addresses of one family",
            status(json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]})),
            &["status.podIPs[1]"],
        ),
    ];
    for (what, object, expected) in rows {
        let refused = pod(&parse(object)).expect_err(what);
        assert_eq!(fields(&refused), expected, "{what}");
    }
}

#[test]
fn a_namespace_always_carries_its_name_as_a_label() {
    let rows: &[(&str, Value, &[&str])] = &[
        ("no labels", json!({"name": "shop"}), &[]),
        ("other labels", json!({"name": "shop", "labels": {"env": "test"}}), &[]),
        (
            "another name",
            json!({"name": "shop", "labels": {"kubernetes.io/metadata.name": "x"}}),
            &["metadata.labels[kubernetes.io/metadata.name]"],
        ),
    ];
    for (what, metadata, warnings) in rows {
        let converted = namespace(&parse(json!({"metadata": metadata}))).expect(what);
        assert_eq!(converted.value.labels.get("kubernetes.io/metadata.name"), Some("shop"), "{what}");
        assert_eq!(converted.value.labels.get("env").is_some(), metadata["labels"]["env"].is_string(), "{what}");
        assert_eq!(warned(&converted), *warnings, "{what}");
    }
    let refused = namespace(&parse(json!({"metadata": {"name": "a.b"}}))).expect_err("a dot in a namespace's name");
    assert_eq!(fields(&refused), ["metadata.name"]);
}

#[test]
fn a_node_has_its_addresses_and_ranges() {
    let object = json!({
        "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.0.9.0/24", "podCIDRs": ["10.0.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
        ]},
    });
    let converted = node(&parse(object)).expect("valid").value;
    assert_eq!(converted.addresses, addresses(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(converted.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.1.0/24", "fd00:1::/64"]);
    let single = node(&parse(json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.9.0/24"}}))).expect("valid");
    assert_eq!(single.value.pod_cidrs[0].to_string(), "10.0.9.0/24", "podCIDR where podCIDRs is missing");
    let bad = json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["x"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "n1"}]}});
    let refused = node(&parse(bad)).expect_err("neither parses");
    assert_eq!(fields(&refused), ["status.addresses[0].address", "spec.podCIDRs[0]"]);
}

#[test]
fn a_service_has_its_addresses_and_ports() {
    let object = json!({
        "metadata": {"name": "web"},
        "spec": {
            "clusterIP": "10.1.0.1", "clusterIPs": ["10.1.0.1", "fd00::1"], "externalIPs": ["192.0.2.9"],
            "selector": {"app": "web"},
            "ports": [
                {"name": "a", "port": 80},
                {"name": "b", "port": 81, "targetPort": 8081, "nodePort": 30081, "protocol": "UDP"},
                {"name": "c", "port": 82, "targetPort": "http"},
                {"name": "d", "port": 83, "targetPort": 0, "nodePort": 0},
            ],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"hostname": "lb"}, {"ip": "192.0.2.9", "ipMode": "VIP"},
            {"ip": "192.0.2.10", "ipMode": "Proxy"}]}},
    });
    let converted = service(&parse(object)).expect("valid").value;
    assert_eq!(converted.cluster_ips, addresses(&["10.1.0.1", "fd00::1"]));
    assert_eq!(converted.external_ips, addresses(&["192.0.2.9", "192.0.2.8"]));
    assert_eq!(converted.selector, Some(Selector::All(vec![Selector::In("app".into(), ["web".into()].into())])));
    let ports: Vec<_> = converted.ports.iter().map(|p| (p.port, p.target.clone(), p.node_port, p.protocol)).collect();
    assert_eq!(
        ports,
        [
            (80, TargetPort::Number(80), None, Protocol::TCP),
            (81, TargetPort::Number(8081), Some(30081), Protocol::UDP),
            (82, TargetPort::Named("http".into()), None, Protocol::TCP),
            (83, TargetPort::Number(83), None, Protocol::TCP),
        ]
    );
}

#[test]
fn a_service_may_have_neither_address_nor_selector() {
    let rows: &[(&str, Value, &[&str], bool)] = &[
        ("headless", json!({"clusterIPs": ["None"], "clusterIP": "None", "selector": {"a": "b"}}), &[], true),
        ("not yet given an address", json!({"selector": {"a": "b"}}), &[], true),
        ("clusterIP alone", json!({"clusterIP": "10.1.0.1"}), &["10.1.0.1"], false),
        ("an empty selector", json!({"clusterIP": "10.1.0.1", "selector": {}}), &["10.1.0.1"], false),
        ("ExternalName", json!({"type": "ExternalName", "externalName": "x", "selector": {"a": "b"}}), &[], false),
    ];
    for (what, spec, cluster_ips, selects) in rows {
        let converted = service(&parse(json!({"metadata": {"name": "web"}, "spec": spec}))).expect(what).value;
        assert_eq!(converted.cluster_ips, addresses(cluster_ips), "{what}");
        assert_eq!(converted.selector.is_some(), *selects, "{what}");
    }
}

#[test]
fn services_that_an_api_server_refuses() {
    let spec = |spec: Value| json!({"metadata": {"name": "web"}, "spec": spec});
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("a bad name", json!({"metadata": {"name": "a.b"}}), &["metadata.name"]),
        ("a bad address", spec(json!({"clusterIPs": ["x"]})), &["spec.clusterIPs[0]"]),
        ("a bad external address", spec(json!({"externalIPs": ["x"]})), &["spec.externalIPs[0]"]),
        ("a bad label", spec(json!({"selector": {"a": "b c"}})), &["spec.selector[a]"]),
        ("port 0", spec(json!({"ports": [{"port": 0}]})), &["spec.ports[0].port"]),
        ("a bad nodePort", spec(json!({"ports": [{"port": 1, "nodePort": 65536}]})), &["spec.ports[0].nodePort"]),
        ("a bad targetPort", spec(json!({"ports": [{"port": 1, "targetPort": "80"}]})), &["spec.ports[0].targetPort"]),
        ("a bad protocol", spec(json!({"ports": [{"port": 1, "protocol": "udp"}]})), &["spec.ports[0].protocol"]),
        (
            "two ports, one unnamed",
            spec(json!({"ports": [{"name": "a", "port": 1}, {"port": 2}]})),
            &["spec.ports[1].name"],
        ),
        (
            "two ports of one name",
            spec(json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]})),
            &["spec.ports[1].name"],
        ),
    ];
    for (what, object, expected) in rows {
        let refused = service(&parse(object)).expect_err(what);
        assert_eq!(fields(&refused), expected, "{what}");
    }
}

fn slice(endpoints: Value, ports: Value) -> Value {
    let metadata = json!({"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}});
    json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports})
}

#[test]
fn an_endpoint_counts_while_it_may_get_traffic() {
    let rows: &[(&str, Value, bool)] = &[
        ("no conditions", json!(null), true),
        ("ready not told", json!({}), true),
        ("ready", json!({"ready": true}), true),
        ("not ready", json!({"ready": false}), false),
        ("serving, not ready", json!({"ready": false, "serving": true}), false),
        ("serving while terminating", json!({"ready": false, "serving": true, "terminating": true}), true),
        ("terminating, no longer serving", json!({"ready": false, "serving": false, "terminating": true}), false),
    ];
    for (what, conditions, counts) in rows {
        let object = slice(json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]), json!([{"port": 80}]));
        let converted = endpoint_slice(&parse(object)).expect(what).value.expect("it belongs to a Service");
        assert_eq!(!converted.addresses.is_empty(), *counts, "{what}");
        assert_eq!(converted.service.to_string(), "default/web");
        assert_eq!(converted.ports, [("".into(), Protocol::TCP, 80)]);
    }
}

#[test]
fn slices_of_no_use_and_slices_refused() {
    let mut orphan = slice(json!([]), json!([]));
    orphan["metadata"]["labels"] = json!({});
    assert_eq!(endpoint_slice(&parse(orphan)).expect("valid").value, None, "it belongs to no Service");
    let mut names = slice(json!([{"addresses": ["example.com"]}]), json!([]));
    names["addressType"] = json!("FQDN");
    assert_eq!(endpoint_slice(&parse(names)).expect("valid").value, None, "host names are no addresses");
    let mut odd_type = slice(json!([]), json!([]));
    odd_type["addressType"] = json!("ipv4");
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("a bad address", slice(json!([{"addresses": ["x"]}]), json!([])), &["endpoints[0].addresses[0]"]),
        ("the other family", slice(json!([{"addresses": ["fd00::1"]}]), json!([])), &["endpoints[0].addresses[0]"]),
        ("a bad port", slice(json!([]), json!([{"port": 0}])), &["ports[0].port"]),
        ("a bad protocol", slice(json!([]), json!([{"port": 1, "protocol": "x"}])), &["ports[0].protocol"]),
        ("a bad type", odd_type, &["addressType"]),
    ];
    for (what, object, expected) in rows {
        let refused = endpoint_slice(&parse(object)).expect_err(what);
        assert_eq!(fields(&refused), expected, "{what}");
    }
}
