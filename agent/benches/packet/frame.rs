//! Frames, and what a program is told beside them.

use std::net::Ipv4Addr;

/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
/// The same.
pub(crate) const ACK: u8 = 0x10;
/// Where a frame has its TCP source port.
pub(crate) const SOURCE_PORT: usize = 34;
/// Bytes of a frame: more than the programs make readable, so that none is pulled.
const LENGTH: usize = 128;

/// An Ethernet frame with IPv4 and TCP.
pub(crate) fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LENGTH);
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame.extend([0x45, 0]);
    frame.extend((LENGTH as u16 - 14).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(from.0.octets());
    frame.extend(to.0.octets());
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
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
