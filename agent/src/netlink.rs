//! The kernel's view of this network namespace, kept current: the only room that knows netlink.
//!
//! [`watch()`] gives a [`Snapshot`] of devices, local addresses and host routes that is replaced whenever something
//! changes. It is a state, not a stream of events: a reader that is slow sees fewer states, never a wrong one. What
//! must not be lost between two states is in them: a device that went and came again under its old index has another
//! [`incarnation`](crate::endpoints::Link::incarnation).
//!
//! # How it is kept current
//!
//! - Devices and routes of this namespace: their multicast groups, subscribed before the first dump. A dump of
//!   everything follows at the start, after an overrun (`ENOBUFS`), after a message that cannot be read, and every few
//!   minutes.
//! - Addresses **inside the pods' namespaces**: a dump with `IFA_TARGET_NETNSID` reads them (kernel 4.20, "ipv4: enable
//!   IFA_TARGET_NETNSID for RTM_GETADDR"), and a second socket with `NETLINK_LISTEN_ALL_NSID` hears when they change
//!   (kernel 4.2, "netlink: allow to listen "all" netns").
//!   It delivers notifications of every namespace that has a number here; a veth's peer namespace has one as soon as
//!   the host's end was announced. The sender's number comes as ancillary data, which `netlink-sys` does not read, so a
//!   notification serves only as a bell: it names the index of the device inside, and the veths whose peer has that
//!   index are read again. Tried on 6.18: the bell rings for IPv4 and IPv6, added and removed.
//! - That socket option needs CAP_NET_BROADCAST (over this namespace to set it, over the pod's to hear it). Without it
//!   the namespaces are polled, soon after a device has changed and then less and less often.
//! - A peer that is moved to another namespace is not always announced on the end that stays; the removal of the peer
//!   is, and then the end that stays is read again.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::packet_route::tc::TcHeader;
use tokio::sync::mpsc;
use tokio::sync::watch::{self, Receiver, Sender};

use crate::endpoints::Snapshot;

mod bell;
mod conntrack;
mod dump;
mod filters;
mod parse;
mod session;
mod table;

use bell::Bell;
pub use conntrack::{for_each_connection, timeout};
pub use filters::{Filter, Filters, Qdisc};
use session::Session;
use table::Table;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be made or read.
    #[error("netlink socket: {what}: {source}; the agent needs CAP_NET_ADMIN in this network namespace")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("netlink: cannot read {what}: {source}")]
    Request {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The kernel refused a request about tc.
    #[error("netlink: cannot read or change {what}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer did not come, or could not be read.
    #[error("netlink: no answer to the request for {what} within {seconds} s")]
    Timeout {
        /// What was asked for.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// How the namespace is watched.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often everything is read again, even if nothing seems to be lost.
    pub resync: Duration,
    /// Whether to hear of changes inside the pods' namespaces. Without it they are polled, as where the kernel refuses.
    pub hear_all_namespaces: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { resync: Duration::from_secs(180), hear_all_namespaces: true }
    }
}

/// Watches the network namespace of the calling thread. The first snapshot is complete.
///
/// The work is a task of the current tokio runtime that ends when the last receiver is dropped. Every thread of that
/// runtime must be in the same network namespace. After a failure the task starts again with new sockets and keeps what
/// it knows of the devices; it never gives up.
pub async fn watch(settings: Settings) -> Result<Receiver<Arc<Snapshot>>, Error> {
    let mut table = Table::default();
    let mut session = Session::open(settings)?;
    session.resync(&mut table).await?;
    let (publish, receiver) = watch::channel(Arc::new(table.snapshot()));
    tokio::spawn(keep(settings, session, table, publish));
    Ok(receiver)
}

/// Tells which devices' qdiscs or filters have changed in the network namespace of the calling thread; `None` for all of
/// them, where that is not known. What changes while nobody listens is told together.
///
/// # Errors
/// The socket cannot be made.
pub fn watch_filters() -> Result<mpsc::Receiver<Option<BTreeSet<u32>>>, Error> {
    let mut bell = Some(Bell::new(&[MulticastGroup::Tc])?);
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut changed = Some(BTreeSet::new());
        loop {
            let Some(open) = &bell else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                bell = Bell::new(&[MulticastGroup::Tc]).ok();
                continue;
            };
            let pending = changed.as_ref().is_none_or(|devices| !devices.is_empty());
            tokio::select! {
                heard = open.hear() => match heard {
                    Ok(heard) => note_filters(&heard, &mut changed),
                    Err(error) => {
                        tracing::error!(%error, "changes of filters are not heard; trying again");
                        (bell, changed) = (None, None);
                    }
                },
                permit = sender.reserve(), if pending => match permit {
                    Ok(permit) => permit.send(changed.replace(BTreeSet::new())),
                    Err(_) => return,
                },
                () = sender.closed() => return,
            }
        }
    });
    Ok(receiver)
}

fn note_filters(heard: &bell::Heard, changed: &mut Option<BTreeSet<u32>>) {
    let messages = heard.datagrams.iter().flat_map(|datagram| bell::messages(datagram));
    let device = |message: Option<&[u8]>| {
        let buffer = NetlinkBuffer::new_checked(message?).ok()?;
        u32::try_from(TcHeader::parse(buffer.payload()).ok()?.index).ok()
    };
    let devices: Option<BTreeSet<u32>> = messages.map(device).collect();
    *changed = match (changed.take(), devices) {
        (Some(mut known), Some(new)) if !heard.lost => {
            known.extend(new);
            Some(known)
        }
        _ => None,
    };
}

/// Runs sessions one after the other until nobody listens any more.
async fn keep(settings: Settings, first: Session, mut table: Table, publish: Sender<Arc<Snapshot>>) {
    let mut session = Some(first);
    let mut wait = Duration::from_secs(1);
    loop {
        let failure = match session.take() {
            Some(session) => {
                let run = session.run(&mut table, &publish);
                tokio::select! {
                    () = publish.closed() => return,
                    failure = run => failure,
                }
            }
            None => {
                tokio::select! {
                    () = publish.closed() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                match reopen(settings, &mut table).await {
                    Ok(reopened) => {
                        tracing::info!("netlink works again");
                        wait = Duration::from_secs(1);
                        publish_changes(&publish, &table);
                        session = Some(reopened);
                        continue;
                    }
                    Err(failure) => {
                        wait = (wait * 2).min(Duration::from_secs(30));
                        failure
                    }
                }
            }
        };
        tracing::error!(error = %failure, retry_in = ?wait, "devices of this node are not followed; trying again");
    }
}

async fn reopen(settings: Settings, table: &mut Table) -> Result<Session, Error> {
    let mut session = Session::open(settings)?;
    session.resync(table).await?;
    Ok(session)
}

fn publish_changes(publish: &Sender<Arc<Snapshot>>, table: &Table) {
    publish.send_if_modified(|current| {
        let now = table.snapshot();
        let changed = now != **current;
        if changed {
            *current = Arc::new(now);
        }
        changed
    });
}

#[cfg(test)]
mod tests;
