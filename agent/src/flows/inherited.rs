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

    /// Takes the table as it is: of each endpoint, by incarnation, the addresses that it has or is about to have. Endpoints
    /// and connections that are no more are forgotten.
    pub fn read(&mut self, connections: &[Connection], endpoints: &[(u32, Vec<IpAddr>)]) {
        let before = std::mem::take(&mut self.newcomers);
        let mut owners: HashMap<IpAddr, u32> = HashMap::new();
        for (incarnation, addresses) in endpoints {
            let Some(newcomer) = before.get(incarnation) else { continue };
            owners.extend(addresses.iter().map(|address| (*address, *incarnation)));
            self.newcomers.insert(*incarnation, Newcomer { read: newcomer.read.clone(), ..Newcomer::default() });
        }
        for connection in connections {
            for address in [connection.original.source, connection.reply.source] {
                let Some(incarnation) = owners.get(&address) else { continue };
                let known = before.get(incarnation).is_some_and(|newcomer| {
                    !newcomer.read.contains(&address) || newcomer.connections.contains(&identity(connection))
                });
                if let (true, Some(newcomer)) = (known, self.newcomers.get_mut(incarnation)) {
                    newcomer.connections.insert(identity(connection));
                }
            }
        }
        for (address, incarnation) in owners {
            if let Some(newcomer) = self.newcomers.get_mut(&incarnation)
                && !newcomer.read.contains(&address)
            {
                newcomer.read.push(address);
            }
        }
    }

    /// Whether a connection is older than the endpoint that has its address now.
    pub(super) fn holds(&self, incarnation: u32, connection: &Connection) -> bool {
        let newcomer = self.newcomers.get(&incarnation);
        newcomer.is_some_and(|newcomer| newcomer.connections.contains(&identity(connection)))
    }
}

const fn identity(connection: &Connection) -> Identity {
    (connection.protocol, connection.original, connection.id)
}
