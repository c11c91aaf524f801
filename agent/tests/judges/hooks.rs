//! The four hooks, whoever makes the decision behind them.

use portcullis::state::Desired;
use portcullis::state::image::{Full, Sizes};
use portcullis::state::memory::MemoryTables;
use portcullis::state::plan::Step;
use portcullis::state::simulate::Planner;
use portcullis_common::decide::{self, Packet};
use portcullis_common::layout::{Size, interface_kind, node_flag, rule};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

/// Endpoints of the tests; the device of the endpoint in slot `s` is `FIRST_DEVICE + s`.
pub(crate) const ENDPOINTS: u32 = 64;
pub(crate) const FIRST_DEVICE: u32 = 100;
/// The exit.
pub(crate) const UPLINK: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    FromPod,
    ToPod,
    FromUplink,
    ToUplink,
}

/// A packet at a hook.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) hook: Hook,
    pub(crate) device: u32,
    pub(crate) last_device: u32,
    pub(crate) stamp: Stamp,
    pub(crate) frame: Vec<u8>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    /// The stamp that it went on with, or why it was dropped.
    pub(crate) fate: Result<Stamp, Drop>,
    /// The rules that counted it, once for each time.
    pub(crate) counted: Vec<u32>,
}

/// Who stands behind the hooks. Counts are read for rules below `rules`.
pub(crate) trait Judge {
    fn judge(&mut self, arrival: &Arrival, rules: u32) -> Departure;
    fn take(&mut self, step: &Step) -> Result<(), Full>;
    fn set_flags(&mut self, flags: u64);
    /// Frees the ways of flows that nobody has any more. Where time stands still, answered ones would stay and push out new
    /// ones that are not answered yet.
    fn free_flows(&mut self) {}
}

/// [`decide`] over ordinary memory.
pub(crate) struct Memory(pub MemoryTables);

impl Default for Memory {
    fn default() -> Self {
        // Few counters, since all of them are looked at after every packet.
        let tables = MemoryTables::new(Sizes { rules: 256, ..Sizes::small() });
        for slot in 0..ENDPOINTS {
            tables.image.put_interface(FIRST_DEVICE + slot, interface_kind::ENDPOINT, slot).unwrap();
        }
        Self(tables)
    }
}

impl Judge for Memory {
    fn judge(&mut self, arrival: &Arrival, _rules: u32) -> Departure {
        let length = u32::try_from(arrival.frame.len()).unwrap();
        let mut packet = Packet {
            ifindex: arrival.device,
            ingress_ifindex: arrival.last_device,
            size: Size::one(length),
            link: 14,
            vlan: false,
            stamp: arrival.stamp,
        };
        let frame = arrival.frame.as_slice();
        let outcome = match arrival.hook {
            Hook::FromPod => decide::from_pod(&self.0, &mut packet, &frame),
            Hook::ToPod => decide::to_pod(&self.0, &mut packet, &frame),
            Hook::FromUplink => decide::from_uplink(&self.0, &mut packet, &frame),
            Hook::ToUplink => decide::to_uplink(&self.0, &mut packet, &frame),
        };
        let mut counted = Vec::new();
        for (rule, counter) in self.0.take_counts() {
            assert_eq!(counter.bytes, counter.packets * u64::from(length), "bytes of rule {rule}");
            counted.extend((0..counter.packets).map(|_| rule));
        }
        Departure { fate: outcome.map(|()| packet.stamp), counted }
    }

    fn take(&mut self, step: &Step) -> Result<(), Full> {
        self.0.take(step)
    }

    fn set_flags(&mut self, flags: u64) {
        self.0.image.set_flags(flags);
    }

    fn free_flows(&mut self) {
        self.0.forget_flows();
    }
}

/// Tables behind hooks, and what they were made from.
pub(crate) struct Node<J> {
    pub(crate) judge: J,
    pub(crate) planner: Planner,
    pub(crate) desired: Desired,
    /// Policy judges what pods send to their node.
    pub(crate) own_node: bool,
}

impl<J: Judge> Node<J> {
    pub(crate) fn new(judge: J) -> Self {
        Self { judge, planner: Planner::default(), desired: Desired::default(), own_node: false }
    }

    /// Brings the tables to these, and sees to it that no flow is known.
    pub(crate) fn hold(&mut self, desired: Desired) {
        let steps = self.planner.steps(&desired).unwrap();
        self.flags(&desired);
        self.desired = desired;
        for step in steps {
            self.judge.take(&step).unwrap();
        }
    }

    /// The node's flags that these tables need.
    pub(crate) fn flags(&mut self, desired: &Desired) {
        let isolated = desired.endpoints.values().any(|endpoint| endpoint.egress.is_some());
        let own_node = if self.own_node { node_flag::OWN_NODE } else { 0 };
        self.judge.set_flags(node_flag::ARMED | own_node | if isolated { node_flag::CONFIRM } else { 0 });
    }

    /// Forgets all flows.
    pub(crate) fn forget(&mut self) {
        self.judge.free_flows();
        for step in self.planner.renew() {
            self.judge.take(&step).unwrap();
        }
    }

    pub(crate) fn judge(&mut self, arrival: &Arrival) -> Departure {
        let rules = self.desired.rules.last_key_value().map_or(rule::FIRST, |(number, _)| number.0 + 1);
        self.judge.judge(arrival, rules)
    }
}
