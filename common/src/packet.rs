//! A packet's headers, read for what they are.
//!
//! [`Headers::parse_usual`] reads what nearly every packet is, [`Headers::parse`] the rest that needs no walk, and
//! [`Headers::parse_rare`] anything: fragments, options, extension headers, and what ICMP errors quote.

mod drop;
mod rare;
mod shape;
#[cfg(test)]
mod tests;
mod transport;

pub use drop::{Drop, REASONS};
pub use shape::Shape;

use crate::address::Address;
use crate::layout::mac_word;
use crate::tables::Work;

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
    /// How long the packet is, its link-layer header included.
    fn length(&self) -> usize;
}

impl Frame for &[u8] {
    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the range has the size of T, which is plain; the read does not ask for alignment.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
    fn length(&self) -> usize {
        self.len()
    }
}

/// A packet as a decision sees it: something whose headers can be read.
pub trait Readable {
    /// Reads the headers into the working memory, and what an ICMP error quotes beside them. The programs make it a
    /// function of its own.
    ///
    /// # Safety
    /// `work` is valid and nobody else's for the call.
    unsafe fn read_headers(&self, work: *mut Work, link: usize) -> Shape;
    /// The Ethernet address that a frame comes from, as [`mac_word`] writes it; 0 if it cannot be read.
    fn source_mac(&self) -> u64;
}

/// What [`Readable::source_mac`] gives, of bytes that begin with an Ethernet header.
#[inline(always)]
pub fn source_mac<F: Frame>(frame: &F) -> u64 {
    frame.load::<[u16; 3]>(6).map_or(0, mac_word)
}

impl<F: Frame> Readable for F {
    #[inline(always)]
    fn source_mac(&self) -> u64 {
        source_mac(self)
    }
    #[inline(always)]
    unsafe fn read_headers(&self, work: *mut Work, link: usize) -> Shape {
        // SAFETY: the caller's.
        unsafe {
            read_all(self, work, link, |offset, quoted| {
                if quoted {
                    (*work).quoted.parse_rare(self, offset, true)
                } else {
                    (*work).headers.parse_rare(self, offset, false)
                }
            })
        }
    }
}

/// Reads a frame; `rare` is [`Headers::parse_rare`] of the packet (false) or of what it quotes (true), at an offset.
///
/// # Safety
/// `work` is valid and nobody else's for the call.
#[inline(always)]
pub unsafe fn read_all<F: Frame>(
    frame: &F,
    work: *mut Work,
    link: usize,
    rare: impl Fn(usize, bool) -> Shape,
) -> Shape {
    // SAFETY: the caller's.
    unsafe {
        let shape = (*work).headers.parse(frame, link);
        if !matches!(shape, Shape::RARE | Shape::RELATED | Shape::REDIRECT) {
            return shape;
        }
        let shape = rare(link, false);
        if matches!(shape, Shape::RELATED | Shape::REDIRECT) {
            let quote = crate::tables::read(&raw const (*work).headers.rest) as usize;
            if quote == 0 || rare(quote, true) != Shape::IP {
                (*work).quoted = Headers::default();
            }
        }
        shape
    }
}

/// A packet's headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// The source.
    pub source: Address,
    /// The destination.
    pub destination: Address,
    /// Whom a neighbour advertisement speaks for. Of ARP the second word has the sender's Ethernet address, as
    /// [`mac_word`] writes it.
    pub target: Address,
    /// TCP, UDP and SCTP: the source port, host byte order. ICMP queries: the identifier. Else 0.
    pub source_port: u16,
    /// TCP, UDP and SCTP: the destination port, host byte order. ICMP queries: the identifier. Else 0.
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
    /// Whether the packet is the first fragment of a datagram that comes in several.
    pub first_fragment: bool,
    /// A fragment's datagram, by the number that its sender gave it.
    pub datagram: u32,
    /// Where a fragment begins within its datagram's fragmentable part, in bytes.
    pub begin: u32,
    /// Where it ends.
    pub end: u32,
    /// Whether it is its datagram's last.
    pub last: bool,
    /// Whether a fragment header has been walked over.
    pub fragmented: bool,
    /// Where the header that is to be read next stands; what an ICMP error quotes.
    pub rest: u16,
    /// Bytes of the packet from there on.
    pub left: u32,
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
    /// IPv6's hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6's routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6's fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// The authentication header.
    pub const AH: u8 = 51;
    /// IPv6's destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The longest packet that IP's length fields can tell; longer ones are the kernel's own (segmentation is left to the
/// device, "BIG TCP"), with a length of 0.
const LONGEST: usize = 65_535;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Whether a protocol wraps packets that the node would unwrap behind the hooks.
#[inline(always)]
#[must_use]
pub const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, protocol::IPIP | protocol::IPV6 | protocol::GRE)
}

impl Headers {
    /// The port that policy asks about where this packet answers a flow: the flow's destination port is this packet's
    /// source port; an ICMP answer answers its question, with code 0.
    #[inline(always)]
    #[must_use]
    pub const fn answered_port(&self) -> u16 {
        let (kind, question) = (self.policy_port >> 8, self.policy_port);
        match (self.protocol, kind) {
            (protocol::ICMP, 0) => 8 << 8,
            (protocol::ICMP, 14 | 16 | 18) => (kind - 1) << 8,
            (protocol::ICMPV6, 129 | 140) => (kind - 1) << 8,
            (protocol::ICMP | protocol::ICMPV6, _) => question,
            _ => self.source_port,
        }
    }

    /// The same packet as its receiver would send it back.
    #[inline(always)]
    #[must_use]
    pub const fn mirrored(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }

    /// Reads a frame of the most usual kinds, in few steps: Ethernet, IPv4 without options or IPv6 without extension
    /// headers, no fragment, TCP or UDP. Tells whether it is one; if not, what was read means nothing, and [`Self::parse`]
    /// tells what the frame is.
    #[inline(always)]
    pub fn parse_usual<F: Frame>(&mut self, frame: &F, link: usize) -> bool {
        if link == 0 {
            return false;
        }
        match frame.load::<[u16; 1]>(link - 2) {
            Some([raw]) if raw == ETHERTYPE_IPV4.to_be() => {
                let Some(header) = frame.load::<[u32; 5]>(link) else { return false };
                let first = u32::from_be(header[0]);
                let total = (first & 0xffff) as usize;
                if first >> 24 != 0x45
                    || u32::from_be(header[1]) & 0x3fff != 0
                    || total < 20
                    || link + total > frame.length()
                {
                    return false;
                }
                let protocol = (u32::from_be(header[2]) >> 16) as u8;
                if !self.usual_transport(frame, protocol, link + 20, total - 20) {
                    return false;
                }
                self.v4 = true;
                self.source = Address::v4(header[3]);
                self.destination = Address::v4(header[4]);
                true
            }
            Some([raw]) if raw == ETHERTYPE_IPV6.to_be() => {
                let Some(header) = frame.load::<[u32; 10]>(link) else { return false };
                let payload = self.base_v6(&header);
                u32::from_be(header[0]) >> 28 == 6
                    && link + 40 + payload <= frame.length()
                    && self.usual_transport(frame, self.protocol, link + 40, payload)
            }
            _ => false,
        }
    }

    /// Reads a whole TCP or UDP header.
    #[inline(always)]
    fn usual_transport<F: Frame>(&mut self, frame: &F, protocol: u8, offset: usize, length: usize) -> bool {
        let (ports, flags) = match protocol {
            protocol::TCP => match frame.load::<[u32; 4]>(offset) {
                Some(header) if length >= 20 => (header[0], (u32::from_be(header[3]) >> 16) as u8),
                _ => return false,
            },
            protocol::UDP => match frame.load::<[u32; 1]>(offset) {
                Some([ports]) if length >= 8 => (ports, 0),
                _ => return false,
            },
            _ => return false,
        };
        self.protocol = protocol;
        self.ports(ports);
        self.tcp_flags = flags;
        self.opens = flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        self.first_fragment = false;
        true
    }

    /// Reads a frame. `link` is the length of the link-layer header: 14 for Ethernet, 0 for devices without one, whose
    /// packets are told apart by their version. What is [`Shape::RARE`], [`Shape::RELATED`] or [`Shape::REDIRECT`] is to
    /// be read by [`Self::parse_rare`].
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
        let Some(arp) = frame.load::<[u16; 9]>(link) else { return Shape::bad(Drop::DISCOVERY) };
        // The kernel takes the hardware type of IEEE 802 for Ethernet's as well (net/ipv4/arp.c, arp_process).
        if !matches!(u16::from_be(arp[0]), 1 | 6)
            || u16::from_be(arp[1]) != ETHERTYPE_IPV4
            || u16::from_be(arp[2]) != 0x0604
        {
            return Shape::bad(Drop::DISCOVERY);
        }
        let [a, b] = arp[7].to_ne_bytes();
        let [c, d] = arp[8].to_ne_bytes();
        self.source = Address::v4(u32::from_ne_bytes([a, b, c, d]));
        self.target = Address { words: [0, mac_word([arp[4], arp[5], arp[6]])] };
        self.opens = u16::from_be(arp[3]) == 1;
        self.v4 = true;
        Shape::ARP
    }

    #[inline(always)]
    fn parse_v4<F: Frame>(&mut self, frame: &F, link: usize) -> Shape {
        let Some(header) = frame.load::<[u32; 5]>(link) else { return Shape::bad(Drop::MALFORMED) };
        let first = u32::from_be(header[0]);
        let total = (first & 0xffff) as usize;
        if first >> 28 != 4 {
            return Shape::bad(Drop::MALFORMED);
        }
        self.v4 = true;
        self.source = Address::v4(header[3]);
        self.destination = Address::v4(header[4]);
        self.protocol = (u32::from_be(header[2]) >> 16) as u8;
        if first >> 24 != 0x45 || total == 0 || u32::from_be(header[1]) & 0x3fff != 0 {
            return Shape::RARE;
        }
        if total < 20 || link + total > frame.length() {
            return Shape::bad(Drop::MALFORMED);
        }
        self.parse_transport(frame, link + 20, total - 20)
    }

    #[inline(always)]
    fn parse_v6<F: Frame>(&mut self, frame: &F, link: usize) -> Shape {
        let Some(header) = frame.load::<[u32; 10]>(link) else { return Shape::bad(Drop::MALFORMED) };
        if u32::from_be(header[0]) >> 28 != 6 {
            return Shape::bad(Drop::MALFORMED);
        }
        let payload = self.base_v6(&header);
        if payload == 0 || is_extension(self.protocol) {
            return Shape::RARE;
        }
        if link + 40 + payload > frame.length() {
            return Shape::bad(Drop::MALFORMED);
        }
        self.parse_transport(frame, link + 40, payload)
    }

    /// Takes IPv6's first header over, and gives the length that it tells.
    #[inline(always)]
    fn base_v6(&mut self, header: &[u32; 10]) -> usize {
        let second = u32::from_be(header[1]);
        self.v4 = false;
        self.source = Address::v6([header[2], header[3], header[4], header[5]]);
        self.destination = Address::v6([header[6], header[7], header[8], header[9]]);
        self.protocol = (second >> 8) as u8;
        self.hop_limit = second as u8;
        (second >> 16) as usize
    }
}

/// Whether a protocol number is an extension header that is walked over to find the transport's. Not ESP, whose content is
/// secret; not mobility, HIP and shim6 (RFC 7045 lists them), which end a chain wherever Linux receives them; not no next
/// header: these, like every unknown number, are judged as a protocol, which only a rule without ports admits, and that
/// rule admits whatever may be behind.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::AH | protocol::DESTINATION_OPTIONS
    )
}
