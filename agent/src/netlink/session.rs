//! One life of the sockets: hear, ask, publish.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::packet_route::address::AddressHeader;
use tokio::sync::watch::Sender;
use tokio::time::Instant;

use super::bell::{Bell, Heard, messages};
use super::dump::Kernel;
use super::table::{Stale, Table};
use super::{Error, Settings, publish_changes};
use crate::endpoints::Snapshot;

/// Polling of namespaces that cannot be heard: the first time after a device changed, and the longest time between.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(2));

/// Whatever pods do to their addresses, reading them takes at most one part in so many of the time.
const PEERS_SHARE: u32 = 10;

pub(super) struct Session {
    settings: Settings,
    kernel: Kernel,
    own: Bell,
    /// `None` when other namespaces cannot be heard.
    others: Option<Bell>,
    resync_at: Instant,
    poll_after: Duration,
    poll_at: Instant,
    /// For veths with no address inside that a pod could be known by, and for all others. A new pod does not wait until
    /// the addresses of every other pod were read: where each namespace numbers its devices anew, the bell of one is
    /// the bell of all (25 ms for 250 pods in a debug build).
    bare: Rung,
    settled: Rung,
}

/// Bells that rang and were not answered yet.
struct Rung {
    /// Indexes, inside other namespaces, of devices whose addresses changed.
    indexes: BTreeSet<u32>,
    /// Any may have changed.
    all: bool,
    /// Not to be answered before.
    at: Instant,
}

impl Rung {
    fn any(&self) -> bool {
        self.all || !self.indexes.is_empty()
    }

    /// Takes what rang if it may be answered now.
    fn take(&mut self) -> Option<(BTreeSet<u32>, bool)> {
        (self.any() && Instant::now() >= self.at)
            .then(|| (std::mem::take(&mut self.indexes), std::mem::take(&mut self.all)))
    }
}

/// What woke the session.
enum Woken {
    Own(Heard),
    Others(Heard),
    Clock,
}

impl Session {
    /// Subscribes; nothing is read yet.
    pub(super) fn open(settings: Settings) -> Result<Self, Error> {
        let own = Bell::new(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        let others = settings
            .hear_all_namespaces
            .then(|| Bell::of_all_namespaces(&[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr]))
            .transpose()
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "addresses inside pods are polled: give the agent CAP_NET_BROADCAST to hear of them");
                None
            });
        let now = Instant::now();
        Ok(Self {
            settings,
            kernel: Kernel::connect()?,
            own,
            others,
            resync_at: now + settings.resync,
            poll_after: POLL.0,
            poll_at: now + POLL.0,
            bare: Rung { indexes: BTreeSet::new(), all: false, at: now },
            settled: Rung { indexes: BTreeSet::new(), all: false, at: now },
        })
    }

    /// Reads everything.
    pub(super) async fn resync(&mut self, table: &mut Table) -> Result<(), Error> {
        self.resync_at = Instant::now() + self.settings.resync;
        let mut stale = Stale::default();
        let (links, unread) = self.kernel.links().await?;
        table.links_dumped(links, &unread, &mut stale);
        stale.routes = true;
        self.refresh(table, stale).await
    }

    /// Follows changes until something fails.
    pub(super) async fn run(mut self, table: &mut Table, publish: &Sender<Arc<Snapshot>>) -> Error {
        loop {
            let round = self.round(table, publish).await;
            publish_changes(publish, table);
            if let Err(error) = round {
                return error;
            }
        }
    }

    async fn round(&mut self, table: &mut Table, publish: &Sender<Arc<Snapshot>>) -> Result<(), Error> {
        let mut stale = Stale::default();
        match self.woken().await? {
            Woken::Own(heard) => {
                stale.all |= heard.lost;
                for message in heard.datagrams.iter().flat_map(|datagram| messages(datagram)) {
                    match message {
                        Some(message) => table.notified(message, &mut stale),
                        None => stale.all = true,
                    }
                }
                // A device that changed may soon get addresses inside.
                self.poll_after = POLL.0;
                self.poll_at = Instant::now() + POLL.0;
            }
            Woken::Others(heard) => self.ring(&heard),
            Woken::Clock => {}
        }
        let now = Instant::now();
        if self.others.is_none() && now >= self.poll_at {
            self.poll_after = (self.poll_after * 2).min(POLL.1);
            self.poll_at = now + self.poll_after;
            self.bare.all = true;
            self.settled.all = true;
        }
        if now >= self.resync_at {
            stale.all = true;
        }
        if stale.all {
            return self.resync(table).await;
        }
        self.refresh(table, stale).await?;
        self.answer_bells(table, publish).await
    }

    async fn woken(&mut self) -> Result<Woken, Error> {
        let mut wake_at = self.resync_at;
        if self.others.is_none() {
            wake_at = wake_at.min(self.poll_at);
        }
        for rung in [&self.bare, &self.settled] {
            if rung.any() {
                wake_at = wake_at.min(rung.at);
            }
        }
        let others = async {
            match &self.others {
                Some(others) => others.hear().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            heard = self.own.hear() => Ok(Woken::Own(heard?)),
            // Before the bells: a pod that rings without end delays neither its neighbours nor the resync.
            () = tokio::time::sleep_until(wake_at) => Ok(Woken::Clock),
            heard = others => Ok(Woken::Others(heard?)),
        }
    }

    /// Notes whose addresses changed. Only the header is read: a pod writes the rest (its labels need not even be
    /// UTF-8).
    fn ring(&mut self, heard: &Heard) {
        let mut all = heard.lost;
        for message in heard.datagrams.iter().flat_map(|datagram| messages(datagram)) {
            let header = message.and_then(|message| {
                let buffer = NetlinkBuffer::new_checked(message).ok()?;
                AddressHeader::parse(buffer.payload()).ok()
            });
            match header {
                Some(header) => {
                    self.bare.indexes.insert(header.index);
                    self.settled.indexes.insert(header.index);
                }
                None => all = true,
            }
        }
        self.bare.all |= all;
        self.settled.all |= all;
    }

    /// Reads the addresses whose bells rang, first of the veths that had none, unless that was done too recently.
    async fn answer_bells(&mut self, table: &mut Table, publish: &Sender<Arc<Snapshot>>) -> Result<(), Error> {
        if let Some((indexes, all)) = self.bare.take() {
            self.bare.at = self.read_peers(table, &indexes, all, true).await?;
            publish_changes(publish, table);
        }
        if let Some((indexes, all)) = self.settled.take() {
            self.settled.at = self.read_peers(table, &indexes, all, false).await?;
        }
        Ok(())
    }

    /// Reads the addresses of the veths whose peer has one of these indexes; gives when it may be done next.
    async fn read_peers(
        &self,
        table: &mut Table,
        indexes: &BTreeSet<u32>,
        all: bool,
        bare: bool,
    ) -> Result<Instant, Error> {
        let started = Instant::now();
        let peers = table
            .foreign_veths()
            .filter(|(ifindex, peer, _)| (all || indexes.contains(peer)) && table.is_bare(*ifindex) == bare)
            .map(|(ifindex, ..)| ifindex)
            .collect();
        self.refresh(table, Stale { peers, ..Stale::default() }).await?;
        let now = Instant::now();
        Ok(now + (now - started) * PEERS_SHARE)
    }

    /// Asks for what is stale.
    async fn refresh(&self, table: &mut Table, mut stale: Stale) -> Result<(), Error> {
        while let Some(ifindex) = stale.links.pop_first() {
            match self.kernel.link(ifindex).await? {
                Some(link) => table.link_seen(link, &mut stale),
                None => table.link_gone(ifindex, &mut stale),
            }
        }
        if stale.routes {
            table.routes_dumped(self.kernel.routes().await?);
        }
        for ifindex in stale.peers {
            let Some((peer, netnsid)) = table.peer_of(ifindex) else {
                table.peer_addresses(ifindex, None);
                continue;
            };
            let addresses = self.kernel.peer_addresses(peer, netnsid).await?;
            if table.wants_peer_mac(ifindex) {
                table.peer_mac(ifindex, self.kernel.peer_mac(peer, netnsid).await?);
            }
            table.peer_addresses(ifindex, addresses);
        }
        Ok(())
    }
}
