//! Where policy judges what pods send to their own node (`--own-node policy`): what ends in the node passes no exit, and is
//! judged where it leaves the pod.

use std::net::IpAddr;

use portcullis_testbed::{Host, Protocol};
use serde_json::{Value, json};

use super::ground::{Ground, LOCAL_DNS, PORT, TARGET, Who, block};
use super::rows::{self, Row};

/// What x/client may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allows {
    /// Pods by label. None of them is on the host's network, whatever labels such pods have.
    Pods,
    /// Its node, by address, on the port behind Services.
    Node,
    /// The DNS cache on its node, by address.
    Cache,
    Everything,
}

impl Allows {
    const ALL: [Self; 4] = [Self::Pods, Self::Node, Self::Cache, Self::Everything];

    fn policies(self, ground: &Ground) -> Vec<(&'static str, Value)> {
        let rule = match self {
            Self::Pods => json!({"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "good"}}}]}),
            Self::Node => {
                let node: Vec<Value> = ground.node_addresses(0).into_iter().map(block).collect();
                let ports = ["TCP", "UDP"].map(|protocol| json!({"port": TARGET, "protocol": protocol}));
                json!({"to": node, "ports": ports})
            }
            Self::Cache => json!({"to": [block(LOCAL_DNS.into())]}),
            Self::Everything => json!({}),
        };
        let client = json!({
            "podSelector": {"matchLabels": {"pod": "client"}}, "policyTypes": ["Ingress", "Egress"], "egress": [rule],
        });
        vec![("x/client", client)]
    }
}

type Expected = Box<dyn Fn(Allows) -> bool>;

fn rows(ground: &Ground) -> Vec<Row<Expected>> {
    let mut rows: Vec<Row<Expected>> = Vec::new();
    let client = ground.host(Who::Itself);
    let mut add = |what: &str, from: &Host, (to, port), backend, answer: &str, expected: fn(Allows) -> bool| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (what, from, answer) = (what.to_owned(), from.clone(), answer.to_owned());
            let key: Expected = Box::new(expected);
            rows.push(Row { what, from, source: None, to, protocol, port, backend, answer, key });
        }
    };
    let node = |allows| matches!(allows, Allows::Node | Allows::Everything);
    let pods = |allows| matches!(allows, Allows::Pods | Allows::Everything);
    let everything = |allows| allows == Allows::Everything;
    for to in ground.node_addresses(0) {
        add("its own node", &client, (to, TARGET), None, "node0", node);
        let port = ground.front("only-node").node_port();
        add("its node's port of a process there", &client, (to, port), Some(0), "node0", node);
        let port = ground.front("all-good").node_port();
        add("its node's port of a pod", &client, (to, port), Some(1), "y/far", pods);
    }
    for to in ground.node_addresses(1) {
        add("another node", &client, (to, TARGET), None, "node1", everything);
    }
    let cache: IpAddr = LOCAL_DNS.into();
    add("LocalDNS on its node", &client, (cache, 53), None, "node0", |allows| {
        matches!(allows, Allows::Cache | Allows::Everything)
    });
    for v4 in [true, false] {
        let vip = |name| (ground.front(name).vip(v4), PORT);
        add("a Service of its node", &client, vip("only-node"), Some(0), "node0", node);
        add("a Service of pods", &client, vip("all-good"), Some(1), "y/far", pods);
        // Nobody knows which backend a packet gets before it has got there: if some may not be reached, those elsewhere are
        // judged where the packet leaves, but the node's own close the Service.
        add("a Service of all kinds, its node", &client, vip("mixed"), Some(5), "node0", node);
        add("a Service of all kinds, a pod", &client, vip("mixed"), Some(3), "y/far", everything);
        let pod = (ground.address(Who::Itself, v4), TARGET);
        add("a probe of the pod's node", &ground.host(Who::Node), pod, None, "x/client", |_| true);
    }
    rows
}

pub(super) fn judge(ground: &Ground) -> Vec<String> {
    let rows = rows(ground);
    let mut wrong = rows::judge("own node, no policy", &rows, |_| true);
    for allows in Allows::ALL {
        ground.enforce(&allows.policies(ground));
        wrong.extend(rows::judge(&format!("own node, {allows:?}"), &rows, |expected| expected(allows)));
    }
    ground.enforce(&[]);
    wrong
}
