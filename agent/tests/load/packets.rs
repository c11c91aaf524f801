//! Many packets, each of another flow.

use std::io;
use std::net::Ipv4Addr;

use portcullis_testbed::{Host, ROUTED_HOST_MAC};

/// Where an Ethernet frame with IPv4 has its source address, and its ports behind twenty bytes of header.
const SOURCE: usize = 26;
const PORTS: usize = 34;

/// A TCP SYN or a UDP datagram without payload. Its checksum is wrong, so that who receives it neither answers nor keeps
/// anything: packet programs do not look at it.
pub(crate) fn frame(tcp: bool, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = ROUTED_HOST_MAC.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<u8>>();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    let transport: &[u8] = if tcp {
        &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xde, 0xad, 0, 0]
    } else {
        &[0, 0, 0, 0, 0, 8, 0xde, 0xad]
    };
    frame.extend([0x45, 0]);
    frame.extend((20 + transport.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(transport);
    seal(&mut frame);
    frame
}

/// Sets the ports.
pub(crate) fn set_ports(frame: &mut [u8], from: u16, to: u16) {
    frame[PORTS..PORTS + 2].copy_from_slice(&from.to_be_bytes());
    frame[PORTS + 2..PORTS + 4].copy_from_slice(&to.to_be_bytes());
}

/// Sets the source address.
pub(crate) fn set_source(frame: &mut [u8], from: Ipv4Addr) {
    frame[SOURCE..SOURCE + 4].copy_from_slice(&from.octets());
    seal(frame);
}

/// Writes the header's checksum (RFC 1071), without which no host takes the packet.
fn seal(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let words = frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// Sends `count` frames out of a host's `eth0`, each changed by `next` before.
pub(crate) fn send(host: &Host, mut frame: Vec<u8>, count: u64, mut next: impl FnMut(&mut [u8], u64) + Send) {
    host.namespace()
        .run(|| {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            // SAFETY: plain calls on a descriptor of this function's own, with buffers that outlive them.
            unsafe {
                let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
                if socket < 0 {
                    return Err(io::Error::last_os_error().into());
                }
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = 8_u16;
                address.sll_ifindex = index as i32;
                for i in 0..count {
                    next(&mut frame, i);
                    let sent = libc::sendto(
                        socket,
                        frame.as_ptr().cast(),
                        frame.len(),
                        0,
                        (&raw const address).cast(),
                        size_of_val(&address) as u32,
                    );
                    if sent < 0 {
                        let error = io::Error::last_os_error();
                        // The device's queue is full: the flood is as fast as it can be.
                        if error.raw_os_error() != Some(libc::ENOBUFS) {
                            libc::close(socket);
                            return Err(error.into());
                        }
                    }
                }
                libc::close(socket);
            }
            Ok(())
        })
        .unwrap();
}
