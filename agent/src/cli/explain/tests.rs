//! What an application developer reads.

use super::*;
use crate::cli::arguments::{Asked, ExplainOutput};
use crate::evaluate::fixture::*;
use crate::model::{Object, Protocol, Service};

/// Dgraph admits its own namespace, and pods of namespaces for its clients on named ports.
fn dgraph() -> Cluster {
    let rules = vec![
        allow(vec![pods_of("dgraph", everything())], vec![]),
        allow(
            vec![
                pods_in(with("app=dgraph-client,env=test"), everything()),
                block("198.51.100.0/24", &["198.51.100.128/25"]),
            ],
            vec![named(Protocol::TCP, "http"), ports(Protocol::TCP, 9080, 9081)],
        ),
    ];
    let mut alpha = mk_pod("dgraph/alpha");
    alpha.addresses = vec![ip("10.0.0.10")];
    alpha.ports = vec![port_named("http", Protocol::TCP, 8080), port_named("grpc", Protocol::TCP, 9080)];
    let mut client = mk_pod("pydgraph-client/client");
    client.addresses = vec![ip("10.0.0.20")];
    let host = Pod { host_network: true, addresses: vec![ip("192.0.2.1")], ..mk_pod("kube-system/proxy") };
    let service = Service {
        key: key("dgraph/s"),
        cluster_ips: vec![ip("172.20.0.1")],
        external_ips: vec![],
        selector: Some(with("pod=alpha")),
        ports: vec![],
    };
    mk_cluster(
        [alpha, client, host],
        [
            mk_namespace("dgraph", ""),
            mk_namespace("pydgraph-client", "app=dgraph-client"),
            mk_policy("dgraph/clients", everything()).ingress(rules).done(),
            mk_policy("pydgraph-client/out", everything()).ingress(vec![]).done(),
            Object::Service(service),
        ],
    )
}

fn ask(cluster: &Cluster, from: &str, to: &str, asked: Asked, output: ExplainOutput) -> Result<String, CliError> {
    let (port, protocol) = match asked {
        Asked::Traffic(traffic) if traffic.protocol.has_ports() => (Some(traffic), None),
        other => (None, Some(other)),
    };
    let [from, to] = [from, to].map(|party| party.parse().expect("a pod or an address"));
    let mut out = Vec::new();
    write(
        &ExplainArgs { source: Default::default(), from, to, port, protocol, output, own_node: Default::default() },
        cluster,
        &mut out,
    )?;
    Ok(String::from_utf8(out).expect("UTF-8"))
}

fn text(cluster: &Cluster, from: &str, to: &str, asked: Asked) -> String {
    ask(cluster, from, to, asked, ExplainOutput::Text).expect("an answer")
}

#[test]
fn a_denied_client() {
    let expected = "\
DENIED: 8080/TCP from pydgraph-client/client to dgraph/alpha (IPv4)

Egress of pydgraph-client/client: allowed. No policy governs egress of the pod (NetworkPolicy pydgraph-client/out selects it for ingress alone).

Ingress of dgraph/alpha: DENIED. NetworkPolicy dgraph/clients isolates the pod for ingress, and no rule allows this.
  NetworkPolicy dgraph/clients selects the pod for ingress:
    rule 0 does not match
      from: every pod in namespace dgraph
      ports: every protocol and port
      - pod pydgraph-client/client is in namespace pydgraph-client, not in dgraph
    rule 1 does not match
      from: every pod in namespaces with app=dgraph-client,env=test
         or 198.51.100.0/24 except 198.51.100.128/25
      ports: \"http\"/TCP, 9080-9081/TCP
      - namespace pydgraph-client has no label env, and env=test is wanted
      - 10.0.0.20 (pydgraph-client/client) is not in 198.51.100.0/24
";
    assert_eq!(text(&dgraph(), "pydgraph-client/client", "dgraph/alpha", Asked::Traffic(tcp(8080))), expected);
}

#[test]
fn sentences() {
    let http = Asked::Traffic(tcp(8080));
    let rows = [
        (
            "an excepted address",
            "198.51.100.200",
            http,
            "- 198.51.100.200 is in 198.51.100.128/25, which the rule leaves out",
        ),
        ("an allowed address", "198.51.100.1", http, "ALLOWED: 8080/TCP from 198.51.100.1 to dgraph/alpha (IPv4)"),
        ("the rule that decides", "198.51.100.1", http, "    rule 1 decides\n"),
        ("outside is not judged", "198.51.100.1", http, "Egress of 198.51.100.1: not judged. It is no pod"),
        (
            "selectors mean pods",
            "203.0.113.1",
            http,
            "- 203.0.113.1 is no pod of the cluster, and selectors match pods alone",
        ),
        ("a port", "198.51.100.1", Asked::Traffic(tcp(80)), "- 80/TCP is none of \"http\"/TCP, 9080-9081/TCP"),
        ("a port's name", "198.51.100.1", Asked::Traffic(tcp(80)), "- \"http\"/TCP is port 8080 on dgraph/alpha"),
        ("ICMP", "198.51.100.1", Asked::Icmp, "- ICMP is none of \"http\"/TCP, 9080-9081/TCP"),
        ("itself", "dgraph/alpha", http, "implied rule (a pod always reaches itself) matches too, after what decided"),
        ("an address of a pod is that pod", "10.0.0.10", http, "from dgraph/alpha to dgraph/alpha (IPv4)"),
        (
            "a process of the node",
            "192.0.2.1",
            http,
            "192.0.2.1 is the pod's own node, whose processes no policy keeps out.",
        ),
        (
            "who else has the node's address",
            "192.0.2.1",
            http,
            "with externalTrafficPolicy Cluster carry the address 192.0.2.1 too, and are judged by it: denied.",
        ),
        (
            "a pod on the node's network",
            "kube-system/proxy",
            http,
            "The pod uses its node's network, which policies never select.",
        ),
    ];
    let cluster = dgraph();
    for (why, from, asked, expected) in rows {
        let text = text(&cluster, from, "dgraph/alpha", asked);
        assert!(text.contains(expected), "{why}: {expected:?} in\n{text}");
    }
}

#[test]
fn families_are_told_of_once_where_they_are_alike() {
    let both = mk_cluster(["x/a", "x/b"].map(mk_pod), [mk_policy("x/p", with("pod=a")).ingress(vec![]).done()]);
    let told = text(&both, "x/b", "x/a", Asked::Traffic(tcp(80)));
    assert!(told.starts_with("DENIED: 80/TCP from x/b to x/a (IPv4 and IPv6)\n"), "{told}");
    assert!(told.contains("    It has no ingress rules: it allows nothing.\n"), "{told}");
    let by_v4 = mk_policy("x/p", with("pod=a")).ingress(vec![allow(vec![block("0.0.0.0/0", &[])], vec![])]).done();
    let told = text(&mk_cluster(["x/a", "x/b"].map(mk_pod), [by_v4]), "x/b", "x/a", Asked::Traffic(tcp(80)));
    assert!(told.starts_with("ALLOWED: 80/TCP from x/b to x/a (IPv4)\n"), "{told}");
    assert!(told.contains("\nDENIED: 80/TCP from x/b to x/a (IPv6)\n"), "{told}");
    let address = mk_pod("x/b").addresses[1];
    assert!(told.contains(&format!("- {address} is IPv6, 0.0.0.0/0 is IPv4\n")), "{told}");
}

#[test]
fn no_answers() {
    let mut cluster = dgraph();
    let finished = Pod { finished: true, ..mk_pod("dgraph/job") };
    cluster.apply(crate::model::Change::Set(Object::Pod(finished)));
    let rows = [
        (
            "an unknown pod",
            "dgraph/beta",
            "dgraph/alpha",
            "there is no pod dgraph/beta in the cluster; its namespace has dgraph/alpha, dgraph/job",
        ),
        (
            "an unknown namespace",
            "a/b",
            "dgraph/alpha",
            "there is no pod a/b in the cluster; namespaces with pods are dgraph, kube-system, pydgraph-client",
        ),
        ("a finished pod", "dgraph/job", "dgraph/alpha", "pod dgraph/job has finished"),
        ("no pod at all", "203.0.113.1", "203.0.113.2", "neither 203.0.113.1 nor 203.0.113.2 is a pod"),
        (
            "another family",
            "2001:db8::1",
            "dgraph/alpha",
            "2001:db8::1 and dgraph/alpha have no address of the same family",
        ),
        ("a Service", "pydgraph-client/client", "172.20.0.1", "172.20.0.1 is an address of Service dgraph/s"),
        ("a Service's backends", "pydgraph-client/client", "172.20.0.1", "(it selects dgraph/alpha)"),
    ];
    for (why, from, to, expected) in rows {
        let error = ask(&cluster, from, to, Asked::Traffic(tcp(80)), ExplainOutput::Text).expect_err(why).to_string();
        assert!(error.contains(expected), "{why}: {error}");
    }
}

#[test]
fn json() {
    let cluster = dgraph();
    let json = ask(&cluster, "198.51.100.1", "dgraph/alpha", Asked::Icmp, ExplainOutput::Json).expect("an answer");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let expected = serde_json::json!({
        "from": "198.51.100.1",
        "to": "dgraph/alpha",
        "answers": [{
            "family": "IPv4", "protocol": "ICMP", "port": null, "verdict": "deny",
            "egress": {
                "verdict": "allow", "reason": "no-policy", "kind": null, "policy": null, "rule": null,
                "policies": [], "other_policies": [], "notes": []
            },
            "ingress": {
                "verdict": "deny", "reason": "isolation", "kind": "NetworkPolicy", "policy": "dgraph/clients", "rule": null,
                "policies": [{
                    "kind": "NetworkPolicy", "policy": "dgraph/clients", "tier": "default",
                    "rules": [{
                        "rule": 0, "implied": null, "outcome": "misses",
                        "peers": ["every pod in namespace dgraph"], "ports": "every protocol and port",
                        "because": ["198.51.100.1 is no pod of the cluster, and selectors match pods alone"]
                    }, {
                        "rule": 1, "implied": null, "outcome": "misses",
                        "peers": [
                            "every pod in namespaces with app=dgraph-client,env=test",
                            "198.51.100.0/24 except 198.51.100.128/25"
                        ],
                        "ports": "\"http\"/TCP, 9080-9081/TCP",
                        "because": ["ICMP is none of \"http\"/TCP, 9080-9081/TCP"]
                    }]
                }],
                "other_policies": [], "notes": []
            }
        }]
    });
    assert_eq!(json, expected);
}

#[test]
fn namespaces_by_name() {
    let peers = vec![pods_in(within("kubernetes.io/metadata.name", &["y", "z"]), with("app=web"))];
    let policy = mk_policy("x/p", everything()).ingress(vec![allow(peers, vec![])]).done();
    let told = text(&mk_cluster(["x/a", "x/b"].map(mk_pod), [policy]), "x/b", "x/a", Asked::Icmp);
    assert!(told.contains("      from: pods with app=web in namespace y or z\n"), "{told}");
    assert!(told.contains("      - pod x/b is in namespace x, not in y or z\n"), "{told}");
}

#[test]
fn clients_that_the_node_masqueraded_are_named() {
    let cluster = dgraph();
    let answer = |from| ask(&cluster, from, "dgraph/alpha", Asked::Traffic(tcp(8080)), ExplainOutput::Json);
    let ingress = |from| {
        let report: serde_json::Value = serde_json::from_str(&answer(from).expect("an answer")).expect("JSON");
        report["answers"][0]["ingress"].clone()
    };
    let node = ingress("192.0.2.1");
    assert_eq!(node["verdict"], "allow", "processes of the node");
    let masqueraded = &node["masqueraded_clients"];
    assert_eq!(masqueraded["verdict"], "deny", "{node}");
    assert_eq!(masqueraded["reason"], "isolation", "{node}");
    let note = node["notes"][0].as_str().expect("a note");
    assert!(note.contains("masqueraded_client") && note.contains("--masqueraded-clients"), "{note}");
    assert!(ingress("203.0.113.1").get("masqueraded_clients").is_none(), "no node's address");
}

#[test]
fn the_tunnel_of_an_ambient_mesh_is_hinted_at() {
    const AMBIENT: &str = "istio.io/dataplane-mode=ambient";
    const NONE: &str = "istio.io/dataplane-mode=none";
    // Labels of the namespaces of client and server, of the pods; what ingress and egress admit; sides with the hint.
    type Row = (&'static str, [&'static str; 4], [&'static [u16]; 2], &'static [&'static str]);
    let all: &[u16] = &[80, 15008];
    let rows: [Row; 11] = [
        ("both in the mesh", [AMBIENT, AMBIENT, "", ""], [&[80], all], &["ingress"]),
        ("by the pods' labels", ["", "", AMBIENT, AMBIENT], [&[80], all], &["ingress"]),
        ("the server alone: its clients may be", ["", AMBIENT, "", ""], [&[80], all], &["ingress"]),
        ("a client that stays out", ["", AMBIENT, NONE, ""], [&[80], all], &[]),
        ("a server that stays out", [AMBIENT, AMBIENT, "", NONE], [&[80], all], &[]),
        ("the client alone", [AMBIENT, "", "", ""], [&[80], all], &[]),
        ("to a sidecar", [AMBIENT, "", "", "security.istio.io/tlsMode=istio"], [&[80], all], &["ingress"]),
        ("both ports admitted", [AMBIENT, AMBIENT, "", ""], [all, all], &[]),
        ("the asked port denied", [AMBIENT, AMBIENT, "", ""], [&[15008], all], &[]),
        ("egress", [AMBIENT, AMBIENT, "", ""], [all, &[80]], &["egress"]),
        ("no mesh", ["", "", "", ""], [&[80], &[80]], &[]),
    ];
    for (why, [client_space, server_space, client, server], [ingress, egress], wanted) in rows {
        let pod = |name, more| Pod { labels: labels(more), ..mk_pod(name) };
        let rules = |admitted: &[u16]| {
            vec![allow(vec![], admitted.iter().map(|number| port(Protocol::TCP, *number)).collect())]
        };
        let cluster = mk_cluster(
            [pod("c/client", client), pod("s/server", server)],
            [
                mk_namespace("c", client_space),
                mk_namespace("s", server_space),
                mk_policy("s/in", everything()).ingress(rules(ingress)).done(),
                mk_policy("c/out", everything()).egress(rules(egress)).done(),
            ],
        );
        let told =
            ask(&cluster, "c/client", "s/server", Asked::Traffic(tcp(80)), ExplainOutput::Json).expect("an answer");
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        for side in ["ingress", "egress"] {
            let hinted = told["answers"][0][side]["notes"].to_string().contains("15008");
            assert_eq!(hinted, wanted.contains(&side), "{why}: {side} of {told:#}");
        }
    }
}
