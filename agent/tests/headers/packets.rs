//! Frames of every kind, both families.

use std::net::IpAddr;

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;

/// What an IP packet says of itself beside its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) hop_limit: u8,
}

impl Ip {
    pub(crate) fn new(from: IpAddr, to: IpAddr) -> Self {
        Self { from, to, hop_limit: 64 }
    }

    pub(crate) fn back(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

pub(crate) fn ethernet(ethertype: u16, rest: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype.to_be_bytes(), rest].concat()
}

/// An IP packet without a link-layer header; `v4_fragment` is IPv4's word of flags and offset.
fn ip_packet(ip: Ip, protocol: u8, datagram: u16, v4_fragment: u16, body: &[u8]) -> Vec<u8> {
    match (ip.from, ip.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
            let (id, fragment) = (datagram.to_be_bytes(), v4_fragment.to_be_bytes());
            let head = [&[0x45, 0][..], &total, &id, &fragment, &[ip.hop_limit, protocol, 0, 0]].concat();
            [&head[..], &from.octets(), &to.octets(), body].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(body.len()).unwrap().to_be_bytes();
            let head = [&[0x60, 0, 0, 0][..], &length, &[protocol, ip.hop_limit]].concat();
            [&head[..], &from.octets(), &to.octets(), body].concat()
        }
        _ => panic!("{ip:?} is of two families"),
    }
}

pub(crate) fn packet(ip: Ip, protocol: u8, body: &[u8]) -> Vec<u8> {
    ip_packet(ip, protocol, 1, 0, body)
}

fn framed(ip: Ip, packet: &[u8]) -> Vec<u8> {
    ethernet(if ip.from.is_ipv4() { IPV4 } else { IPV6 }, packet)
}

pub(crate) fn frame(ip: Ip, protocol: u8, body: &[u8]) -> Vec<u8> {
    framed(ip, &packet(ip, protocol, body))
}

/// A fragment: bytes from `begin` on.
pub(crate) fn fragment(ip: Ip, datagram: u16, begin: u16, more: bool, protocol: u8, body: &[u8]) -> Vec<u8> {
    assert_eq!(begin % 8, 0, "fragments begin at multiples of eight");
    if ip.from.is_ipv4() {
        let word = begin >> 3 | if more { 0x2000 } else { 0 };
        return framed(ip, &ip_packet(ip, protocol, datagram, word, body));
    }
    let word = begin | u16::from(more);
    let header = [&[protocol, 0][..], &word.to_be_bytes(), &[0, 0], &datagram.to_be_bytes()].concat();
    frame(ip, 44, &[&header[..], body].concat())
}

/// UDP's header and 24 bytes.
pub(crate) fn udp(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0, 32, 0, 0], &[7; 24]].concat()
}

/// TCP's header.
pub(crate) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 4, 0, 0, 0, 0, 0]].concat()
}

/// "Packet too big" of the family about a packet, which is quoted to its end or to 96 bytes.
pub(crate) fn too_big(ip: Ip, quoted: &[u8]) -> Vec<u8> {
    let quoted = &quoted[..quoted.len().min(96)];
    if ip.from.is_ipv4() {
        frame(ip, 1, &[&[3, 4, 0, 0, 0, 0, 5, 0][..], quoted].concat())
    } else {
        frame(ip, 58, &[&[2, 0, 0, 0, 0, 0, 5, 0][..], quoted].concat())
    }
}
