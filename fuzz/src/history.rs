//! Which packets have passed so far: what a later one may ride on, told without knowing how flows are kept.

use std::collections::HashSet;
use std::net::IpAddr;

use portcullis_packets::reading::{IpReading, Reading, Transport, quoted, reading};

/// Address and port of a flow's one side, the other's port, and the protocol. The other side's address may be another
/// pod's by the time that a reply comes back: the host translates.
type View = (IpAddr, u16, u16, u8);

/// What has passed.
#[derive(Debug, Default)]
pub(crate) struct History {
    views: HashSet<View>,
    /// Datagrams of which a first fragment has passed: source, destination, protocol, identification.
    datagrams: HashSet<(IpAddr, IpAddr, u32)>,
    /// Datagrams of which a first fragment has been met, whatever became of it.
    begun: HashSet<(IpAddr, IpAddr, u32)>,
}

impl History {
    /// A packet has been judged at some hook.
    pub(crate) fn met(&mut self, frame: &[u8]) {
        self.begun.extend(datagram_begun(frame));
    }

    /// Whether the packet is a first fragment, and another of its datagram's name has been met.
    pub(crate) fn has_begun(&self, frame: &[u8]) -> bool {
        datagram_begun(frame).is_some_and(|datagram| self.begun.contains(&datagram))
    }

    /// A packet has passed some hook.
    pub(crate) fn passed(&mut self, frame: &[u8]) {
        let Reading::Ip(Some(packet)) = reading(frame, 14) else { return };
        self.views.extend(views(&packet));
        self.datagrams.extend(datagram_begun(frame));
    }

    /// Whether something has passed that this may ride on: the same flow's packet in either direction, the first fragment
    /// of its datagram, or a packet of the flow that it quotes.
    pub(crate) fn knows(&self, frame: &[u8]) -> bool {
        let Reading::Ip(Some(packet)) = reading(frame, 14) else { return false };
        if let Some(fragment) = packet.fragment
            && fragment.offset != 0
        {
            return self.datagrams.contains(&(packet.from, packet.to, fragment.id));
        }
        let error = match &packet.transport {
            Transport::Icmp(_, _, _, data) => quoted(data),
            _ => None,
        };
        let known = |packet: &IpReading<'_>| views(packet).iter().any(|view| self.views.contains(view));
        known(&packet) || error.is_some_and(|quoted| known(&quoted))
    }
}

/// Source, destination and identification of the datagram whose first fragment this is.
fn datagram_begun(frame: &[u8]) -> Option<(IpAddr, IpAddr, u32)> {
    let Reading::Ip(Some(packet)) = reading(frame, 14) else { return None };
    let fragment = packet.fragment.filter(|fragment| fragment.offset == 0)?;
    Some((packet.from, packet.to, fragment.id))
}

fn views(packet: &IpReading<'_>) -> [View; 2] {
    let word = |at: usize| packet.payload.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    let (source, destination) = match packet.transport {
        Transport::Tcp(source, destination, _) | Transport::Udp(source, destination) => (source, destination),
        Transport::Icmp(_, _, [a, b, _, _], _) => (u16::from_be_bytes([a, b]), u16::from_be_bytes([a, b])),
        _ if matches!(packet.protocol, 6 | 17 | 132) => (word(0), word(2)),
        _ => (0, 0),
    };
    let icmp = matches!(packet.transport, Transport::Icmp(..));
    // Messages without an identifier are one flow, whatever stands where others have theirs.
    let (source, destination) = if icmp && !has_identifier(packet) { (0, 0) } else { (source, destination) };
    [(packet.from, source, destination, packet.protocol), (packet.to, destination, source, packet.protocol)]
}

fn has_identifier(packet: &IpReading<'_>) -> bool {
    let Transport::Icmp(kind, ..) = packet.transport else { return false };
    if packet.from.is_ipv4() { matches!(kind, 0 | 8) } else { matches!(kind, 128 | 129) }
}
