//! As much SCTP (RFC 9260) as a handshake's first half needs, over raw sockets: a kernel without SCTP sockets still
//! forwards, translates and tracks SCTP, and those are what a network policy meets.
//!
//! A server answers INIT with INIT ACK, whose State Cookie holds the server's name, and INIT to a port on which nobody
//! listens with ABORT (section 8.4 rule 3 asks for it).

/// The IP protocol number.
pub const PROTOCOL: u8 = 132;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: u16 = 7;
const COMMON_HEADER: usize = 12;
/// Chunk header and the fixed fields of INIT and INIT ACK.
const INIT_CHUNK: usize = 20;

/// A packet with one chunk, as far as this testbed knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The verification tag: 0 with INIT, the tag of the peer otherwise.
    pub tag: u32,
    /// What it carries.
    pub chunk: Chunk,
}

/// The first chunk of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Opens an association; the tag is the one that the sender wants to see.
    Init {
        /// The initiate tag, never 0.
        tag: u32,
    },
    /// Answers INIT.
    InitAck {
        /// The initiate tag of the answering side.
        tag: u32,
        /// The State Cookie's value.
        cookie: Vec<u8>,
    },
    /// Refuses.
    Abort,
    /// Any other chunk, by its type.
    Other(u8),
}

impl Packet {
    /// The bytes after the IP header, with a valid CRC32c.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        match &self.chunk {
            Chunk::Init { tag } => encode_init(&mut bytes, INIT, *tag, None),
            Chunk::InitAck { tag, cookie } => encode_init(&mut bytes, INIT_ACK, *tag, Some(cookie)),
            Chunk::Abort => bytes.extend([ABORT, 0, 0, 4]),
            Chunk::Other(kind) => bytes.extend([*kind, 0, 0, 4]),
        }
        // RFC 9260 appendix A: the reflected CRC goes onto the wire with its low byte first.
        let checksum = crc32c::crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the bytes after the IP header.
    ///
    /// # Errors
    /// When they are too short or the checksum is wrong; the message says which.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (header, chunk) = bytes.split_at_checked(COMMON_HEADER).ok_or("SCTP packet is shorter than its header")?;
        let mut zeroed = bytes.to_vec();
        zeroed[8..12].fill(0);
        if crc32c::crc32c(&zeroed).to_le_bytes() != header[8..12] {
            return Err("SCTP packet has a wrong CRC32c");
        }
        let word = |at: usize| chunk.get(at..at + 4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
        let kind = *chunk.first().ok_or("SCTP packet has no chunk")?;
        let chunk = match kind {
            INIT => Chunk::Init { tag: word(4).ok_or("SCTP INIT is cut short")? },
            INIT_ACK => Chunk::InitAck {
                tag: word(4).ok_or("SCTP INIT ACK is cut short")?,
                cookie: cookie_of(chunk).ok_or("SCTP INIT ACK has no State Cookie")?.to_vec(),
            },
            ABORT => Chunk::Abort,
            other => Chunk::Other(other),
        };
        Ok(Self {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
            tag: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            chunk,
        })
    }

    /// What a host answers on which `listening` says whether somebody listens on a port and who it is.
    pub(crate) fn answer(&self, own_tag: u32, listening: Option<&str>) -> Option<Self> {
        let Chunk::Init { tag } = self.chunk else {
            return None;
        };
        let chunk = match listening {
            Some(name) => Chunk::InitAck { tag: own_tag, cookie: name.as_bytes().to_vec() },
            None => Chunk::Abort,
        };
        Some(Self { source: self.destination, destination: self.source, tag, chunk })
    }
}

fn encode_init(bytes: &mut Vec<u8>, kind: u8, tag: u32, cookie: Option<&[u8]>) {
    let cookie_length = cookie.map_or(0, |cookie| 4 + cookie.len());
    let length = u16::try_from(INIT_CHUNK + cookie_length).unwrap_or(u16::MAX);
    bytes.extend([kind, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend(65_536u32.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    if let Some(cookie) = cookie {
        bytes.extend(STATE_COOKIE.to_be_bytes());
        bytes.extend(u16::try_from(cookie_length).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(cookie);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

/// The State Cookie's value among the parameters of an INIT ACK chunk.
fn cookie_of(chunk: &[u8]) -> Option<&[u8]> {
    let mut rest = chunk.get(INIT_CHUNK..)?;
    loop {
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let length = usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]));
        let value = rest.get(4..length)?;
        if kind == STATE_COOKIE {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_the_wire() {
        let rows = [
            ("INIT", Chunk::Init { tag: 0x0102_0304 }, 0),
            ("INIT ACK", Chunk::InitAck { tag: 5, cookie: b"ns/pod".to_vec() }, 7),
            ("INIT ACK, padded", Chunk::InitAck { tag: 5, cookie: b"x".to_vec() }, 7),
            ("ABORT", Chunk::Abort, 7),
        ];
        for (what, chunk, tag) in rows {
            let packet = Packet { source: 1000, destination: 80, tag, chunk };
            let bytes = packet.encode();
            assert_eq!(bytes.len() % 4, 0, "{what}: chunks are padded to 4 bytes");
            assert_eq!(Packet::decode(&bytes), Ok(packet), "{what}");
        }
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = Packet { source: 1, destination: 2, tag: 0, chunk: Chunk::Init { tag: 3 } }.encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Packet::decode(&damaged).is_err(), "byte {at} was changed");
        }
        for length in 0..bytes.len() {
            assert!(Packet::decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn checksum_is_crc32c_low_byte_first() {
        // The check value of CRC-32/ISCSI ("123456789" gives e3069283) pins the polynomial.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let mut bytes = Packet { source: 1, destination: 2, tag: 0, chunk: Chunk::Abort }.encode();
        let sent: [u8; 4] = [bytes[8], bytes[9], bytes[10], bytes[11]];
        bytes[8..12].fill(0);
        assert_eq!(u32::from_le_bytes(sent), crc32c::crc32c(&bytes));
    }
}
