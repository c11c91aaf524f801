//! The upstream NetworkPolicy suite on real packets, each cluster serving many scenarios one after another.

use portcullis_testbed::{Masquerade, Protocol, Proxy, Shape};

use crate::cluster::{LiveCluster, Plan};
use crate::scenario::{self, Isolation, Scenario};
use crate::table::Table;

const A_B_APART: [(&str, usize); 9] =
    [("x/a", 0), ("x/b", 1), ("x/c", 0), ("y/a", 0), ("y/b", 1), ("y/c", 0), ("z/a", 0), ("z/b", 1), ("z/c", 0)];

/// With x/a, the client of most scenarios about egress, on the other node.
fn x_a_moved() -> Vec<(&'static str, usize)> {
    A_B_APART.iter().map(|&(pod, node)| (pod, if pod == "x/a" { 1 } else { node })).collect()
}

fn plan(shape: Shape, pods: &[(&'static str, usize)], agents: bool) -> Plan {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let ports = protocols.iter().flat_map(|&protocol| [(protocol, 80), (protocol, 81)]).collect();
    Plan { ports, agents, ..Plan::new(shape, pods) }
}

fn scenarios(cluster: &LiveCluster) -> Vec<Scenario> {
    let chosen: Option<Vec<u32>> = std::env::var("PORTCULLIS_SCENARIOS")
        .ok()
        .map(|list| list.split(',').map(|number| number.trim().parse().unwrap()).collect());
    let all = scenario::all(&|name| {
        let (pod, family) = name.rsplit_once('.').unwrap();
        let pod = cluster.pod(pod);
        if family == "v4" { pod.v4().unwrap().to_string() } else { pod.v6().unwrap().to_string() }
    });
    all.into_iter().filter(|one| chosen.as_ref().is_none_or(|chosen| chosen.contains(&one.number))).collect()
}

/// Runs all that `wanted` selects, and only then fails, with everything that was wrong.
fn run(plan: &Plan, wanted: impl Fn(&Scenario) -> bool, isolations: &[Isolation]) {
    let cluster = LiveCluster::new(plan);
    let mut failures = Vec::new();
    let scenarios = scenarios(&cluster);
    let selected: Vec<&Scenario> = scenarios.iter().filter(|one| wanted(one)).collect();
    for scenario in &selected {
        for &isolation in isolations {
            failures.extend(scenario.run(&cluster, isolation));
        }
    }
    let (failed, all) = (failures.len(), selected.len() * isolations.len());
    assert!(failures.is_empty(), "{failed} steps of {all} scenarios failed:\n\n{}", failures.join("\n\n"));
}

#[test]
fn every_scenario_holds_between_routed_pods() {
    run(&plan(Shape::Routed, &A_B_APART, true), |_| true, &[Isolation::AsWritten]);
}

#[test]
fn every_scenario_holds_between_bridged_pods() {
    run(&plan(Shape::Bridged, &A_B_APART, true), |_| true, &[Isolation::AsWritten]);
}

#[test]
fn egress_holds_whichever_side_is_isolated_between_routed_pods() {
    egress_holds(Shape::Routed);
}

#[test]
fn egress_holds_whichever_side_is_isolated_between_bridged_pods() {
    egress_holds(Shape::Bridged);
}

fn egress_holds(shape: Shape) {
    let about_egress = |one: &Scenario| one.isolate.is_some();
    let isolated =
        [Isolation::ClientInBothDirections, Isolation::ServerInBothDirections, Isolation::BothInBothDirections];
    run(&plan(shape, &A_B_APART, true), about_egress, &isolated);
    let both = [Isolation::AsWritten, Isolation::BothInBothDirections];
    run(&plan(shape, &x_a_moved(), true), about_egress, &both);
}

/// What a node may do to a packet between a pod's two hooks, besides the routing and translation of the tests above.
#[test]
fn egress_holds_whatever_the_node_does_to_packets() {
    let egress_alone = |one: &Scenario| one.isolate.is_some() && ![2, 27, 28, 33, 37].contains(&one.number);
    let about_egress = |one: &Scenario| one.isolate.is_some();
    let with = |shape, change: &dyn Fn(&mut Plan)| {
        let mut plan = plan(shape, &A_B_APART, true);
        change(&mut plan);
        plan
    };
    let isolated = [Isolation::BothInBothDirections];
    run(&with(Shape::Routed, &|plan| plan.bed.proxy = Proxy::Nftables), about_egress, &isolated);
    run(&with(Shape::Bridged, &|plan| plan.bed.proxy = Proxy::IptablesLegacy), about_egress, &isolated);
    run(&with(Shape::Bridged, &|plan| plan.bed.br_netfilter = false), about_egress, &isolated);
    run(&with(Shape::Bridged, &|plan| plan.bed.promiscuous_bridge = true), about_egress, &isolated);
    // Servers on other nodes see the node's address then, so only scenarios that admit anybody hold.
    for shape in [Shape::Routed, Shape::Bridged] {
        run(&with(shape, &|plan| plan.masquerade = Masquerade::All), egress_alone, &isolated);
        let clsact = ["--attach", "clsact"].map(String::from);
        run(&with(shape, &|plan| plan.arguments = clsact.to_vec()), about_egress, &isolated);
    }
}

#[test]
fn without_an_agent_everything_is_allowed_and_a_scenario_fails() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = LiveCluster::new(&plan(shape, &A_B_APART, false));
        let pods: Vec<String> = A_B_APART.iter().map(|(pod, _)| (*pod).to_owned()).collect();
        let ports = plan(shape, &[], false).ports;
        let wrong = cluster.check(&Table::all_allowed(&pods, &ports));
        assert!(wrong.is_empty(), "{shape:?}: {}", wrong.join("\n"));

        let scenario = scenarios(&cluster).into_iter().find(|one| one.number == 1).unwrap();
        let failures = scenario.run(&cluster, Isolation::AsWritten);
        assert_eq!(failures.len(), 1, "{shape:?}: {failures:?}");
        // Three peers reach each of two pods, by two addresses of two families.
        assert!(failures[0].contains("24 wrong"), "{shape:?}: {}", failures[0]);
    }
}
