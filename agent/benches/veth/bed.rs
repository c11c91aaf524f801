//! One configuration: two pods, and what judges their packets.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use portcullis_testbed::{Families, Outcome, Pod, PodOptions, Probe, Protocol, Shape, Testbed, TestbedOptions};

use crate::agent::Agent;
use crate::traffic::{self, Kind, PORT};
use crate::{Result, netfilter};

/// Where the two pods are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    OneNode,
    TwoNodes,
}

impl Place {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OneNode => "two pods of one node",
            Self::TwoNodes => "pods of two nodes",
        }
    }
}

/// What judges packets, and by how many rules in each direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    Nothing,
    /// The kernel's connection tracking, and what is established is accepted first.
    Conntrack,
    Agent(u32),
    /// A chain for each pod and direction, a set for each selector, as Calico writes them.
    IptablesSets(u32),
    Iptables(u32),
    Nftables(u32),
    NftablesMaps(u32),
}

impl Means {
    pub(crate) const fn rules(self) -> u32 {
        match self {
            Self::Nothing | Self::Conntrack => 0,
            Self::Agent(rules)
            | Self::IptablesSets(rules)
            | Self::Iptables(rules)
            | Self::Nftables(rules)
            | Self::NftablesMaps(rules) => rules,
        }
    }

    /// Whether a new flow passes one rule after another.
    pub(crate) const fn is_linear(self) -> bool {
        matches!(self, Self::IptablesSets(_) | Self::Iptables(_) | Self::Nftables(_))
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no policy",
            Self::Conntrack => "connection tracking alone",
            Self::Agent(_) => "the agent",
            Self::IptablesSets(_) => "iptables, a set for each selector",
            Self::Iptables(_) => "iptables",
            Self::Nftables(_) => "nftables",
            Self::NftablesMaps(_) => "nftables, verdict maps",
        }
    }
}

/// A configuration that stands, and its samples.
pub(crate) struct Bed {
    pub(crate) place: Place,
    pub(crate) means: Means,
    /// Transactions a second, by [`Kind`].
    pub(crate) samples: [Vec<f64>; 3],
    cpu: usize,
    client: Pod,
    server: SocketAddr,
    /// Connections that last: one for requests, one for bulk.
    lasting: [TcpStream; 2],
    // Agents end before their nodes do.
    _agents: Vec<Agent>,
    _testbed: Testbed,
}

impl Bed {
    /// Builds it, and makes sure that policy holds.
    pub(crate) fn new(place: Place, means: Means, cpu: usize) -> Result<Self> {
        let nodes = if place == Place::OneNode { 1 } else { 2 };
        let options = TestbedOptions { nodes, families: Families::V4, ..TestbedOptions::shaped(Shape::Routed) };
        let testbed = Testbed::new(options)?;
        let client = testbed.add_pod(0, "bench/client", PodOptions::default())?;
        let server = testbed.add_pod(nodes - 1, "bench/server", PodOptions::default())?;
        for pod in [&client, &server] {
            // Ports in TIME_WAIT are taken again, and a SYN that nobody answers is given up early.
            pod.namespace().sysctl("net/ipv4/ip_local_port_range", "2000 64000")?;
            pod.namespace().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
            pod.namespace().sysctl("net/ipv4/tcp_syn_retries", "2")?;
        }
        let agents = match means {
            Means::Nothing => Vec::new(),
            Means::Agent(rules) => Agent::on_every_node(&testbed, rules)?,
            _ => {
                netfilter::apply(testbed.node(0), &client, &server, means)?;
                Vec::new()
            }
        };
        traffic::serve(&server, cpu)?;
        server.serve(Protocol::Tcp, PORT + 1)?;
        let address = server.v4()?;
        let other = Probe::new(&client, address, Protocol::Tcp, PORT + 1).timeout(Duration::from_millis(500)).run();
        let judged = means.rules() > 0;
        if judged != (other == Outcome::Timeout) {
            return Err(format!("the port that no rule names answered: {other:?}").into());
        }
        let server = SocketAddr::new(address.into(), PORT);
        let connect = |kind| client.namespace().run(|| Ok(traffic::lasting(server, kind)?));
        let lasting = [connect(Kind::Requests)?, connect(Kind::Bulk)?];
        let samples = [const { Vec::new() }; 3];
        Ok(Self { place, means, samples, cpu, client, server, lasting, _agents: agents, _testbed: testbed })
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        format!("{}, {}, {} rules", self.place.name(), self.means.name(), self.means.rules())
    }

    /// Takes one sample.
    pub(crate) fn measure(&mut self, kind: Kind, time: Duration) -> Result<()> {
        let (cpu, server, lasting) = (self.cpu, self.server, &self.lasting);
        let rate = self.client.namespace().run(|| {
            traffic::pin(cpu)?;
            Ok(match kind {
                Kind::Requests => traffic::requests(&lasting[0], time)?,
                Kind::Connections => traffic::connections(server, time)?,
                Kind::Bulk => traffic::bulk(&lasting[1], time)?,
            })
        })?;
        self.samples[kind as usize].push(rate);
        Ok(())
    }
}
