//! Frames, and what a program is told beside them.

use std::net::{IpAddr, Ipv4Addr};

/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
/// The same.
pub(crate) const ACK: u8 = 0x10;
/// Where a frame has its TCP source port.
pub(crate) const SOURCE_PORT: usize = 34;
/// Bytes of a frame: more than the programs make readable, so that none is pulled.
const LENGTH: usize = 128;

/// An address and a port.
pub(crate) type Side = (IpAddr, u16);

/// An Ethernet frame with TCP.
pub(crate) fn tcp(from: Side, to: Side, flags: u8) -> Vec<u8> {
    let mut segment = ports(from.1, to.1);
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ip(from.0, to.0, 6, &segment)
}

/// An Ethernet frame with UDP.
pub(crate) fn udp(from: Side, to: Side) -> Vec<u8> {
    let header = if from.0.is_ipv4() { 20 } else { 40 };
    let mut datagram = ports(from.1, to.1);
    datagram.extend((LENGTH as u16 - 14 - header).to_be_bytes());
    datagram.extend([0, 0]);
    ip(from.0, to.0, 17, &datagram)
}

/// A later IPv4 fragment of a UDP datagram.
pub(crate) fn fragment(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut frame = ip(from, to, 17, &[]);
    // An offset of 8 bytes times 100, and an identification.
    frame[18..22].copy_from_slice(&[0x12, 0x34, 0, 100]);
    frame
}

/// ICMP's "fragmentation needed", from a router, about a packet of a TCP flow from `from` to `to`.
pub(crate) fn too_big(router: Ipv4Addr, from: Side, to: Side) -> Vec<u8> {
    let quoted = tcp(from, to, ACK);
    let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0x14];
    message.extend(&quoted[14..14 + 28]);
    ip(router.into(), from.0, 1, &message)
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LENGTH);
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((LENGTH as u16 - 14).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((LENGTH as u16 - 14 - 40).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(octets(from));
            frame.extend(octets(to));
        }
    }
    frame.extend(payload);
    frame.resize(LENGTH, 0);
    frame
}

/// The `__sk_buff` that a test run takes: device, last receiving device and stamp in `cb[]` at byte 48, and in the fourth
/// word of it that the stamp stays for the next run.
pub(crate) fn context(ifindex: u32, ingress_ifindex: u32, stamp: u16) -> [u8; 192] {
    let mut context = [0; 192];
    for (i, word) in [ifindex, ingress_ifindex, u32::from(stamp), 1].into_iter().enumerate() {
        context[48 + 4 * i..52 + 4 * i].copy_from_slice(&word.to_ne_bytes());
    }
    context
}
