//! What follows for the tables from the kernel's own connection table: which flows of this node's endpoints were open before
//! anything here knew of them, and who opened them.
//!
//! The kernel follows every connection through the address translation of netfilter; a packet in the middle of one tells
//! none of that. So where entries are missing (flows older than the agent, of a table layout that is gone, that gave way to
//! others) or only assumed ([`state::TAKEN_UP`]), they are made from here.
//!
//! A seed lets nothing through: its revision is 0, which no endpoint has, so the next packet judges the flow anew. What the
//! connection table is trusted for is the *direction* in which a flow was opened and by whom. It is as true as the addresses
//! of the packets that it was made of: of packets from pods `from_pod` has checked them before netfilter saw them; of
//! packets from outside the host's reverse-path filter must, as it must for every other use of pods' addresses.

mod inherited;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;

use portcullis_common::flow::{CONFIRMED, FlowEntry, FlowKey, lifetime_index, state};
use portcullis_common::layout::peer;
use portcullis_common::seed::Seed;
use portcullis_common::{Address, Stamp};

pub use inherited::{Inherited, Reading};

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nobody has answered.
    New,
    /// Somebody has.
    Answered,
    /// Both sides want it.
    Established,
    /// One side has ended it.
    HalfClosed,
    /// It is over.
    Over,
}

/// A connection as the kernel's table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The IP protocol: TCP, UDP or SCTP.
    pub protocol: u8,
    /// The opener's packets before any translation.
    pub original: Tuple,
    /// The packets that answer, before theirs: source and destination are those of the opener's packets after all
    /// translation, exchanged.
    pub reply: Tuple,
    /// How far it has come.
    pub progress: Progress,
    /// How many seconds the kernel will remember it if nothing more is sent.
    pub remaining: u32,
    /// The kernel's number for it (CTA_ID), which tells it from one of the same addresses and ports later.
    pub id: u32,
}

/// An endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// Its incarnation.
    pub incarnation: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What must be known to read the table.
pub struct Surroundings<'a> {
    /// The endpoints that flows are wanted for.
    pub endpoints: &'a [Local],
    /// [`peer`] flags of an address, as the tables hold them.
    pub flags: &'a dyn Fn(IpAddr) -> u64,
    /// Idle lifetimes as the programs have them, in jiffies.
    pub lifetimes: [u32; 16],
    /// Jiffies in a second.
    pub jiffies: u32,
    /// No program has judged a packet yet. Later a datagram that nobody has answered may be one that policy has denied
    /// behind the connection table, which is no flow.
    pub first: bool,
}

/// One reading of the table, a connection at a time.
pub struct Reader<'a> {
    around: Surroundings<'a>,
    owners: HashMap<IpAddr, &'a Local>,
    inherited: Reading<'a>,
}

impl<'a> Reader<'a> {
    /// Begins to read the table; `inherited` is about what endpoints have only by name.
    #[must_use]
    pub fn new(around: Surroundings<'a>, inherited: Reading<'a>) -> Self {
        let locals = around.endpoints.iter();
        let owners = locals.flat_map(|local| local.addresses.iter().map(move |address| (*address, local))).collect();
        Self { around, owners, inherited }
    }

    /// The flows that endpoints of this node have of a connection, as the programs would have stored them.
    pub fn seeds(&mut self, connection: &Connection) -> impl Iterator<Item = Seed> + use<> {
        let is_own = !self.inherited.is_inherited(connection);
        let seeds = if is_own { self.around.seeds_of(connection, &self.owners) } else { [None; 3] };
        seeds.into_iter().flatten()
    }

    /// The whole table has been read: what endpoints have only by name now.
    #[must_use]
    pub fn finish(self) -> Inherited {
        self.inherited.finish()
    }
}

impl Surroundings<'_> {
    /// The flow at its opener's veth, what its exit has let out, and the flow at the veth of who answers.
    fn seeds_of(&self, connection: &Connection, owners: &HashMap<IpAddr, &Local>) -> [Option<Seed>; 3] {
        let (original, reply) = (&connection.original, &connection.reply);
        let unproven = connection.progress == Progress::New && !(self.first && connection.protocol == UDP);
        if unproven || connection.progress == Progress::Over {
            // A connection that nobody has answered begins with its next packet, and so does what comes after one that is
            // over.
            return [None; 3];
        }
        let opener = owners.get(&original.source).copied();
        let translated = original.destination != reply.source || original.destination_port != reply.source_port;
        let translatable = (self.flags)(original.destination) & peer::TRANSLATABLE != 0;
        let deferred = translated || translatable;
        let client = opener.map(|local| {
            let entry = FlowEntry {
                key: key(connection.protocol, original),
                incarnation: local.incarnation,
                provenance: provenance(local),
                state: if deferred { state::DEFERRED } else { 0 },
                ..FlowEntry::default()
            };
            self.seed(connection, entry, local.slot)
        });
        let exit = opener.filter(|_| deferred).map(|local| {
            let entry = FlowEntry {
                // As a reply carries it: `peer` is where that goes to, `local` where it comes from.
                key: key(connection.protocol, reply),
                provenance: provenance(local),
                peer_incarnation: local.incarnation,
                // The opener's own entry leaves counting to this one.
                state: if translatable { state::DEFERRED } else { 0 },
                ..FlowEntry::default()
            };
            self.seed(connection, entry, CONFIRMED)
        });
        let server = owners.get(&reply.source).map(|local| {
            let (provenance, peer_incarnation) = match opener {
                Some(opener) => (provenance(opener), opener.incarnation),
                None if self.is_own_node(original.source) => (Stamp::NONE.provenance(), 0),
                None => (Stamp::OUTSIDE.provenance(), 0),
            };
            let entry = FlowEntry {
                key: key(connection.protocol, reply),
                incarnation: local.incarnation,
                provenance,
                peer_incarnation,
                state: state::INGRESS,
                ..FlowEntry::default()
            };
            self.seed(connection, entry, local.slot)
        });
        [client, exit, server]
    }

    /// Processes of this node send to its NodePorts from its loopback addresses too; from elsewhere the host takes none
    /// (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3).
    fn is_own_node(&self, address: IpAddr) -> bool {
        address.is_loopback() || (self.flags)(address) & peer::OWN_NODE != 0
    }

    fn seed(&self, connection: &Connection, mut entry: FlowEntry, owner: u32) -> Seed {
        entry.state |= match connection.progress {
            Progress::New | Progress::Over => 0,
            Progress::Answered => state::ANSWERED,
            Progress::Established => state::ANSWERED | state::ASSURED,
            // Which side has ended it is not told; the lifetime is the same.
            Progress::HalfClosed => state::ANSWERED | state::ASSURED | state::OPENER_FIN,
        };
        let lifetime = self.lifetimes[lifetime_index(connection.protocol, entry.state)];
        let remaining = connection.remaining.saturating_mul(self.jiffies);
        entry.last_seen = lifetime.saturating_sub(remaining);
        Seed { entry, owner, reserved: 0 }
    }
}

const UDP: u8 = portcullis_common::packet::protocol::UDP;

/// The key of a flow at the veth of the one who sends these packets.
fn key(protocol: u8, sent: &Tuple) -> FlowKey {
    let ports = u64::from(sent.source_port) | u64::from(sent.destination_port) << 16 | u64::from(protocol) << 32;
    FlowKey { peer: Address::from(sent.destination), local: Address::from(sent.source), ports }
}

const fn provenance(local: &Local) -> u16 {
    Stamp::judged(local.slot, local.generation).provenance()
}
