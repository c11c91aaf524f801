//! What guests of the kernel matrix run of the tests beside: one cluster after another, since where everything is emulated
//! it is the making of nodes, pods and agents that takes long.

use portcullis_testbed::Shape;

use crate::cluster::{LiveCluster, Plan};
use crate::{detours, ipvs, sctp, tunnels};

/// Those of all the tests.
const PODS: [(&str, usize); 7] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("x/d", 0), ("y/a", 1), ("y/b", 1), ("y/c", 1)];

fn is_guest() -> bool {
    let is_one = std::env::var_os("PORTCULLIS_GUEST").is_some();
    if !is_one {
        eprintln!("skipped: the same is tested one by one where nothing is emulated");
    }
    is_one
}

#[test]
fn routed_pods_with_known_services() {
    if !is_guest() {
        return;
    }
    let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(Shape::Routed, &PODS) });
    let associations = sctp::before_agents(&cluster);
    ipvs::before_agents(&cluster);
    let tunnels = tunnels::before_agents(&cluster);
    cluster.start_agents(&[], &sctp::first_policies());
    sctp::with_agents(&cluster, Shape::Routed, &associations);
    drop(associations);
    ipvs::with_agents(&cluster, Shape::Routed);
    detours::denied_backends(&cluster, Shape::Routed, true);
    detours::node_ports(&cluster, Shape::Routed, true);
    eprintln!("judged detours of routed pods");
    tunnels::with_agents(&cluster, &tunnels);
}

/// With one agent: all of it happens on the first node.
#[test]
fn bridged_pods_with_unknown_services() {
    if !is_guest() {
        return;
    }
    let plan = Plan { agents: false, known_services: false, ..Plan::new(Shape::Bridged, &PODS) };
    let mut cluster = LiveCluster::new(&plan);
    let associations = sctp::before_agents(&cluster);
    ipvs::before_agents(&cluster);
    cluster.start_first_agents(1, &[], &sctp::first_policies());
    sctp::with_agents(&cluster, Shape::Bridged, &associations);
    drop(associations);
    ipvs::with_agents(&cluster, Shape::Bridged);
    detours::denied_backends(&cluster, Shape::Bridged, true);
    detours::node_ports(&cluster, Shape::Bridged, true);
    eprintln!("judged detours of bridged pods");
}
