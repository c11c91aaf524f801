//! The desired tables as plain values.
//!
//! A packet is classified so: the endpoint gives a *policy set* (one direction's compiled policy, shared by all endpoints
//! with the same applicable rules); the peer's address gives a *peer class* (one distinct set of atoms that hold); set and
//! class give a *profile*; protocol and port give a *port class*; profile and port class give the verdict. Every number
//! here is fresh when first used and names the same thing until it is gone from the kernel for a grace period, so that
//! tables of before and after may stand side by side.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Direction, PodKey, PolicyId, Protocol, RuleOrigin, Verdict};

/// A pod of this node that is enforced. The uid tells incarnations of one name apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalId {
    /// The pod's name.
    pub pod: PodKey,
    /// The pod's uid.
    pub uid: Arc<str>,
}

/// One distinct set of atoms that hold for a peer. 0 is the class of an address that no table names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u32);

/// A policy set; below 2^28, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// What a policy set says of one peer class: a verdict for each port class; below 2^28, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileId(pub u32);

/// One distinct set of (protocol, port range) questions that hold. 0: no rule asks about this protocol and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortClass(pub u16);

/// A counter and the name behind a verdict; index into the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleNumber(pub u32);

/// One port of one Service; below 2^28, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceNumber(pub u32);

/// What a [`RuleNumber`] stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleIdentity {
    /// The pod's view.
    pub direction: Direction,
    /// What it does to packets.
    pub verdict: Verdict,
    /// The policy.
    pub policy: PolicyId,
    /// What in the policy decides.
    pub cause: RuleCause,
}

/// What in a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleCause {
    /// A rule.
    Rule(RuleOrigin),
    /// The denial at the end of the tier.
    Isolation,
}

/// A verdict as the tables hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableVerdict {
    /// The outcome.
    pub verdict: Verdict,
    /// What decided.
    pub rule: RuleNumber,
}

/// What the tables know of an address or range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerEntry {
    /// The atoms that hold for it.
    pub class: ClassId,
    /// The host may translate packets to it onwards: an address of a service range, of a Service, or of this node.
    pub translatable: bool,
    /// An address of this node (and no Service's).
    pub own_node: bool,
}

/// Address, protocol and port of a Service, as its clients name it (NodePorts: with each address of this node).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKeyPort {
    /// The address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// How many of a Service port's backends an egress policy set lets its endpoints reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceReach {
    /// Every one, by this one rule: no confirmation is needed.
    All(RuleNumber),
    /// A part, or every one but by several rules, or what is behind it is not known: each packet is judged where it leaves,
    /// and each reply counted by what that judgement has recorded.
    Part,
    /// None: dropped at once, with what denies the first backend (or a Service without any).
    None(RuleNumber),
}

/// The compiled policy of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// The pod's own addresses: at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The set for ingress; `None` where no policy applies.
    pub ingress: Option<SetId>,
    /// The set for egress; `None` where no policy applies.
    pub egress: Option<SetId>,
}

/// Everything that the tables should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The endpoints of this node.
    pub endpoints: BTreeMap<LocalId, EndpointPolicy>,
    /// Single addresses: pods, nodes, this node's own, Services'. Each includes the ranges that cover it.
    pub addresses: HashMap<IpAddr, PeerEntry>,
    /// Ranges: those that policies name and the service ranges. Each includes the wider ones that cover it.
    pub ranges: BTreeMap<IpNet, PeerEntry>,
    /// Ports in runs: (protocol, first, last, class), sorted, not overlapping; ports that are in none have class 0. For
    /// ICMP and ICMPv6 a port is `type << 8 | code`. Other protocols stand here with the run 0 to 0.
    pub ports: BTreeMap<(Protocol, u16), (u16, PortClass)>,
    /// The profile of a set and class. `true`: the peer is the endpoint itself (its class with the atom "itself").
    pub profiles: HashMap<(SetId, ClassId, bool), ProfileId>,
    /// The profile of a set for every class that `profiles` does not name.
    pub set_defaults: HashMap<SetId, ProfileId>,
    /// The verdict of a profile for a port class.
    pub verdicts: HashMap<(ProfileId, PortClass), TableVerdict>,
    /// The verdict of a profile for every port class that `verdicts` does not name.
    pub profile_defaults: HashMap<ProfileId, TableVerdict>,
    /// Known Service ports.
    pub services: HashMap<ServiceKeyPort, ServiceNumber>,
    /// What an egress set reaches of a Service port.
    pub reaches: HashMap<(SetId, ServiceNumber), ServiceReach>,
    /// The same for every Service port that `reaches` does not name (unknown ones are always [`ServiceReach::Part`]).
    pub reach_defaults: HashMap<SetId, ServiceReach>,
    /// The names behind the rule numbers in use.
    pub rules: BTreeMap<RuleNumber, RuleIdentity>,
    /// Endpoints for which traffic may be judged otherwise than by the tables before, so that established flows must be
    /// judged again: their sets differ, or an address moved between classes that their sets tell apart.
    pub rejudge: BTreeSet<LocalId>,
}
