//! Sockets of whole packets (UDP, raw) that answer from the address to which a packet was sent.
//!
//! A host has several addresses (a node's uplink and its bridge), and a socket bound to the wildcard would answer from
//! the one that the route prefers: a client behind a translation would not recognise the answer.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Larger than any packet.
const BUFFER_BYTES: usize = 65_536;

pub(crate) struct DatagramSocket {
    socket: Socket,
    v4: bool,
    /// Raw IPv4 sockets deliver the IP header, every other kind does not.
    headers: bool,
}

/// A packet as it was received: its payload, who sent it, and the local address to which it came.
pub(crate) struct Received {
    pub(crate) payload: Vec<u8>,
    pub(crate) peer: SockaddrStorage,
    pub(crate) local: Option<IpAddr>,
}

impl DatagramSocket {
    /// A UDP socket of one family on `port`, in the calling thread's namespace.
    pub(crate) fn udp(v4: bool, port: u16) -> Result<Self> {
        let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let made = Self::new(v4, Type::DGRAM, Protocol::UDP)?;
        made.socket.bind(&SocketAddr::new(any, port).into()).with_context(|| format!("cannot bind UDP port {port}"))?;
        Ok(made)
    }

    /// A raw socket of one family for the IP protocol `number`.
    pub(crate) fn raw(v4: bool, number: u8) -> Result<Self> {
        Self::new(v4, Type::RAW, Protocol::from(i32::from(number)))
    }

    fn new(v4: bool, kind: Type, protocol: Protocol) -> Result<Self> {
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket =
            Socket::new(domain, kind, Some(protocol)).with_context(|| format!("cannot open a {kind:?} socket"))?;
        if v4 {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            // Raw sockets are of one family anyway, and refuse to be told.
            if kind == Type::DGRAM {
                socket.set_only_v6(true)?;
            }
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket, v4, headers: v4 && kind == Type::RAW })
    }

    /// The next packet; fails with `WouldBlock` when there is none.
    pub(crate) fn receive(&self) -> nix::Result<Received> {
        let mut buffer = vec![0u8; BUFFER_BYTES];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
        let peer = message.address.ok_or(nix::errno::Errno::EDESTADDRREQ)?;
        let local = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
            _ => None,
        });
        let length = message.bytes;
        buffer.truncate(length);
        if self.headers {
            let header = usize::from(buffer.first().copied().unwrap_or(0) & 0x0f) * 4;
            buffer.drain(..header.min(length));
        }
        Ok(Received { payload: buffer, peer, local })
    }

    /// Sends `payload` back to where `received` came from, from the address to which it was sent.
    pub(crate) fn answer(&self, received: &Received, payload: &[u8]) -> nix::Result<()> {
        let slices = [IoSlice::new(payload)];
        let socket = self.socket.as_raw_fd();
        let send = |controls: &[ControlMessage<'_>]| {
            sendmsg(socket, &slices, controls, MsgFlags::empty(), Some(&received.peer)).map(drop)
        };
        match received.local {
            Some(IpAddr::V4(local)) if self.v4 => {
                let source = libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
                send(&[ControlMessage::Ipv4PacketInfo(&info)])
            }
            Some(IpAddr::V6(local)) if !self.v4 => {
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: 0 };
                send(&[ControlMessage::Ipv6PacketInfo(&info)])
            }
            _ => send(&[]),
        }
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
