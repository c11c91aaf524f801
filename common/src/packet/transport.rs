//! Transport headers: ports, what opens a flow, ICMP's kinds.

use super::{Drop, Frame, Headers, Shape, protocol, tcp};
use crate::address::Address;

/// The chunk that opens an association (RFC 9260 section 3.3.2).
const SCTP_INIT: u32 = 1;

impl Headers {
    /// Reads the transport header at an offset, of which the packet says to have `length` bytes.
    #[inline(always)]
    pub(super) fn parse_transport<F: Frame>(&mut self, frame: &F, offset: usize, length: usize) -> Shape {
        let cut = self.cut_off();
        match self.protocol {
            protocol::TCP => {
                // Ports, sequence, acknowledgement, then offset and flags.
                let Some(header) = frame.load::<[u32; 4]>(offset) else { return cut };
                // Of a first fragment the options too are wanted: a later one may not change them.
                let whole = if self.first_fragment { (u32::from_be(header[3]) >> 28 << 2) as usize } else { 20 };
                if length < 20 || length < whole {
                    return cut;
                }
                self.ports(header[0]);
                self.tcp_flags = (u32::from_be(header[3]) >> 16) as u8;
                self.opens = self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
                Shape::IP
            }
            protocol::SCTP => {
                // Ports, verification tag, checksum, then the first chunk's type.
                let Some(header) = frame.load::<[u32; 4]>(offset) else { return cut };
                if length < 16 {
                    return cut;
                }
                self.ports(header[0]);
                self.opens = u32::from_be(header[3]) >> 24 == SCTP_INIT;
                Shape::IP
            }
            protocol::UDP => {
                let Some([ports]) = frame.load::<[u32; 1]>(offset) else { return cut };
                if length < 8 {
                    return cut;
                }
                self.ports(ports);
                Shape::IP
            }
            protocol::ICMP | protocol::ICMPV6 => self.parse_icmp(frame, offset, length),
            _ => Shape::IP,
        }
    }

    /// What a packet is whose headers end too early.
    #[inline(always)]
    pub(super) const fn cut_off(&self) -> Shape {
        Shape::bad(if self.first_fragment { Drop::TINY } else { Drop::MALFORMED })
    }

    #[inline(always)]
    pub(super) fn ports(&mut self, raw: u32) {
        let ports = u32::from_be(raw);
        self.source_port = (ports >> 16) as u16;
        self.destination_port = ports as u16;
        self.policy_port = ports as u16;
    }

    #[inline(always)]
    fn parse_icmp<F: Frame>(&mut self, frame: &F, offset: usize, length: usize) -> Shape {
        let Some([first, second]) = frame.load::<[u32; 2]>(offset) else { return self.cut_off() };
        if length < 8 {
            return self.cut_off();
        }
        if (self.protocol == protocol::ICMP) != self.v4 {
            return Shape::bad(Drop::MALFORMED);
        }
        let kind = u32::from_be(first) >> 24;
        self.policy_port = (u32::from_be(first) >> 16) as u16;
        self.query(kind, second);
        self.rest = (offset + 8) as u16;
        let shape = if self.v4 { kind_v4(kind) } else { self.kind_v6(kind) };
        let shape = match shape {
            // RFC 6980: discovery never comes in fragments; errors are too short for it (RFC 1812 section 4.3.2.3).
            Shape::IP => return Shape::IP,
            _ if self.first_fragment => return Shape::bad(Drop::FRAGMENT),
            special => special,
        };
        if !self.v4 && kind == 136 {
            match frame.load::<[u32; 4]>(offset + 8) {
                Some(target) => self.target = Address::v6(target),
                None => return Shape::bad(Drop::MALFORMED),
            }
        }
        shape
    }

    /// Kinds of which one message asks and another answers carry an identifier, by which both are one flow, as in the
    /// kernel's connection tracking (nf_conntrack_proto_icmp.c, nf_conntrack_proto_icmpv6.c).
    #[inline(always)]
    pub(super) fn query(&mut self, kind: u32, second: u32) {
        let asks = if self.v4 { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) };
        let answers = self.is_answer(kind);
        if asks || answers {
            let identifier = (u32::from_be(second) >> 16) as u16;
            self.source_port = identifier;
            self.destination_port = identifier;
            self.opens = asks;
        }
    }

    /// Whether a kind of the family's ICMP answers another.
    #[inline(always)]
    pub(crate) const fn is_answer(&self, kind: u32) -> bool {
        if self.v4 { matches!(kind, 0 | 14 | 16 | 18) } else { matches!(kind, 129 | 140) }
    }

    #[inline(always)]
    const fn kind_v6(&self, kind: u32) -> Shape {
        match kind {
            // RFC 4443 section 3: destination unreachable, packet too big, time exceeded, parameter problem.
            1..=4 => Shape::RELATED,
            // RFC 4861: router advertisement, redirect.
            134 => Shape::ROUTER,
            137 => Shape::REDIRECT,
            // RFC 4861: solicitations and advertisements count only with a hop limit that no router has lowered.
            133 | 135 | 136 if self.hop_limit == 255 => Shape::DISCOVERY,
            // MLD goes to multicast groups with a hop limit of 1 (RFC 2710, RFC 3810).
            130..=132 | 143 if self.hop_limit == 1 && self.destination.is_multicast(false) => Shape::DISCOVERY,
            _ => Shape::IP,
        }
    }
}

#[inline(always)]
const fn kind_v4(kind: u32) -> Shape {
    match kind {
        // RFC 792: destination unreachable, source quench, time exceeded, parameter problem.
        3 | 4 | 11 | 12 => Shape::RELATED,
        5 => Shape::REDIRECT,
        _ => Shape::IP,
    }
}
