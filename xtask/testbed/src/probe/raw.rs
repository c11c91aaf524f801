//! Probes over raw sockets: SCTP and ICMP echo.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use socket2::{Protocol as IpProtocol, Socket, Type};

use super::{Outcome, Probe, left};
use crate::sctp::{self, Chunk, Packet};

/// Raw sockets share all ports and identifiers of their host, so the process numbers its own.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A number from 20000 to 59999, which neither servers nor the kernel's own clients (32768 up, rarely met) mind.
fn fresh_number() -> u16 {
    20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 40_000
}

impl Probe {
    pub(super) fn ask_sctp(&self) -> std::io::Result<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let socket = self.raw_socket(IpProtocol::from(i32::from(sctp::PROTOCOL)))?;
        let source = self.source_port.unwrap_or_else(fresh_number);
        let tag = 0x5000_0000 | u32::from(fresh_number());
        let init = Packet { source, destination: self.port, tag: 0, chunk: Chunk::Init { tag } };
        socket.send(&init.encode())?;
        loop {
            let bytes = self.receive(&socket, deadline)?;
            let answer = match Packet::decode(&bytes) {
                Ok(answer) => answer,
                Err(why) => return Ok(Outcome::Error(why.to_owned())),
            };
            if (answer.source, answer.destination, answer.tag) != (self.port, source, tag) {
                continue;
            }
            return Ok(match answer.chunk {
                Chunk::InitAck { cookie, .. } => Outcome::Answered(String::from_utf8_lossy(&cookie).into_owned()),
                Chunk::Abort => Outcome::Refused,
                other => Outcome::Error(format!("INIT was answered by {other:?}")),
            });
        }
    }

    pub(super) fn ask_icmp(&self) -> std::io::Result<Outcome> {
        let deadline = Instant::now() + self.timeout;
        // RFC 792 and RFC 4443: types of echo request and reply.
        let (protocol, request, reply) =
            if self.to.is_ipv4() { (IpProtocol::ICMPV4, 8, 0) } else { (IpProtocol::ICMPV6, 128, 129) };
        let socket = self.raw_socket(protocol)?;
        let identifier = fresh_number().to_be_bytes();
        let mut packet = vec![request, 0, 0, 0, identifier[0], identifier[1], 0, 1];
        packet.extend(b"portcullis");
        if self.to.is_ipv4() {
            // The kernel fills in the checksum of ICMPv6 only, which needs the addresses.
            let checksum = internet_checksum(&packet);
            packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        socket.send(&packet)?;
        loop {
            let bytes = self.receive(&socket, deadline)?;
            if bytes.first() == Some(&reply) && bytes.get(4..) == packet.get(4..) {
                return Ok(Outcome::Answered(self.to.to_string()));
            }
        }
    }

    /// A raw socket that gets packets from the destination only, and ICMP errors about those sent.
    fn raw_socket(&self, protocol: IpProtocol) -> std::io::Result<Socket> {
        let socket = self.socket(Type::RAW, Some(protocol))?;
        socket.connect(&SocketAddr::new(self.to, 0).into())?;
        Ok(socket)
    }

    /// The next packet after its IP header.
    fn receive(&self, mut socket: &Socket, deadline: Instant) -> std::io::Result<Vec<u8>> {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let mut buffer = vec![0u8; 65_536];
        let length = socket.read(&mut buffer)?;
        buffer.truncate(length);
        if matches!(self.to, IpAddr::V4(_)) {
            let header = usize::from(buffer.first().copied().unwrap_or(0) & 0x0f) * 4;
            buffer.drain(..header.min(length));
        }
        Ok(buffer)
    }
}

/// RFC 1071, over an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
