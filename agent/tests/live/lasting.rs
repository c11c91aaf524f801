//! Flows that last, used a packet at a time: of each packet it is known whether it has arrived.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use portcullis_testbed::{Host, Protocol};

use crate::agent::PATIENCE;
use crate::cluster::LiveCluster;

/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(2);
/// How often TCP has sent something again when it is taken for lost: its first probe after a few milliseconds, then after
/// 200 and 400 more.
const RETRANSMITS: u32 = 3;
/// Datagrams of a flow that are to be dropped.
const DATAGRAMS: u64 = 3;

/// Who sends anything on a flow, once it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Opener,
    Server,
    Both,
}

impl Speaks {
    const fn ends(self) -> &'static [usize] {
        match self {
            Self::Opener => &[OPENER],
            Self::Server => &[SERVER],
            Self::Both => &[SERVER, OPENER],
        }
    }
}

const OPENER: usize = 0;
const SERVER: usize = 1;

/// A flow to be opened: from whom, to which address and port, behind which is one of these servers on that port.
pub(crate) struct Opening<'a> {
    pub(crate) from: &'a Host,
    pub(crate) source_port: Option<u16>,
    pub(crate) to: SocketAddr,
    pub(crate) servers: &'a [&'a Host],
    pub(crate) target: u16,
}

/// An open flow.
pub(crate) struct Flow {
    pub(crate) name: String,
    /// Who has accepted it.
    pub(crate) server: String,
    pub(crate) protocol: Protocol,
    speaks: Speaks,
    ends: [End; 2],
    /// The last number that each end has sent.
    sent: [u64; 2],
}

enum End {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Opening<'_> {
    pub(crate) fn open(&self, protocol: Protocol, speaks: Speaks) -> Flow {
        self.open_at(None, protocol, speaks)
    }

    /// The server listens at this address of its own.
    pub(crate) fn open_at(&self, at: Option<IpAddr>, protocol: Protocol, speaks: Speaks) -> Flow {
        let (server, ends) = match protocol {
            Protocol::Tcp => self.tcp(at),
            Protocol::Udp => self.udp(at),
            Protocol::Sctp | Protocol::Icmp => panic!("flows of {protocol} are not made here"),
        };
        let name = format!("{protocol} from {} to {} at {}, spoken by {speaks:?}", self.from.name(), server, self.to);
        Flow { name, server, protocol, speaks, ends, sent: [0; 2] }
    }

    fn place(&self, host: &Host, at: Option<IpAddr>) -> SocketAddr {
        let of_family = || host.addresses().into_iter().find(|address| address.is_ipv4() == self.to.is_ipv4()).unwrap();
        SocketAddr::new(at.unwrap_or_else(of_family), self.target)
    }

    /// A socket of the opener's, bound to the source port.
    fn socket(&self, kind: SockType) -> OwnedFd {
        let family = if self.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let any: IpAddr = if self.to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let made = self.from.namespace().run(|| {
            let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&made, sockopt::ReuseAddr, &true)?;
            bind(made.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, self.source_port.unwrap_or(0))))?;
            Ok(made)
        });
        made.unwrap()
    }

    fn tcp(&self, at: Option<IpAddr>) -> (String, [End; 2]) {
        let listen = |server: &&Host| {
            let address = self.place(server, at);
            let listener = server.namespace().run(|| Ok(TcpListener::bind(address)?)).unwrap();
            listener.set_nonblocking(true).unwrap();
            (server.name().to_owned(), listener)
        };
        let listeners: Vec<(String, TcpListener)> = self.servers.iter().map(listen).collect();
        let client = self.socket(SockType::Stream);
        let connected = connect(client.as_raw_fd(), &SockaddrStorage::from(self.to));
        assert!(connected.is_ok(), "{} cannot connect to {}: {connected:?}", self.from.name(), self.to);
        let (name, server) = accepted(&self.to, || {
            listeners.iter().find_map(|(name, listener)| Some((name.clone(), listener.accept().ok()?.0)))
        });
        server.set_nonblocking(false).unwrap();
        (name, [End::Tcp(TcpStream::from(client)), End::Tcp(server)])
    }

    /// The server's socket is connected to whom the first datagram came from, so that another can have the port.
    fn udp(&self, at: Option<IpAddr>) -> (String, [End; 2]) {
        let listen = |server: &&Host| {
            let address = self.place(server, at);
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let made = server.namespace().run(|| {
                let made = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
                setsockopt(&made, sockopt::ReusePort, &true)?;
                bind(made.as_raw_fd(), &SockaddrStorage::from(address))?;
                Ok(made)
            });
            let listener = UdpSocket::from(made.unwrap());
            listener.set_nonblocking(true).unwrap();
            (server.name().to_owned(), listener)
        };
        let mut listeners: Vec<(String, UdpSocket)> = self.servers.iter().map(listen).collect();
        let client = UdpSocket::from(self.socket(SockType::Datagram));
        client.connect(self.to).unwrap();
        client.send(b"hello").unwrap();
        let (at, peer) = accepted(&self.to, || {
            let heard = |(at, (_, listener)): (usize, &(String, UdpSocket))| {
                Some((at, listener.recv_from(&mut [0; 16]).ok()?.1))
            };
            listeners.iter().enumerate().find_map(heard)
        });
        let (name, server) = listeners.swap_remove(at);
        server.connect(peer).unwrap();
        server.set_nonblocking(false).unwrap();
        (name, [End::Udp(client), End::Udp(server)])
    }
}

fn accepted<T>(to: &SocketAddr, look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "nobody has got what was sent to {to}");
        std::thread::sleep(LOOK);
    }
}

impl Flow {
    /// The other end, or both, speak from now on.
    pub(crate) fn speaks(&mut self, speaks: Speaks) {
        self.speaks = speaks;
    }

    /// The opener's port.
    pub(crate) fn source_port(&self) -> u16 {
        let address = match &self.ends[OPENER] {
            End::Tcp(stream) => stream.local_addr(),
            End::Udp(socket) => socket.local_addr(),
        };
        address.unwrap().port()
    }

    fn send(&mut self, from: usize) {
        self.sent[from] += 1;
        let number = self.sent[from].to_be_bytes();
        let sent = match &mut self.ends[from] {
            End::Tcp(stream) => stream.write_all(&number),
            End::Udp(socket) => socket.send(&number).map(drop),
        };
        assert!(sent.is_ok(), "{}: end {from} cannot send: {sent:?}", self.name);
    }

    /// The next number that comes to an end, or that is there if nobody shall wait.
    fn next(&mut self, at: usize, wait: bool) -> Option<u64> {
        let mut bytes = [0; 8];
        let read = match &mut self.ends[at] {
            End::Tcp(stream) => {
                stream.set_nonblocking(!wait).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let read = stream.read_exact(&mut bytes);
                stream.set_nonblocking(false).unwrap();
                read
            }
            End::Udp(socket) => {
                socket.set_nonblocking(!wait).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let read = socket.recv(&mut bytes).map(drop);
                socket.set_nonblocking(false).unwrap();
                read
            }
        };
        match read {
            Ok(()) => Some(u64::from_be_bytes(bytes)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{}: end {at}: {error}", self.name),
        }
    }

    /// Nothing has come to the server.
    pub(crate) fn hears_nothing(&mut self, context: &str) {
        self.nothing_arrives(context, OPENER);
    }

    fn arrives(&mut self, context: &str, from: usize) {
        let number = self.next(1 - from, true);
        assert_eq!(number, Some(self.sent[from]), "{context}: {}: what end {from} has sent", self.name);
    }

    fn nothing_arrives(&mut self, context: &str, from: usize) {
        let number = self.next(1 - from, false);
        assert_eq!(number, None, "{context}: {}: what end {from} has sent has arrived", self.name);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        for end in &self.ends {
            if let End::Tcp(stream) = end {
                // Ends with a RST: a FIN that is dropped would be sent again for minutes.
                let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                let _ = setsockopt(stream, sockopt::Linger, &at_once);
            }
        }
    }
}

/// Whoever speaks on these flows sends something, and it arrives.
pub(crate) fn all_pass(context: &str, flows: &mut [Flow]) {
    for flow in &mut *flows {
        flow.speaks.ends().iter().for_each(|from| flow.send(*from));
    }
    for flow in flows {
        flow.speaks.ends().iter().for_each(|from| flow.arrives(context, *from));
    }
}

/// Waits until nothing is under way: an acknowledgement may take 40 ms to be sent.
pub(crate) fn settled(context: &str, flows: &[Flow]) {
    let deadline = Instant::now() + PATIENCE;
    while flows.iter().any(|flow| flow.ends.iter().any(|end| again(end).1 > 0)) {
        assert!(Instant::now() < deadline, "{context}: not everything is acknowledged");
        std::thread::sleep(LOOK);
    }
}

/// What the agents' programs have dropped.
pub(crate) fn dropped(cluster: &LiveCluster) -> f64 {
    let of = |samples: Vec<(String, f64)>| samples.into_iter().map(|(_, count)| count).sum::<f64>();
    cluster.agents.iter().map(|agent| of(agent.drops())).sum()
}

/// Whoever speaks on these flows sends something, and the agents drop it.
pub(crate) fn none_pass(context: &str, cluster: &LiveCluster, flows: &mut [Flow]) {
    let mut awaited = dropped(cluster);
    for flow in flows.iter_mut().filter(|flow| flow.protocol == Protocol::Udp) {
        for &from in flow.speaks.ends() {
            (0..DATAGRAMS).for_each(|_| flow.send(from));
            awaited += DATAGRAMS as f64;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while dropped(cluster) < awaited {
        nothing_has_arrived(context, flows, Protocol::Udp);
        assert!(Instant::now() < deadline, "{context}: not every datagram is dropped");
        std::thread::sleep(LOOK);
    }
    let mut waiting = Vec::new();
    for (at, flow) in flows.iter_mut().enumerate().filter(|(_, flow)| flow.protocol == Protocol::Tcp) {
        for &from in flow.speaks.ends() {
            waiting.push((at, from, again(&flow.ends[from]).0));
            flow.send(from);
        }
    }
    for (at, from, before) in waiting {
        loop {
            let flow = &mut flows[at];
            flow.nothing_arrives(context, from);
            let (retransmits, unacknowledged) = again(&flow.ends[from]);
            assert!(unacknowledged > 0, "{context}: {}: what end {from} has sent is acknowledged", flow.name);
            if retransmits >= before + RETRANSMITS {
                break;
            }
            assert!(Instant::now() < deadline, "{context}: {}: end {from} sends nothing again", flow.name);
            std::thread::sleep(LOOK);
        }
    }
    nothing_has_arrived(context, flows, Protocol::Udp);
    nothing_has_arrived(context, flows, Protocol::Tcp);
}

fn nothing_has_arrived(context: &str, flows: &mut [Flow], protocol: Protocol) {
    for flow in flows.iter_mut().filter(|flow| flow.protocol == protocol) {
        flow.speaks.ends().iter().for_each(|from| flow.nothing_arrives(context, *from));
    }
}

/// Segments that TCP has sent again, and those that nobody has acknowledged.
fn again(end: &End) -> (u32, u32) {
    let End::Tcp(stream) = end else { return (0, 0) };
    let info = tcp_info(stream);
    (info.tcpi_total_retrans, info.tcpi_unacked)
}

/// What the kernel tells of a connection (`struct tcp_info` of include/uapi/linux/tcp.h).
pub(crate) fn tcp_info(stream: &TcpStream) -> libc::tcp_info {
    // SAFETY: tcp_info is plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap();
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let answer = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    info
}
