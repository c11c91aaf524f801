//! What etherparse says of a frame. Nothing of our own parser is used here.

use std::net::IpAddr;

use etherparse::{
    ArpPacketSlice, EtherType, Ethernet2Slice, Icmpv4Slice, Icmpv6Slice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice,
    Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, LaxIpSlice, TcpHeaderSlice, UdpSlice,
};

/// A frame as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    /// Too short for its link layer.
    Short,
    /// Neither IP nor ARP by its ethertype.
    Ethertype(u16),
    /// ARP for IPv4 on Ethernet: the sender's address and the operation; `None` if it is cut off or for something else.
    Arp(Option<([u8; 4], u16)>),
    /// IP by its ethertype; `None` if the header contradicts it or itself, or is cut off.
    Ip(Option<IpReading<'a>>),
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpReading<'a> {
    /// The source.
    pub from: IpAddr,
    /// The destination.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4's header length, 40 for IPv6.
    pub header: usize,
    /// IPv6's extension headers up to a fragment header of a later fragment, with their lengths.
    pub chain: Vec<Extension>,
    /// The fragment that it is, unless it is whole (or atomic).
    pub fragment: Option<Fragment>,
    /// IPv4's options.
    pub options: &'a [u8],
    /// Why the chain cannot be walked to its end.
    pub stopped: Option<Stop>,
    /// How many bytes the fragment has.
    pub fragmented: usize,
    /// The first protocol that is no extension header known to etherparse.
    pub protocol: u8,
    /// What follows, as far as the frame has it.
    pub payload: &'a [u8],
    /// What follows, to the end of what was given, whatever the header says.
    pub beyond: &'a [u8],
    /// How long the payload is according to the IP header, less than nothing if it ends before.
    pub declared: isize,
    /// The headers above.
    pub transport: Transport<'a>,
}

/// Why a chain of extension headers ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The next header is cut off.
    Cut,
    /// Hop-by-hop options that are not in the first place (RFC 8200 section 4.1).
    Misplaced,
}

impl IpReading<'_> {
    /// Whether it is a fragment, but not the first.
    #[must_use]
    pub fn is_later(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }
}

/// One extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its number.
    pub number: u8,
    /// Its length in bytes.
    pub length: usize,
    /// Segments left, of a routing header.
    pub segments_left: u8,
    /// The routing header's type.
    pub kind: u8,
}

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In units of eight bytes.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// The datagram's identification.
    pub id: u32,
}

/// What is above IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// Source port, destination port, flags.
    Tcp(u16, u16, u8),
    /// Source port and destination port.
    Udp(u16, u16),
    /// Type, code, the four bytes behind the checksum, and the rest.
    Icmp(u8, u8, [u8; 4], &'a [u8]),
    /// A later fragment has none.
    Fragment,
    /// Cut off or contradicting itself.
    Unreadable,
    /// A protocol that etherparse does not know.
    Other,
}

/// Reads a frame; `link` is 14 for Ethernet, 0 for none.
#[must_use]
pub fn reading(frame: &[u8], link: usize) -> Reading<'_> {
    if link == 0 {
        return Reading::Ip(match frame.first().map(|byte| byte >> 4) {
            Some(4) => v4(frame),
            Some(6) => v6(frame),
            _ => None,
        });
    }
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else { return Reading::Short };
    let packet = ethernet.payload_slice();
    match ethernet.ether_type() {
        EtherType::IPV4 => Reading::Ip(v4(packet)),
        EtherType::IPV6 => Reading::Ip(v6(packet)),
        EtherType::ARP => Reading::Arp(arp(packet)),
        EtherType(other) => Reading::Ethertype(other),
    }
}

fn arp(packet: &[u8]) -> Option<([u8; 4], u16)> {
    let message = ArpPacketSlice::from_slice(packet).ok()?.to_packet().try_eth_ipv4().ok()?;
    Some((message.sender_ipv4, message.operation.0))
}

fn v4(packet: &[u8]) -> Option<IpReading<'_>> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let length = header.slice().len();
    let declared = isize::try_from(header.total_len()).ok()? - isize::try_from(length).ok()?;
    let available = packet.get(length..)?;
    let fragment = Fragment {
        offset: header.fragments_offset().value(),
        more: header.more_fragments(),
        id: header.identification().into(),
    };
    let is_whole = fragment.offset == 0 && !fragment.more;
    let protocol = header.protocol().0;
    let payload = within(available, declared);
    Some(IpReading {
        from: header.source_addr().into(),
        to: header.destination_addr().into(),
        hop_limit: header.ttl(),
        header: length,
        chain: Vec::new(),
        fragment: (!is_whole).then_some(fragment),
        options: header.options(),
        stopped: None,
        fragmented: usize::try_from(declared).unwrap_or(0),
        protocol,
        payload,
        beyond: available,
        declared,
        transport: if fragment.offset == 0 { transport(protocol, payload) } else { Transport::Fragment },
    })
}

fn v6(packet: &[u8]) -> Option<IpReading<'_>> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let whole = isize::try_from(header.payload_length()).ok()?;
    let available = within(packet.get(40..)?, whole);
    let (mut chain, mut fragment, mut protocol, mut walked) = (Vec::new(), None, header.next_header().0, 0);
    let (mut stopped, mut fragmented) = (None, 0);
    // Header by header: etherparse's own iterator reads beyond a chain that it could not follow to the end.
    loop {
        let rest = available.get(walked..).unwrap_or_default();
        let Some(read) = extension(protocol, rest) else { break };
        let Some((slice, next)) = read else {
            stopped = Some(Stop::Cut);
            break;
        };
        if protocol == IpNumber::IPV6_HEADER_HOP_BY_HOP.0 && !chain.is_empty() {
            stopped = Some(Stop::Misplaced);
            break;
        }
        let routing = protocol == IpNumber::IPV6_ROUTE_HEADER.0;
        chain.push(Extension {
            number: protocol,
            length: slice.len(),
            segments_left: if routing { slice[3] } else { 0 },
            kind: if routing { slice[2] } else { 0 },
        });
        walked += slice.len();
        // A second one is refused anyway.
        let first = chain.iter().filter(|known| known.number == protocol).count() == 1;
        if first
            && protocol == IpNumber::IPV6_FRAGMENTATION_HEADER.0
            && let Ok(part) = Ipv6FragmentHeaderSlice::from_slice(slice)
            && part.is_fragmenting_payload()
        {
            let offset = part.fragment_offset().value();
            fragment = Some(Fragment { offset, more: part.more_fragments(), id: part.identification() });
            fragmented = usize::try_from(whole).ok()?.saturating_sub(walked);
        }
        protocol = next;
        // What follows in a later fragment is data, whatever it looks like.
        if fragment.is_some_and(|fragment: Fragment| fragment.offset != 0) {
            break;
        }
    }
    let later = fragment.is_some_and(|fragment: Fragment| fragment.offset != 0);
    let payload = available.get(walked..).unwrap_or_default();
    Some(IpReading {
        from: header.source_addr().into(),
        to: header.destination_addr().into(),
        hop_limit: header.hop_limit(),
        header: 40,
        chain,
        fragment,
        options: &[],
        stopped,
        fragmented,
        protocol,
        payload,
        beyond: packet.get(40 + walked..).unwrap_or_default(),
        declared: whole - isize::try_from(walked).ok()?,
        transport: if later { Transport::Fragment } else { transport(protocol, payload) },
    })
}

/// The extension header of a number, with the next one's: `None` if it is none, `Some(None)` if it is cut off.
#[expect(clippy::option_option, reason = "no header, a header that is cut off, and a header are three things")]
fn extension(number: u8, rest: &[u8]) -> Option<Option<(&[u8], u8)>> {
    Some(match IpNumber(number) {
        IpNumber::IPV6_HEADER_HOP_BY_HOP | IpNumber::IPV6_ROUTE_HEADER | IpNumber::IPV6_DESTINATION_OPTIONS => {
            Ipv6RawExtHeaderSlice::from_slice(rest).ok().map(|raw| (raw.slice(), raw.next_header().0))
        }
        IpNumber::AUTHENTICATION_HEADER => match IpAuthHeaderSlice::from_slice(rest) {
            Ok(auth) => Some((auth.slice(), auth.next_header().0)),
            // etherparse refuses a length of 0 for leaving out the sequence number; Linux takes such a header for one of
            // eight bytes (ipv6_authlen).
            Err(_) => rest.get(..8).filter(|eight| eight[1] == 0).map(|eight| (eight, eight[0])),
        },
        IpNumber::IPV6_FRAGMENTATION_HEADER => {
            Ipv6FragmentHeaderSlice::from_slice(rest).ok().map(|part| (part.slice(), part.next_header().0))
        }
        _ => return None,
    })
}

/// A packet inside an ICMP error, of which the end may be missing.
#[must_use]
pub fn quoted(payload: &[u8]) -> Option<IpReading<'_>> {
    match LaxIpSlice::from_slice(payload).ok()?.0 {
        LaxIpSlice::Ipv4(_) => v4(payload),
        LaxIpSlice::Ipv6(_) => v6(payload),
    }
}

/// As much of what is there as the header says there is.
fn within(available: &[u8], declared: isize) -> &[u8] {
    let length = usize::try_from(declared).unwrap_or(0);
    available.get(..length).unwrap_or(available)
}

fn transport(protocol: u8, payload: &[u8]) -> Transport<'_> {
    let read = match IpNumber(protocol) {
        IpNumber::TCP => TcpHeaderSlice::from_slice(payload).ok().map(|tcp| {
            let bits = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg(), tcp.ece(), tcp.cwr()];
            let flags = bits.iter().rev().fold(0, |flags, bit| flags << 1 | u8::from(*bit));
            Transport::Tcp(tcp.source_port(), tcp.destination_port(), flags)
        }),
        IpNumber::UDP => {
            UdpSlice::from_slice_lax(payload).ok().map(|udp| Transport::Udp(udp.source_port(), udp.destination_port()))
        }
        IpNumber::ICMP => Icmpv4Slice::from_slice(payload)
            .ok()
            .map(|icmp| Transport::Icmp(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8(), icmp.payload())),
        IpNumber::IPV6_ICMP => Icmpv6Slice::from_slice(payload)
            .ok()
            .map(|icmp| Transport::Icmp(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8(), icmp.payload())),
        _ => return Transport::Other,
    };
    read.unwrap_or(Transport::Unreadable)
}
