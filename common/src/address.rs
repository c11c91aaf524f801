//! Addresses of both families as one 16-byte value, so that no table is needed twice.

/// An IPv6 address, or an IPv4 address mapped to `::ffff:a.b.c.d`, in network byte order: the words are the 16 bytes as
/// they stand in memory, whatever the machine's byte order, so that they compare with packet bytes without swapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// The 16 bytes in memory order, as two words.
    pub words: [u64; 2],
}

/// The second word of every mapped IPv4 address holds this in its first four bytes.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// `::`.
    pub const UNSPECIFIED: Self = Self { words: [0, 0] };

    /// From an IPv4 address's four bytes as they stand in the packet.
    #[inline(always)]
    #[must_use]
    pub const fn v4(raw: u32) -> Self {
        // On both byte orders the mapped prefix comes first in memory.
        #[cfg(target_endian = "little")]
        let second = (raw as u64) << 32 | MAPPED as u64;
        #[cfg(target_endian = "big")]
        let second = (MAPPED as u64) << 32 | raw as u64;
        Self { words: [0, second] }
    }

    /// From an IPv6 address's bytes as four 32-bit words as they stand in the packet.
    #[inline(always)]
    #[must_use]
    pub const fn v6(raw: [u32; 4]) -> Self {
        #[cfg(target_endian = "little")]
        let words = [(raw[1] as u64) << 32 | raw[0] as u64, (raw[3] as u64) << 32 | raw[2] as u64];
        #[cfg(target_endian = "big")]
        let words = [(raw[0] as u64) << 32 | raw[1] as u64, (raw[2] as u64) << 32 | raw[3] as u64];
        Self { words }
    }

    /// From 16 bytes in network byte order.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self { words: [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])] }
    }

    /// The 16 bytes in network byte order.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.words[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.words[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.words[0] == 0 && self.first_half_of_second() == MAPPED
    }

    /// Whether this is no address of its family: `::` or 0.0.0.0.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        self.words[0] == 0 && (self.words[1] == 0 || self.words[1] == Self::v4(0).words[1])
    }

    /// The first four bytes of the second word.
    #[inline(always)]
    const fn first_half_of_second(self) -> u32 {
        #[cfg(target_endian = "little")]
        return self.words[1] as u32;
        #[cfg(target_endian = "big")]
        return (self.words[1] >> 32) as u32;
    }

    /// The first byte of the address proper (of the last four for IPv4).
    #[inline(always)]
    const fn leading(self, v4: bool) -> u16 {
        #[cfg(target_endian = "little")]
        let raw = if v4 { (self.words[1] >> 32) as u16 } else { self.words[0] as u16 };
        #[cfg(target_endian = "big")]
        let raw = if v4 { (self.words[1] as u32 >> 16) as u16 } else { (self.words[0] >> 48) as u16 };
        u16::from_be(raw)
    }

    /// Whether this is a multicast address or IPv4's limited broadcast.
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(self, v4: bool) -> bool {
        if v4 {
            let limited_broadcast = Self::v4(u32::MAX);
            self.leading(true) & 0xf000 == 0xe000 || self.words[1] == limited_broadcast.words[1]
        } else {
            self.leading(false) & 0xff00 == 0xff00
        }
    }

    /// Whether this is an IPv6 link-local address (`fe80::/10`).
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.leading(false) & 0xffc0 == 0xfe80
    }

    /// Whether the two are the same. Written out, because the derived comparison becomes a call of `memcmp`.
    #[inline(always)]
    #[must_use]
    pub const fn same(self, other: Self) -> bool {
        self.words[0] == other.words[0] && self.words[1] == other.words[1]
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            core::net::IpAddr::V6(v6) => Self::from_bytes(v6.octets()),
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        core::net::Ipv6Addr::from(address.to_bytes()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn both_families_survive_a_round_trip_and_keep_packet_byte_order() {
        for (text, v4) in [("10.1.2.3", true), ("0.0.0.0", true), ("2001:db8::7", false), ("::", false)] {
            let parsed: IpAddr = text.parse().unwrap();
            let address = Address::from(parsed);
            assert_eq!(IpAddr::from(address), parsed, "{text}: round trip");
            assert_eq!(address.is_v4(), v4, "{text}: family");
        }
        let bytes = Address::from("10.1.2.3".parse::<IpAddr>().unwrap()).to_bytes();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3], "as in a packet");
        let raw = [0x2001_0db8_u32.to_be(), 0, 0, 7_u32.to_be()];
        assert_eq!(IpAddr::from(Address::v6(raw)), "2001:db8::7".parse::<IpAddr>().unwrap(), "from packet words");
    }

    #[test]
    fn multicast_and_link_local_are_told_by_their_prefixes() {
        for (text, multicast, link_local) in [
            ("224.0.0.1", true, false),
            ("239.255.255.255", true, false),
            ("223.255.255.255", false, false),
            ("240.0.0.1", false, false),
            ("255.255.255.255", true, false),
            ("ff02::1", true, false),
            ("fe80::1", false, true),
            ("febf::1", false, true),
            ("fec0::1", false, false),
            ("2001:db8::1", false, false),
        ] {
            let parsed: IpAddr = text.parse().unwrap();
            let address = Address::from(parsed);
            assert_eq!(address.is_multicast(parsed.is_ipv4()), multicast, "{text}: multicast");
            if parsed.is_ipv6() {
                assert_eq!(address.is_link_local(), link_local, "{text}: link-local");
            }
        }
    }
}
