//! What a frame is made of.

use std::net::IpAddr;

/// Headers of a chain that no walk with a sane bound follows to its end.
pub const OVER_LONG_CHAIN: usize = 24;

/// Who talks to whom. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// The source.
    pub from: IpAddr,
    /// The destination.
    pub to: IpAddr,
    /// The source port; an echo's identifier.
    pub client: u16,
    /// The destination port.
    pub server: u16,
}

impl Parties {
    /// The other way round.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, client: self.server, server: self.client }
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What is before the network layer.
    pub link: Link,
    /// The network layer.
    pub net: Net,
    /// The frame ends after so many bytes.
    pub cut: Option<u16>,
    /// Bytes appended after the packet's own end (Ethernet pads to 60).
    pub padding: u8,
}

/// The link layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Ethernet II with the right ethertype.
    Ethernet,
    /// Ethernet II with another ethertype than the packet's: what the packet is and what the frame says contradict.
    Contradicting(u16),
    /// Tags in the frame before the ethertype.
    Tagged(Vec<Tag>),
    /// IEEE 802.3 with a length and LLC/SNAP.
    Llc,
}

/// A tag in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// 802.1Q, of a VLAN.
    Vlan(u16),
    /// 802.1ad.
    Service(u16),
    /// An MPLS label, bottom of the stack.
    Mpls(u32),
}

/// The network layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// IPv4 or IPv6, by the family of the parties.
    Ip(Ip),
    /// ARP; with IPv6 parties, its addresses are zero.
    Arp(Arp),
    /// Bytes.
    Raw(Vec<u8>),
}

/// An IP packet. What belongs to the other family only is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// IPv4's options, filled up to a multiple of four bytes; at most 40.
    pub options: Vec<u8>,
    /// IHL as written.
    pub ihl: Option<u8>,
    /// The version as written.
    pub version: Option<u8>,
    /// The total (IPv4) or payload (IPv6) length as written.
    pub length: Option<u16>,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// What part of a datagram it is; for IPv6 a fragment header stands behind the extensions.
    pub fragment: Option<Fragment>,
    /// IPv6's extension headers, in order.
    pub extensions: Vec<Extension>,
    /// IPv6's extension headers behind the fragment header.
    pub late: Vec<Extension>,
    /// What it carries.
    pub body: Body,
}

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where it begins, in units of eight bytes.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// The datagram's identification.
    pub id: u32,
}

/// An IPv6 extension header (RFC 8200 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options, of so many units of eight bytes beyond the first.
    HopByHop(u8),
    /// A jumbogram's hop-by-hop option (RFC 2675).
    Jumbo(u32),
    /// Destination options, of so many units of eight bytes beyond the first.
    Destination(u8),
    /// A routing header: type, segments left, units beyond the first.
    Routing(u8, u8, u8),
    /// An authentication header, of so many units of four bytes beyond the first two.
    Authentication(u8),
    /// A fragment header that cuts nothing (RFC 6946).
    Atomic,
    /// Mobility (RFC 6275).
    Mobility,
    /// Host identity (RFC 7401).
    HostIdentity,
    /// Shim6 (RFC 5533).
    Shim6,
    /// One of the numbers for experiments, laid out as RFC 6564 demands.
    Experimental,
    /// Encapsulating security payload: nothing behind it can be read.
    Esp,
    /// Says that nothing follows, though something does.
    NoNext,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// TCP: flags, data offset as written.
    Tcp(u8, Option<u8>),
    /// UDP: its length as written.
    Udp(Option<u16>),
    /// SCTP: the first chunk's type.
    Sctp(u8),
    /// ICMP or ICMPv6, by the family.
    Icmp(Icmp),
    /// The other family's ICMP, an echo request.
    WrongIcmp,
    /// IPv4 in IP.
    Ipip(Box<Body>),
    /// IPv6 in IP.
    SixInFour,
    /// GRE.
    Gre,
    /// Another protocol.
    Other(u8),
    /// Nothing where a transport header of this protocol should be.
    Empty(u8),
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Echo request.
    Echo,
    /// Echo reply.
    EchoReply,
    /// Type and code with four zero bytes.
    Message(u8, u8),
    /// An error that quotes a packet.
    Error(u8, u8, Box<Quote>),
    /// Router solicitation (ICMPv6).
    RouterSolicitation,
    /// Router advertisement (ICMPv6; router discovery of IPv4).
    RouterAdvertisement,
    /// Neighbour solicitation for somebody.
    Solicitation(Target),
    /// Neighbour advertisement of somebody.
    Advertisement(Target),
    /// Redirect.
    Redirect,
    /// MLD: query 130, report 131, done 132, version 2's report 143 (IPv6).
    Mld(u8),
}

/// What an ICMP error quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The quoted packet's recipe.
    pub packet: Ip,
    /// Whether it went from the error's destination to its source, as an honest error of the far end says; otherwise from
    /// the source to the destination.
    pub returned: bool,
    /// So many bytes of it are quoted, at most.
    pub bytes: u16,
}

/// Whose neighbour discovery speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The sender.
    Sender,
    /// The receiver.
    Receiver,
    /// Somebody else.
    Stranger,
}

/// An ARP message (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// 1 is Ethernet.
    pub hardware: u16,
    /// The ethertype of the protocol.
    pub protocol: u16,
    /// Lengths of the addresses.
    pub lengths: [u8; 2],
    /// Whose protocol address is the sender's; `None` is a probe's 0.0.0.0 (RFC 5227).
    pub sender: Option<Target>,
    /// Whether the sender's hardware address is another than the frame's.
    pub other_hardware: bool,
}

impl Default for Arp {
    fn default() -> Self {
        Self {
            operation: 1,
            hardware: 1,
            protocol: 0x0800,
            lengths: [6, 4],
            sender: Some(Target::Sender),
            other_hardware: false,
        }
    }
}

impl Ip {
    /// An ordinary packet.
    #[must_use]
    pub const fn of(body: Body) -> Self {
        Self {
            options: Vec::new(),
            ihl: None,
            version: None,
            length: None,
            hop_limit: 64,
            fragment: None,
            extensions: Vec::new(),
            late: Vec::new(),
            body,
        }
    }

    /// With extension headers.
    #[must_use]
    pub fn behind(mut self, extensions: &[Extension]) -> Self {
        self.extensions = extensions.to_vec();
        self
    }

    /// With another hop limit.
    #[must_use]
    pub const fn hops(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// As a fragment.
    #[must_use]
    pub const fn part(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { offset, more, id: 7 });
        self
    }
}

impl Recipe {
    /// An ordinary Ethernet frame.
    #[must_use]
    pub const fn of(net: Net) -> Self {
        Self { link: Link::Ethernet, net, cut: None, padding: 0 }
    }

    /// Of an IP packet.
    #[must_use]
    pub const fn ip(ip: Ip) -> Self {
        Self::of(Net::Ip(ip))
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self, parties: &Parties) -> Vec<u8> {
        let mut bytes = crate::write::frame(&self.link, &self.net, parties);
        bytes.extend(std::iter::repeat_n(0, usize::from(self.padding)));
        if let Some(cut) = self.cut {
            bytes.truncate(cut.into());
        }
        bytes
    }

    /// The same packet without a link-layer header, as devices without one carry it.
    #[must_use]
    pub fn packet(&self, parties: &Parties) -> Vec<u8> {
        let frame = self.frame(parties);
        frame.get(14..).map(<[u8]>::to_vec).unwrap_or_default()
    }
}

/// A datagram's fragments: the frames of `ip`, whose payload (with its transport header) is cut before each of the places
/// `at`, in units of eight bytes.
#[must_use]
pub fn fragments(ip: &Ip, parties: &Parties, id: u32, at: &[u16]) -> Vec<Vec<u8>> {
    let whole = crate::write::payload(ip, parties);
    let mut starts = vec![0];
    starts.extend(at.iter().copied().filter(|start| usize::from(*start) * 8 < whole.len()));
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|start| usize::from(*start) * 8).chain([whole.len()]);
    let spans = starts.iter().zip(ends);
    spans
        .map(|(start, end)| {
            let fragment = Fragment { offset: *start, more: end != whole.len(), id };
            let part = &whole[usize::from(*start) * 8..end];
            crate::write::fragment(ip, parties, fragment, part)
        })
        .collect()
}
