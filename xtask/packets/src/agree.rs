//! Our parser held against the independent one's reading of a frame.

use std::net::IpAddr;

use portcullis_common::packet::{Headers, Readable, Shape};
use portcullis_common::tables::Work;

use crate::expected::{Part, Said, Upper, expected};

/// What our parser says of a frame, whatever stood in the memory that it writes to.
#[must_use]
pub fn ours(frame: &[u8], link: usize) -> Said {
    let mut work = Work { headers: dirty(), quoted: dirty(), ..Work::default() };
    // SAFETY: memory of our own.
    let shape = unsafe { frame.read_headers(&raw mut work, link) };
    said(shape, &work)
}

fn said(shape: Shape, work: &Work) -> Said {
    let Headers { v4, .. } = work.headers;
    let only = Said { shape: shape.0, ..Said::default() };
    let addresses = Some((work.headers.source.into(), Some(IpAddr::from(work.headers.destination))));
    match shape {
        Shape::ARP => {
            Said { v4, addresses: addresses.map(|(source, _)| (source, None)), opens: work.headers.opens, ..only }
        }
        Shape::IP => {
            let Headers { tcp_flags: flags, opens, first_fragment, .. } = work.headers;
            let part = first_fragment.then(|| part(&work.headers));
            Said { v4, addresses, upper: Some(upper(&work.headers)), flags, opens, part, ..only }
        }
        Shape::LATER => Said { v4, addresses, part: Some(part(&work.headers)), ..only },
        Shape::ROUTER => Said { v4, addresses, ..only },
        Shape::DISCOVERY => {
            let target = IpAddr::from(work.headers.target);
            let target = (work.headers.policy_port >> 8 == 136).then_some(target);
            Said { v4, addresses, target, ..only }
        }
        Shape::RELATED | Shape::REDIRECT => {
            let quote = &work.quoted;
            let known = (quote.source.into(), quote.destination.into(), upper(quote));
            Said { v4, addresses, quoted: (*quote != Headers::default()).then_some(known), ..only }
        }
        _ => only,
    }
}

fn upper(headers: &Headers) -> Upper {
    let Headers { protocol, source_port: source, destination_port: destination, policy_port: policy, .. } = *headers;
    Upper { protocol, source, destination, policy }
}

fn part(headers: &Headers) -> Part {
    let Headers { datagram, begin, end, last, .. } = *headers;
    Part { datagram, begin, end, last }
}

fn dirty() -> Headers {
    Headers {
        protocol: 99,
        tcp_flags: 0xff,
        opens: true,
        first_fragment: true,
        fragmented: true,
        rest: 3,
        left: 9,
        datagram: 8,
        last: true,
        ..Headers::default()
    }
}

/// Holds the parsers against each other, for the frame with its link-layer header and for the packet without.
///
/// # Errors
/// They say different things; or our short way says another thing than the long one.
pub fn agree(frame: &[u8]) -> Result<(), String> {
    for (frame, link) in [(frame, 14), (frame.get(14..).unwrap_or_default(), 0)] {
        let (ours, theirs) = (ours(frame, link), expected(frame, link));
        if ours != theirs {
            return Err(format!("link {link}: ours {ours:?}\ntheirs {theirs:?}\nframe {frame:02x?}"));
        }
        let mut work = Work { headers: dirty(), ..Work::default() };
        if work.headers.parse_usual(&frame, link) {
            let short = said(Shape::IP, &work);
            if short != ours {
                return Err(format!("link {link}: the short way {short:?}\nthe long one {ours:?}\nframe {frame:02x?}"));
            }
        }
    }
    Ok(())
}
