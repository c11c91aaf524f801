//! Long-lived flows, for what must survive a change and what must not.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::probe::{connect_tcp, left};
use crate::{Host, Probe, Protocol, lock};

mod udp;

pub use udp::{UdpReport, UdpStream};

/// An open TCP connection to a server made by [`Host::serve`], which echoes what it is sent.
pub struct Stream {
    from: Host,
    stream: TcpStream,
    server: String,
    sequence: u64,
    /// Bytes of an answer that has not come whole yet.
    partial: Vec<u8>,
}

impl Stream {
    /// Connects, and waits for the server's name.
    ///
    /// # Errors
    /// When that is refused or takes longer than `timeout`.
    pub fn open(from: &Host, to: impl Into<IpAddr>, port: u16, timeout: Duration) -> Result<Self> {
        Self::open_as(&Probe::new(from, to, Protocol::Tcp, port).timeout(timeout))
    }

    /// Like [`Self::open`], with the addresses, ports and timeout of `probe`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(probe: &Probe) -> Result<Self> {
        let deadline = Instant::now() + probe.timeout;
        let failed = || format!("cannot open a stream from {} to {} port {}", probe.from.name(), probe.to, probe.port);
        let mut stream = probe.from.namespace().run(|| Ok(connect_tcp(probe)?)).with_context(failed)?;
        let mut banner = Vec::new();
        let mut byte = [0u8];
        while !banner.ends_with(b"\n") {
            stream.set_read_timeout(Some(left(deadline).with_context(failed)?))?;
            if stream.read(&mut byte).with_context(failed)? == 0 {
                bail!("{}: the server closed the connection", failed());
            }
            banner.push(byte[0]);
        }
        let server = String::from_utf8_lossy(&banner).trim_end().to_owned();
        Ok(Self { from: probe.from.clone(), stream, server, sequence: 0, partial: Vec::new() })
    }

    /// The name of the server behind it.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Sends eight bytes, waits for their echo and returns how long that took. Echoes of earlier exchanges that timed
    /// out are passed over.
    ///
    /// # Errors
    /// When the echo takes longer than `timeout`, or the connection is broken.
    pub fn exchange(&mut self, timeout: Duration) -> Result<Duration> {
        Ok(self.try_exchange(timeout)?)
    }

    fn try_exchange(&mut self, timeout: Duration) -> std::io::Result<Duration> {
        let start = Instant::now();
        self.sequence += 1;
        self.stream.set_write_timeout(Some(timeout))?;
        self.stream.write_all(&self.sequence.to_be_bytes())?;
        let mut buffer = [0u8; 4096];
        loop {
            self.stream.set_read_timeout(Some(left(start + timeout)?))?;
            match self.stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                length => self.partial.extend(&buffer[..length]),
            }
            let whole = self.partial.len() / 8 * 8;
            let found = self.partial[..whole].chunks(8).any(|echo| echo == self.sequence.to_be_bytes());
            self.partial.drain(..whole);
            if found {
                return Ok(start.elapsed());
            }
        }
    }

    /// Segments that the client's kernel has sent again so far: TCP hides a lost packet, this number does not.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn retransmits(&self) -> Result<u32> {
        Ok(tcp_info(&self.stream)?.tcpi_total_retrans)
    }

    /// The client's address and port.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn local_address(&self) -> Result<std::net::SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Goes on exchanging on a thread of its own, one exchange every `interval`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn run(mut self, interval: Duration, timeout: Duration) -> Result<ContinuousStream> {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let namespace = self.from.namespace().clone();
        let thread = namespace.thread("stream", move || {
            self.exchange_until_stopped(&seen, interval, timeout);
            Ok(())
        })?;
        Ok(ContinuousStream { shared, thread: Some(thread) })
    }

    fn exchange_until_stopped(&mut self, shared: &Shared, interval: Duration, timeout: Duration) {
        let mut last_answer = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            let outcome = self.try_exchange(timeout);
            let broken = {
                let mut report = lock(&shared.report);
                report.longest_gap = report.longest_gap.max(last_answer.elapsed());
                report.retransmits = self.retransmits().unwrap_or(report.retransmits);
                match outcome {
                    Ok(_) => {
                        report.exchanges += 1;
                        last_answer = Instant::now();
                        false
                    }
                    Err(error) if is_late(&error) => {
                        report.timeouts += 1;
                        false
                    }
                    Err(error) => {
                        report.broken = Some(error.to_string());
                        true
                    }
                }
            };
            shared.changed.notify_all();
            if broken {
                return;
            }
            std::thread::sleep(interval);
        }
    }
}

/// A stream that exchanges by itself until it is stopped or dropped.
pub struct ContinuousStream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    report: Mutex<StreamReport>,
    changed: Condvar,
}

/// How a continuous stream has fared.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Exchanges that were answered in time.
    pub exchanges: u64,
    /// Exchanges that were not.
    pub timeouts: u64,
    /// Segments that the client's kernel sent again.
    pub retransmits: u32,
    /// The longest time from one answer to the end of the next exchange, answered or not.
    pub longest_gap: Duration,
    /// Why the connection ended, if it did.
    pub broken: Option<String>,
}

impl StreamReport {
    /// Whether nothing was lost: no exchange and no segment.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        self.timeouts == 0 && self.retransmits == 0 && self.broken.is_none()
    }
}

impl ContinuousStream {
    /// How it has fared so far.
    #[must_use]
    pub fn report(&self) -> StreamReport {
        lock(&self.shared.report).clone()
    }

    /// Waits until its report is as `wanted`, and returns it.
    ///
    /// # Errors
    /// When `timeout` passes before.
    pub fn wait_until(&self, wanted: impl Fn(&StreamReport) -> bool, timeout: Duration) -> Result<StreamReport> {
        let report = lock(&self.shared.report);
        let (report, waited) = self
            .shared
            .changed
            .wait_timeout_while(report, timeout, |report| !wanted(report))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            bail!("the stream is not as awaited after {timeout:?}: {:?}", *report);
        }
        Ok(report.clone())
    }

    /// Waits for `count` further answered exchanges.
    ///
    /// # Errors
    /// When `timeout` passes before.
    pub fn wait_for_exchanges(&self, count: u64, timeout: Duration) -> Result<StreamReport> {
        let before = self.report().exchanges;
        self.wait_until(|report| report.exchanges >= before + count, timeout)
    }

    /// Ends it, and says how it has fared.
    #[must_use]
    pub fn stop(mut self) -> StreamReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ContinuousStream {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether only the exchange was late; ETIMEDOUT means that the kernel has given the connection up.
fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        && error.raw_os_error() != Some(libc::ETIMEDOUT)
}

fn tcp_info(stream: &TcpStream) -> std::io::Result<libc::tcp_info> {
    // SAFETY: tcp_info is plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let answer = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if answer == 0 { Ok(info) } else { Err(std::io::Error::last_os_error()) }
}
