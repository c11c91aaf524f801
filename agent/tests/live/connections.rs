//! Flows that were open before something changed.

use std::net::IpAddr;
use std::time::Duration;

use portcullis_testbed::{ContinuousStream, Outcome, Pod, Probe, Protocol, Shape, Stream, UdpStream};
use serde_json::{Value, json};

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan, service_port};
use crate::manifests::{Labels, policy};

/// x/a is the client of them all.
const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("y/b", 1), ("z/b", 0)];
const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];
const INTERVAL: Duration = Duration::from_millis(4);
/// How long an answer may take before it counts as not come; a lost packet shows as one that TCP sent again.
const LATE: Duration = Duration::from_millis(400);

/// The client isolated in both directions; it may reach pods with this label, or nobody.
fn client_may_reach(label: Option<&str>) -> Value {
    let rules = label.map(|b| json!({"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": b}}}]}));
    let rules: Vec<Value> = rules.into_iter().collect();
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"], "egress": rules,
    });
    policy("x", "client", &spec)
}

/// The servers isolated in both directions; they admit these peers.
fn servers_admit(peers: Option<&Value>) -> Vec<Value> {
    let rules: Vec<Value> = peers.iter().map(|peers| json!({"from": peers})).collect();
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress", "Egress"], "ingress": rules,
    });
    ["x", "y"].map(|namespace| policy(namespace, "servers", &spec)).to_vec()
}

fn from_client() -> Value {
    json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}},
        "podSelector": {"matchLabels": {"pod": "a"}},
    }])
}

fn all_allowed() -> Vec<Value> {
    let mut policies = servers_admit(Some(&from_client()));
    policies.push(client_may_reach(Some("b")));
    policies
}

/// A way from the client to a server: by Service or pod address.
struct Way {
    name: String,
    server: Pod,
    to: IpAddr,
    port: u16,
}

fn ways(cluster: &LiveCluster) -> Vec<Way> {
    let mut ways = Vec::new();
    for name in ["x/b", "y/b"] {
        let server = cluster.pod(name);
        for to in server.addresses() {
            let vip = cluster.vip(name, to.is_ipv4());
            for (to, port) in [(to, 80), (vip, service_port(80))] {
                ways.push(Way { name: format!("{name} by {to}"), server: server.clone(), to, port });
            }
        }
    }
    ways
}

/// One TCP connection on each way.
fn streams(cluster: &LiveCluster) -> Vec<(String, ContinuousStream)> {
    let open = |way: &Way| {
        let stream = Stream::open(cluster.pod("x/a"), way.to, way.port, PATIENCE).unwrap();
        (way.name.clone(), stream.run(INTERVAL, LATE).unwrap())
    };
    ways(cluster).iter().map(open).collect()
}

/// One-way UDP flows on each way. A receiver's port is its own, so each way needs one; the Service has only one port,
/// so its flows go to the pods' addresses.
fn datagrams(cluster: &LiveCluster) -> Vec<(String, UdpStream)> {
    let mut flows = Vec::new();
    for (port, way) in (9000..).zip(ways(cluster).into_iter().filter(|way| way.port == 80)) {
        let flow = UdpStream::start(cluster.pod("x/a"), way.to, port, &way.server, port, INTERVAL).unwrap();
        flows.push((way.name, flow));
    }
    flows
}

fn all_flow(context: &str, streams: &[(String, ContinuousStream)], flows: &[(String, UdpStream)]) {
    for (name, stream) in streams {
        stream.wait_for_exchanges(5, PATIENCE).unwrap_or_else(|error| panic!("{context}, {name}: {error:#}"));
    }
    for (name, flow) in flows {
        flow.wait_for_received(5, PATIENCE).unwrap_or_else(|error| panic!("{context}, {name}: {error:#}"));
    }
}

/// Nothing more comes through any of them.
fn nothing_flows(context: &str, streams: &[(String, ContinuousStream)], flows: &[(String, UdpStream)]) {
    let wait_for_timeouts = || {
        let before: Vec<u64> = streams.iter().map(|(_, stream)| stream.report().timeouts).collect();
        for ((name, stream), before) in streams.iter().zip(before) {
            let late = stream.wait_until(|report| report.timeouts >= before + 2, PATIENCE);
            late.unwrap_or_else(|error| panic!("{context}, {name} goes on: {error:#}"));
        }
    };
    // What was on its way when the policy came into force has arrived by the second timeout.
    wait_for_timeouts();
    let counts = || {
        let exchanges = streams.iter().map(|(name, stream)| (name.clone(), stream.report().exchanges));
        let received = flows.iter().map(|(name, flow)| (name.clone(), flow.report().received));
        exchanges.chain(received).collect::<Vec<(String, u64)>>()
    };
    let before = counts();
    wait_for_timeouts();
    assert_eq!(counts(), before, "{context}: answers and datagrams that came all the same");
}

#[test]
fn connections_end_with_the_policy_that_allowed_them() {
    for shape in SHAPES {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let mut only_server = servers_admit(None);
        only_server.push(client_may_reach(Some("b")));
        let mut only_client = servers_admit(Some(&from_client()));
        only_client.push(client_may_reach(None));
        for (what, denying) in [("denied by the server's policy", only_server), ("denied by the client's", only_client)]
        {
            cluster.enforce(&all_allowed());
            let (streams, flows) = (streams(&cluster), datagrams(&cluster));
            let context = format!("{shape:?}, {what}");
            all_flow(&context, &streams, &flows);
            cluster.enforce(&denying);
            nothing_flows(&context, &streams, &flows);
        }
        // So does a change of labels.
        let context = format!("{shape:?}, denied by a label");
        let role = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "client"}}}]);
        let labelled = [("x/a".to_owned(), Labels::from([("role".into(), "client".into())]))].into();
        cluster.label(&Default::default(), &labelled);
        let mut policies = servers_admit(Some(&role));
        policies.push(client_may_reach(Some("b")));
        cluster.enforce(&policies);
        let (streams, flows) = (streams(&cluster), datagrams(&cluster));
        all_flow(&context, &streams, &flows);
        cluster.label(&Default::default(), &Default::default());
        cluster.enforce(&policies);
        nothing_flows(&context, &streams, &flows);
    }
}

fn none_was_lost(context: &str, streams: Vec<(String, ContinuousStream)>, flows: Vec<(String, UdpStream)>) {
    for (name, stream) in streams {
        let report = stream.stop();
        assert!(report.is_lossless(), "{context}, {name}: {report:?}");
    }
    for (name, flow) in flows {
        let report = flow.stop();
        assert_eq!(report.lost(), 0, "{context}, {name}: {report:?}");
    }
}

#[test]
fn connections_survive_changes_that_still_allow_them() {
    for shape in SHAPES {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let context = format!("{shape:?}");
        // Open before any policy selects a pod.
        cluster.enforce(&[]);
        let (streams, flows) = (streams(&cluster), datagrams(&cluster));
        all_flow(&context, &streams, &flows);
        let any = json!([{"namespaceSelector": {}}]);
        let blocks = json!([{"ipBlock": {"cidr": "10.244.0.0/16"}}, {"ipBlock": {"cidr": "fd00:10:244::/48"}}]);
        let steps: [(&str, Vec<Value>); 5] = [
            ("isolated", all_allowed()),
            ("admitted by namespace", [servers_admit(Some(&any)), vec![client_may_reach(Some("b"))]].concat()),
            ("admitted by address", [servers_admit(Some(&blocks)), vec![client_may_reach(Some("b"))]].concat()),
            ("the server free again", vec![client_may_reach(Some("b"))]),
            ("everybody free again", Vec::new()),
        ];
        for (what, policies) in steps {
            cluster.enforce(&policies);
            all_flow(&format!("{context}, {what}"), &streams, &flows);
        }
        none_was_lost(&context, streams, flows);
    }
}

#[test]
fn stopping_and_starting_the_agent_loses_nothing_and_opens_nothing() {
    for shape in SHAPES {
        let mut cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let context = format!("{shape:?}");
        cluster.enforce(&all_allowed());
        let (streams, flows) = (streams(&cluster), datagrams(&cluster));
        // z/b is admitted by no server, and x/a may not reach it... on a port of its own.
        let denied: Vec<UdpStream> = [("z/b", "x/b", 9500), ("z/b", "y/b", 9501)]
            .map(|(from, to, port)| {
                let to = cluster.pod(to);
                let address = to.v4().unwrap();
                UdpStream::start(cluster.pod(from), address, port, to, port, Duration::from_millis(1)).unwrap()
            })
            .into();
        all_flow(&context, &streams, &flows);
        for (what, end) in [("SIGTERM", Agent::terminate as fn(&mut Agent)), ("SIGKILL", Agent::kill)] {
            cluster.agents.iter_mut().for_each(end);
            all_flow(&format!("{context}, after {what}"), &streams, &flows);
            new_flows_are_judged(&format!("{context}, after {what}"), &cluster);
            cluster.agents.iter_mut().for_each(Agent::spawn);
            cluster.agents.iter().for_each(Agent::await_ready);
            all_flow(&format!("{context}, started after {what}"), &streams, &flows);
            new_flows_are_judged(&format!("{context}, started after {what}"), &cluster);
            cluster.enforce(&all_allowed());
        }
        none_was_lost(&context, streams, flows);
        for flow in denied {
            let report = flow.stop();
            assert!(report.sent > 0 && report.received == 0, "{context}, denied: {report:?}");
        }
    }
}

fn new_flows_are_judged(context: &str, cluster: &LiveCluster) {
    for way in ways(cluster) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ask = |from: &str, milliseconds: u64| {
                let patience = Duration::from_millis(milliseconds);
                Probe::new(cluster.pod(from), way.to, protocol, way.port).timeout(patience).run()
            };
            let allowed = ask("x/a", 2000);
            assert!(allowed.is_answer_of(way.server.name()), "{context}, x/a to {} {protocol}: {allowed:?}", way.name);
            let denied = ask("z/b", 60);
            assert_eq!(denied, Outcome::Timeout, "{context}, z/b to {} {protocol}", way.name);
        }
    }
}

#[test]
fn connections_that_are_older_than_the_agent_live_if_policy_allows_them() {
    for shape in SHAPES {
        let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(shape, &PODS) });
        let context = format!("{shape:?}");
        let (streams, flows) = (streams(&cluster), datagrams(&cluster));
        let stranger = Stream::open(cluster.pod("z/b"), cluster.pod("x/b").v4().unwrap(), 80, PATIENCE).unwrap();
        let stranger = vec![("z/b to x/b".to_owned(), stranger.run(INTERVAL, LATE).unwrap())];
        all_flow(&context, &streams, &flows);
        all_flow(&context, &stranger, &[]);
        cluster.start_agents(&[], &all_allowed());
        all_flow(&context, &streams, &flows);
        // Before the stranger's connection counts drops of its own: what the programs drop, not what TCP sends again, which
        // a busy machine makes it do without any loss.
        nothing_flows(&context, &stranger, &[]);
        for agent in &cluster.agents {
            let strangers = [("policy_namespace", "x"), ("policy_name", "servers"), ("direction", "ingress")];
            let wrong: Vec<_> = (agent.metrics().into_iter())
                .filter(|sample| sample.name == "portcullis_policy_packets_total" && sample.has(&[("verdict", "deny")]))
                .filter(|sample| sample.value > 0.0 && !sample.has(&strangers))
                .collect();
            assert_eq!(wrong, [], "{context}: packets of allowed flows that were denied");
            let drops: Vec<_> = agent.drops().into_iter().filter(|(reason, _)| reason != "policy").collect();
            assert_eq!(drops, [], "{context}: packets that were dropped otherwise");
        }
        for (name, stream) in streams {
            let report = stream.stop();
            assert!(report.broken.is_none() && report.timeouts == 0, "{context}, {name}: {report:?}");
        }
        none_was_lost(&context, Vec::new(), flows);
    }
}
