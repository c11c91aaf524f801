//! The way of one packet through a node, and what the hooks made of it.

use std::fmt;
use std::net::IpAddr;

use portcullis::model::{Family, Pod};
use portcullis::state::{Desired, LocalId, RuleIdentity, RuleNumber};
use portcullis_common::layout::rule;
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;
use proptest::prelude::*;

use super::documents::{OTHER_ADDRESSES, OUTSIDERS, OWN_ADDRESSES};
use super::hooks::{Arrival, Departure, FIRST_DEVICE, Hook, Judge, Node, UPLINK};
use super::oracle::{Frontend, backends, frontends};
use super::packets::{self, CLIENT_PORT, Load, load};
use super::world::World;

/// A packet before it is known what its cluster looks like: numbers choose among what is there.
#[derive(Clone)]
pub(crate) struct PacketSpec {
    pub(crate) v4: bool,
    pub(crate) from: Choice,
    pub(crate) to: Choice,
    pub(crate) load: Load,
    /// An outside client whose address was rewritten to the node's, or a pod's packet that netfilter masqueraded.
    pub(crate) masquerade: bool,
    /// The stamp is lost on the way.
    pub(crate) unstamped: bool,
    /// The port is one that the destination declares.
    pub(crate) declared: Option<usize>,
    /// A frame of any kind that goes the same way afterwards.
    pub(crate) odd: Vec<u8>,
}

/// On one line, as there are many.
impl fmt::Debug for PacketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { v4, from, to, load, masquerade, unstamped, declared, odd } = self;
        let family = if *v4 { "IPv4" } else { "IPv6" };
        write!(f, "{family} {from:?} to {to:?}, {load:?}, ")?;
        write!(f, "masquerade {masquerade}, unstamped {unstamped}, declared {declared:?}, odd {odd:?}")
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Choice {
    Pod(usize),
    Outside(usize),
    OwnNode,
    OtherNode,
    Service(usize, usize),
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(number) => write!(f, "pod {number}"),
            Self::Outside(number) => write!(f, "outsider {number}"),
            Self::OwnNode => write!(f, "own node"),
            Self::OtherNode => write!(f, "other node"),
            Self::Service(frontend, backend) => write!(f, "backend {backend} of frontend {frontend}"),
        }
    }
}

pub(crate) fn packet() -> impl Strategy<Value = PacketSpec> {
    let from = prop_oneof![
        8 => (0..6_usize).prop_map(Choice::Pod),
        2 => (0..OUTSIDERS.len()).prop_map(Choice::Outside),
        1 => Just(Choice::OwnNode),
        1 => Just(Choice::OtherNode),
    ];
    let to = prop_oneof![
        8 => (0..6_usize).prop_map(Choice::Pod),
        2 => (0..OUTSIDERS.len()).prop_map(Choice::Outside),
        1 => Just(Choice::OwnNode),
        1 => Just(Choice::OtherNode),
        4 => (0..8_usize, 0..4_usize).prop_map(|(frontend, backend)| Choice::Service(frontend, backend)),
    ];
    let rarely = || proptest::bool::weighted(0.15);
    let declared = proptest::option::weighted(0.5, 0..3_usize);
    let odd = proptest::collection::vec(any::<u8>(), 0..60);
    (any::<bool>(), from, to, load(), rarely(), rarely(), declared, odd).prop_map(
        |(v4, from, to, load, masquerade, unstamped, declared, odd)| PacketSpec {
            v4,
            from,
            to,
            load,
            masquerade,
            unstamped,
            declared,
            odd,
        },
    )
}

/// Where a packet enters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// At a local pod's veth.
    Local(LocalId),
    /// At the uplink.
    Outside,
    /// Nowhere: a process of this node made it.
    Node,
}

/// Where it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// At a local pod's veth.
    Local(LocalId),
    /// At the uplink.
    Away,
    /// Nowhere: it is for the node itself, or for a Service without backends.
    Nowhere,
}

/// One packet's way.
#[derive(Clone, Debug)]
pub(crate) struct Journey {
    pub(crate) source: Source,
    pub(crate) target: Target,
    pub(crate) source_address: IpAddr,
    /// As sent.
    pub(crate) sent_to: IpAddr,
    pub(crate) sent: Load,
    /// As it leaves, after DNAT and masquerade.
    pub(crate) seen_from: IpAddr,
    pub(crate) arrives_at: IpAddr,
    pub(crate) arrives: Load,
    pub(crate) unstamped: bool,
    /// The Service port that it is sent to.
    pub(crate) frontend: Option<Frontend>,
}

fn of_family(texts: &[&str], v4: bool) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).filter(|address: &IpAddr| address.is_ipv4() == v4).collect()
}

impl World {
    /// The pod whose packets carry an address.
    pub(crate) fn member_at(&self, address: IpAddr) -> Option<&Pod> {
        let mut members = self.cluster.pods.values().filter(|pod| pod.is_member());
        members.find(|pod| pod.addresses.contains(&address)).map(AsRef::as_ref)
    }

    pub(crate) fn local_at(&self, address: IpAddr) -> Option<&LocalId> {
        self.local.iter().find(|local| local.pod.addresses.contains(&address)).map(|local| &local.id)
    }

    fn address(&self, choice: Choice, v4: bool) -> Option<IpAddr> {
        let pick = |addresses: Vec<IpAddr>, number: usize| addresses.get(number % addresses.len().max(1)).copied();
        match choice {
            Choice::Pod(number) => {
                let pods = self.cluster.pods.values().flat_map(|pod| &pod.addresses);
                pick(pods.filter(|address| address.is_ipv4() == v4).copied().collect(), number)
            }
            Choice::Outside(number) => pick(of_family(&OUTSIDERS, v4), number),
            Choice::OwnNode => pick(of_family(&OWN_ADDRESSES, v4), 0),
            Choice::OtherNode => pick(of_family(&OTHER_ADDRESSES, v4), 0),
            Choice::Service(..) => None,
        }
    }

    /// The way of a packet; `None` where this node has no part in it, or nobody has the address that it needs.
    pub(crate) fn journey(&self, spec: &PacketSpec) -> Option<Journey> {
        let family = if spec.v4 { Family::V4 } else { Family::V6 };
        let own: Vec<IpAddr> = of_family(&OWN_ADDRESSES, spec.v4);
        let from = self.address(spec.from, spec.v4)?;
        let source = match self.local_at(from) {
            Some(id) => Source::Local(id.clone()),
            None if own.contains(&from) && !spec.masquerade => Source::Node,
            None => Source::Outside,
        };
        let masqueraded = own[0];
        let mut load = spec.load;
        let (sent_to, sent, arrives_at, frontend) = match spec.to {
            Choice::Service(number, backend) => {
                let known = frontends(self, family);
                let frontend = known.get(number % known.len().max(1))?.clone();
                if source == Source::Node || source == Source::Outside {
                    return None;
                }
                let sent = frontend.load(load);
                let behind = backends(self, &frontend).unwrap_or_default();
                let chosen = behind.get(backend % behind.len().max(1)).copied();
                load = chosen.map_or(sent, |chosen| sent.with_port(chosen.port));
                (frontend.at.address, sent, chosen.map(|chosen| chosen.address), Some(frontend))
            }
            to => {
                let mut to = self.address(to, spec.v4)?;
                if !matches!(source, Source::Local(_)) && self.local_at(to).is_none() {
                    // Traffic that neither comes from a pod of this node nor goes to one is nothing to judge.
                    let local = self.local.iter().flat_map(|local| &local.pod.addresses);
                    to = local.copied().find(|address| address.is_ipv4() == spec.v4)?;
                }
                if let Some(declared) = spec.declared
                    && let Some(pod) = self.member_at(to)
                    && let Some(port) = pod.ports.get(declared % pod.ports.len().max(1))
                {
                    load = load.with_port(port.number);
                }
                let at = |frontend: &Frontend| frontend.at.address == to && frontend.takes(load);
                (to, load, Some(to), frontends(self, family).into_iter().find(at))
            }
        };
        // A NodePort that was meant as the node itself goes on to a backend; that is the case above.
        let stays = frontend.is_some() && !matches!(spec.to, Choice::Service(..));
        let arrives_at = arrives_at.filter(|_| !stays);
        let target = match arrives_at {
            None => Target::Nowhere,
            Some(address) => match self.local_at(address) {
                Some(id) => Target::Local(id.clone()),
                None if own.contains(&address) => Target::Nowhere,
                None => Target::Away,
            },
        };
        if !matches!(source, Source::Local(_)) && !matches!(target, Target::Local(_)) {
            return None;
        }
        // Such a packet is its own reply: both directions of the flow have one tuple. A pod that talks to itself so is not
        // seen by a hook anyway.
        let symmetric = from == sent_to && matches!(load, Load::OtherIcmp | Load::Other(_));
        if symmetric {
            return None;
        }
        let rewritten = spec.masquerade && source != Source::Node && target != Target::Nowhere;
        Some(Journey {
            source,
            target,
            source_address: from,
            sent_to,
            sent,
            seen_from: if rewritten { masqueraded } else { from },
            arrives_at: arrives_at.unwrap_or(sent_to),
            arrives: load,
            unstamped: spec.unstamped,
            frontend,
        })
    }
}

/// What counted a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    NoPolicy,
    NodeProcess,
    Rule(RuleIdentity),
    /// A number that no rule has.
    Unnamed(u32),
}

impl What {
    pub(crate) fn of(number: u32, desired: &Desired) -> Self {
        match number {
            rule::NO_POLICY => Self::NoPolicy,
            rule::NODE_PROCESS => Self::NodeProcess,
            number => desired.rules.get(&RuleNumber(number)).cloned().map_or(Self::Unnamed(number), Self::Rule),
        }
    }
}

/// What became of a packet on the whole way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `None`: it passed. Else why it was dropped.
    pub(crate) dropped: Option<Drop>,
    /// What counted it, sorted: one hook may count for the egress of one pod and the ingress of another.
    pub(crate) counted: Vec<What>,
    /// Hooks that it met.
    pub(crate) hooks: usize,
}

/// Sends a packet through the hooks.
pub(crate) fn travel<J: Judge>(node: &mut Node<J>, journey: &Journey) -> (Answer, Vec<Departure>) {
    let mut departures = Vec::new();
    let mut answer = Answer { dropped: None, counted: Vec::new(), hooks: 0 };
    let device = |node: &Node<J>, id: &LocalId| node.planner.seats().get(id).map_or(0, |seat| FIRST_DEVICE + seat.slot);
    let mut meet = |node: &mut Node<J>, hook, device, last_device, stamp, frame| {
        let departure = node.judge(&Arrival { hook, device, last_device, stamp, frame });
        answer.hooks += 1;
        answer.counted.extend(departure.counted.iter().map(|rule| What::of(*rule, &node.desired)));
        answer.counted.sort();
        answer.dropped = departure.fate.err();
        let stamp = departure.fate.ok();
        departures.push(departure);
        stamp
    };
    let entering = packets::frame(journey.source_address, journey.sent_to, CLIENT_PORT, journey.sent);
    let leaving = packets::frame(journey.seen_from, journey.arrives_at, CLIENT_PORT, journey.arrives);
    let (stamp, last) = match &journey.source {
        Source::Local(id) => {
            let from = device(node, id);
            (meet(node, Hook::FromPod, from, from, Stamp::NONE, entering), from)
        }
        Source::Outside => (meet(node, Hook::FromUplink, UPLINK, UPLINK, Stamp::NONE, entering), UPLINK),
        Source::Node => (Some(Stamp::NONE), 0),
    };
    let Some(stamp) = stamp else { return (answer, departures) };
    let stamp = if journey.unstamped { Stamp::NONE } else { stamp };
    match &journey.target {
        Target::Local(id) => {
            let to = device(node, id);
            meet(node, Hook::ToPod, to, last, stamp, leaving);
        }
        Target::Away => {
            meet(node, Hook::ToUplink, UPLINK, last, stamp, leaving);
        }
        Target::Nowhere => {}
    }
    (answer, departures)
}
