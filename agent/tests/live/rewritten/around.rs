//! What a pod and its node say to each other, and what lies beside them: other nodes and their ports, ports of the host,
//! the platform's own servers, a DNS cache on the node.

use std::net::IpAddr;

use portcullis_testbed::{Host, Protocol};

use super::egress::Allows;
use super::ground::{Ground, LOCAL_DNS, METADATA, PORT, TARGET, WIRE_SERVER, Who, of_family};
use super::rows::{self, Row};

/// Whether a row is answered under what x/client is allowed.
type Expected = Box<dyn Fn(Allows) -> bool>;

struct Rows<'a> {
    ground: &'a Ground,
    rows: Vec<Row<Expected>>,
}

impl Rows<'_> {
    /// Adds a row for each protocol.
    fn add(
        &mut self,
        what: &str,
        from: &Host,
        (to, port): (IpAddr, u16),
        answer: &str,
        expected: impl Fn(Allows) -> bool + Copy + 'static,
    ) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.rows.push(Row {
                what: what.to_owned(),
                from: from.clone(),
                source: None,
                to,
                protocol,
                port,
                backend: None,
                answer: answer.to_owned(),
                key: Box::new(expected),
            });
        }
    }
}

const fn always(_: Allows) -> bool {
    true
}

const fn never(_: Allows) -> bool {
    false
}

/// What another node does with a packet is not this node's to judge: who may reach the one may reach the other's ports.
fn to_another_node(allows: Allows) -> bool {
    allows.allows(Who::OtherNode)
}

fn node_and_platform(rows: &mut Rows<'_>) {
    let ground = rows.ground;
    let client = ground.host(Who::Itself);
    let far_client = Host::clone(ground.cluster.pod("y/client"));
    for to in ground.node_addresses(0) {
        rows.add("its own node", &client, (to, TARGET), "node0", always);
    }
    for to in ground.node_addresses(1) {
        rows.add("another node", &client, (to, TARGET), "node1", to_another_node);
    }
    let everything = |allows| allows == Allows::Everything;
    let wire_server = |allows| matches!(allows, Allows::Block | Allows::Everything);
    rows.add("instance metadata", &client, (METADATA.into(), TARGET), "outside", everything);
    rows.add("the wire server", &client, (WIRE_SERVER.into(), TARGET), "outside", wire_server);
    rows.add("LocalDNS on its node", &client, (LOCAL_DNS.into(), 53), "node0", always);
    rows.add("LocalDNS's address on a node without it", &far_client, (LOCAL_DNS.into(), 53), "outside", everything);
    let known = ground.setting.known_services;
    for v4 in [true, false] {
        // What ends in the node passes no exit: of a Service that is not known nothing can be said.
        let near = move |allows: Allows| !known || allows.allows(Who::Near);
        rows.add("the cluster's DNS, cached on its node", &client, (ground.dns(v4), 53), "node0", near);
    }
}

fn towards_the_pod(rows: &mut Rows<'_>) {
    let ground = rows.ground;
    let (node, other) = (ground.host(Who::Node), ground.host(Who::OtherNode));
    let outside = ground.host(Who::Outside);
    for v4 in [true, false] {
        let pod = (ground.address(Who::Itself, v4), TARGET);
        rows.add("a probe of the pod's node", &node, pod, "x/client", always);
        rows.add("another node's process", &other, pod, "x/client", never);
        rows.add("somebody outside", &outside, pod, "x/client", never);
        let service = (ground.front("only-itself").vip(v4), PORT);
        rows.add("a process of the pod's node, by its Service", &node, service, "x/client", always);
        rows.add("another node's process, by its Service", &other, service, "x/client", never);
    }
    let health = (of_family(&ground.node_addresses(0), true), TARGET);
    rows.add("a load balancer's health probe, of the node", &outside, health, "node0", always);
    for row in rows.rows.iter_mut().rev().take(2) {
        row.source = Some(WIRE_SERVER.into());
    }
}

/// Ports of hosts and of nodes, each of which leads to some pod.
fn detours(rows: &mut Rows<'_>) {
    let ground = rows.ground;
    let client = ground.host(Who::Itself);
    for v4 in [true, false] {
        let own = of_family(&ground.node_addresses(0), v4);
        if !ground.bridged_past_the_node(false) {
            for (port, who) in [(9100, Who::Near), (9101, Who::NearBad)] {
                let what = format!("its node's host port of {who:?}");
                rows.add(&what, &client, (own, port), who.name(), move |allows| allows.allows(who));
            }
        }
        let bad = |allows: Allows| allows.allows(Who::NearBad);
        rows.add("its node's address, taken by a Service", &client, (own, PORT), "x/bad", bad);
        let other = of_family(&ground.node_addresses(1), v4);
        for (port, who) in [(9100, Who::Far), (9101, Who::FarBad)] {
            let what = format!("another node's host port of {who:?}");
            rows.add(&what, &client, (other, port), who.name(), to_another_node);
        }
        let front = ground.front("mixed");
        for (at, &who) in front.backends.iter().enumerate() {
            // It comes back in the other node's name, which may not reach the client.
            let expected = if who == Who::Itself { never } else { to_another_node };
            let what = format!("another node's port of {who:?}");
            rows.add(&what, &client, (other, front.node_port()), who.name(), expected);
            for row in rows.rows.iter_mut().rev().take(2) {
                row.backend = Some(at);
            }
        }
    }
}

pub(super) fn judge(ground: &Ground) -> Vec<String> {
    let mut all = Rows { ground, rows: Vec::new() };
    node_and_platform(&mut all);
    towards_the_pod(&mut all);
    detours(&mut all);
    let rows = all.rows;
    let mut wrong = rows::judge("around, no policy", &rows, |_| true);
    for allows in [Allows::Selector, Allows::Block, Allows::ServicePort, Allows::Everything] {
        ground.enforce(&allows.policies(ground));
        wrong.extend(rows::judge(&format!("around, {allows:?}"), &rows, |expected| expected(allows)));
    }
    ground.enforce(&[]);
    wrong
}
