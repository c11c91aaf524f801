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
    /// Indexes of devices inside other namespaces whose addresses changed, and when they may be read.
    rung: BTreeSet<u32>,
    rung_all: bool,
    peers_at: Instant,
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
            rung: BTreeSet::new(),
            rung_all: false,
            peers_at: now,
        })
    }

    /// Reads everything.
    pub(super) async fn resync(&mut self, table: &mut Table) -> Result<(), Error> {
        self.resync_at = Instant::now() + self.settings.resync;
        let mut stale = Stale::default();
        table.links_dumped(self.kernel.links().await?, &mut stale);
        stale.routes = true;
        self.refresh(table, stale).await
    }

    /// Follows changes until something fails.
    pub(super) async fn run(mut self, table: &mut Table, publish: &Sender<Arc<Snapshot>>) -> Error {
        loop {
            let round = self.round(table).await;
            publish_changes(publish, table);
            if let Err(error) = round {
                return error;
            }
        }
    }

    async fn round(&mut self, table: &mut Table) -> Result<(), Error> {
        let mut stale = Stale::default();
        match self.woken().await? {
            Woken::Own(heard) => {
                stale.all |= heard.lost;
                for message in heard
                    .datagrams
                    .iter()
                    .flat_map(|datagram| messages(datagram))
                {
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
            self.rung_all = true;
        }
        if now >= self.resync_at {
            stale.all = true;
        }
        if stale.all {
            return self.resync(table).await;
        }
        self.refresh(table, stale).await?;
        self.answer_bells(table).await
    }

    async fn woken(&mut self) -> Result<Woken, Error> {
        let mut wake_at = self.resync_at;
        if self.others.is_none() {
            wake_at = wake_at.min(self.poll_at);
        }
        if self.rung_all || !self.rung.is_empty() {
            wake_at = wake_at.min(self.peers_at);
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

    /// Notes whose addresses changed. Only the header is read: a pod writes the rest (its labels need not even be UTF-8).
    fn ring(&mut self, heard: &Heard) {
        self.rung_all |= heard.lost;
        for message in heard
            .datagrams
            .iter()
            .flat_map(|datagram| messages(datagram))
        {
            let header = message.and_then(|message| {
                let buffer = NetlinkBuffer::new_checked(message).ok()?;
                AddressHeader::parse(buffer.payload()).ok()
            });
            match header {
                Some(header) => drop(self.rung.insert(header.index)),
                None => self.rung_all = true,
            }
        }
    }

    /// Reads the addresses whose bells rang, unless that was done too recently.
    async fn answer_bells(&mut self, table: &mut Table) -> Result<(), Error> {
        let started = Instant::now();
        if started < self.peers_at || !(self.rung_all || !self.rung.is_empty()) {
            return Ok(());
        }
        let rung = std::mem::take(&mut self.rung);
        let veths: BTreeSet<u32> = if std::mem::take(&mut self.rung_all) {
            table.foreign_veths().map(|(ifindex, ..)| ifindex).collect()
        } else {
            rung.iter()
                .flat_map(|index| table.veths_with_peer(*index))
                .collect()
        };
        self.refresh(
            table,
            Stale {
                peers: veths,
                ..Stale::default()
            },
        )
        .await?;
        let now = Instant::now();
        self.peers_at = now + (now - started) * PEERS_SHARE;
        Ok(())
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
            let addresses = match table.peer_of(ifindex) {
                Some((peer, netnsid)) => self.kernel.peer_addresses(peer, netnsid).await?,
                None => None,
            };
            table.peer_addresses(ifindex, addresses);
        }
        Ok(())
    }
}
