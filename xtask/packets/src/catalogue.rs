//! Each kind of packet by its name, for tables of tests and for attacks.

use crate::recipe::{Arp, Body, Extension, Icmp, Ip, Link, Net, OVER_LONG_CHAIN, Quote, Recipe, Tag, Target};

/// A kind of packet.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What it is called in the documents.
    pub name: &'static str,
    /// The families that it exists in: IPv4, IPv6.
    pub families: [bool; 2],
    /// How it is made.
    pub recipe: Recipe,
}

const BOTH: [bool; 2] = [true, true];
const V4: [bool; 2] = [true, false];
const V6: [bool; 2] = [false, true];

/// Every kind.
#[must_use]
pub fn catalogue() -> Vec<Kind> {
    [ordinary(), lies(), options_and_extensions(), fragments(), discovery(), errors(), links(), tunnels()].concat()
}

const SYN: Body = Body::Tcp(0x02, None);
const UDP: Body = Body::Udp(None);

fn row(name: &'static str, families: [bool; 2], ip: Ip) -> Kind {
    Kind { name, families, recipe: Recipe::ip(ip) }
}

fn ordinary() -> Vec<Kind> {
    vec![
        row("TCP SYN", BOTH, Ip::of(SYN)),
        row("TCP SYN+ACK", BOTH, Ip::of(Body::Tcp(0x12, None))),
        row("TCP ACK", BOTH, Ip::of(Body::Tcp(0x10, None))),
        row("TCP RST", BOTH, Ip::of(Body::Tcp(0x04, None))),
        row("TCP FIN", BOTH, Ip::of(Body::Tcp(0x11, None))),
        row("TCP without flags", BOTH, Ip::of(Body::Tcp(0, None))),
        row("TCP SYN+FIN", BOTH, Ip::of(Body::Tcp(0x03, None))),
        row("TCP SYN+RST", BOTH, Ip::of(Body::Tcp(0x06, None))),
        row("TCP with all flags", BOTH, Ip::of(Body::Tcp(0xff, None))),
        row("UDP", BOTH, Ip::of(UDP)),
        row("SCTP INIT", BOTH, Ip::of(Body::Sctp(1))),
        row("SCTP DATA", BOTH, Ip::of(Body::Sctp(0))),
        row("SCTP ABORT", BOTH, Ip::of(Body::Sctp(6))),
        row("echo request", BOTH, Ip::of(Body::Icmp(Icmp::Echo))),
        row("echo reply", BOTH, Ip::of(Body::Icmp(Icmp::EchoReply))),
        row("timestamp request", V4, Ip::of(Body::Icmp(Icmp::Message(13, 0)))),
        row("ICMPv6 of a type for experiments", V6, Ip::of(Body::Icmp(Icmp::Message(200, 3)))),
        row("another protocol", BOTH, Ip::of(Body::Other(103))),
    ]
}

fn lies() -> Vec<Kind> {
    let with = |change: fn(&mut Ip)| {
        let mut ip = Ip::of(SYN);
        change(&mut ip);
        ip
    };
    let cut =
        |name, families, bytes| Kind { name, families, recipe: Recipe { cut: Some(bytes), ..Recipe::ip(Ip::of(SYN)) } };
    vec![
        row("IHL below five", V4, with(|ip| ip.ihl = Some(4))),
        row("IHL that hides the ports", V4, with(|ip| ip.ihl = Some(6))),
        row("IHL beyond the packet", V4, with(|ip| ip.ihl = Some(15))),
        row("total length below the header's", V4, with(|ip| ip.length = Some(19))),
        row("total length that cuts the ports", V4, with(|ip| ip.length = Some(22))),
        row("total length that cuts the TCP header", V4, with(|ip| ip.length = Some(39))),
        row("total length beyond the packet", V4, with(|ip| ip.length = Some(1400))),
        row("payload length of zero", V6, with(|ip| ip.length = Some(0))),
        row("payload length that cuts the TCP header", V6, with(|ip| ip.length = Some(19))),
        row("payload length beyond the packet", V6, with(|ip| ip.length = Some(1400))),
        row("version 5", BOTH, with(|ip| ip.version = Some(5))),
        row("version 6 in an IPv4 header", V4, with(|ip| ip.version = Some(6))),
        row("version 4 in an IPv6 header", V6, with(|ip| ip.version = Some(4))),
        row("TCP whose data offset is below five", BOTH, Ip::of(Body::Tcp(0x02, Some(4)))),
        row("TCP whose data offset is beyond the packet", BOTH, Ip::of(Body::Tcp(0x02, Some(15)))),
        row("UDP whose length is below eight", BOTH, Ip::of(Body::Udp(Some(7)))),
        row("UDP whose length is beyond the packet", BOTH, Ip::of(Body::Udp(Some(900)))),
        row("TCP without a header", BOTH, Ip::of(Body::Empty(6))),
        row("UDP without a header", BOTH, Ip::of(Body::Empty(17))),
        row("SCTP without a header", BOTH, Ip::of(Body::Empty(132))),
        row("ICMP without a header", BOTH, Ip::of(Body::Empty(1))),
        row("ICMPv6 without a header", BOTH, Ip::of(Body::Empty(58))),
        row("the other family's ICMP", BOTH, Ip::of(Body::WrongIcmp)),
        cut("an empty frame", BOTH, 0),
        cut("half an Ethernet header", BOTH, 13),
        cut("an Ethernet header alone", BOTH, 14),
        cut("half an IP header", BOTH, 30),
        cut("an IPv4 header alone", V4, 34),
        cut("an IPv6 header alone", V6, 54),
        cut("an IPv4 header and the ports", V4, 38),
        cut("an IPv6 header and the ports", V6, 58),
    ]
}

fn options_and_extensions() -> Vec<Kind> {
    let with = |options: &[u8]| {
        let mut ip = Ip::of(SYN);
        ip.options = options.to_vec();
        ip
    };
    let v6 = |name, extensions: &[Extension]| row(name, V6, Ip::of(SYN).behind(extensions));
    use Extension as E;
    vec![
        row("IPv4 with options that do nothing", V4, with(&[1; 4])),
        row("IPv4 with forty bytes of options", V4, with(&[1; 40])),
        row("IPv4 with a router alert", V4, with(&[0x94, 4, 0, 0])),
        row("IPv4 with a loose source route", V4, with(&[0x83, 7, 4, 10, 99, 0, 9, 0])),
        row("IPv4 with a strict source route", V4, with(&[0x89, 7, 4, 10, 99, 0, 9, 0])),
        row("IPv4 with a source route behind padding", V4, with(&[1, 1, 1, 0x83, 7, 4, 10, 99, 0, 9, 0])),
        row("IPv4 with an option of no length", V4, with(&[0x83, 0, 4, 0])),
        v6("hop-by-hop options", &[E::HopByHop(0)]),
        v6("long hop-by-hop options", &[E::HopByHop(29)]),
        v6("hop-by-hop options not in the first place", &[E::Destination(0), E::HopByHop(0)]),
        v6("hop-by-hop options beyond the packet", &[E::Destination(0), E::HopByHop(255)]),
        v6("a jumbogram", &[E::Jumbo(70_000)]),
        v6("destination options", &[E::Destination(0)]),
        v6("240 bytes of destination options", &[E::Destination(29)]),
        v6("248 bytes of destination options", &[E::Destination(30)]),
        v6("routing type 0 with segments left", &[E::Routing(0, 1, 2)]),
        v6("routing type 0 without segments left", &[E::Routing(0, 0, 2)]),
        v6("routing type 2 with a segment left", &[E::Routing(2, 1, 2)]),
        v6("routing type 4 with segments left", &[E::Routing(4, 1, 2)]),
        v6("routing type 4 without segments left", &[E::Routing(4, 0, 2)]),
        v6("an authentication header", &[E::Authentication(4)]),
        v6("an authentication header of no length", &[E::Authentication(0)]),
        v6("ESP", &[E::Esp]),
        v6("no next header", &[E::NoNext]),
        v6("a mobility header", &[E::Mobility]),
        v6("a host identity header", &[E::HostIdentity]),
        v6("a shim6 header", &[E::Shim6]),
        v6("an unknown extension header", &[E::Experimental]),
        v6(
            "every usual extension header",
            &[E::HopByHop(0), E::Destination(0), E::Routing(4, 0, 0), E::Authentication(4)],
        ),
        v6("a chain of extension headers beyond the bound", &[E::Destination(0); OVER_LONG_CHAIN]),
        row("an authentication header in IPv4", V4, Ip::of(Body::Other(51))),
        row("ESP in IPv4", V4, Ip::of(Body::Other(50))),
    ]
}

fn fragments() -> Vec<Kind> {
    let late = |extensions: &[Extension]| {
        let mut ip = Ip::of(SYN).part(0, true);
        ip.late = extensions.to_vec();
        ip
    };
    let tiny = |name, families, bytes| {
        let mut ip = Ip::of(SYN).part(0, true);
        ip.length = Some(bytes);
        row(name, families, ip)
    };
    let atomic = |name, extensions: &[Extension]| row(name, V6, Ip::of(SYN).behind(extensions));
    vec![
        row("a first fragment", BOTH, Ip::of(SYN).part(0, true)),
        row("a first fragment of UDP", BOTH, Ip::of(UDP).part(0, true)),
        row("a later fragment", BOTH, Ip::of(UDP).part(3, true)),
        row("the last fragment", BOTH, Ip::of(UDP).part(3, false)),
        row("a later fragment that begins eight bytes in", BOTH, Ip::of(SYN).part(1, false)),
        row("a fragment that would end beyond 65,535", BOTH, Ip::of(UDP).part(0x1fff, false)),
        tiny("a first fragment that cuts the TCP header, IPv4", V4, 28),
        tiny("a first fragment that cuts the TCP header, IPv6", V6, 16),
        atomic("an atomic fragment", &[Extension::Atomic]),
        atomic("two fragment headers", &[Extension::Atomic, Extension::Atomic]),
        row("a first fragment with destination options behind", V6, late(&[Extension::Destination(29)])),
        row("a first fragment whose chain of headers goes on behind it", V6, late(&[Extension::Routing(0, 1, 2)])),
    ]
}

fn discovery() -> Vec<Kind> {
    let icmp = |message: Icmp, hops: u8| Ip::of(Body::Icmp(message)).hops(hops);
    let arp = |name, change: fn(&mut Arp)| {
        let mut arp = Arp::default();
        change(&mut arp);
        Kind { name, families: V4, recipe: Recipe::of(Net::Arp(arp)) }
    };
    let cut = |name, bytes| Kind {
        name,
        families: V4,
        recipe: Recipe { cut: Some(bytes), ..Recipe::of(Net::Arp(Arp::default())) },
    };
    vec![
        arp("ARP request", |_| {}),
        arp("ARP reply", |arp| arp.operation = 2),
        arp("ARP probe", |arp| arp.sender = None),
        arp("ARP in another's name", |arp| arp.sender = Some(Target::Stranger)),
        arp("ARP reply in the receiver's name", |arp| (arp.operation, arp.sender) = (2, Some(Target::Receiver))),
        arp("ARP from another hardware address", |arp| arp.other_hardware = true),
        arp("ARP of another hardware", |arp| arp.hardware = 6),
        arp("ARP about another protocol", |arp| arp.protocol = 0x86dd),
        arp("ARP with addresses of other lengths", |arp| arp.lengths = [6, 16]),
        arp("reverse ARP's operation", |arp| arp.operation = 3),
        cut("half an ARP message", 28),
        row("router solicitation", V6, icmp(Icmp::RouterSolicitation, 255)),
        row("router advertisement", V6, icmp(Icmp::RouterAdvertisement, 255)),
        row("router advertisement of a lowered hop limit", V6, icmp(Icmp::RouterAdvertisement, 254)),
        row("neighbour solicitation", V6, icmp(Icmp::Solicitation(Target::Receiver), 255)),
        row("neighbour solicitation of a lowered hop limit", V6, icmp(Icmp::Solicitation(Target::Receiver), 64)),
        row("neighbour advertisement", V6, icmp(Icmp::Advertisement(Target::Sender), 255)),
        row("neighbour advertisement in another's name", V6, icmp(Icmp::Advertisement(Target::Stranger), 255)),
        row("redirect", V6, icmp(Icmp::Redirect, 255)),
        row("redirect of IPv4", V4, icmp(Icmp::Redirect, 64)),
        row("router discovery of IPv4", V4, icmp(Icmp::RouterAdvertisement, 1)),
        row("MLD behind a router alert", V6, icmp(Icmp::Mld(143), 1).behind(&[Extension::HopByHop(0)])),
        row("MLD without a router alert", V6, icmp(Icmp::Mld(131), 1)),
        row(
            "router advertisement behind destination options",
            V6,
            icmp(Icmp::RouterAdvertisement, 255).behind(&[Extension::Destination(0)]),
        ),
        row("router advertisement in a first fragment", V6, icmp(Icmp::RouterAdvertisement, 255).part(0, true)),
        row(
            "neighbour advertisement behind hop-by-hop options",
            V6,
            icmp(Icmp::Advertisement(Target::Stranger), 255).behind(&[Extension::HopByHop(0)]),
        ),
    ]
}

fn errors() -> Vec<Kind> {
    let error = |name, families: [bool; 2], kind: u8, code: u8, packet: Ip, returned: bool, bytes: u16| {
        row(name, families, Ip::of(Body::Icmp(Icmp::Error(kind, code, Box::new(Quote { packet, returned, bytes })))))
    };
    let nested =
        Ip::of(Body::Icmp(Icmp::Error(3, 1, Box::new(Quote { packet: Ip::of(UDP), returned: false, bytes: 1200 }))));
    vec![
        error("port unreachable quoting UDP", V4, 3, 3, Ip::of(UDP), true, 1200),
        error("fragmentation needed quoting TCP", V4, 3, 4, Ip::of(Body::Tcp(0x10, None)), true, 28),
        error("time exceeded quoting TCP", V4, 11, 0, Ip::of(SYN), true, 28),
        error("packet too big quoting TCP", V6, 2, 0, Ip::of(Body::Tcp(0x10, None)), true, 1200),
        error("ICMPv6 port unreachable quoting UDP", V6, 1, 4, Ip::of(UDP), true, 1200),
        error("ICMPv6 time exceeded quoting an echo", V6, 3, 0, Ip::of(Body::Icmp(Icmp::Echo)), true, 1200),
        error("an error that quotes its own direction", BOTH, 3, 1, Ip::of(UDP), false, 1200),
        error("an error that quotes too little", BOTH, 3, 1, Ip::of(UDP), true, 16),
        error("an error that quotes nothing", BOTH, 3, 1, Ip::of(UDP), true, 0),
        error("an error that quotes an error", V4, 3, 1, nested, true, 1200),
        error("an error that quotes a later fragment", BOTH, 3, 1, Ip::of(UDP).part(3, false), true, 1200),
        error("an error that quotes a first fragment", BOTH, 3, 1, Ip::of(UDP).part(0, true), true, 1200),
        error(
            "an error that quotes options",
            V4,
            3,
            4,
            {
                let mut ip = Ip::of(UDP);
                ip.options = vec![1; 40];
                ip
            },
            true,
            1200,
        ),
        error(
            "an error that quotes extension headers",
            V6,
            2,
            0,
            Ip::of(UDP).behind(&[Extension::Destination(0)]),
            true,
            1200,
        ),
        error("source quench", V4, 4, 0, Ip::of(UDP), true, 28),
        error("parameter problem", V4, 12, 0, Ip::of(UDP), true, 28),
    ]
}

fn links() -> Vec<Kind> {
    let of = |name, families, link: Link| Kind { name, families, recipe: Recipe { link, ..Recipe::ip(Ip::of(SYN)) } };
    vec![
        of("a VLAN tag in the frame", BOTH, Link::Tagged(vec![Tag::Vlan(5)])),
        of("a priority tag in the frame", BOTH, Link::Tagged(vec![Tag::Vlan(0)])),
        of("QinQ", BOTH, Link::Tagged(vec![Tag::Service(5), Tag::Vlan(6)])),
        of("MPLS", BOTH, Link::Tagged(vec![Tag::Mpls(16)])),
        of("LLC", BOTH, Link::Llc),
        of("IPv4 under IPv6's ethertype", V4, Link::Contradicting(0x86dd)),
        of("IPv6 under IPv4's ethertype", V6, Link::Contradicting(0x0800)),
        of("IP under ARP's ethertype", BOTH, Link::Contradicting(0x0806)),
        of("IP under an unknown ethertype", BOTH, Link::Contradicting(0x88b5)),
        Kind { name: "an unknown ethertype", families: BOTH, recipe: Recipe::of(Net::Raw(vec![0; 46])) },
    ]
}

fn tunnels() -> Vec<Kind> {
    vec![
        row("IPIP", BOTH, Ip::of(Body::Ipip(Box::new(SYN)))),
        row("6in4", BOTH, Ip::of(Body::SixInFour)),
        row("GRE", BOTH, Ip::of(Body::Gre)),
        row(
            "IPIP behind destination options",
            V6,
            Ip::of(Body::Ipip(Box::new(SYN))).behind(&[Extension::Destination(0)]),
        ),
    ]
}
