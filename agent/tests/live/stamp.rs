//! The stamp in the packet's mark.

use portcullis_testbed::{ExternalTrafficPolicy, Outcome, Probe, Protocol, Service, Shape};
use serde_json::json;

use crate::cluster::{LiveCluster, Plan, service_port};
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/d", 1)];

#[test]
fn egress_through_services_is_judged_with_the_stamp_in_the_mark() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let mut plan = Plan::new(shape, &PODS);
        plan.arguments = ["--stamp", "mark:16"].map(str::to_owned).into();
        let cluster = LiveCluster::new(&plan);
        let to = json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]);
        let spec = json!({
            "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"], "egress": [{"to": to}],
        });
        // By the stamp alone is it known whose connection to a Service it is that x/b gets.
        let ingress = json!([{"from": [{"podSelector": {"matchLabels": {"pod": "a"}}}]}]);
        let server = json!({
            "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": ingress,
        });
        cluster.enforce(&[policy("x", "client", &spec), policy("x", "server", &server)]);
        for (from, name, allowed) in [
            ("x/a", "x/b", true),
            ("x/a", "x/c", false),
            ("x/a", "y/d", false),
            ("x/c", "x/b", false),
            ("x/c", "y/d", true),
        ] {
            let routes = [(cluster.vip(name, true), service_port(80)), (cluster.pod(name).v4().unwrap().into(), 80)];
            for (address, port) in routes {
                let patience = std::time::Duration::from_millis(if allowed { 3000 } else { 500 });
                let outcome = Probe::new(cluster.pod(from), address, Protocol::Tcp, port).timeout(patience).run();
                let right = if allowed { outcome.is_answer_of(name) } else { outcome == Outcome::Timeout };
                assert!(right, "{shape:?}: {from} to {name} at {address}:{port}: {outcome:?}");
            }
        }
    }
}

#[test]
fn masqueraded_clients_pass_where_the_setting_says_so_and_nobody_else_does() {
    for setting in ["deny", "allow"] {
        let mut plan = Plan::new(Shape::Routed, &PODS);
        plan.arguments = ["--masqueraded-clients", setting].map(str::to_owned).into();
        let cluster = LiveCluster::new(&plan);
        let (outside, server, node) = (cluster.bed.outside(), cluster.pod("x/b"), cluster.bed.node(0));
        for (port, policy) in [(30_001, ExternalTrafficPolicy::Cluster), (30_002, ExternalTrafficPolicy::Local)] {
            let service = Service::new(&format!("x/{policy:?}").to_lowercase()).vip([10, 0, 3, 1]);
            let service = service.port(Protocol::Tcp, port).node_port(port);
            cluster.expose(service.external_traffic_policy(policy), 80, &[server]);
        }
        let spec = json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]});
        cluster.enforce(&[policy("x", "guard", &spec)]);
        let at = node.v4().unwrap();
        let rows = [
            ("masqueraded", outside, 30_001, setting == "allow"),
            ("with its own address", outside, 30_002, false),
            ("a pod of this node", cluster.pod("x/a"), 30_001, false),
        ];
        for (what, client, port, allowed) in rows {
            let patience = std::time::Duration::from_millis(if allowed { 3000 } else { 500 });
            let outcome = Probe::new(client, at, Protocol::Tcp, port).timeout(patience).run();
            let right = if allowed { outcome.is_answer_of("x/b") } else { outcome == Outcome::Timeout };
            assert!(right, "{setting}: {what}: {outcome:?}");
        }
        // An operator sees which of those that are denied are clients whose own address has been replaced.
        let counted = cluster.agents[0].metric("portcullis_drops_total", &[("reason", "masqueraded_client")]);
        assert_eq!(counted > 0.0, setting == "deny", "{setting}: {:?}", cluster.agents[0].drops());
    }
}
