//! A packet's headers, read for what they are.

use crate::address::Address;

/// Bytes of a packet that can be copied out of it.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: arrays of integers.
unsafe impl<const N: usize> Plain for [u8; N] {}
// SAFETY: likewise.
unsafe impl<const N: usize> Plain for [u16; N] {}
// SAFETY: likewise.
unsafe impl<const N: usize> Plain for [u32; N] {}

/// The packet's bytes: `data` to `data_end` in the programs, a slice elsewhere.
pub trait Frame {
    /// Copies what stands at an offset, if the packet is that long.
    fn load<T: Plain>(&self, offset: usize) -> Option<T>;
}

impl Frame for &[u8] {
    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the range has the size of T, which is plain; the read does not ask for alignment.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

/// A packet as a decision sees it: something whose headers can be read.
pub trait Readable {
    /// Reads the headers into `headers`; see [`Headers::parse`]. The programs make it a function of its own.
    ///
    /// # Safety
    /// `headers` is valid and nobody else's for the call.
    unsafe fn read_headers(&self, headers: *mut Headers, link: usize) -> Shape;
}

impl<F: Frame> Readable for F {
    #[inline(always)]
    unsafe fn read_headers(&self, headers: *mut Headers, link: usize) -> Shape {
        // SAFETY: the caller's.
        unsafe { (*headers).parse(self, link) }
    }
}

/// What a packet is, as far as its treatment differs: one of the constants, or the reason why it cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(pub u32);

impl Shape {
    /// IP with headers that policy can judge.
    pub const IP: Self = Self(0);
    /// ARP; `source` is the sender's address.
    pub const ARP: Self = Self(100);
    /// Neighbour solicitation (`source` is the packet's source), advertisement (`source` is the target), or MLD.
    pub const DISCOVERY: Self = Self(101);
    /// A router advertisement or redirect.
    pub const ROUTER: Self = Self(102);
    /// [`Drop::FRAGMENT`]; the addresses are known.
    pub const FRAGMENT: Self = Self(7);
    /// [`Drop::EXTENSION`]; the addresses are known.
    pub const EXTENSION: Self = Self(8);

    /// Not judgeable, for this reason.
    #[inline(always)]
    const fn bad(why: Drop) -> Self {
        Self(why.0)
    }

    /// Whether no IP policy is asked, though nothing is wrong: ARP, discovery, router messages.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.0 >= Self::ARP.0
    }

    /// Why it cannot be judged.
    #[inline(always)]
    #[must_use]
    pub const fn why(self) -> Drop {
        Drop(self.0)
    }
}

/// Why a packet is dropped. Numbers are the keys of the drop counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop(pub u32);

impl Drop {
    /// A rule says so, or isolation.
    pub const POLICY: Self = Self(1);
    /// The device is no endpoint, though the program runs on it.
    pub const UNKNOWN_ENDPOINT: Self = Self(2);
    /// Headers that are cut off or contradict themselves.
    pub const MALFORMED: Self = Self(3);
    /// VLAN-tagged, or neither IP nor ARP.
    pub const ETHERTYPE: Self = Self(4);
    /// A source address that is not the pod's.
    pub const SOURCE: Self = Self(5);
    /// A unicast destination that is not the pod's.
    pub const DESTINATION: Self = Self(6);
    /// A fragment without the transport header.
    pub const FRAGMENT: Self = Self(7);
    /// IPv6 extension headers that are not followed.
    pub const EXTENSION: Self = Self(8);
    /// An encapsulation that would be unwrapped behind the hooks.
    pub const TUNNEL: Self = Self(9);
    /// ARP or neighbour discovery in another's name.
    pub const DISCOVERY: Self = Self(10);
    /// A router advertisement or redirect from a pod.
    pub const ROUTER: Self = Self(11);
    /// A stamp that names an endpoint which is gone.
    pub const STAMP: Self = Self(12);
    /// A packet that came up a bridge above pods without a stamp.
    pub const UNATTRIBUTED: Self = Self(13);
    /// A reply of a flow that no exit has allowed.
    pub const UNCONFIRMED: Self = Self(14);

    /// Every reason, with its name in metrics.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::POLICY, "policy"),
        (Self::UNKNOWN_ENDPOINT, "unknown_endpoint"),
        (Self::MALFORMED, "malformed"),
        (Self::ETHERTYPE, "ethertype"),
        (Self::SOURCE, "source_address"),
        (Self::DESTINATION, "destination_address"),
        (Self::FRAGMENT, "fragment"),
        (Self::EXTENSION, "extension_header"),
        (Self::TUNNEL, "tunnel"),
        (Self::DISCOVERY, "discovery"),
        (Self::ROUTER, "router_message"),
        (Self::STAMP, "stale_stamp"),
        (Self::UNATTRIBUTED, "unattributed"),
        (Self::UNCONFIRMED, "unconfirmed_reply"),
    ];
}

/// How many drop reasons there are room for; events of [`crate::tables::Event`] follow.
pub const REASONS: u32 = 64;

/// A packet's headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// The source.
    pub source: Address,
    /// The destination.
    pub destination: Address,
    /// TCP, UDP and SCTP: the source port, host byte order. Echo: the identifier. Else 0.
    pub source_port: u16,
    /// TCP, UDP and SCTP: the destination port, host byte order. Echo: the identifier. Else 0.
    pub destination_port: u16,
    /// What policy calls the port: the destination port, or `type << 8 | code` of ICMP and ICMPv6, else 0.
    pub policy_port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// Whether the packet is IPv4.
    pub v4: bool,
    /// The hop limit of IPv6; 0 for IPv4, where nothing asks.
    pub hop_limit: u8,
    /// Whether the packet opens a flow (TCP SYN without ACK, SCTP INIT, echo request): it is always judged as new, and
    /// never rides on what the other side opened.
    pub opens: bool,
}

/// TCP flags.
pub mod tcp {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The chunk that opens an association (RFC 9260 section 3.3.2).
const SCTP_INIT: u32 = 1;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

impl Headers {
    /// The port that policy asks about where this packet answers a flow: the flow's destination port is this packet's
    /// source port; an echo reply answers an echo request.
    #[inline(always)]
    #[must_use]
    pub const fn answered_port(&self) -> u16 {
        match self.protocol {
            protocol::ICMP => 8 << 8,
            protocol::ICMPV6 => 128 << 8,
            _ => self.source_port,
        }
    }

    /// Reads a frame of the most usual kind, in few steps: Ethernet, IPv4 without options, no later fragment, TCP or UDP.
    /// Tells whether it is one; if not, what was read means nothing, and [`Self::parse`] tells what the frame is.
    #[inline(always)]
    pub fn parse_usual<F: Frame>(&mut self, frame: &F, link: usize) -> bool {
        if link == 0 || frame.load::<[u16; 1]>(link - 2) != Some([ETHERTYPE_IPV4.to_be()]) {
            return false;
        }
        let Some(header) = frame.load::<[u32; 5]>(link) else { return false };
        let first = u32::from_be(header[0]);
        let (transport, total) = (link + 20, first & 0xffff);
        if first >> 24 != 0x45 || u32::from_be(header[1]) & 0x1fff != 0 {
            return false;
        }
        let (ports, flags) = match (u32::from_be(header[2]) >> 16) as u8 {
            protocol::TCP => match frame.load::<[u32; 4]>(transport) {
                Some(header) if total >= 40 => {
                    self.protocol = protocol::TCP;
                    (header[0], (u32::from_be(header[3]) >> 16) as u8)
                }
                _ => return false,
            },
            protocol::UDP => match frame.load::<[u32; 1]>(transport) {
                Some([ports]) if total >= 28 => {
                    self.protocol = protocol::UDP;
                    (ports, 0)
                }
                _ => return false,
            },
            _ => return false,
        };
        self.v4 = true;
        self.source = Address::v4(header[3]);
        self.destination = Address::v4(header[4]);
        self.ports(ports);
        self.tcp_flags = flags;
        self.opens = flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        true
    }

    /// Reads a frame. `link` is the length of the link-layer header: 14 for Ethernet, 0 for devices without one, whose
    /// packets are told apart by their version.
    #[inline(always)]
    pub fn parse<F: Frame>(&mut self, frame: &F, link: usize) -> Shape {
        *self = Self::default();
        let ethertype = if link == 0 {
            // A whole word: of a check for one byte at offset 0 the compiler makes a comparison that tells verifiers
            // nothing (kernel/bpf/verifier.c, find_good_pkt_pointers).
            match frame.load::<[u32; 1]>(0) {
                Some([first]) if u32::from_be(first) >> 28 == 4 => ETHERTYPE_IPV4,
                Some([first]) if u32::from_be(first) >> 28 == 6 => ETHERTYPE_IPV6,
                _ => return Shape::bad(Drop::MALFORMED),
            }
        } else {
            match frame.load::<[u16; 1]>(link - 2) {
                Some([raw]) => u16::from_be(raw),
                None => return Shape::bad(Drop::MALFORMED),
            }
        };
        match ethertype {
            ETHERTYPE_IPV4 => self.parse_v4(frame, link),
            ETHERTYPE_IPV6 => self.parse_v6(frame, link),
            ETHERTYPE_ARP => self.parse_arp(frame, link),
            _ => Shape::bad(Drop::ETHERTYPE),
        }
    }

    #[inline(always)]
    fn parse_arp<F: Frame>(&mut self, frame: &F, link: usize) -> Shape {
        // Hardware type, protocol type, lengths, operation, sender MAC and address.
        let Some(arp) = frame.load::<[u16; 9]>(link) else { return Shape::bad(Drop::MALFORMED) };
        if u16::from_be(arp[0]) != 1 || u16::from_be(arp[1]) != ETHERTYPE_IPV4 || u16::from_be(arp[2]) != 0x0604 {
            return Shape::bad(Drop::MALFORMED);
        }
        let [a, b] = arp[7].to_ne_bytes();
        let [c, d] = arp[8].to_ne_bytes();
        self.source = Address::v4(u32::from_ne_bytes([a, b, c, d]));
        self.v4 = true;
        Shape::ARP
    }

    #[inline(always)]
    fn parse_v4<F: Frame>(&mut self, frame: &F, link: usize) -> Shape {
        let Some(header) = frame.load::<[u32; 5]>(link) else { return Shape::bad(Drop::MALFORMED) };
        let first = u32::from_be(header[0]);
        let length = ((first >> 24 & 0xf) << 2) as usize;
        let total = (first & 0xffff) as usize;
        if first >> 28 != 4 || length < 20 || total < length {
            return Shape::bad(Drop::MALFORMED);
        }
        self.v4 = true;
        self.source = Address::v4(header[3]);
        self.destination = Address::v4(header[4]);
        self.protocol = (u32::from_be(header[2]) >> 16) as u8;
        if u32::from_be(header[1]) & 0x1fff != 0 {
            return Shape::bad(Drop::FRAGMENT);
        }
        self.parse_transport(frame, link + length, total - length)
    }

    #[inline(always)]
    fn parse_v6<F: Frame>(&mut self, frame: &F, link: usize) -> Shape {
        let Some(header) = frame.load::<[u32; 10]>(link) else { return Shape::bad(Drop::MALFORMED) };
        let second = u32::from_be(header[1]);
        if u32::from_be(header[0]) >> 28 != 6 {
            return Shape::bad(Drop::MALFORMED);
        }
        self.v4 = false;
        self.source = Address::v6([header[2], header[3], header[4], header[5]]);
        self.destination = Address::v6([header[6], header[7], header[8], header[9]]);
        self.protocol = (second >> 8) as u8;
        let payload = (second >> 16) as usize;
        self.hop_limit = second as u8;
        match self.protocol {
            // Hop-by-hop options carry MLD's router alert (RFC 3810 section 5), so that one is followed.
            0 => self.parse_hop_by_hop(frame, link + 40, payload),
            44 => Shape::bad(Drop::FRAGMENT),
            43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254 => Shape::bad(Drop::EXTENSION),
            _ => self.parse_transport(frame, link + 40, payload),
        }
    }

    /// A hop-by-hop header of eight bytes with ICMPv6 behind it; anything else is not followed.
    #[inline(always)]
    fn parse_hop_by_hop<F: Frame>(&mut self, frame: &F, offset: usize, payload: usize) -> Shape {
        let Some([next, length]) = frame.load::<[u8; 2]>(offset) else { return Shape::bad(Drop::MALFORMED) };
        if next != protocol::ICMPV6 || length != 0 || payload < 8 {
            return Shape::bad(Drop::EXTENSION);
        }
        self.protocol = next;
        self.parse_transport(frame, offset + 8, payload - 8)
    }

    #[inline(always)]
    fn parse_transport<F: Frame>(&mut self, frame: &F, offset: usize, length: usize) -> Shape {
        match self.protocol {
            protocol::TCP => {
                // Ports, sequence, acknowledgement, then offset and flags.
                let Some(header) = frame.load::<[u32; 4]>(offset) else { return Shape::bad(Drop::MALFORMED) };
                if length < 20 {
                    return Shape::bad(Drop::MALFORMED);
                }
                self.ports(header[0]);
                self.tcp_flags = (u32::from_be(header[3]) >> 16) as u8;
                self.opens = self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
                Shape::IP
            }
            protocol::SCTP => {
                // Ports, verification tag, checksum, then the first chunk's type.
                let Some(header) = frame.load::<[u32; 4]>(offset) else { return Shape::bad(Drop::MALFORMED) };
                if length < 16 {
                    return Shape::bad(Drop::MALFORMED);
                }
                self.ports(header[0]);
                self.opens = u32::from_be(header[3]) >> 24 == SCTP_INIT;
                Shape::IP
            }
            protocol::UDP => {
                let Some([ports]) = frame.load::<[u32; 1]>(offset) else { return Shape::bad(Drop::MALFORMED) };
                if length < 8 {
                    return Shape::bad(Drop::MALFORMED);
                }
                self.ports(ports);
                Shape::IP
            }
            protocol::ICMP | protocol::ICMPV6 => self.parse_icmp(frame, offset, length),
            _ => Shape::IP,
        }
    }

    #[inline(always)]
    fn ports(&mut self, raw: u32) {
        let ports = u32::from_be(raw);
        self.source_port = (ports >> 16) as u16;
        self.destination_port = ports as u16;
        self.policy_port = ports as u16;
    }

    #[inline(always)]
    fn parse_icmp<F: Frame>(&mut self, frame: &F, offset: usize, length: usize) -> Shape {
        let Some([first, second]) = frame.load::<[u32; 2]>(offset) else { return Shape::bad(Drop::MALFORMED) };
        if length < 8 || (self.protocol == protocol::ICMP) != self.v4 {
            return Shape::bad(Drop::MALFORMED);
        }
        let kind = u32::from_be(first) >> 24;
        self.policy_port = (u32::from_be(first) >> 16) as u16;
        if self.v4 {
            if kind == 0 || kind == 8 {
                self.echo(second);
                self.opens = kind == 8;
            }
            return Shape::IP;
        }
        match kind {
            128 | 129 => {
                self.echo(second);
                self.opens = kind == 128;
                Shape::IP
            }
            // RFC 4861: router advertisement, redirect.
            134 | 137 => Shape::ROUTER,
            // RFC 4861: router and neighbour solicitation count only with a hop limit that no router has lowered.
            133 | 135 if self.hop_limit == 255 => Shape::DISCOVERY,
            136 if self.hop_limit == 255 => match frame.load::<[u32; 4]>(offset + 8) {
                Some(target) => {
                    self.source = Address::v6(target);
                    Shape::DISCOVERY
                }
                None => Shape::bad(Drop::MALFORMED),
            },
            // MLD goes to multicast groups with a hop limit of 1 (RFC 2710, RFC 3810).
            130..=132 | 143 if self.hop_limit == 1 && self.destination.is_multicast(false) => Shape::DISCOVERY,
            _ => Shape::IP,
        }
    }

    #[inline(always)]
    fn echo(&mut self, second: u32) {
        let identifier = (u32::from_be(second) >> 16) as u16;
        self.source_port = identifier;
        self.destination_port = identifier;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet frame with IPv4 and a transport header of 20 bytes.
    fn frame(protocol: u8, total: u16, flags: u8) -> [u8; 54] {
        let mut frame = [0; 54];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[23] = protocol;
        frame[26..38].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 2, 0x9c, 0x40, 0, 80]);
        frame[46..48].copy_from_slice(&[0x50, flags]);
        frame
    }

    #[test]
    fn the_short_way_reads_what_the_long_one_reads() {
        let with = |place: usize, byte: u8| {
            let mut frame = frame(6, 40, 0x10);
            frame[place] = byte;
            frame
        };
        let rows = [
            ("TCP", frame(6, 40, 0x10), true),
            ("TCP that opens", frame(6, 40, 0x02), true),
            ("TCP that answers an opening", frame(6, 40, 0x12), true),
            ("UDP", frame(17, 28, 0x02), true),
            ("TCP cut off", frame(6, 39, 0x10), false),
            ("UDP cut off", frame(17, 27, 0), false),
            ("ICMP", frame(1, 40, 0), false),
            ("SCTP", frame(132, 40, 0), false),
            ("options", with(14, 0x46), false),
            ("IPv6 by its version", with(14, 0x65), false),
            ("IPv6 by its type", with(12, 0x86), false),
            ("a later fragment", with(21, 1), false),
            ("a first fragment", with(20, 0x20), true),
        ];
        for (message, frame, usual) in rows {
            for length in [54, 42, 38, 30, 13] {
                let frame = &frame[..length];
                let mut short = Headers { protocol: 99, tcp_flags: 0xff, v4: false, opens: true, ..Headers::default() };
                let mut long = short;
                let taken = short.parse_usual(&frame, 14);
                let shape = long.parse(&frame, 14);
                assert!(
                    !taken || shape == Shape::IP && short == long,
                    "{message}, {length} bytes: {short:?}, {long:?}"
                );
                assert!(taken == usual || length < 54, "{message}");
                assert!(!short.parse_usual(&frame, 0), "{message}: without a link header the short way is closed");
            }
        }
    }
}
