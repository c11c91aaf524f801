//! The long way: fragments, IPv4 options, IPv6 extension headers, and the packets that ICMP errors quote.
//!
//! What is known so far of a walk is kept in the headers themselves and read anew at each step: a verifier then finds the
//! same state after every kind of header, and the kinds do not multiply.

use super::{Drop, Frame, Headers, LONGEST, Shape, is_extension, protocol};
use crate::address::Address;
use crate::tables::read;

/// Extension headers that are walked over. Honest packets have at most four (RFC 8200 section 4.1, without ESP); more
/// cost every node on the way, and receivers may drop them too (RFC 8504 section 5.3).
pub(super) const MOST_EXTENSIONS: usize = 6;
/// Options of an IPv4 header: 40 bytes of them.
const MOST_OPTIONS: usize = 40;

/// Writes a field that the next step of a walk reads.
macro_rules! keep {
    ($self:ident.$field:ident = $value:expr) => {
        // SAFETY: the place is a field of what is borrowed.
        unsafe { (&raw mut $self.$field).write_volatile($value) }
    };
}

/// Reads a field as the last step has left it.
macro_rules! kept {
    ($self:ident.$field:ident) => {
        // SAFETY: likewise.
        unsafe { read(&raw const $self.$field) }
    };
}

impl Headers {
    /// Reads the IP packet at an offset, whatever it is. `quoted`: it stands in an ICMP error, cut off anywhere behind the
    /// ports, and only its addresses, protocol, ports and kind are wanted.
    ///
    /// Everything is judged by the first byte's version; of an Ethernet frame the Ethertype has been compared before.
    #[inline(always)]
    pub fn parse_rare<F: Frame>(&mut self, frame: &F, offset: usize, quoted: bool) -> Shape {
        *self = Self::default();
        let Some([first]) = frame.load::<[u32; 1]>(offset) else { return Shape::bad(Drop::MALFORMED) };
        let shape = match u32::from_be(first) >> 28 {
            4 => self.rare_v4(frame, offset, quoted),
            6 => self.rare_v6(frame, offset, quoted),
            _ => Shape::bad(Drop::MALFORMED),
        };
        if shape != Shape::IP {
            return shape;
        }
        let (offset, left) = (kept!(self.rest) as usize, kept!(self.left) as usize);
        if quoted {
            return self.parse_quoted(frame, offset);
        }
        let shape = self.parse_transport(frame, offset, left);
        if shape == Shape::REDIRECT && !self.v4 {
            let quote = redirected(frame, kept!(self.rest) as usize);
            keep!(self.rest = quote);
        }
        shape
    }

    /// [`Shape::IP`] if `rest` and `left` tell the transport header's place.
    #[inline(always)]
    fn rare_v4<F: Frame>(&mut self, frame: &F, offset: usize, quoted: bool) -> Shape {
        let Some(header) = frame.load::<[u32; 5]>(offset) else { return Shape::bad(Drop::MALFORMED) };
        let first = u32::from_be(header[0]);
        let length = ((first >> 24 & 0xf) << 2) as usize;
        let mut total = (first & 0xffff) as usize;
        let available = frame.length().saturating_sub(offset);
        if total == 0 && available > LONGEST {
            // A packet that the device will cut up (include/linux/ip.h, iph_totlen).
            total = available;
        }
        if length < 20 || total < length || total > available && !quoted {
            return Shape::bad(Drop::MALFORMED);
        }
        self.v4 = true;
        self.source = Address::v4(header[3]);
        self.destination = Address::v4(header[4]);
        self.protocol = (u32::from_be(header[2]) >> 16) as u8;
        if length > 20 && !quoted {
            let shape = self.walk_options(frame, offset + 20, offset + length);
            if shape != Shape::IP {
                return shape;
            }
        }
        keep!(self.rest = (offset + length) as u16);
        keep!(self.left = (total - length) as u32);
        let second = u32::from_be(header[1]);
        self.fragment(second >> 16, (second & 0x1fff) << 3, second & 0x2000 != 0)
    }

    /// Looks for options that make the destination another (loose and strict source route, RFC 791), and for lies.
    #[inline(always)]
    fn walk_options<F: Frame>(&mut self, frame: &F, begin: usize, end: usize) -> Shape {
        keep!(self.rest = begin as u16);
        let mut step = 0;
        while step < MOST_OPTIONS {
            let at = kept!(self.rest) as usize;
            if at >= end {
                return Shape::IP;
            }
            let Some([kind]) = frame.load::<[u8; 1]>(at) else { return Shape::bad(Drop::MALFORMED) };
            let size = match kind {
                0 => return Shape::IP,
                1 => 1,
                131 | 137 => return Shape::bad(Drop::SOURCE_ROUTE),
                _ => match frame.load::<[u8; 1]>(at + 1) {
                    Some([size]) if size >= 2 && at + size as usize <= end => size as usize,
                    _ => return Shape::bad(Drop::MALFORMED),
                },
            };
            keep!(self.rest = (at + size) as u16);
            step += 1;
        }
        Shape::IP
    }

    /// Likewise for IPv6.
    #[inline(always)]
    fn rare_v6<F: Frame>(&mut self, frame: &F, offset: usize, quoted: bool) -> Shape {
        let Some(header) = frame.load::<[u32; 10]>(offset) else { return Shape::bad(Drop::MALFORMED) };
        let mut payload = self.base_v6(&header);
        let available = frame.length().saturating_sub(offset + 40);
        if payload == 0 && available > LONGEST - 40 {
            // A packet that the device will cut up. Real jumbograms (RFC 2675) need a link with a larger MTU than any here.
            payload = available;
        }
        if payload > available && !quoted {
            return Shape::bad(Drop::MALFORMED);
        }
        keep!(self.rest = (offset + 40) as u16);
        keep!(self.left = payload as u32);
        let mut step = 0;
        while step < MOST_EXTENSIONS {
            if !is_extension(kept!(self.protocol)) {
                return Shape::IP;
            }
            let shape = self.walk_over(frame, step == 0);
            if shape != Shape::IP {
                return shape;
            }
            step += 1;
        }
        if is_extension(kept!(self.protocol)) { Shape::bad(Drop::EXTENSION) } else { Shape::IP }
    }

    /// Walks over one extension header.
    #[inline(always)]
    fn walk_over<F: Frame>(&mut self, frame: &F, first: bool) -> Shape {
        let (this, at, left) = (kept!(self.protocol), kept!(self.rest) as usize, kept!(self.left));
        let Some([word, second]) = frame.load::<[u32; 2]>(at) else { return self.cut_off() };
        let word = u32::from_be(word);
        let units = word >> 16 & 0xff;
        let size = match this {
            protocol::FRAGMENT => 8,
            // RFC 4302 section 2.2: in words of four bytes, less two.
            protocol::AH => (units + 2) << 2,
            _ => (units + 1) << 3,
        };
        if size > left {
            return self.cut_off();
        }
        let bad = match this {
            // RFC 8200 section 4.1: only immediately after the first header.
            protocol::HOP_BY_HOP if !first => Drop::EXTENSION,
            // Type 0 is forbidden (RFC 5095); of any other the destination is final when no segment is left.
            protocol::ROUTING if word & 0xff != 0 || word >> 8 & 0xff == 0 => Drop::SOURCE_ROUTE,
            // The kernel refuses a fragment in a fragment (net/ipv6/reassembly.c, IP6SKB_FRAGMENTED).
            protocol::FRAGMENT if kept!(self.fragmented) => Drop::EXTENSION,
            _ => Drop(0),
        };
        if bad.0 != 0 {
            return Shape::bad(bad);
        }
        keep!(self.protocol = (word >> 24) as u8);
        keep!(self.rest = (at + size as usize) as u16);
        keep!(self.left = left - size);
        if this != protocol::FRAGMENT {
            return Shape::IP;
        }
        keep!(self.fragmented = true);
        self.fragment(u32::from_be(second), word & 0xfff8, word & 1 != 0)
    }

    /// Notes where a fragment stands in its datagram. [`Shape::IP`] if headers follow: it is the whole datagram (RFC 6946:
    /// IPv6 atomic fragments are no fragments) or its first part.
    #[inline(always)]
    fn fragment(&mut self, datagram: u32, begin: u32, more: bool) -> Shape {
        if begin == 0 && !more {
            return Shape::IP;
        }
        let end = begin + kept!(self.left);
        // What would end beyond the longest packet, or is no part at all.
        if end > LONGEST as u32 || end == begin {
            return Shape::bad(Drop::MALFORMED);
        }
        self.datagram = datagram;
        self.begin = begin;
        self.end = end;
        self.last = !more;
        if begin != 0 {
            return Shape::LATER;
        }
        self.first_fragment = true;
        Shape::IP
    }

    /// The transport header of a quoted packet, of which eight bytes are enough (RFC 792).
    #[inline(always)]
    fn parse_quoted<F: Frame>(&mut self, frame: &F, offset: usize) -> Shape {
        let Some([first, second]) = frame.load::<[u32; 2]>(offset) else { return Shape::bad(Drop::MALFORMED) };
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => self.ports(first),
            protocol::ICMP | protocol::ICMPV6 => {
                if (self.protocol == protocol::ICMP) != self.v4 {
                    return Shape::bad(Drop::MALFORMED);
                }
                self.policy_port = (u32::from_be(first) >> 16) as u16;
                self.query(u32::from_be(first) >> 24, second);
                self.opens = false;
            }
            _ => {}
        }
        Shape::IP
    }
}

/// Where the packet stands about which an IPv6 redirect is; 0 if it does not say. `body`: target and destination, then
/// options: usually the target's link-layer address, then the packet (RFC 4861 section 4.5).
#[inline(always)]
fn redirected<F: Frame>(frame: &F, body: usize) -> u16 {
    let Some([kind, units]) = frame.load::<[u8; 2]>(body + 32) else { return 0 };
    if kind == 4 {
        return (body + 40) as u16;
    }
    let next = body + 32 + ((units as usize) << 3);
    match frame.load::<[u8; 2]>(next) {
        Some([4, _]) if units != 0 => (next + 8) as u16,
        _ => 0,
    }
}
