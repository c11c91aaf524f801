use serde_json::{Value, json};

use super::super::network_policy;
use super::{fields, parse};

fn refused(spec: Value) -> Vec<String> {
    let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    match network_policy(&parse(object)) {
        Ok(_) => Vec::new(),
        Err(invalid) => fields(&invalid).into_iter().map(str::to_owned).collect(),
    }
}

fn assert_refusals(rows: Vec<(&str, Value, &[&str])>) {
    for (what, spec, expected) in rows {
        assert_eq!(refused(spec.clone()), expected, "{what}: {spec}");
    }
}

#[test]
fn ports_that_an_api_server_refuses() {
    let port = |port: Value| json!({"ingress": [{}, {"ports": [{"port": 80}, port]}]});
    let at = |field| -> &'static [&'static str] {
        match field {
            "port" => &["spec.ingress[1].ports[1].port"],
            "endPort" => &["spec.ingress[1].ports[1].endPort"],
            _ => &["spec.ingress[1].ports[1].protocol"],
        }
    };
    assert_refusals(vec![
        ("the lowest port", port(json!({"port": 1})), &[]),
        ("the highest port", port(json!({"port": 65535})), &[]),
        ("port 0", port(json!({"port": 0})), at("port")),
        ("port 65536", port(json!({"port": 65536})), at("port")),
        ("a negative port", port(json!({"port": -1})), at("port")),
        ("endPort equal to port", port(json!({"port": 80, "endPort": 80})), &[]),
        ("endPort above port", port(json!({"port": 80, "endPort": 81})), &[]),
        ("endPort below port", port(json!({"port": 80, "endPort": 79})), at("endPort")),
        ("endPort out of range", port(json!({"port": 80, "endPort": 65536})), at("endPort")),
        ("endPort without port", port(json!({"endPort": 80})), at("endPort")),
        ("endPort with a named port", port(json!({"port": "http", "endPort": 80})), at("endPort")),
        ("a named port", port(json!({"port": "http"})), &[]),
        ("a number in quotes", port(json!({"port": "80"})), at("port")),
        ("a name too long", port(json!({"port": "a-port-of-16-abc"})), at("port")),
        ("a name in capitals", port(json!({"port": "HTTP"})), at("port")),
        ("SCTP", port(json!({"port": 80, "protocol": "SCTP"})), &[]),
        ("ICMP", port(json!({"protocol": "ICMP"})), at("protocol")),
        ("a protocol in small letters", port(json!({"port": 80, "protocol": "tcp"})), at("protocol")),
        ("an empty protocol", port(json!({"port": 80, "protocol": ""})), at("protocol")),
    ]);
}

#[test]
fn peers_that_an_api_server_refuses() {
    let peer = |peer: Value| json!({"egress": [{"to": [{"podSelector": {}}, peer]}]});
    let block = |cidr: &str, except: &[&str]| peer(json!({"ipBlock": {"cidr": cidr, "except": except}}));
    let whole: &[&str] = &["spec.egress[0].to[1]"];
    let cidr: &[&str] = &["spec.egress[0].to[1].ipBlock.cidr"];
    let except: &[&str] = &["spec.egress[0].to[1].ipBlock.except[0]"];
    let second: &[&str] = &["spec.egress[0].to[1].ipBlock.except[1]"];
    assert_refusals(vec![
        ("nothing set", peer(json!({})), whole),
        ("ipBlock with podSelector", peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})), whole),
        (
            "ipBlock with namespaceSelector",
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "namespaceSelector": {}})),
            whole,
        ),
        ("no cidr", peer(json!({"ipBlock": {}})), cidr),
        ("an address without prefix length", block("10.0.0.0", &[]), cidr),
        ("a prefix too long", block("10.0.0.0/33", &[]), cidr),
        ("an IPv6 prefix too long", block("2001:db8::/129", &[]), cidr),
        ("a prefix with a sign", block("10.0.0.0/+8", &[]), cidr),
        ("no address", block("localhost/8", &[]), cidr),
        ("an octet too large", block("10.0.0.256/32", &[]), cidr),
        ("three octets", block("10.0.0/24", &[]), cidr),
        ("five octets", block("10.0.0.0.0/24", &[]), cidr),
        ("a zone", block("fe80::1%eth0/64", &[]), cidr),
        ("blanks", block(" 10.0.0.0/8", &[]), cidr),
        ("except inside", block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.1/32"]), &[]),
        ("except equal to cidr", block("10.0.0.0/8", &["10.0.0.0/8"]), except),
        ("except equal to cidr once masked", block("10.0.0.0/8", &["10.1.1.1/8"]), except),
        ("except wider than cidr", block("10.0.0.0/8", &["10.0.0.0/7"]), except),
        ("except elsewhere", block("10.0.0.0/8", &["10.1.0.0/16", "11.0.0.0/16"]), second),
        ("except of the other family", block("10.0.0.0/8", &["2001:db8::/64"]), except),
        ("except that does not parse", block("10.0.0.0/8", &["10.1"]), except),
        ("a mapped except equal to cidr", block("10.0.0.0/8", &["::ffff:10.0.0.0/104"]), except),
        ("the whole of IPv4", block("0.0.0.0/0", &["10.0.0.0/8"]), &[]),
        ("the whole of IPv6", block("::/0", &["2001:db8::/32"]), &[]),
    ]);
}

#[test]
fn selectors_that_an_api_server_refuses() {
    let expression = |expression: Value| json!({"podSelector": {"matchExpressions": [expression]}});
    let labels = |labels: Value| json!({"podSelector": {"matchLabels": labels}});
    let values: &[&str] = &["spec.podSelector.matchExpressions[0].values"];
    assert_refusals(vec![
        ("In with values", expression(json!({"key": "a", "operator": "In", "values": ["x"]})), &[]),
        ("In without values", expression(json!({"key": "a", "operator": "In"})), values),
        ("NotIn with an empty list", expression(json!({"key": "a", "operator": "NotIn", "values": []})), values),
        ("Exists", expression(json!({"key": "a", "operator": "Exists"})), &[]),
        ("Exists with an empty list", expression(json!({"key": "a", "operator": "Exists", "values": []})), &[]),
        ("Exists with values", expression(json!({"key": "a", "operator": "Exists", "values": ["x"]})), values),
        (
            "DoesNotExist with values",
            expression(json!({"key": "a", "operator": "DoesNotExist", "values": ["x"]})),
            values,
        ),
        (
            "an unknown operator",
            expression(json!({"key": "a", "operator": "Gt", "values": ["1"]})),
            &["spec.podSelector.matchExpressions[0].operator"],
        ),
        (
            "an operator in small letters",
            expression(json!({"key": "a", "operator": "in", "values": ["1"]})),
            &["spec.podSelector.matchExpressions[0].operator"],
        ),
        ("no operator", expression(json!({"key": "a"})), &["spec.podSelector.matchExpressions[0].operator"]),
        ("no key", expression(json!({"operator": "Exists"})), &["spec.podSelector.matchExpressions[0].key"]),
        (
            "a bad value",
            expression(json!({"key": "a", "operator": "In", "values": ["x", "a b"]})),
            &["spec.podSelector.matchExpressions[0].values[1]"],
        ),
        ("a bad key", labels(json!({"a b": "x"})), &["spec.podSelector.matchLabels"]),
        ("a bad value of a label", labels(json!({"a": "x/y"})), &["spec.podSelector.matchLabels[a]"]),
        (
            "inside a peer",
            json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"a": "-"}}}]}]}),
            &["spec.ingress[0].from[0].namespaceSelector.matchLabels[a]"],
        ),
    ]);
}

#[test]
fn policy_types_that_an_api_server_refuses() {
    assert_refusals(vec![
        ("both", json!({"policyTypes": ["Ingress", "Egress"]}), &[]),
        ("an unknown one", json!({"policyTypes": ["Ingress", "ingress"]}), &["spec.policyTypes[1]"]),
        ("three", json!({"policyTypes": ["Ingress", "Egress", "Ingress"]}), &["spec.policyTypes"]),
    ]);
}

#[test]
fn every_fault_is_reported_at_once() {
    let spec = json!({
        "policyTypes": ["All"],
        "ingress": [{"from": [{}], "ports": [{"port": 0}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "x"}}]}],
    });
    let expected = [
        "spec.policyTypes[0]",
        "spec.ingress[0].from[0]",
        "spec.ingress[0].ports[0].port",
        "spec.egress[0].to[0].ipBlock.cidr",
    ];
    assert_eq!(refused(spec), expected);
}
