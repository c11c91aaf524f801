//! Istio's ambient mode: what pods of the mesh send each other goes to port 15008 in place of the port that is asked about.

use super::{Party, Scene};
use crate::index::Cluster;
use crate::model::{Direction, Pod, Protocol, Traffic, Verdict};

/// Where ztunnel takes HBONE.
const HBONE: Traffic = Traffic { protocol: Protocol::TCP, port: 15008 };
/// A pod's or namespace's part in the mesh: `ambient`, or `none`. The pod's own says more.
const MODE: &str = "istio.io/dataplane-mode";
/// Istio's injector gives this to pods with a sidecar.
const SIDECAR: (&str, &str) = ("security.istio.io/tlsMode", "istio");

/// What a reader should know of a connection that policy admits to the asked port and not to the tunnel's.
pub(super) fn note(scene: &Scene<'_, '_>, direction: Direction) -> Option<String> {
    let (from, to) = (scene.from.pod()?, scene.to.pod()?);
    let cluster = scene.cluster;
    let through_tunnel = is_ambient(cluster, to) && !is_out(from)
        || is_ambient(cluster, from) && to.labels.get(SIDECAR.0) == Some(SIDECAR.1);
    if !through_tunnel || scene.traffic.protocol != Protocol::TCP || scene.traffic == HBONE {
        return None;
    }
    let (own, other) = match direction {
        Direction::Egress => (from, scene.to),
        Direction::Ingress => (to, scene.from),
    };
    // A client of no mesh sends to the port itself.
    if direction == Direction::Egress && !is_ambient(cluster, from) {
        return None;
    }
    let verdict = |traffic| verdict(scene, own, direction, other, traffic);
    if verdict(scene.traffic) == Verdict::Deny || verdict(HBONE) == Verdict::Allow {
        return None;
    }
    let (who, when) = match is_ambient(cluster, to) {
        true => (to, if is_ambient(cluster, from) { "" } else { ", if the client is in the mesh too" }),
        false => (from, ""),
    };
    Some(format!(
        "{} is in Istio's ambient mesh: what is asked about then comes through a tunnel to TCP port 15008{when}, and that port \
         is denied. Admit 15008 beside {} (docs/mesh.md).",
        who.key, scene.traffic.port
    ))
}

fn verdict(scene: &Scene<'_, '_>, own: &Pod, direction: Direction, other: Party<'_>, traffic: Traffic) -> Verdict {
    let peer = scene.nodes.view(own, direction, other, scene.family);
    scene.evaluator.decide(own, direction, &peer, traffic).verdict
}

fn is_ambient(cluster: &Cluster, pod: &Pod) -> bool {
    let of_namespace = || cluster.namespaces.get(&pod.key.namespace)?.labels.get(MODE);
    !pod.host_network && pod.labels.get(MODE).or_else(of_namespace) == Some("ambient")
}

/// The pod says itself that it is not in the mesh, or cannot be.
fn is_out(pod: &Pod) -> bool {
    pod.host_network || pod.labels.get(MODE) == Some("none")
}
