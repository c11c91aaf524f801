//! One question to a server, and how it was answered.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::{Host, lock};

mod raw;

/// How long a probe waits for its answer unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Probes that wait at the same time in [`probe_all`].
const AT_ONCE: usize = 64;

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// One UDP datagram.
    Udp,
    /// An SCTP INIT.
    Sctp,
    /// An ICMP or ICMPv6 echo request; the port means nothing.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        })
    }
}

/// A question to be asked.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Who asks.
    pub from: Host,
    /// Who is asked: an address of a host, or of a service.
    pub to: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
    /// How long the answer may take.
    pub timeout: Duration,
    /// The source port, when it matters.
    pub source_port: Option<u16>,
    /// The source address, when the asking host has several.
    pub source: Option<IpAddr>,
}

/// How a probe was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By the host of this name (for ICMP: from this address).
    Answered(String),
    /// Not at all.
    Timeout,
    /// By a refusal: RST, ABORT, port or protocol unreachable.
    Refused,
    /// It could not be asked, or the answer made no sense.
    Error(String),
}

impl Outcome {
    /// Whether `name` answered.
    #[must_use]
    pub fn is_answer_of(&self, name: &str) -> bool {
        matches!(self, Self::Answered(who) if who == name)
    }

    fn of_error(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Timeout,
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::Refused,
            // ICMP protocol unreachable, and ICMPv6's parameter problem for an unknown next header.
            _ if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EPROTO)) => Self::Refused,
            _ => Self::Error(error.to_string()),
        }
    }
}

impl Probe {
    /// A probe with the default timeout, from whatever address and port the kernel chooses.
    pub fn new(from: &Host, to: impl Into<IpAddr>, protocol: Protocol, port: u16) -> Self {
        Self {
            from: from.clone(),
            to: to.into(),
            protocol,
            port,
            timeout: DEFAULT_TIMEOUT,
            source_port: None,
            source: None,
        }
    }

    /// With another timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// From this port.
    #[must_use]
    pub fn source_port(mut self, port: u16) -> Self {
        self.source_port = Some(port);
        self
    }

    /// From this address.
    #[must_use]
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Asks, on a thread of its own.
    #[must_use]
    pub fn run(&self) -> Outcome {
        self.from.namespace().run(|| Ok(self.ask())).unwrap_or_else(|error| Outcome::Error(format!("{error:#}")))
    }

    /// Asks from the calling thread, which is in the right namespace.
    fn ask(&self) -> Outcome {
        let asked = match self.protocol {
            Protocol::Tcp => self.ask_tcp(),
            Protocol::Udp => self.ask_udp(),
            Protocol::Sctp => self.ask_sctp(),
            Protocol::Icmp => self.ask_icmp(),
        };
        asked.unwrap_or_else(|error| Outcome::of_error(&error))
    }

    fn ask_tcp(&self) -> std::io::Result<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = connect_tcp(self)?;
        let mut banner = Vec::new();
        let mut buffer = [0u8; 256];
        while !banner.ends_with(b"\n") {
            stream.set_read_timeout(Some(left(deadline)?))?;
            match stream.read(&mut buffer)? {
                0 => {
                    return Ok(Outcome::Error("the connection was closed before the server said its name".into()));
                }
                length => banner.extend(&buffer[..length]),
            }
        }
        Ok(Outcome::Answered(String::from_utf8_lossy(&banner).trim_end().to_owned()))
    }

    fn ask_udp(&self) -> std::io::Result<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let socket: UdpSocket = self.socket(Type::DGRAM, None)?.into();
        socket.connect(SocketAddr::new(self.to, self.port))?;
        socket.send(b"probe")?;
        socket.set_read_timeout(Some(left(deadline)?))?;
        let mut buffer = [0u8; 2048];
        let length = socket.recv(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(match answer.split_once('\n') {
            Some((name, "probe")) => Outcome::Answered(name.to_owned()),
            _ => Outcome::Error(format!("unexpected answer {answer:?}")),
        })
    }

    /// A socket of the destination's family, bound as the probe asks for.
    fn socket(&self, kind: Type, protocol: Option<socket2::Protocol>) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(SocketAddr::new(self.to, 0)), kind, protocol)?;
        // Raw sockets have no ports to bind.
        let port = if kind == Type::RAW { None } else { self.source_port };
        if self.source.is_some() || port.is_some() {
            let any: IpAddr = if self.to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(self.source.unwrap_or(any), port.unwrap_or(0)).into())?;
        }
        Ok(socket)
    }
}

/// Connects from the calling thread's namespace.
pub(crate) fn connect_tcp(probe: &Probe) -> std::io::Result<TcpStream> {
    let socket = probe.socket(Type::STREAM, None)?;
    socket.connect_timeout(&SocketAddr::new(probe.to, probe.port).into(), probe.timeout)?;
    socket.set_tcp_nodelay(true)?;
    let mut stream = TcpStream::from(socket);
    stream.flush()?;
    Ok(stream)
}

/// What is left until `deadline`, never zero (which sockets take for "forever"): then it is a timeout.
pub(crate) fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Asks one question with the default timeout.
pub fn probe(from: &Host, to: impl Into<IpAddr>, protocol: Protocol, port: u16) -> Outcome {
    Probe::new(from, to, protocol, port).run()
}

/// Asks many questions, up to 64 at a time; the outcomes are in the order of the probes.
#[must_use]
pub fn probe_all(probes: &[Probe]) -> Vec<Outcome> {
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(vec![None; probes.len()]);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..probes.len().min(AT_ONCE) {
            scope.spawn(|| {
                while let Some((at, probe)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| probes.get(at).map(|probe| (at, probe)))
                {
                    // The thread serves probes only, so it may move from namespace to namespace.
                    let outcome = match probe.from.namespace().enter() {
                        Ok(()) => probe.ask(),
                        Err(error) => Outcome::Error(format!("{error:#}")),
                    };
                    lock(&outcomes)[at] = Some(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Error("was not asked".into()))).collect()
}
