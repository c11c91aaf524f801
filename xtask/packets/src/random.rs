//! Recipes out of random bytes. Where the bytes end, the first and plainest choice is made: shorter input, simpler frame.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::recipe::{Arp, Body, Extension, Fragment, Icmp, Ip, Link, Net, OVER_LONG_CHAIN, Quote, Recipe, Tag, Target};

/// Whether something rare happens: once in `times`.
fn rarely(u: &mut Unstructured<'_>, times: u8) -> Result<bool> {
    Ok(u.int_in_range(0..=times - 1)? == times - 1)
}

impl<'a> Arbitrary<'a> for Recipe {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let net = match u.int_in_range(0..=15_u8)? {
            0..=13 => Net::Ip(ip(u, 2)?),
            14 => Net::Arp(arp(u)?),
            _ => {
                let length = u.int_in_range(0..=60_usize)?.min(u.len());
                Net::Raw(u.bytes(length)?.to_vec())
            }
        };
        let link = if rarely(u, 8)? { link(u)? } else { Link::Ethernet };
        let cut = if rarely(u, 8)? { Some(u.int_in_range(0..=200)?) } else { None };
        let padding = if rarely(u, 8)? { u.int_in_range(0..=46)? } else { 0 };
        Ok(Self { link, net, cut, padding })
    }
}

impl<'a> Arbitrary<'a> for Ip {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        ip(u, 2)
    }
}

impl Recipe {
    /// A recipe out of these bytes: every byte string makes one.
    #[must_use]
    pub fn random(bytes: &[u8]) -> Self {
        Self::arbitrary(&mut Unstructured::new(bytes)).unwrap_or_else(|_| Self::ip(Ip::of(Body::Udp(None))))
    }
}

fn link(u: &mut Unstructured<'_>) -> Result<Link> {
    Ok(match u.int_in_range(0..=3_u8)? {
        0 => Link::Contradicting(*u.choose(&[0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x8847, 0x0805, 0, 1500])?),
        1 => Link::Llc,
        _ => {
            let mut tags = Vec::new();
            for _ in 0..u.int_in_range(1..=3_u8)? {
                tags.push(match u.int_in_range(0..=2_u8)? {
                    0 => Tag::Vlan(u.arbitrary()?),
                    1 => Tag::Service(u.arbitrary()?),
                    _ => Tag::Mpls(u.arbitrary()?),
                });
            }
            Link::Tagged(tags)
        }
    })
}

fn arp(u: &mut Unstructured<'_>) -> Result<Arp> {
    let lie = |u: &mut Unstructured<'_>| rarely(u, 6);
    Ok(Arp {
        operation: *u.choose(&[1, 2, 1, 2, 3, 8, 0])?,
        hardware: if lie(u)? { u.arbitrary()? } else { 1 },
        protocol: if lie(u)? { u.arbitrary()? } else { 0x0800 },
        lengths: if lie(u)? { u.arbitrary()? } else { [6, 4] },
        sender: *u.choose(&[Some(Target::Sender), Some(Target::Receiver), Some(Target::Stranger), None])?,
        other_hardware: lie(u)?,
    })
}

/// `depth`: how deep packets may still quote packets.
fn ip(u: &mut Unstructured<'_>, depth: u8) -> Result<Ip> {
    let mut ip = Ip::of(body(u, depth)?);
    if rarely(u, 4)? {
        ip.options = options(u)?;
    }
    if rarely(u, 4)? {
        for _ in 0..u.int_in_range(1..=5_u8)? {
            ip.extensions.push(extension(u)?);
        }
        if rarely(u, 8)? {
            let same = ip.extensions.last().copied().unwrap_or(Extension::Destination(0));
            ip.extensions.resize(OVER_LONG_CHAIN, same);
        }
    }
    if rarely(u, 4)? {
        ip.fragment = Some(Fragment {
            offset: *u.choose(&[0, 1, 2, 3, 5, 32, 185, 0x1fff])?,
            more: u.arbitrary()?,
            id: u.int_in_range(0..=3)?,
        });
        if rarely(u, 4)? {
            ip.late.push(extension(u)?);
        }
        if rarely(u, 4)? {
            // A first fragment that is too short for its headers.
            ip.fragment = Some(Fragment { offset: 0, more: true, id: 1 });
            ip.length = Some(*u.choose(&[16, 24, 28, 36, 40, 44])?);
        }
    }
    if rarely(u, 8)? {
        ip.hop_limit = *u.choose(&[255, 1, 0, 128])?;
    }
    if rarely(u, 10)? {
        ip.ihl = Some(u.int_in_range(0..=15)?);
    }
    if rarely(u, 16)? {
        ip.version = Some(u.int_in_range(0..=15)?);
    }
    if rarely(u, 10)? {
        ip.length = Some(if u.arbitrary()? { u.int_in_range(0..=80)? } else { u.arbitrary()? });
    }
    // Discovery is spoken with hop limits of its own, but for lies.
    if let Body::Icmp(message) = &ip.body
        && !rarely(u, 4)?
    {
        match message {
            Icmp::Mld(_) => ip.hop_limit = 1,
            Icmp::Solicitation(_) | Icmp::Advertisement(_) | Icmp::RouterSolicitation => ip.hop_limit = 255,
            Icmp::RouterAdvertisement | Icmp::Redirect => ip.hop_limit = 255,
            _ => {}
        }
    }
    Ok(ip)
}

fn options(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match u.int_in_range(0..=5_u8)? {
        0 => vec![1, 1, 1, 1],
        // Router alert (RFC 2113), record route, loose and strict source route, time stamp (RFC 791).
        1 => vec![0x94, 4, 0, 0],
        2 => [&[7, 39, 4][..], &[0; 36]].concat(),
        3 => vec![0x83, 7, 4, 10, 99, 0, 9, 0],
        4 => vec![0x89, 7, 4, 10, 99, 0, 9, 0],
        _ => {
            let length = u.int_in_range(0..=40_usize)?.min(u.len());
            u.bytes(length)?.to_vec()
        }
    })
}

fn extension(u: &mut Unstructured<'_>) -> Result<Extension> {
    Ok(match u.int_in_range(0..=15_u8)? {
        0..=2 => Extension::Destination(*u.choose(&[0, 1, 29, 30, 31])?),
        3 | 4 => Extension::HopByHop(*u.choose(&[0, 1, 29])?),
        5 | 6 => {
            Extension::Routing(*u.choose(&[0, 2, 4, 3, 253])?, *u.choose(&[0, 1, 2, 255])?, *u.choose(&[0, 2, 3])?)
        }
        7 | 8 => Extension::Authentication(*u.choose(&[4, 1, 2, 0, 6])?),
        9 => Extension::Atomic,
        10 => Extension::Mobility,
        11 => Extension::HostIdentity,
        12 => Extension::Shim6,
        13 => Extension::Experimental,
        14 => *u.choose(&[Extension::Jumbo(70_000), Extension::Jumbo(8), Extension::HopByHop(255)])?,
        _ => *u.choose(&[Extension::Esp, Extension::NoNext])?,
    })
}

fn body(u: &mut Unstructured<'_>, depth: u8) -> Result<Body> {
    Ok(match u.int_in_range(0..=19_u8)? {
        0..=4 => {
            // SYN, ACK, SYN+ACK, FIN, RST and what no honest host sends.
            let flags = if rarely(u, 3)? { u.arbitrary()? } else { *u.choose(&[0x02, 0x10, 0x12, 0x18, 0x11, 0x04])? };
            Body::Tcp(flags, if rarely(u, 10)? { Some(u.int_in_range(0..=15)?) } else { None })
        }
        5..=8 => Body::Udp(if rarely(u, 10)? { Some(u.arbitrary()?) } else { None }),
        9 | 10 => Body::Sctp(if rarely(u, 4)? { u.arbitrary()? } else { *u.choose(&[1, 0, 2, 3, 6, 10])? }),
        11..=16 => Body::Icmp(icmp(u, depth)?),
        17 => Body::Empty(*u.choose(&[6, 17, 132, 1, 58, 0])?),
        18 => match u.int_in_range(0..=3_u8)? {
            0 => Body::Gre,
            1 => Body::SixInFour,
            2 => Body::Ipip(Box::new(Body::Tcp(2, None))),
            _ => Body::WrongIcmp,
        },
        _ => Body::Other(u.arbitrary()?),
    })
}

fn icmp(u: &mut Unstructured<'_>, depth: u8) -> Result<Icmp> {
    let target = |u: &mut Unstructured<'_>| u.choose(&[Target::Sender, Target::Stranger, Target::Receiver]).copied();
    Ok(match u.int_in_range(0..=11_u8)? {
        0 | 1 => Icmp::Echo,
        2 => Icmp::EchoReply,
        3 => Icmp::Message(u.arbitrary()?, u.arbitrary()?),
        4 => Icmp::RouterSolicitation,
        5 => Icmp::RouterAdvertisement,
        6 => Icmp::Solicitation(target(u)?),
        7 => Icmp::Advertisement(target(u)?),
        8 => Icmp::Redirect,
        9 => Icmp::Mld(*u.choose(&[143, 131, 130, 132])?),
        _ if depth == 0 => Icmp::Echo,
        _ => {
            // Unreachable, time exceeded, parameter problem, source quench; too big, and ICMPv6's own.
            let (kind, code) =
                *u.choose(&[(3, 4), (2, 0), (3, 3), (1, 4), (11, 0), (3, 0), (12, 0), (4, 0), (5, 1)])?;
            let packet = ip(u, depth - 1)?;
            let bytes = if rarely(u, 4)? { u.int_in_range(0..=64)? } else { 1200 };
            let returned = !rarely(u, 4)?;
            Icmp::Error(kind, code, Box::new(Quote { packet, returned, bytes }))
        }
    })
}
