//! The counters of policies, to the packet.

use std::net::{SocketAddr, UdpSocket};

use portcullis_testbed::{Host, Shape};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan, service_port};
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];
/// Ethernet, IPv4 and UDP headers, and the payload.
const BYTES: f64 = 14.0 + 20.0 + 8.0 + 100.0;

/// Sends datagrams of 100 bytes from one socket: one flow.
fn send(from: &Host, to: SocketAddr, count: u32) {
    from.namespace()
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..count {
                socket.send_to(&[7; 100], to)?;
            }
            Ok(())
        })
        .unwrap();
}

/// Somebody who takes what comes and says nothing.
fn listen(host: &Host, port: u16) -> UdpSocket {
    host.namespace().run(|| Ok(UdpSocket::bind(("0.0.0.0", port))?)).unwrap()
}

fn policies() -> Vec<Value> {
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"pod": "c"}}}], "ports": [{"port": 9000, "protocol": "UDP"}]},
            {"from": [{"podSelector": {"matchLabels": {"pod": "a"}}}], "ports": [{"port": 9000, "protocol": "UDP"}]},
        ],
    });
    let client = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}],
    });
    vec![policy("x", "server", &server), policy("x", "client", &client)]
}

/// Packets and bytes of one rule.
fn counted(agent: &Agent, name: &str, verdict: &str, rule: &str) -> (f64, f64) {
    let labels = [
        ("policy_kind", "NetworkPolicy"),
        ("policy_namespace", "x"),
        ("policy_name", name),
        ("direction", if name == "server" { "ingress" } else { "egress" }),
        ("verdict", verdict),
        ("rule", rule),
    ];
    (agent.metric("portcullis_policy_packets_total", &labels), agent.metric("portcullis_policy_bytes_total", &labels))
}

#[test]
fn every_packet_is_counted_for_the_rule_that_decided_it() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let mut cluster = LiveCluster::new(&Plan {
            ports: vec![(portcullis_testbed::Protocol::Udp, 9000)],
            ..Plan::new(shape, &PODS)
        });
        let (a, b, c, far) = (cluster.pod("x/a"), cluster.pod("x/b"), cluster.pod("x/c"), cluster.pod("y/b"));
        // In place of the servers that answer: answers are other packets, of the same flows.
        for host in [b, far] {
            host.stop_serving(portcullis_testbed::Protocol::Udp, 9000).unwrap();
        }
        let _listening = [listen(b, 9000), listen(far, 9000)];
        cluster.enforce(&policies());

        let at = |host: &Host, port: u16| SocketAddr::new(host.v4().unwrap().into(), port);
        let vip = |name: &str| SocketAddr::new(cluster.vip(name, true), service_port(9000));
        send(a, at(b, 9000), 57);
        send(a, vip("x/b"), 31);
        send(c, at(b, 9000), 23);
        send(c, vip("x/b"), 19);
        send(c, at(b, 9001), 17);
        send(a, at(far, 9000), 13);
        send(a, vip("y/b"), 11);
        let expected = [
            ("server", "allow", "0", 23 + 19),
            ("server", "allow", "1", 57 + 31),
            ("server", "deny", "isolation", 17),
            ("client", "allow", "0", 57 + 31),
            ("client", "deny", "isolation", 13 + 11),
        ];
        let check = |agent: &Agent, when: &str| {
            for (name, verdict, rule, packets) in expected {
                let (packets, what) = (f64::from(packets), format!("{shape:?}, {when}: {name} {verdict} {rule}"));
                assert_eq!(counted(agent, name, verdict, rule), (packets, packets * BYTES), "{what}");
            }
        };
        check(&cluster.agents[0], "sent");

        cluster.agents[0].terminate();
        cluster.agents[0].start();
        check(&cluster.agents[0], "after a restart");

        cluster.enforce(&[]);
        cluster.agents[0].await_metrics("the end of deleted policies' series", |samples| {
            !samples.iter().any(|sample| sample.has(&[("policy_namespace", "x")]))
        });
        cluster.enforce(&policies());
        for (name, verdict, rule, _) in expected {
            let what = format!("{shape:?}, made anew: {name} {verdict} {rule}");
            assert_eq!(counted(&cluster.agents[0], name, verdict, rule), (0.0, 0.0), "{what}");
        }
    }
}
