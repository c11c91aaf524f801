//! `portcullis explain`: why a connection is allowed or denied.

mod json;
mod mesh;
mod text;

use std::io::Write;
use std::net::IpAddr;

use super::arguments::PartyName;
use super::side::{Side, both};
use super::words::listed;
use super::{CliError, ExplainArgs, ExplainOutput};
use crate::evaluate::{Evaluator, Explanation, NodeView, Party, PeerView};
use crate::index::Cluster;
use crate::model::{Decision, Direction, Family, Pod, PodKey, Service, Traffic, Verdict};

/// The answer for one family.
struct Answer<'a> {
    family: Family,
    traffic: Traffic,
    egress: Judged<'a>,
    ingress: Judged<'a>,
}

impl Answer<'_> {
    fn verdict(&self) -> Verdict {
        both(self.egress.decision(), self.ingress.decision())
    }
}

/// One side of the connection.
struct Judged<'a> {
    direction: Direction,
    /// The side that is judged, in words.
    name: String,
    sides: Sides<'a>,
    /// `None` where the side is no pod.
    endpoint: Option<&'a Pod>,
    explanation: Option<Explanation>,
    /// What is decided of clients from outside that carry the peer's address, since the node has masqueraded them.
    masqueraded: Option<Decision>,
    /// What a reader should know beside.
    notes: Vec<String>,
}

impl Judged<'_> {
    fn decision(&self) -> &Decision {
        self.explanation.as_ref().map_or(&Side::FREE, |explanation| &explanation.decision)
    }
}

/// What words about a rule need to know of the connection, seen from the side that is judged.
pub(super) struct Sides<'a> {
    pub(super) peer: PeerView<'a>,
    pub(super) peer_name: String,
    pub(super) peer_on_host_network: bool,
    pub(super) destination_name: String,
    pub(super) traffic: Traffic,
}

impl Sides<'_> {
    /// The peer's address, with its name where it has one.
    pub(super) fn peer_address(&self) -> String {
        match self.peer.address {
            Some(address) if address.to_string() != self.peer_name => format!("{address} ({})", self.peer_name),
            _ => self.peer_name.clone(),
        }
    }

    pub(super) fn peer_namespace(&self) -> &str {
        self.peer.pod.map_or("", |pod| &pod.key.namespace)
    }
}

/// Writes the answer.
pub(super) fn write(args: &ExplainArgs, cluster: &Cluster, out: &mut dyn Write) -> Result<(), CliError> {
    let from = find(cluster, &args.from)?;
    let to = find(cluster, &args.to)?;
    if let Party::Address(address) = to
        && let Some(service) = service_at(cluster, address)
    {
        return Err(CliError::Service { address, service: service.key.clone(), backends: backends(cluster, service) });
    }
    let answers = answers(args, cluster, from, to)?;
    match args.output {
        ExplainOutput::Json => {
            serde_json::to_writer_pretty(&mut *out, &json::report(&name(from), &name(to), &answers))?;
            writeln!(out)?;
        }
        ExplainOutput::Text => out.write_all(text::report(&name(from), &name(to), &answers).as_bytes())?,
    }
    Ok(())
}

fn answers<'a>(
    args: &ExplainArgs,
    cluster: &'a Cluster,
    from: Party<'a>,
    to: Party<'a>,
) -> Result<Vec<Answer<'a>>, CliError> {
    if from.pod().is_none() && to.pod().is_none() {
        return Err(CliError::NoPod { from: name(from), to: name(to) });
    }
    let (evaluator, nodes) = (Evaluator::new(cluster), NodeView::of(cluster));
    let families = from.families(&to);
    if families.is_empty() {
        return Err(CliError::NoCommonFamily { from: name(from), to: name(to) });
    }
    let answer = |family| {
        let traffic = args.asked().traffic(family);
        let judged = |direction| {
            let scene = Scene { cluster, evaluator: &evaluator, nodes: &nodes, from, to, family, traffic };
            scene.judge(direction)
        };
        Answer { family, traffic, egress: judged(Direction::Egress), ingress: judged(Direction::Ingress) }
    };
    Ok(families.into_iter().map(answer).collect())
}

/// A connection in one family.
struct Scene<'a, 'b> {
    cluster: &'a Cluster,
    evaluator: &'b Evaluator<'a>,
    nodes: &'b NodeView<'a>,
    from: Party<'a>,
    to: Party<'a>,
    family: Family,
    traffic: Traffic,
}

impl<'a> Scene<'a, '_> {
    fn judge(&self, direction: Direction) -> Judged<'a> {
        let (own, other) = match direction {
            Direction::Egress => (self.from, self.to),
            Direction::Ingress => (self.to, self.from),
        };
        let endpoint = own.pod();
        let view = |pod| self.nodes.view(pod, direction, other, self.family);
        let peer = endpoint.map_or_else(PeerView::default, view);
        let explanation = endpoint.map(|pod| self.evaluator.explain(pod, direction, &peer, self.traffic));
        let sides = Sides {
            peer,
            peer_name: name(other),
            peer_on_host_network: other.pod().is_some_and(|pod| pod.host_network),
            destination_name: name(self.to),
            traffic: self.traffic,
        };
        let (masqueraded, notes) = self.masqueraded(direction, endpoint, &peer, other).unzip();
        let notes = notes.into_iter().chain(mesh::note(self, direction)).collect();
        Judged { direction, name: name(own), sides, endpoint, explanation, masqueraded, notes }
    }

    /// Whoever comes from outside by a node port or load balancer of a node may carry that node's address.
    fn masqueraded(
        &self,
        direction: Direction,
        endpoint: Option<&Pod>,
        peer: &PeerView<'_>,
        other: Party<'_>,
    ) -> Option<(Decision, String)> {
        let endpoint = endpoint.filter(|_| direction == Direction::Ingress && other.pod().is_none())?;
        let address = other.address(self.family)?;
        let node = self.nodes.holder(address)?;
        let decision = self.evaluator.decide(endpoint, direction, &NodeView::masqueraded(address), self.traffic);
        let who = if peer.node_process_of_own_node {
            "This is about processes of the node".to_owned()
        } else {
            format!("{address} is an address of node {node}")
        };
        let (verdict, counted) = match decision.verdict {
            Verdict::Allow => ("allowed", ""),
            Verdict::Deny => (
                "denied",
                " Agents count those as portcullis_drops_total{reason=\"masqueraded_client\"}; with \
                 --masqueraded-clients allow they pass.",
            ),
        };
        let note = format!(
            "{who}. Clients from outside that come through a NodePort or a load balancer \
             with externalTrafficPolicy Cluster carry the address {address} too, and are judged by it: {verdict}. \
             With externalTrafficPolicy Local they keep their own address.{counted}"
        );
        Some((decision, note))
    }
}

/// The party of a name. An address of a pod is that pod.
fn find<'a>(cluster: &'a Cluster, wanted: &PartyName) -> Result<Party<'a>, CliError> {
    match wanted {
        PartyName::Address(address) => {
            let holder = cluster.pods.values().find(|pod| pod.is_member() && pod.addresses.contains(address));
            Ok(holder.map_or(Party::Address(*address), |pod| Party::Pod(pod)))
        }
        PartyName::Pod(key) => match cluster.pods.get(key) {
            Some(pod) if pod.finished => Err(CliError::FinishedPod(key.clone())),
            Some(pod) => Ok(Party::Pod(pod)),
            None => Err(CliError::UnknownPod { pod: key.clone(), hint: hint(cluster, key) }),
        },
    }
}

/// The Service that an address belongs to. What such an address is judged on is not known before a backend is chosen.
fn service_at(cluster: &Cluster, address: IpAddr) -> Option<&Service> {
    let holds = |service: &&Service| service.cluster_ips.contains(&address) || service.external_ips.contains(&address);
    cluster.services.values().map(AsRef::as_ref).find(holds)
}

fn backends(cluster: &Cluster, service: &Service) -> String {
    let Some(selector) = &service.selector else { return "it has no selector that names pods".to_owned() };
    let of_service =
        |pod: &&Pod| !pod.finished && pod.key.namespace == service.key.namespace && selector.matches(&pod.labels);
    let pods: Vec<String> =
        cluster.pods.values().map(AsRef::as_ref).filter(of_service).map(|pod| pod.key.to_string()).collect();
    if pods.is_empty() { "no pod is selected by it".to_owned() } else { format!("it selects {}", listed(pods)) }
}

/// What there is instead of a pod.
fn hint(cluster: &Cluster, wanted: &PodKey) -> String {
    let neighbours: Vec<String> =
        cluster.pods.keys().filter(|key| key.namespace == wanted.namespace).map(ToString::to_string).collect();
    let namespaces: std::collections::BTreeSet<&str> = cluster.pods.keys().map(|key| key.namespace.as_ref()).collect();
    if !neighbours.is_empty() {
        format!("its namespace has {}", listed(neighbours))
    } else if namespaces.is_empty() {
        "it has no pods".to_owned()
    } else {
        format!("namespaces with pods are {}", listed(namespaces.into_iter().map(str::to_owned).collect()))
    }
}

/// A party in words.
fn name(party: Party<'_>) -> String {
    match party {
        Party::Pod(pod) => pod.key.to_string(),
        Party::Address(address) => address.to_string(),
    }
}

#[cfg(test)]
mod tests;
