//! A node with three pods: A, whose egress is isolated, B, whose ingress is, and C, whom nothing restricts. Policy allows
//! TCP and UDP to port 80 of anybody, and echo requests.

use std::net::IpAddr;

use portcullis::state::image::Sizes;
use portcullis::state::memory::MemoryTables;
use portcullis_common::Address;
use portcullis_common::decide::{self, Packet};
use portcullis_common::flow::Lifetime;
use portcullis_common::layout::{
    EndpointRow, Size, VALID, VerdictWord, endpoint_word, interface_kind, narrow, narrow_key, node_flag, peer, wide,
    wide_key,
};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::Ip;

pub(crate) const A: u32 = 0;
pub(crate) const B: u32 = 1;
pub(crate) const C: u32 = 2;
/// Not a pod: outside.
pub(crate) const OUTSIDE: u32 = 3;
/// A Service, unknown but for its address.
pub(crate) const SERVICE: u32 = 4;
/// This node.
pub(crate) const NODE: u32 = 5;
/// The rule that denies what no other allows, and the one that allows.
pub(crate) const DENY: u32 = 20;
pub(crate) const ALLOW: u32 = 21;

const SETS: [u32; 2] = [1, 2];
const UPLINK: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    FromPod(u32),
    ToPod(u32),
    FromUplink,
    ToUplink,
}

/// The address of someone in a family.
pub(crate) fn address(who: u32, v4: bool) -> IpAddr {
    let last = u8::try_from(who + 1).unwrap();
    if v4 { IpAddr::from([10, 1, 0, last]) } else { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]) }
}

pub(crate) fn between(from: u32, to: u32, v4: bool) -> Ip {
    Ip::new(address(from, v4), address(to, v4))
}

pub(crate) struct World {
    pub(crate) tables: MemoryTables,
    revision: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut tables = MemoryTables::new(Sizes { rules: 64, ..Sizes::small() });
        let mut lifetimes = [1_000_000; 16];
        lifetimes[Lifetime::Fragment as usize] = 100;
        tables.image.set_lifetimes(&lifetimes);
        tables.image.set_flags(node_flag::CONFIRM);
        for set in SETS {
            tables.image.put_narrow(narrow_key(narrow::SET_DEFAULT, set, 0), VALID | 1).unwrap();
        }
        let deny = VerdictWord::new(false, DENY).0;
        tables.image.put_narrow(narrow_key(narrow::PROFILE_DEFAULT, 1, 0), deny).unwrap();
        for v4 in [true, false] {
            for (who, value) in [(SERVICE, peer::TRANSLATABLE), (NODE, peer::TRANSLATABLE | peer::OWN_NODE)] {
                let [first, second] = Address::from(address(who, v4)).words;
                let key = [first, second, wide_key(wide::PEER, 0, 0, 0)];
                tables.image.put_wide(&key, peer::VALID | value).unwrap();
            }
        }
        for (protocol, port) in [(6, 80), (17, 80), (1, 8 << 8), (58, 128 << 8)] {
            tables.image.put_port(0, protocol, port, 7);
        }
        let mut world = Self { tables, revision: 0 };
        world.allow(true);
        for slot in [A, B, C] {
            world.tables.image.put_interface(100 + slot, interface_kind::ENDPOINT, slot).unwrap();
            world.change(slot, |_| {});
        }
        world
    }

    /// Whether policy allows port 80 and echo requests. Nobody is told that it has changed.
    pub(crate) fn allow(&mut self, allowed: bool) {
        let verdict = VerdictWord::new(allowed, if allowed { ALLOW } else { DENY }).0;
        self.tables.image.put_narrow(narrow_key(narrow::VERDICT, 1, 7), verdict).unwrap();
    }

    /// Gives a pod a new revision, with another row if something of it changes.
    pub(crate) fn change(&mut self, slot: u32, change: impl FnOnce(&mut EndpointRow)) {
        let mut row = EndpointRow {
            v4: Address::from(address(slot, true)),
            v6: Address::from(address(slot, false)),
            ingress: if slot == B { SETS[0] } else { 0 },
            egress: if slot == A { SETS[1] } else { 0 },
            incarnation: slot + 1,
            ..EndpointRow::default()
        };
        change(&mut row);
        self.revision += 1;
        let index = self.revision * 4 + slot;
        self.tables.image.put_row(index, &row);
        self.tables.image.put_endpoint(slot, endpoint_word(self.revision, index));
    }

    /// A frame at a hook, with the stamp that it came with: the stamp that it goes on with, or why not.
    pub(crate) fn at(&mut self, hook: Hook, stamp: Stamp, frame: &[u8]) -> Result<Stamp, Drop> {
        // What leaves a pod was received by its device, what comes from a process of the node by none.
        let last = if stamp == Stamp::OUTSIDE { UPLINK } else { 0 };
        self.at_from(hook, stamp, last, frame)
    }

    /// Likewise, with the device that received it last.
    pub(crate) fn at_from(&mut self, hook: Hook, stamp: Stamp, last: u32, frame: &[u8]) -> Result<Stamp, Drop> {
        let ifindex = match hook {
            Hook::FromPod(slot) | Hook::ToPod(slot) => 100 + slot,
            Hook::FromUplink | Hook::ToUplink => UPLINK,
        };
        let size = Size::one(u32::try_from(frame.len()).unwrap());
        let mut packet = Packet { ifindex, ingress_ifindex: last, size, link: 14, stamp, ..Packet::default() };
        let outcome = match hook {
            Hook::FromPod(_) => decide::from_pod(&self.tables, &mut packet, &frame),
            Hook::ToPod(_) => decide::to_pod(&self.tables, &mut packet, &frame),
            Hook::FromUplink => decide::from_uplink(&self.tables, &mut packet, &frame),
            Hook::ToUplink => decide::to_uplink(&self.tables, &mut packet, &frame),
        };
        outcome.map(|()| packet.stamp)
    }

    /// Likewise with a VLAN tag in metadata.
    pub(crate) fn tagged(&mut self, hook: Hook, frame: &[u8]) -> Result<(), Drop> {
        let (Hook::FromPod(slot) | Hook::ToPod(slot)) = hook else { return Ok(()) };
        let mut packet = Packet { ifindex: 100 + slot, link: 14, vlan: true, ..Packet::default() };
        match hook {
            Hook::FromPod(_) => decide::from_pod(&self.tables, &mut packet, &frame),
            _ => decide::to_pod(&self.tables, &mut packet, &frame),
        }
    }

    /// Rules that have counted since the last call.
    pub(crate) fn counted(&mut self) -> Vec<u32> {
        self.tables.take_counted()
    }
}
