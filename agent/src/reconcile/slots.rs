//! Slots: the numbers under which programs know endpoints.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use portcullis_common::Address;
use portcullis_common::layout::EndpointRow;
use portcullis_common::stamp::SLOTS;

use crate::state::LocalId;

/// An endpoint as the tables hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its number.
    pub(super) number: u32,
    /// Tells devices of one index apart.
    pub(super) link: u64,
    /// Which pod; `None` while that is not known, or contested.
    pub(super) id: Option<LocalId>,
    /// Rises when the slot is handed on.
    pub(super) generation: u32,
    /// Never repeats.
    pub(super) incarnation: u32,
    /// The index of its row.
    pub(super) row: u32,
    /// What stands in the row.
    pub(super) content: EndpointRow,
    /// Its revision.
    pub(super) revision: u32,
}

impl Slot {
    /// The addresses that its packets are checked against.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let row = &self.content;
        [row.v4, row.v6].into_iter().filter(|address| *address != Address::UNSPECIFIED).map(IpAddr::from)
    }
}

/// A further veth of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Second {
    /// The endpoint's own veth.
    pub(super) of: u32,
    /// The endpoint's slot.
    pub(super) number: u32,
    /// Tells devices of one index apart.
    pub(super) link: u64,
}

/// Which slots and rows are in use.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By the device's index.
    pub(super) used: BTreeMap<u32, Slot>,
    /// Further veths of those endpoints, by the device's index.
    pub(super) seconds: BTreeMap<u32, Second>,
    /// The generation that each slot had last.
    generations: BTreeMap<u32, u32>,
    /// The generation of a slot that none is known of.
    first_generation: u32,
    free: VecDeque<u32>,
    /// Given up since the last grace period.
    waiting: Vec<u32>,
    limit: u32,
    next: u32,
    free_rows: VecDeque<u32>,
    waiting_rows: Vec<u32>,
    next_row: u32,
}

/// Rows that there is room for.
const ROWS: u32 = 4 * SLOTS;

impl Slots {
    /// Starts with what an agent before has left: its slots keep their numbers. What generations other slots had is not
    /// known, so they go on from `first`, which is another for each agent; entries tell incarnations apart besides.
    pub(super) fn start(
        &mut self,
        limit: u32,
        adopted: BTreeMap<u32, Slot>,
        seconds: BTreeMap<u32, Second>,
        generations: BTreeMap<u32, u32>,
        first: u32,
    ) {
        self.first_generation = first & 7;
        self.limit = limit.min(SLOTS);
        self.next = adopted.values().map(|slot| slot.number + 1).max().unwrap_or(0);
        let taken: Vec<u32> = adopted.values().map(|slot| slot.number).collect();
        self.free = (0..self.next).filter(|number| !taken.contains(number)).collect();
        let rows: Vec<u32> = adopted.values().map(|slot| slot.row).collect();
        self.next_row = rows.iter().map(|row| row + 1).max().unwrap_or(0);
        self.free_rows = (0..self.next_row).filter(|row| !rows.contains(row)).collect();
        self.used = adopted;
        self.seconds = seconds;
        self.generations = generations;
    }

    /// A slot nobody has used since a grace period, and its new generation.
    pub(super) fn take(&mut self) -> Option<(u32, u32)> {
        let number = self.free.pop_front().or_else(|| {
            let number = self.next;
            (number < self.limit).then(|| {
                self.next += 1;
                number
            })
        })?;
        let generation = self.generations.get(&number).map_or(self.first_generation, |last| (last + 1) & 7);
        self.generations.insert(number, generation);
        Some((number, generation))
    }

    /// A row that no word points to, nor has since a grace period.
    pub(super) fn take_row(&mut self) -> Option<u32> {
        self.free_rows.pop_front().or_else(|| {
            let row = self.next_row;
            (row < ROWS).then(|| {
                self.next_row += 1;
                row
            })
        })
    }

    /// Gives a row up.
    pub(super) fn drop_row(&mut self, row: u32) {
        self.waiting_rows.push(row);
    }

    /// Gives the endpoint of a device up.
    pub(super) fn remove(&mut self, ifindex: u32) -> Option<Slot> {
        let slot = self.used.remove(&ifindex)?;
        self.waiting.push(slot.number);
        self.waiting_rows.push(slot.row);
        Some(slot)
    }

    /// Whether a device is an endpoint's: then it stays one until its link goes.
    pub(super) fn holds(&self, ifindex: u32) -> bool {
        self.used.contains_key(&ifindex) || self.seconds.contains_key(&ifindex)
    }

    /// Every device that is an endpoint's, with its slot.
    pub(super) fn devices(&self) -> impl Iterator<Item = (u32, u32)> {
        let own = self.used.iter().map(|(ifindex, slot)| (*ifindex, slot.number));
        own.chain(self.seconds.iter().map(|(ifindex, second)| (*ifindex, second.number)))
    }

    /// Whether something given up waits for a grace period.
    pub(super) fn wait_for_grace(&self) -> bool {
        !self.waiting.is_empty() || !self.waiting_rows.is_empty()
    }

    /// A grace period has passed.
    pub(super) fn grace_passed(&mut self) {
        self.free.extend(self.waiting.drain(..));
        self.free_rows.extend(self.waiting_rows.drain(..));
    }

    /// The pods that have slots.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &LocalId> {
        self.used.values().filter_map(|slot| slot.id.as_ref())
    }
}
