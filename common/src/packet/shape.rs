//! What a packet is, as far as its treatment differs.

use super::Drop;

/// What a packet is, as far as its treatment differs: one of the constants, or the reason why it cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(pub u32);

impl Shape {
    /// IP with headers that policy can judge; the first fragment of a datagram too.
    pub const IP: Self = Self(0);
    /// ARP; `source` is the sender's address, `opens` tells a question.
    pub const ARP: Self = Self(100);
    /// Neighbour or router solicitation, MLD, or a neighbour advertisement, whose `target` it speaks for (the others'
    /// is their source).
    pub const DISCOVERY: Self = Self(101);
    /// A router advertisement.
    pub const ROUTER: Self = Self(102);
    /// VLAN-tagged in metadata; what was read of it means nothing.
    pub const TAGGED: Self = Self(103);
    /// A fragment that is not its datagram's first: addresses and where it stands in the datagram are known.
    pub const LATER: Self = Self(104);
    /// An ICMP error; the packet that it quotes has been read too, or is zero.
    pub const RELATED: Self = Self(105);
    /// An ICMP redirect; likewise.
    pub const REDIRECT: Self = Self(106);
    /// Not read yet: only [`super::Headers::parse_rare`] follows such headers.
    pub const RARE: Self = Self(107);

    /// Not judgeable, for this reason.
    #[inline(always)]
    #[must_use]
    pub const fn bad(why: Drop) -> Self {
        Self(why.0)
    }

    /// Whether it is of use on its own link only, and no IP policy is asked: ARP, discovery, router advertisements.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        matches!(self, Self::ARP | Self::DISCOVERY | Self::ROUTER)
    }

    /// Why it cannot be judged.
    #[inline(always)]
    #[must_use]
    pub const fn why(self) -> Drop {
        match self {
            Self::TAGGED => Drop::ETHERTYPE,
            Self::LATER => Drop::FRAGMENT,
            Self::RELATED | Self::REDIRECT => Drop::UNRELATED,
            Self::ROUTER => Drop::ROUTER,
            Self::ARP | Self::DISCOVERY => Drop::DISCOVERY,
            bad => Drop(bad.0),
        }
    }
}
