//! Our parser held against the independent one's reading of a frame.

use portcullis_common::packet::{Drop, Headers, Shape};

use crate::expected::expected;
use crate::reading::{Reading, reading};

/// What our parser says of a frame, whatever stood in the memory that it writes to.
#[must_use]
pub fn ours(frame: &[u8], link: usize) -> (Shape, Headers) {
    let mut headers = dirty();
    let shape = headers.parse(&frame, link);
    (shape, headers)
}

/// Holds the parsers against each other, for the frame with its link-layer header and for the packet without.
///
/// # Errors
/// They say different things, and nothing in [`explained`] says why; or our short way says another thing than the long one.
pub fn agree(frame: &[u8]) -> Result<(), String> {
    for (frame, link) in [(frame, 14), (frame.get(14..).unwrap_or_default(), 0)] {
        let (ours, theirs) = (ours(frame, link), expected(frame, link));
        if known(ours) != known(theirs) && !explained(frame, link, ours.0, theirs.0) {
            return Err(format!("link {link}: ours {ours:?}\ntheirs {theirs:?}\nframe {frame:02x?}"));
        }
        let mut short = dirty();
        if short.parse_usual(&frame, link) && (Shape::IP, short) != ours {
            return Err(format!("link {link}: the short way {short:?}\nthe long one {ours:?}\nframe {frame:02x?}"));
        }
    }
    Ok(())
}

fn dirty() -> Headers {
    Headers { protocol: 99, tcp_flags: 0xff, opens: true, ..Headers::default() }
}

/// What is left of headers if the shape makes only some of them known.
fn known((shape, headers): (Shape, Headers)) -> (Shape, Headers) {
    let Headers { source, destination, v4, .. } = headers;
    match shape {
        Shape::IP | Shape::ARP | Shape::DISCOVERY | Shape::ROUTER => (shape, headers),
        Shape::FRAGMENT | Shape::EXTENSION => (shape, Headers { source, destination, v4, ..Headers::default() }),
        _ => (shape, Headers::default()),
    }
}

/// The differences that are left, each with its reason.
fn explained(frame: &[u8], link: usize, ours: Shape, theirs: Shape) -> bool {
    let judged = |shape: Shape| matches!(shape, Shape::IP | Shape::ARP | Shape::DISCOVERY | Shape::ROUTER);
    // Both refuse it, one for its extension headers, the other because they are cut off.
    let both_refuse = !judged(ours) && !judged(theirs) && matches!(reading(frame, link), Reading::Ip(_));
    // Options that the frame cuts off: a protocol without ports is judged by its number, and the kernel drops the packet.
    let options = frame.get(link).is_some_and(|first| (0x46..=0x4f).contains(first));
    let portless = ours == Shape::IP && theirs == Shape(Drop::MALFORMED.0) && options;
    // ARP cut off behind the sender's address, which is all that is asked; the receiver drops it.
    let arp = ours == Shape::ARP && frame.len() < link + 28;
    // An advertisement whose payload length cuts off its target, which is read none the less; the receiver drops it.
    let advertisement = ours == Shape::DISCOVERY && theirs == Shape(Drop::MALFORMED.0);
    both_refuse || portless || arp || advertisement
}
