//! Connections that an endpoint has only by name: of whoever had its address before it.
//!
//! The kernel's connection table outlives pods by minutes or days, and addresses are given again. An endpoint whose device
//! appeared while the agent was at work had every packet judged from its first on, so what was in the table before it began
//! is another's: taken for its own it would say that the endpoint had opened what a stranger now opens.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{Connection, Tuple};

/// What names one connection for as long as it is in the table.
type Identity = (u8, Tuple, u32);

/// The connections that new endpoints have inherited with their addresses.
#[derive(Debug, Default)]
pub struct Inherited {
    /// By the endpoint's incarnation.
    newcomers: HashMap<u32, Newcomer>,
}

#[derive(Debug, Default)]
struct Newcomer {
    /// The addresses that the table was read for.
    read: Vec<IpAddr>,
    connections: HashSet<Identity>,
}

impl Inherited {
    /// An endpoint begins; what the table holds of its addresses when it is read next is not its own.
    pub fn begin(&mut self, incarnation: u32) {
        self.newcomers.insert(incarnation, Newcomer::default());
    }

    /// Whether the table is to be read before an endpoint that began may use these addresses.
    #[must_use]
    pub fn is_unread(&self, incarnation: u32, addresses: &[IpAddr]) -> bool {
        let newcomer = self.newcomers.get(&incarnation);
        newcomer.is_some_and(|newcomer| addresses.iter().any(|address| !newcomer.read.contains(address)))
    }

    /// Begins to read the table as it is: of each endpoint, by incarnation, the addresses that it has or is about to have.
    #[must_use]
    pub fn reading(&self, endpoints: &[(u32, Vec<IpAddr>)]) -> Reading<'_> {
        let (mut owners, mut newcomers) = (HashMap::new(), HashMap::new());
        for (incarnation, addresses) in endpoints {
            let Some(newcomer) = self.newcomers.get(incarnation) else { continue };
            owners.extend(addresses.iter().map(|address| (*address, *incarnation)));
            newcomers.insert(*incarnation, Newcomer { read: newcomer.read.clone(), ..Newcomer::default() });
        }
        Reading { before: self, owners, newcomers }
    }
}

/// One reading of the table, a connection at a time: on a busy node it holds a million.
#[derive(Debug)]
pub struct Reading<'a> {
    before: &'a Inherited,
    owners: HashMap<IpAddr, u32>,
    newcomers: HashMap<u32, Newcomer>,
}

impl Reading<'_> {
    /// Takes a connection of the table. Whether it is older than an endpoint that has one of its addresses now.
    pub(super) fn is_inherited(&mut self, connection: &Connection) -> bool {
        let mut is_inherited = false;
        for address in [connection.original.source, connection.reply.source] {
            let Some(incarnation) = self.owners.get(&address) else { continue };
            let known = self.before.newcomers.get(incarnation).is_some_and(|newcomer| {
                !newcomer.read.contains(&address) || newcomer.connections.contains(&identity(connection))
            });
            if let (true, Some(newcomer)) = (known, self.newcomers.get_mut(incarnation)) {
                newcomer.connections.insert(identity(connection));
                is_inherited = true;
            }
        }
        is_inherited
    }

    /// The whole table has been read: what is known now. Endpoints and connections that are no more are forgotten.
    pub(super) fn finish(mut self) -> Inherited {
        for (address, incarnation) in self.owners {
            if let Some(newcomer) = self.newcomers.get_mut(&incarnation)
                && !newcomer.read.contains(&address)
            {
                newcomer.read.push(address);
            }
        }
        Inherited { newcomers: self.newcomers }
    }
}

const fn identity(connection: &Connection) -> Identity {
    (connection.protocol, connection.original, connection.id)
}
