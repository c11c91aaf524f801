//! Flows that the kernel knows and the programs do not: when its connection table is read.
//!
//! - Before the first packet meets a program: flows that were open before, or of which an agent before knew while its tables
//!   had another layout.
//! - Before an endpoint's egress is isolated for the first time: what it has sent to Services was judged at once until
//!   then, and no exit has recorded what answers are expected.
//! - When the programs' counts show that something was missing: a packet in the middle of an unknown flow, a reply that no
//!   exit's word was found for, an established flow that gave way. Never more than a small part of the time is spent on
//!   that, whatever is sent.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use portcullis_common::Address;
use portcullis_common::flow::Lifetime;
use portcullis_common::layout::{endpoint_flag, peer};
use portcullis_common::packet::Drop as Reason;
use portcullis_common::tables::Event;

use super::Reconciler;
use super::slots::Slot;
use crate::flows::{Inherited, Local, Reader, Surroundings};
use crate::netlink;
use crate::state::flat::address_key;

/// What shows that flows are missing.
const SIGNS: [u32; 4] =
    [Event::TakenUp as u32, Event::NotTakenUp as u32, Event::EstablishedEvicted as u32, Reason::UNCONFIRMED.0];
/// Reading the table takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// It is not read again sooner than this.
const PAUSE: Duration = Duration::from_millis(400);
/// What was read within this time is true enough for what is about to be isolated.
const RECENT: Duration = Duration::from_secs(1);

/// When the kernel's connection table is read.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// The signs as counted when it was read.
    seen: [u64; SIGNS.len()],
    /// Idle lifetimes as the programs have them, in jiffies.
    pub(super) lifetimes: [u32; 16],
    not_before: Option<Instant>,
    /// The same, for endpoints whose egress is about to be isolated: what was read for another reason is no reason to let
    /// their flows wait.
    isolating_not_before: Option<Instant>,
    /// When that had been done.
    read: Option<Instant>,
    /// It cannot be read, which has been said.
    failed: bool,
    /// The first packets after the programs were attached may have missed what came between reading and attaching.
    once_more: bool,
    /// The newest device, by incarnation, when it was first read.
    newest: u64,
    /// What newer ones have inherited.
    inherited: Inherited,
}

impl Reconciler {
    /// Idle lifetimes in jiffies. A default is cut to what this kernel is set to: kube-proxy sets some of them.
    pub(super) fn lifetimes(&self) -> [u32; 16] {
        let limit = u64::from(u32::MAX / 4);
        let mut lifetimes = [0; 16];
        for (lifetime, _, default) in Lifetime::ALL {
            let kernels = || netlink::timeout(lifetime).map_or(default, |seconds| seconds.clamp(1, default));
            let seconds = self.settings.lifetimes.get(&lifetime).copied().unwrap_or_else(kernels);
            let jiffies = u64::from(seconds) * u64::from(self.dataplane.jiffies);
            lifetimes[lifetime as usize] = jiffies.min(limit) as u32;
        }
        lifetimes
    }

    /// Takes the lifetimes as they are now: whoever sets the kernel's (kube-proxy, after it has started) changes ours.
    pub(super) fn follow_lifetimes(&mut self) {
        let lifetimes = self.lifetimes();
        if lifetimes != self.connections.lifetimes {
            self.connections.lifetimes = lifetimes;
            self.image.set_lifetimes(&lifetimes);
        }
    }

    /// Reads the kernel's connection table if the programs' counts show that flows are missing.
    pub fn look_after_flows(&mut self) {
        if !self.health.synced || self.connections.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        let missing = self.signs() != self.connections.seen;
        if missing || std::mem::take(&mut self.connections.once_more) {
            self.seed_flows();
        }
    }

    fn signs(&self) -> [u64; SIGNS.len()] {
        SIGNS.map(|number| self.dataplane.drops.read(number).map_or(0, |counter| counter.packets))
    }

    /// Whether the egress of an endpoint that was free in it is about to be isolated.
    pub(super) fn egress_begins(&self) -> bool {
        self.slots.used.values().any(|slot| {
            let policy = slot.id.as_ref().and_then(|id| self.compiler.desired().endpoints.get(id));
            let free = slot.content.egress == 0 && slot.content.flags & endpoint_flag::CLOSED == 0;
            free && policy.is_some_and(|policy| policy.egress.is_some())
        })
    }

    /// The same, before endpoints are given what asks for it: now, unless that was done for others a moment ago and doing it
    /// again would take more than its share of the time. Whoever changes policy all the time would otherwise have nothing else
    /// done.
    pub(super) fn seed_flows_before(&mut self) {
        let pausing = self.connections.isolating_not_before.is_some_and(|time| Instant::now() < time);
        let recent = self.connections.read.is_some_and(|time| time.elapsed() < RECENT);
        if pausing && recent {
            self.connections.once_more = true;
        } else {
            self.seed_flows();
            self.connections.isolating_not_before = self.connections.not_before;
        }
    }

    /// An endpoint has a slot. If its device has appeared since the connection table was first read, what that holds of its
    /// addresses until it may use them is another's.
    pub(super) fn endpoint_begins(&mut self, incarnation: u32, link: u64) {
        if self.health.synced && link > self.connections.newest {
            self.connections.inherited.begin(incarnation);
        }
    }

    /// Before endpoints that began may use their addresses: what they inherit is read. If that would take more than its share
    /// of the time it is read soon after, and what they have opened meanwhile counts as inherited: if the programs forget
    /// such a flow, it is as good as any that the kernel does not know.
    pub(super) fn read_inherited(&mut self) {
        let inherited = &self.connections.inherited;
        if self.owned_addresses().iter().any(|(incarnation, addresses)| inherited.is_unread(*incarnation, addresses)) {
            if self.connections.not_before.is_some_and(|time| Instant::now() < time) {
                self.connections.once_more = true;
            } else {
                self.seed_flows();
            }
        }
    }

    /// The addresses that each endpoint has or is about to have, by incarnation.
    fn owned_addresses(&self) -> Vec<(u32, Vec<IpAddr>)> {
        let desired = &self.compiler.desired().endpoints;
        let owned = self.slots.used.values().map(|slot| {
            let policy = slot.id.as_ref().and_then(|id| desired.get(id));
            let coming = policy.into_iter().flat_map(|policy| policy.addresses.iter().copied());
            (slot.incarnation, slot.addresses().chain(coming).collect())
        });
        owned.collect()
    }

    /// Enters what the kernel's connection table knows of this node's endpoints and the programs do not.
    pub(super) fn seed_flows(&mut self) {
        let begun = Instant::now();
        if !self.health.synced {
            self.connections.newest = self.snapshot.links.values().map(|link| link.incarnation).max().unwrap_or(0);
        }
        // Counted before the table is read: what comes meanwhile is a sign for the next time.
        self.connections.seen = self.signs();
        self.connections.once_more = !self.health.synced;
        let outcome = self.plant_connections();
        let took = begun.elapsed();
        self.connections.read = Some(begun + took);
        self.connections.not_before = Some(begun + took + PAUSE.max(took * SHARE));
        match outcome {
            Ok((connections, flows, entered)) => {
                self.connections.failed = false;
                tracing::debug!(connections, flows, entered, ?took, "read the kernel's connection table");
            }
            Err(error) if !std::mem::replace(&mut self.connections.failed, true) => {
                tracing::warn!(
                    "flows that are open already may stop for a moment, since their direction is not known: {error}"
                );
            }
            Err(_) => {}
        }
    }

    /// How many connections the kernel's table has, how many flows of this node's endpoints these are, and how many of those the
    /// programs' tables took.
    fn plant_connections(&mut self) -> Result<(u64, u64, u64), String> {
        let owned = self.owned_addresses();
        let endpoints: Vec<Local> = self.slots.used.values().filter_map(local).collect();
        let ranges = self.known.ranges.iter();
        let translatable: Vec<IpNet> =
            ranges.filter(|(_, value)| *value & peer::TRANSLATABLE != 0).map(|(range, _)| *range).collect();
        let around = Surroundings {
            endpoints: &endpoints,
            flags: &|address| self.flags_of(address, &translatable),
            lifetimes: self.connections.lifetimes,
            jiffies: self.dataplane.jiffies,
            first: !self.health.synced,
        };
        let mut reader = Reader::new(around, self.connections.inherited.reading(&owned));
        let mut planter = self.dataplane.planter().map_err(|error| error.to_string())?;
        let mut connections = 0;
        netlink::for_each_connection(|connection| {
            connections += 1;
            reader.seeds(connection).for_each(|seed| planter.plant(seed));
        })
        .map_err(|error| error.to_string())?;
        let (flows, planted) = planter.finish().map_err(|error| error.to_string())?;
        self.connections.inherited = reader.finish();
        Ok((connections, flows, planted))
    }

    /// The flags of an address, as the programs find them. Ranges within a translatable one are so themselves.
    fn flags_of(&self, address: IpAddr, translatable: &[IpNet]) -> u64 {
        let exact = self.known.wide.get(&address_key(address, self.bank)).copied();
        let covered = || translatable.iter().any(|range| range.contains(&address));
        exact.unwrap_or_else(|| if covered() { peer::TRANSLATABLE } else { 0 })
    }
}

/// An endpoint as the tables have it.
fn local(slot: &Slot) -> Option<Local> {
    let addresses: Vec<IpAddr> = [slot.content.v4, slot.content.v6]
        .into_iter()
        .filter(|address| *address != Address::UNSPECIFIED)
        .map(IpAddr::from)
        .collect();
    (!addresses.is_empty()).then_some(Local {
        slot: slot.number,
        generation: slot.content.generation,
        incarnation: slot.content.incarnation,
        addresses,
    })
}
