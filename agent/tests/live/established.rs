//! Established flows that outlive changes of policy, where that is set (`--established keep`).

use std::time::Duration;

use portcullis_testbed::{Outcome, Probe, Protocol, Shape, Stream, UdpStream};
use serde_json::json;

use crate::agent::PATIENCE;
use crate::cluster::{LiveCluster, Plan, service_port};
use crate::manifests::policy;

const PODS: [(&str, usize); 3] = [("x/a", 0), ("x/b", 0), ("y/b", 1)];
const INTERVAL: Duration = Duration::from_millis(4);
const LATE: Duration = Duration::from_millis(400);

#[test]
fn established_flows_are_kept_where_that_is_set() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let mut plan = Plan::new(shape, &PODS);
        plan.arguments = ["--established", "keep"].map(str::to_owned).into();
        let cluster = LiveCluster::new(&plan);
        let client = |allows: bool| {
            let rules = if allows { json!([{"to": [{"namespaceSelector": {}}]}]) } else { json!([]) };
            let spec = json!({
                "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"], "egress": rules,
            });
            policy("x", "client", &spec)
        };
        cluster.enforce(&[client(true)]);
        let mut ways = Vec::new();
        for name in ["x/b", "y/b"] {
            ways.push((name, cluster.pod(name).v4().unwrap().into(), 80));
            ways.push((name, cluster.vip(name, true), service_port(80)));
        }
        let a = cluster.pod("x/a");
        let streams: Vec<_> = ways
            .iter()
            .map(|(name, to, port)| {
                let stream = Stream::open(a, *to, *port, PATIENCE).unwrap().run(INTERVAL, LATE).unwrap();
                (format!("{shape:?}, {name} by {to}"), stream)
            })
            .collect();
        let far = cluster.pod("y/b");
        let datagrams = UdpStream::start(a, far.v4().unwrap(), 9000, far, 9000, INTERVAL).unwrap();
        let all_flow = |when: &str| {
            for (name, stream) in &streams {
                let flowing = stream.wait_for_exchanges(5, PATIENCE);
                flowing.unwrap_or_else(|error| panic!("{name}, {when}: {error:#}"));
            }
        };
        // Datagrams are judged each time: the host may lead the next one elsewhere.
        let datagrams_pass = |when: &str| {
            datagrams.wait_for_received(5, PATIENCE).unwrap_or_else(|error| panic!("{shape:?}, {when}: {error:#}"));
        };
        all_flow("allowed");
        datagrams_pass("allowed");
        for round in 0..2 {
            cluster.enforce(&[client(false)]);
            all_flow(&format!("denied since, round {round}"));
            // What was on its way has arrived by then.
            let more = datagrams.wait_for_received(1, LATE);
            assert!(more.is_err(), "{shape:?}: datagrams of a denied flow pass: {more:?}");
            for (name, to, port) in &ways {
                let outcome = Probe::new(a, *to, Protocol::Tcp, *port).timeout(Duration::from_millis(300)).run();
                assert_eq!(outcome, Outcome::Timeout, "{shape:?}: a new connection to {name} by {to}");
            }
            cluster.enforce(&[client(true)]);
            all_flow(&format!("allowed again, round {round}"));
            datagrams_pass("allowed again");
        }
        for (name, stream) in streams {
            let report = stream.stop();
            assert!(report.broken.is_none(), "{name}: {report:?}");
        }
    }
}
