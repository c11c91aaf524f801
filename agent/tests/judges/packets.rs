//! Frames.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder};
use portcullis::model::{Protocol, Traffic};
use proptest::prelude::*;
use proptest::sample::select;

/// What a packet carries above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// TCP that opens a connection.
    Syn(u16),
    /// TCP that answers a SYN: only made as a reply.
    SynAck(u16),
    /// TCP in the middle of a connection.
    Data(u16),
    Udp(u16),
    /// SCTP that opens an association.
    Init(u16),
    /// SCTP in the middle of one.
    Chunk(u16),
    /// The family's ICMP echo request.
    Echo,
    /// The family's ICMP echo reply.
    EchoReply,
    /// A timestamp request, or an ICMPv6 message of a type for experiments.
    OtherIcmp,
    /// Another protocol.
    Other(u8),
}

pub(crate) fn load() -> impl Strategy<Value = Load> {
    let port = || select(vec![53_u16, 80, 81, 90, 180, 443, 7000, 8080, 9080, 30000, 65535, 1]);
    prop_oneof![
        6 => port().prop_map(Load::Syn),
        2 => port().prop_map(Load::Data),
        4 => port().prop_map(Load::Udp),
        2 => port().prop_map(Load::Init),
        1 => port().prop_map(Load::Chunk),
        2 => Just(Load::Echo),
        1 => Just(Load::OtherIcmp),
        1 => select(vec![47_u8, 4, 41, 89, 103]).prop_map(Load::Other),
    ]
}

impl Load {
    pub(crate) fn traffic(self, v4: bool) -> Traffic {
        let icmp = if v4 { Protocol::ICMP } else { Protocol::ICMPV6 };
        let of = |protocol, port| Traffic { protocol, port };
        match self {
            Self::Syn(port) | Self::SynAck(port) | Self::Data(port) => of(Protocol::TCP, port),
            Self::Udp(port) => of(Protocol::UDP, port),
            Self::Init(port) | Self::Chunk(port) => of(Protocol::SCTP, port),
            Self::Echo => of(icmp, if v4 { 8 << 8 } else { 128 << 8 }),
            Self::EchoReply => of(icmp, if v4 { 0 } else { 129 << 8 }),
            Self::OtherIcmp => of(icmp, if v4 { 13 << 8 } else { 200 << 8 | 3 }),
            Self::Other(number) => of(Protocol(number), 0),
        }
    }

    /// The same load with another destination port, where it has one.
    pub(crate) fn with_port(self, port: u16) -> Self {
        match self {
            Self::Syn(_) => Self::Syn(port),
            Self::SynAck(_) => Self::SynAck(port),
            Self::Data(_) => Self::Data(port),
            Self::Udp(_) => Self::Udp(port),
            Self::Init(_) => Self::Init(port),
            Self::Chunk(_) => Self::Chunk(port),
            portless => portless,
        }
    }
}

/// The client's port.
pub(crate) const CLIENT_PORT: u16 = 40123;

/// A frame from one address to another; `client` is the source port (the identifier of echo messages).
pub(crate) fn frame(from: IpAddr, to: IpAddr, client: u16, load: Load) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let v4 = from.is_ipv4();
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 63),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 63),
        _ => panic!("{from} and {to} are of two families"),
    };
    let mut bytes = Vec::new();
    let payload = b"eight by";
    let sctp = |port: u16, chunk: u8| {
        let mut body = [client.to_be_bytes(), port.to_be_bytes()].concat();
        body.extend([0; 8]);
        body.extend([chunk, 0, 0, 16]);
        body.extend([0; 16]);
        body
    };
    let raw = |kind: u8, code: u8| [kind, code, 0, 0, 0, 0, 0, 0];
    match load {
        Load::Syn(port) => builder.tcp(client, port, 1, 1000).syn().write(&mut bytes, &[]),
        Load::SynAck(port) => builder.tcp(client, port, 1, 1000).syn().ack(2).write(&mut bytes, &[]),
        Load::Data(port) => builder.tcp(client, port, 2, 1000).psh().ack(2).write(&mut bytes, payload),
        Load::Udp(port) => builder.udp(client, port).write(&mut bytes, payload),
        Load::Init(port) => return ip(builder, 132, &sctp(port, 1)),
        Load::Chunk(port) => return ip(builder, 132, &sctp(port, 0)),
        Load::Echo if v4 => builder.icmpv4_echo_request(client, 1).write(&mut bytes, payload),
        Load::Echo => builder.icmpv6_echo_request(client, 1).write(&mut bytes, payload),
        Load::EchoReply if v4 => builder.icmpv4_echo_reply(client, 1).write(&mut bytes, payload),
        Load::EchoReply => builder.icmpv6_echo_reply(client, 1).write(&mut bytes, payload),
        Load::OtherIcmp if v4 => return ip(builder, 1, &raw(13, 0)),
        Load::OtherIcmp => return ip(builder, 58, &raw(200, 3)),
        Load::Other(number) => return ip(builder, number, payload),
    }
    .unwrap();
    bytes
}

fn ip(builder: etherparse::PacketBuilderStep<etherparse::IpHeaders>, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, IpNumber(protocol), body).unwrap();
    bytes
}
