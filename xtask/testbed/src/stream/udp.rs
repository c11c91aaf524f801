//! A one-way UDP flow that is counted where it arrives.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};

use crate::{Host, Namespace, lock};

/// How long datagrams that are on their way may take when the flow is stopped.
const IN_FLIGHT: Duration = Duration::from_millis(500);

/// A flow of numbered datagrams that nobody answers; it ends when stopped or dropped.
pub struct UdpStream {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<Result<()>>>,
    receiver: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    sent: AtomicU64,
    arrived: Mutex<Arrived>,
    changed: Condvar,
}

#[derive(Default)]
struct Arrived {
    /// Datagrams that arrived, each counted once.
    received: u64,
    /// Datagrams that arrived again.
    duplicates: u64,
    /// The highest number seen.
    highest: u64,
    longest_gap: u64,
    seen: std::collections::HashSet<u64>,
}

/// How a one-way flow has fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that arrived, each counted once.
    pub received: u64,
    /// Datagrams that arrived more than once.
    pub duplicates: u64,
    /// The most datagrams missing in a row before one that arrived.
    pub longest_gap: u64,
}

impl UdpReport {
    /// Datagrams that did not arrive (or, while the flow runs, have not yet).
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

impl UdpStream {
    /// Sends a datagram every `interval` from `from` to `to`, `port`, and counts those that arrive on `receiver` at
    /// `receiver_port`: the two differ where a service translates them.
    ///
    /// # Errors
    /// When a socket cannot be made, as when the receiver's port is taken.
    pub fn start(
        from: &Host,
        to: impl Into<IpAddr>,
        port: u16,
        receiver: &Host,
        receiver_port: u16,
        interval: Duration,
    ) -> Result<Self> {
        let to = SocketAddr::new(to.into(), port);
        let shared = Arc::new(Shared::default());
        let receiving = receiver.namespace().run(|| bind(receiver_port))?;
        let sending = from.namespace().run(|| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to).with_context(|| format!("cannot send to {to}"))?;
            Ok(socket)
        })?;
        let receiver = receive(receiver.namespace(), receiving, &shared)?;
        let mut stream = Self { shared, sender: None, receiver: Some(receiver) };
        stream.sender = Some(send(from.namespace(), sending, &stream.shared, interval)?);
        Ok(stream)
    }

    /// How it has fared so far.
    #[must_use]
    pub fn report(&self) -> UdpReport {
        report(&self.shared, &lock(&self.shared.arrived))
    }

    /// Waits until `count` further datagrams have arrived.
    ///
    /// # Errors
    /// When `timeout` passes before.
    pub fn wait_for_received(&self, count: u64, timeout: Duration) -> Result<UdpReport> {
        let before = self.report().received;
        let report = self.wait_while(timeout, |report| report.received < before + count);
        if report.received < before + count {
            bail!("only {} of {count} datagrams have arrived in {timeout:?}: {report:?}", report.received - before);
        }
        Ok(report)
    }

    /// Ends it: no more is sent, what is on its way is waited for, and the counts are returned.
    #[must_use]
    pub fn stop(mut self) -> UdpReport {
        self.stop_sending();
        self.wait_while(IN_FLIGHT, |report| report.received < report.sent)
    }

    fn wait_while(&self, timeout: Duration, unwanted: impl Fn(&UdpReport) -> bool) -> UdpReport {
        let arrived = lock(&self.shared.arrived);
        let (arrived, _) = self
            .shared
            .changed
            .wait_timeout_while(arrived, timeout, |arrived| unwanted(&report(&self.shared, arrived)))
            .unwrap_or_else(PoisonError::into_inner);
        report(&self.shared, &arrived)
    }

    fn stop_sending(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.sender.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for UdpStream {
    fn drop(&mut self) {
        self.stop_sending();
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        if let Some(thread) = self.receiver.take() {
            let _ = thread.join();
        }
    }
}

fn report(shared: &Shared, arrived: &Arrived) -> UdpReport {
    UdpReport {
        sent: shared.sent.load(Ordering::Relaxed),
        received: arrived.received,
        duplicates: arrived.duplicates,
        longest_gap: arrived.longest_gap,
    }
}

fn bind(port: u16) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(false)?;
    socket
        .bind(&SocketAddr::new([0u16; 8].into(), port).into())
        .with_context(|| format!("cannot bind UDP port {port}"))?;
    // How soon the thread sees that it shall stop.
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket.into())
}

fn send(
    namespace: &Namespace,
    socket: UdpSocket,
    shared: &Arc<Shared>,
    interval: Duration,
) -> Result<JoinHandle<Result<()>>> {
    let shared = Arc::clone(shared);
    namespace.thread("udp-send", move || {
        let mut number = 0u64;
        while !shared.stop_sending.load(Ordering::Relaxed) {
            number += 1;
            // Counted before it can arrive. A failure reports an ICMP error of an earlier datagram, and sends nothing.
            shared.sent.store(number, Ordering::Relaxed);
            if socket.send(&number.to_be_bytes()).is_err() {
                let _ = socket.send(&number.to_be_bytes());
            }
            std::thread::sleep(interval);
        }
        Ok(())
    })
}

fn receive(namespace: &Namespace, socket: UdpSocket, shared: &Arc<Shared>) -> Result<JoinHandle<Result<()>>> {
    let shared = Arc::clone(shared);
    namespace.thread("udp-recv", move || {
        let mut buffer = [0u8; 64];
        while !shared.stop_receiving.load(Ordering::Relaxed) {
            let Ok(length) = socket.recv(&mut buffer) else {
                continue;
            };
            let Ok(number) = buffer[..length].try_into().map(u64::from_be_bytes) else {
                continue;
            };
            let mut arrived = lock(&shared.arrived);
            if arrived.seen.insert(number) {
                arrived.received += 1;
            } else {
                arrived.duplicates += 1;
            }
            if number > arrived.highest {
                arrived.longest_gap = arrived.longest_gap.max(number - arrived.highest - 1);
                arrived.highest = number;
            }
            drop(arrived);
            shared.changed.notify_all();
        }
        Ok(())
    })
}
