//! The hooks of a small node, and what must hold of every packet at them.

use std::net::IpAddr;

use portcullis::state::Desired;
use portcullis::state::image::Sizes;
use portcullis::state::memory::MemoryTables;
use portcullis::state::simulate::{Planner, Seat};
use portcullis_common::decide::{self, Packet};
use portcullis_common::layout::{Size, interface_kind, node_flag};
use portcullis_common::packet::{Drop, Shape};
use portcullis_common::stamp::Stamp;
use portcullis_packets::expected;

use crate::history::History;
use crate::world::{DENIED, DESIRED, NODE, PODS};

/// The device of the first endpoint's slot; the others follow.
pub(crate) const FIRST_DEVICE: u32 = 100;
/// The exit.
pub(crate) const UPLINK: u32 = 2;

/// Something that is broken on purpose, to see that it is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    /// Nothing.
    None,
    /// What is malformed passes.
    PassesMalformed,
    /// Any source passes.
    PassesAnySource,
    /// Drops nothing at an exit.
    PassesExits,
    /// Every other packet of a kind is dropped.
    Flaps,
    /// A packet that opens a flow rides on what is known.
    RidesOnHistory,
    /// Packets from the middle of a flow pass.
    PassesMiddles,
}

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    FromPod(usize),
    ToPod(usize),
    FromUplink,
    ToUplink,
}

/// A packet at a hook.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) hook: Hook,
    pub(crate) last_device: u32,
    pub(crate) stamp: Stamp,
    pub(crate) vlan: bool,
    pub(crate) frame: Vec<u8>,
}

pub(crate) type Fate = Result<Stamp, Drop>;

/// One set of tables.
struct Tables {
    tables: MemoryTables,
    planner: Planner,
}

impl Tables {
    fn new() -> Self {
        let sizes = Sizes { rules: 256, endpoints: 8, share_bits: 2, confirmed_buckets: 16, ..Sizes::small() };
        let tables = MemoryTables::new(sizes);
        tables.image.set_flags(node_flag::ARMED | node_flag::CONFIRM);
        Self { tables, planner: Planner::default() }
    }

    fn hold(&mut self, desired: &Desired) -> Result<(), String> {
        for step in self.planner.steps(desired).map_err(|full| full.to_string())? {
            self.tables.take(&step).map_err(|full| full.to_string())?;
        }
        Ok(())
    }

    fn decide(&self, arrival: &Arrival, devices: &[u32]) -> Fate {
        let mut packet = Packet {
            ifindex: match arrival.hook {
                Hook::FromPod(pod) | Hook::ToPod(pod) => devices[pod],
                _ => UPLINK,
            },
            ingress_ifindex: arrival.last_device,
            size: Size::one(arrival.frame.len() as u32),
            link: 14,
            vlan: arrival.vlan,
            stamp: arrival.stamp,
        };
        let frame = arrival.frame.as_slice();
        let outcome = match arrival.hook {
            Hook::FromPod(_) => decide::from_pod(&self.tables, &mut packet, &frame),
            Hook::ToPod(_) => decide::to_pod(&self.tables, &mut packet, &frame),
            Hook::FromUplink => decide::from_uplink(&self.tables, &mut packet, &frame),
            Hook::ToUplink => decide::to_uplink(&self.tables, &mut packet, &frame),
        };
        outcome.map(|()| packet.stamp)
    }
}

/// The node: tables with a history, and the same tables without one.
pub(crate) struct Node {
    used: Tables,
    fresh: Tables,
    pub(crate) history: History,
    /// The device of each pod.
    pub(crate) devices: Vec<u32>,
    seats: Vec<Seat>,
    policy: usize,
    breakage: Breakage,
}

impl Node {
    pub(crate) fn new() -> Self {
        let (used, fresh) = (Tables::new(), Tables::new());
        Self {
            used,
            fresh,
            history: History::default(),
            devices: Vec::new(),
            seats: Vec::new(),
            policy: usize::MAX,
            breakage: Breakage::None,
        }
    }

    /// Forgets what was, but not the time.
    pub(crate) fn begin(&mut self, breakage: Breakage) -> Result<(), String> {
        self.breakage = breakage;
        self.turn_to(0)?;
        self.used.tables.forget_flows();
        self.history = History::default();
        Ok(())
    }

    /// Puts one of the two policies in force.
    pub(crate) fn turn_to(&mut self, policy: usize) -> Result<(), String> {
        if self.policy == policy {
            return Ok(());
        }
        self.used.hold(&DESIRED[policy])?;
        self.fresh.hold(&DESIRED[policy])?;
        self.policy = policy;
        let seats = self.used.planner.seats();
        self.seats = PODS
            .iter()
            .filter_map(|pod| seats.iter().find(|(id, _)| *id.pod.name == *pod.name).map(|(_, seat)| *seat))
            .collect();
        if self.seats.len() != PODS.len() {
            return Err(format!("{} endpoints have seats", self.seats.len()));
        }
        self.devices = self.seats.iter().map(|seat| FIRST_DEVICE + seat.slot).collect();
        for (seat, device) in self.seats.iter().zip(&self.devices) {
            for tables in [&self.used, &self.fresh] {
                let put = tables.tables.image.put_interface(*device, interface_kind::ENDPOINT, seat.slot);
                put.map_err(|full| full.to_string())?;
            }
        }
        Ok(())
    }

    pub(crate) const fn policy(&self) -> usize {
        self.policy
    }

    /// Lets so many jiffies go by.
    pub(crate) fn wait(&mut self, jiffies: u32) {
        let now = self.used.tables.now.wrapping_add(jiffies);
        self.used.tables.now = now;
        self.fresh.tables.now = now;
    }

    /// A packet at a hook; what becomes of it, if everything that must hold does.
    pub(crate) fn meet(&mut self, arrival: &Arrival) -> Result<Fate, String> {
        self.fresh.tables.forget_flows();
        let fresh = self.fresh.decide(arrival, &self.devices);
        let fate = self.broken(self.used.decide(arrival, &self.devices), arrival, false);
        let again = self.broken(self.used.decide(arrival, &self.devices), arrival, true);
        self.check(arrival, fate, again, fresh).map_err(|what| {
            format!("{what}\n{arrival:02x?}\nbecame {fate:?}, then {again:?}, without history {fresh:?}")
        })?;
        self.history.met(&arrival.frame);
        if fate.is_ok() {
            self.history.passed(&arrival.frame);
        }
        Ok(fate)
    }

    /// What the broken decision says.
    fn broken(&self, fate: Fate, arrival: &Arrival, again: bool) -> Fate {
        let pass = |reason: Drop| if fate == Err(reason) { Ok(Stamp::NONE) } else { fate };
        let exit = matches!(arrival.hook, Hook::ToUplink);
        match self.breakage {
            Breakage::None => fate,
            Breakage::PassesMalformed => pass(Drop::MALFORMED),
            Breakage::PassesAnySource => pass(Drop::SOURCE),
            Breakage::PassesExits if exit => pass(Drop::POLICY),
            Breakage::Flaps if again => Err(Drop::POLICY),
            Breakage::RidesOnHistory if opens(&arrival.frame) && self.history.knows(&arrival.frame) => {
                pass(Drop::POLICY)
            }
            Breakage::PassesMiddles if !opens(&arrival.frame) => pass(Drop::POLICY),
            _ => fate,
        }
    }

    fn check(&self, arrival: &Arrival, fate: Fate, again: Fate, fresh: Fate) -> Result<(), String> {
        // A first fragment that contradicts another is dropped once by each hook that kept the other; after that its number
        // is the new datagram's.
        let contradicts = fate == Err(Drop::OVERLAP) && self.history.has_begun(&arrival.frame);
        if fate != again && !contradicts {
            return Err("the same packet has another fate the second time".to_owned());
        }
        let said = expected(&arrival.frame, 14);
        let (shape, opens) = (said.shape(), opens(&arrival.frame));
        let (source, destination) = said.addresses.map_or((None, None), |(from, to)| (Some(from), to));
        let protocol = said.upper.map_or(0, |upper| upper.protocol);
        // REPLY alone does nothing for a packet that opens a flow.
        let plain = |fate: Fate| fate.map(|stamp| (stamp.provenance(), stamp.is_deferred()));
        if opens && !contradicts && plain(fate) != plain(fresh) {
            return Err("a packet that opens a flow is judged by what was before".to_owned());
        }
        if fate.is_ok() && fresh.is_err() && !self.history.knows(&arrival.frame) {
            return Err("a packet rides on a flow that nobody opened".to_owned());
        }
        let Ok(stamp) = fate else { return Ok(()) };
        let denied = &self.seats[DENIED];
        let leaves = matches!(arrival.hook, Hook::ToUplink | Hook::ToPod(_)) && arrival.hook != Hook::ToPod(DENIED);
        let is_his = arrival.stamp == Stamp::deferred(denied.slot, denied.content.generation);
        // It may talk to itself and to its node.
        let implied = [&PODS[DENIED], &NODE].map(|host| host.address(said.v4));
        let implied = destination.is_some_and(|to| implied.contains(&to));
        if leaves && is_his && is_ip(shape) && !implied && !self.history.knows(&arrival.frame) {
            return Err("what the pod that may send nothing has sent leaves the node".to_owned());
        }
        let (Hook::FromPod(pod) | Hook::ToPod(pod)) = arrival.hook else { return Ok(()) };
        let seat = &self.seats[pod];
        let from_pod = matches!(arrival.hook, Hook::FromPod(_));
        let enforced = seat.content.ingress != 0 || seat.content.egress != 0;
        let link_local = matches!(shape, Shape::ARP | Shape::DISCOVERY) || shape == Shape::ROUTER && !from_pod;
        let readable = is_ip(shape) || link_local;
        if enforced && (!readable || arrival.vlan) {
            return Err(format!("an enforced pod's packet passes though it is {:?}", shape.why()));
        }
        if from_pod && arrival.vlan {
            return Err("a pod's tagged packet passes".to_owned());
        }
        if !is_ip(shape) || arrival.vlan {
            return Ok(());
        }
        let own = Some(PODS[pod].address(said.v4));
        let (address, whose) = if from_pod { (source, "source") } else { (destination, "destination") };
        let group = |to: IpAddr| to.is_multicast() || to == IpAddr::from([255, 255, 255, 255]);
        if address != own && (from_pod || !address.is_some_and(group)) {
            return Err(format!("a packet passes whose {whose} is not the pod's"));
        }
        if from_pod && (!stamp.is_local() || stamp.slot() != seat.slot) {
            return Err("what a pod sends goes on without its stamp".to_owned());
        }
        // It may talk to itself.
        let to_others = destination != own && !stamp.is_deferred();
        if from_pod && pod == DENIED && to_others && !self.history.knows(&arrival.frame) {
            return Err("the pod that may send nothing has sent something".to_owned());
        }
        if from_pod && matches!(protocol, 4 | 41 | 47) {
            return Err("a tunnel's packet leaves a pod".to_owned());
        }
        Ok(())
    }
}

/// Whether it is IP that can be judged: by its own headers, by its first fragment, or by what it quotes.
fn is_ip(shape: Shape) -> bool {
    matches!(shape, Shape::IP | Shape::LATER | Shape::RELATED | Shape::REDIRECT)
}

/// Whether a packet opens a flow.
fn opens(frame: &[u8]) -> bool {
    let said = expected(frame, 14);
    said.opens && said.shape() == Shape::IP
}
