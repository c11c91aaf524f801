//! Sockets of the kernel's SCTP in the style of TCP's, one association each (RFC 6458, section 4), with the numbers of
//! the streams that messages travel on.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use portcullis_testbed::Pod;

/// How often servers look whether they shall end.
const TURN: Duration = Duration::from_millis(500);

/// A control message that says on which stream to send. `CMSG_DATA` follows the header without a gap on 64-bit machines.
#[repr(C)]
struct SendControl {
    header: libc::cmsghdr,
    info: libc::sctp_sndinfo,
}

/// Room for one that says on which stream a message came, and then some.
#[repr(C)]
struct ReceiveControl {
    header: libc::cmsghdr,
    info: libc::sctp_rcvinfo,
    more: [u64; 8],
}

/// One end of an association, or of one that shall be.
pub(super) struct Association(OwnedFd);

/// What came of waiting for a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A message, and its stream.
    Message(u16, Vec<u8>),
    /// The other side has shut the association down.
    End,
    /// Nothing in time, or the association has failed.
    Nothing(nix::errno::Errno),
}

/// A socket without an address. Fails where the kernel has no SCTP.
pub(super) fn socket(v4: bool) -> io::Result<OwnedFd> {
    let domain = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    // SAFETY: a new descriptor, nobody else's.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

fn set_patience(socket: &OwnedFd, patience: Duration) -> nix::Result<()> {
    let time = TimeVal::new(patience.as_secs().cast_signed(), i64::from(patience.subsec_micros()));
    setsockopt(socket, sockopt::ReceiveTimeout, &time)?;
    setsockopt(socket, sockopt::SendTimeout, &time)
}

impl Association {
    /// Opens one from an own port, or any (0), if it comes about in time.
    pub(super) fn open(from: &Pod, own_port: u16, to: SocketAddr, patience: Duration) -> Option<Self> {
        let opened = from.namespace().run(|| {
            let socket = socket(to.is_ipv4())?;
            // Without a source of its own it would offer every address of the pod, of which the peer takes each for true.
            let own = from.addresses().into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).unwrap();
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, own_port)))?;
            set_patience(&socket, patience)?;
            let connected = connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
            Ok(connected.ok().map(|()| Self(socket)))
        });
        opened.unwrap()?.numbered()
    }

    /// With the streams' numbers beside what is received.
    fn numbered(self) -> Option<Self> {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap();
        // SAFETY: `on` is as long as it is said to be, and outlives the call.
        let status = unsafe {
            let option = libc::SCTP_RECVRCVINFO;
            libc::setsockopt(self.0.as_raw_fd(), libc::IPPROTO_SCTP, option, (&raw const on).cast(), length)
        };
        (status == 0).then_some(self)
    }

    pub(super) fn wait_at_most(&self, patience: Duration) {
        set_patience(&self.0, patience).unwrap();
    }

    pub(super) fn own_port(&self) -> u16 {
        nix::sys::socket::getsockname::<SockaddrStorage>(self.0.as_raw_fd())
            .unwrap()
            .as_sockaddr_in()
            .map(|v4| v4.port())
            .unwrap_or_else(|| {
                let own = nix::sys::socket::getsockname::<SockaddrStorage>(self.0.as_raw_fd()).unwrap();
                own.as_sockaddr_in6().unwrap().port()
            })
    }

    /// Sends a message on a stream.
    pub(super) fn send(&self, stream: u16, bytes: &[u8]) -> io::Result<()> {
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: structures of numbers, for which zeros are valid.
        let (mut control, mut message) = unsafe {
            (MaybeUninit::<SendControl>::zeroed().assume_init(), MaybeUninit::<libc::msghdr>::zeroed().assume_init())
        };
        control.header.cmsg_len = size_of::<SendControl>();
        control.header.cmsg_level = libc::IPPROTO_SCTP;
        control.header.cmsg_type = libc::SCTP_SNDINFO;
        control.info.snd_sid = stream;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<SendControl>();
        // SAFETY: everything that the message points to outlives the call, which only reads it.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next message.
    pub(super) fn receive(&self) -> Received {
        let mut bytes = [0_u8; 256];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: structures of numbers, for which zeros are valid.
        let (mut control, mut message) = unsafe {
            (MaybeUninit::<ReceiveControl>::zeroed().assume_init(), MaybeUninit::<libc::msghdr>::zeroed().assume_init())
        };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<ReceiveControl>();
        // SAFETY: everything that the message points to outlives the call, and is as long as it is said to be.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        match usize::try_from(length) {
            Ok(0) => Received::End,
            Err(_) => match nix::errno::Errno::last() {
                // The handshake of the shutdown may be over by now; an abort would be ECONNRESET.
                nix::errno::Errno::ENOTCONN => Received::End,
                other => Received::Nothing(other),
            },
            Ok(length) => {
                let is_told = control.header.cmsg_type == libc::SCTP_RCVINFO && message.msg_controllen > 0;
                assert!(is_told, "a message of {length} bytes came without the number of its stream");
                Received::Message(control.info.rcv_sid, bytes[..length].to_vec())
            }
        }
    }

    /// Says that nothing more comes: SHUTDOWN, once what is under way has been acknowledged (RFC 9260, section 9.2).
    pub(super) fn shut_down(&self) {
        nix::sys::socket::shutdown(self.0.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
    }
}

impl Drop for Association {
    /// At once, by an ABORT: what is denied would be sent again for minutes.
    fn drop(&mut self) {
        let _ = setsockopt(&self.0, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    }
}

/// Servers of a pod, which answer each message on the stream that it came by. They end when this is dropped.
pub(super) struct Echo {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// On these ports of each of the pod's addresses.
    pub(super) fn new(pod: &Pod, ports: &[u16]) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let places = pod.addresses().into_iter().flat_map(|address| ports.iter().map(move |port| (address, *port)));
        let threads = places.map(|(address, port)| {
            let (listener, ends) = (listener(pod, address, port), Arc::clone(&ends));
            std::thread::spawn(move || accept(&listener, &ends))
        });
        Self { threads: threads.collect(), ends }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn listener(pod: &Pod, address: IpAddr, port: u16) -> OwnedFd {
    let listening = pod.namespace().run(|| {
        let socket = socket(address.is_ipv4())?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
        set_patience(&socket, TURN)?;
        listen(&socket, Backlog::new(16)?)?;
        Ok(socket)
    });
    listening.unwrap()
}

fn accept(listener: &OwnedFd, ends: &Arc<AtomicBool>) {
    let mut threads = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let Ok(fd) = nix::sys::socket::accept(listener.as_raw_fd()) else { continue };
        // SAFETY: a new descriptor, nobody else's.
        let Some(association) = Association(unsafe { OwnedFd::from_raw_fd(fd) }).numbered() else { continue };
        association.wait_at_most(TURN);
        let ends = Arc::clone(ends);
        threads.push(std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                match association.receive() {
                    Received::Message(stream, bytes) => drop(association.send(stream, &bytes)),
                    Received::Nothing(nix::errno::Errno::EAGAIN) => {}
                    Received::Nothing(_) => break,
                    Received::End => break,
                }
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
}
