//! Frames as they are, in and out, by packet sockets (packet(7)).
//!
//! On receive a packet socket sees a frame before the tc ingress programs, on transmit after the tc egress programs;
//! so a capture on a pod's host veth shows what a pod sent even if a program dropped it, and what was let go to it.
//! The kernel takes a VLAN tag out of a received frame before a packet socket sees it.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::Namespace;

/// Larger than any frame.
const FRAME_BYTES: usize = 65_550;

/// Room for bursts between two calls of [`Capture::next`].
const QUEUE_BYTES: usize = 4 << 20;

/// A recording of the frames on one interface, both ways, from [`crate::Host::capture`].
pub struct Capture {
    socket: Socket,
}

/// A recorded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The frame, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Whether the interface sent it, rather than received it.
    pub outgoing: bool,
}

impl Frame {
    /// The Ethertype, host byte order; 0 when the frame is too short to have one.
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        self.bytes.get(12..14).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
    }

    /// What follows the Ethernet header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(14..).unwrap_or(&[])
    }
}

impl Capture {
    pub(crate) fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.run(|| {
            // Protocol 0 receives nothing until bind says which interface is meant.
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("cannot open a packet socket")?;
            socket.set_recv_buffer_size(QUEUE_BYTES)?;
            socket
                .bind(&link_address(interface, libc::ETH_P_ALL)?)
                .with_context(|| format!("cannot capture on {interface}"))?;
            Ok(socket)
        })?;
        Ok(Self { socket })
    }

    /// The next frame; `None` when none has come within `timeout`.
    ///
    /// # Errors
    /// When the interface has gone down or away.
    pub fn next(&self, timeout: Duration) -> Result<Option<Frame>> {
        // A timeout of zero would mean forever.
        self.socket.set_read_timeout(Some(timeout.max(Duration::from_micros(1))))?;
        let mut buffer = vec![MaybeUninit::uninit(); FRAME_BYTES];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                // SAFETY: the kernel has written the first `length` bytes.
                let bytes = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                // SAFETY: a packet socket's peer address is a sockaddr_ll, for which SockAddr has room.
                let link = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
                Ok(Some(Frame { bytes, outgoing: link.sll_pkttype == libc::PACKET_OUTGOING }))
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) => Err(error).context("cannot receive from a packet socket"),
        }
    }

    /// The next frame for which `wanted` holds; others are passed over. `None` when none has come within `timeout`.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_matching(&self, timeout: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Option<Frame>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                Some(_) if !left.is_zero() => {}
                _ => return Ok(None),
            }
        }
    }
}

/// Sends one frame out of `interface` of `namespace`.
pub(crate) fn inject(namespace: &Namespace, interface: &str, frame: &[u8]) -> Result<()> {
    namespace.run(|| {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("cannot open a packet socket")?;
        let ethertype = frame.get(12..14).map_or(0, |two| i32::from(u16::from_be_bytes([two[0], two[1]])));
        socket
            .send_to(frame, &link_address(interface, ethertype)?)
            .with_context(|| format!("cannot send {} bytes out of {interface}", frame.len()))?;
        Ok(())
    })
}

fn link_address(interface: &str, protocol: i32) -> Result<SockAddr> {
    let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the addresses that the storage is made for.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = u16::try_from(libc::AF_PACKET)?;
    link.sll_protocol = u16::try_from(protocol)?.to_be();
    link.sll_ifindex = i32::try_from(index)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: family and length are those of the address that was just written.
    Ok(unsafe { SockAddr::new(storage, length) })
}
