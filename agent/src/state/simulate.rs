//! Endpoints and tables as an agent makes them from desired ones, without devices: for answers that need no kernel, and for
//! tests, which take the same steps over the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use ipnet::IpNet;
use portcullis_common::Address;
use portcullis_common::layout::{EndpointRow, endpoint_flag};
use portcullis_common::stamp::SLOTS;

use super::desired::{Desired, EndpointPolicy, LocalId};
use super::flat::Flat;
use super::image::{Full, Sizes};
use super::memory::{MemoryTables, Ranges};
use super::plan::{self, Kernel, Step, StepError};

/// Endpoint rows that there is room for.
const ROWS: u32 = 4 * SLOTS;

/// An endpoint's place in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its slot.
    pub slot: u32,
    /// The index of its row.
    pub row: u32,
    /// What stands in the row.
    pub content: EndpointRow,
    /// Its revision.
    pub revision: u32,
}

/// Gives endpoints their places, and the steps from each state of the tables to the next.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    known: Flat,
    seats: BTreeMap<LocalId, Seat>,
    generations: BTreeMap<u32, u32>,
    next_row: u32,
    last_revision: u32,
    last_incarnation: u32,
}

impl Planner {
    /// The places of all endpoints.
    #[must_use]
    pub const fn seats(&self) -> &BTreeMap<LocalId, Seat> {
        &self.seats
    }

    /// The steps that lead from what the tables hold to these, make before break. They must be taken in order.
    ///
    /// # Errors
    /// There are more endpoints than slots.
    pub fn steps(&mut self, desired: &Desired) -> Result<Vec<Step>, Full> {
        let wanted = Flat::of(desired, 0);
        let mut steps = plan::make(&self.known, &wanted);
        steps.extend(plan::turn(&self.known, &wanted));
        let changed = self.flip(desired, &mut steps)?;
        steps.push(Step::Grace);
        for id in changed {
            let revision = self.next_revision();
            if let Some(seat) = self.seats.get_mut(&id) {
                seat.revision = revision;
                steps.push(Step::PutEndpoint(seat.slot, revision, seat.row));
            }
        }
        steps.extend(plan::sweep(&self.known, &wanted));
        self.known = wanted;
        Ok(steps)
    }

    /// Endpoints go, come, and move to their policy. Gives those that were there and changed.
    fn flip(&mut self, desired: &Desired, steps: &mut Vec<Step>) -> Result<BTreeSet<LocalId>, Full> {
        let gone: Vec<LocalId> = self.seats.keys().filter(|id| !desired.endpoints.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(seat) = self.seats.remove(&id) {
                steps.push(Step::PutEndpoint(seat.slot, 0, 0));
            }
        }
        let mut changed = BTreeSet::new();
        for (id, policy) in &desired.endpoints {
            let before = self.seats.get(id).copied();
            let (slot, identity) = match before {
                Some(seat) => (seat.slot, seat.content),
                None => self.take_slot()?,
            };
            let content = endpoint_row(Some(policy), &identity, 0, false);
            let same = before.filter(|seat| seat.content == content);
            if same.is_some() && !desired.rejudge.contains(id) {
                continue;
            }
            let row = match same {
                Some(seat) => seat.row,
                None => {
                    let row = self.take_row();
                    steps.push(Step::PutRow(row, content));
                    row
                }
            };
            let revision = self.next_revision();
            steps.push(Step::PutEndpoint(slot, revision, row));
            self.seats.insert(id.clone(), Seat { slot, row, content, revision });
            if before.is_some() {
                changed.insert(id.clone());
            }
        }
        Ok(changed)
    }

    /// Steps after which no flow of any endpoint is known any more.
    pub fn renew(&mut self) -> Vec<Step> {
        let mut steps = Vec::with_capacity(2 * self.seats.len());
        let ids: Vec<LocalId> = self.seats.keys().cloned().collect();
        for id in ids {
            let row = self.take_row();
            self.last_incarnation += 1;
            let incarnation = self.last_incarnation;
            if let Some(seat) = self.seats.get_mut(&id) {
                seat.row = row;
                seat.content.incarnation = incarnation;
                steps.push(Step::PutRow(row, seat.content));
                steps.push(Step::PutEndpoint(seat.slot, seat.revision, row));
            }
        }
        steps
    }

    /// A free slot, and a row that says nothing but whose it is.
    fn take_slot(&mut self) -> Result<(u32, EndpointRow), Full> {
        let used: BTreeSet<u32> = self.seats.values().map(|seat| seat.slot).collect();
        let full = Full { table: "endpoints", used: used.len(), capacity: SLOTS as usize };
        let slot = (0..SLOTS).find(|slot| !used.contains(slot)).ok_or(full)?;
        let generation = self.generations.get(&slot).map_or(0, |last| (last + 1) & 7);
        self.generations.insert(slot, generation);
        self.last_incarnation += 1;
        Ok((slot, EndpointRow { generation, incarnation: self.last_incarnation, ..EndpointRow::default() }))
    }

    /// A row that no endpoint has had for thousands of others.
    fn take_row(&mut self) -> u32 {
        loop {
            let row = self.next_row;
            self.next_row = (row + 1) % ROWS;
            if self.seats.values().all(|seat| seat.row != row) {
                return row;
            }
        }
    }

    const fn next_revision(&mut self) -> u32 {
        self.last_revision += 1;
        self.last_revision
    }
}

/// The row of an endpoint: generation, incarnation and Ethernet address as before, the rest as its policy says; closed without one.
#[must_use]
pub fn endpoint_row(policy: Option<&EndpointPolicy>, before: &EndpointRow, bank: u32, any_source: bool) -> EndpointRow {
    let EndpointRow { incarnation, generation, mac, .. } = *before;
    let identity = EndpointRow { incarnation, generation, mac, bank, ..EndpointRow::default() };
    let Some(policy) = policy else {
        return EndpointRow { flags: endpoint_flag::CLOSED | endpoint_flag::ANY_ADDRESS, ..identity };
    };
    let of_family = |v4: bool| {
        let address = policy.addresses.iter().find(|address| address.is_ipv4() == v4);
        address.map_or(Address::UNSPECIFIED, |address| Address::from(*address))
    };
    let any = any_source || policy.addresses.is_empty();
    EndpointRow {
        v4: of_family(true),
        v6: of_family(false),
        ingress: policy.ingress.map_or(0, |set| set.0),
        egress: policy.egress.map_or(0, |set| set.0),
        flags: if any { endpoint_flag::ANY_ADDRESS } else { 0 },
        ..identity
    }
}

impl Sizes {
    /// Sizes that hold these tables with room to spare.
    #[must_use]
    pub fn fitting(desired: &Desired) -> Self {
        let flat = Flat::of(desired, 0);
        // Two choices among buckets of eight cells find room until the table is nearly full; a quarter full is far from that.
        let buckets = |rows: usize| (u32::try_from(rows / 2).unwrap_or(u32::MAX / 2).max(16)).next_power_of_two();
        let rules = desired.rules.last_key_value().map_or(0, |(number, _)| number.0) + 1;
        Self {
            narrow_buckets: buckets(flat.narrow.len()),
            wide_buckets: buckets(flat.wide.len()).min(1 << 24),
            ranges: u32::try_from(flat.ranges.len()).unwrap_or(u32::MAX),
            rules: rules.max(portcullis_common::layout::rule::FIRST),
            endpoints: 1,
            share_bits: 0,
            confirmed_buckets: 1,
        }
    }
}

/// Ranges of ordinary memory always have room.
impl Kernel for Ranges {
    type Error = Infallible;

    fn put_range(&mut self, bank: u32, net: IpNet, value: u64) -> Result<(), Infallible> {
        self.insert((bank, net), value);
        Ok(())
    }

    fn drop_range(&mut self, bank: u32, net: IpNet) -> Result<(), Infallible> {
        self.remove(&(bank, net));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl MemoryTables {
    /// Takes a step of a [`Planner`].
    ///
    /// # Errors
    /// A table is full; nothing is changed.
    pub fn take(&mut self, step: &Step) -> Result<(), Full> {
        plan::take(&mut self.image, &mut self.ranges, 0, step).map_err(|error| match error {
            StepError::Full(full) => full,
            StepError::Kernel(never) => match never {},
        })
    }

    /// Tables that hold these and nothing else, and where each endpoint stands in them.
    ///
    /// # Errors
    /// There are more endpoints than slots.
    pub fn holding(desired: &Desired) -> Result<(Self, Planner), Full> {
        let mut tables = Self::new(Sizes::fitting(desired));
        let mut planner = Planner::default();
        for step in planner.steps(desired)? {
            tables.take(&step)?;
        }
        Ok((tables, planner))
    }
}
