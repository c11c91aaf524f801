//! The stamp: what is known and decided where a packet enters the host, carried with it to where it leaves.

/// Sixteen bits in the packet's metadata: kind 2, REPLY 1, slot 10, the slot's generation 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(pub u16);

/// Slots that a stamp can name.
pub const SLOTS: u32 = 1 << 10;

impl Stamp {
    /// No hook of ours has seen the packet.
    pub const NONE: Self = Self(0);
    /// It came from outside this node's pods.
    pub const OUTSIDE: Self = Self(Self::OUTSIDE_KIND);

    const KIND: u16 = 0xc000;
    const JUDGED_KIND: u16 = 0x4000;
    const DEFERRED_KIND: u16 = 0x8000;
    const OUTSIDE_KIND: u16 = 0xc000;
    const REPLY: u16 = 0x2000;

    /// From an endpoint, whose egress is decided.
    #[inline(always)]
    #[must_use]
    pub const fn judged(slot: u32, generation: u32) -> Self {
        Self(Self::JUDGED_KIND | Self::place(slot, generation))
    }

    /// From an endpoint, whose egress is to be judged where the packet leaves.
    #[inline(always)]
    #[must_use]
    pub const fn deferred(slot: u32, generation: u32) -> Self {
        Self(Self::DEFERRED_KIND | Self::place(slot, generation))
    }

    #[inline(always)]
    const fn place(slot: u32, generation: u32) -> u16 {
        ((slot & (SLOTS - 1)) << 3 | generation & 7) as u16
    }

    /// The same, with the mark that the packet reverses a flow which an exit has allowed; of a deferred packet, that its
    /// replies are counted where the exit's word is found.
    #[inline(always)]
    #[must_use]
    pub const fn with_reply(self) -> Self {
        Self(self.0 | Self::REPLY)
    }

    /// Whether the packet reverses a flow which an exit has allowed. A deferred packet never does.
    #[inline(always)]
    #[must_use]
    pub const fn is_reply(self) -> bool {
        self.0 & Self::REPLY != 0 && !self.is_deferred()
    }

    /// Whether the packet is deferred, and its replies are counted where its exit's word is found.
    #[inline(always)]
    #[must_use]
    pub const fn confirms(self) -> bool {
        self.0 & Self::REPLY != 0 && self.is_deferred()
    }

    /// Whether egress is still to be judged.
    #[inline(always)]
    #[must_use]
    pub const fn is_deferred(self) -> bool {
        self.0 & Self::KIND == Self::DEFERRED_KIND
    }

    /// Whether the packet came from an endpoint of this node.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.is_deferred() || self.0 & Self::KIND == Self::JUDGED_KIND
    }

    /// Whether no hook of ours has seen the packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 & Self::KIND == 0
    }

    /// Whether the packet came from outside this node's pods.
    #[inline(always)]
    #[must_use]
    pub const fn is_outside(self) -> bool {
        self.0 & Self::KIND == Self::OUTSIDE_KIND
    }

    /// The endpoint's slot, of a local stamp.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 as u32 >> 3) & (SLOTS - 1)
    }

    /// The slot's generation, of a local stamp.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0 as u32 & 7
    }

    /// Who sent the packet, without what was decided about it: what an entry stores and compares.
    #[inline(always)]
    #[must_use]
    pub const fn provenance(self) -> u16 {
        let stamp = self.0 & !Self::REPLY;
        if self.is_deferred() { stamp ^ Self::DEFERRED_KIND ^ Self::JUDGED_KIND } else { stamp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_and_generation_is_carried_apart_from_kind_and_reply() {
        for slot in 0..SLOTS {
            for generation in 0..8 {
                for (stamp, deferred) in
                    [(Stamp::judged(slot, generation), false), (Stamp::deferred(slot, generation), true)]
                {
                    for stamp in [stamp, stamp.with_reply()] {
                        assert_eq!((stamp.slot(), stamp.generation()), (slot, generation), "{stamp:?}");
                        assert_eq!(stamp.is_deferred(), deferred, "{stamp:?}");
                        assert!(stamp.is_local() && !stamp.is_none(), "{stamp:?}");
                        assert_eq!(stamp.provenance(), Stamp::judged(slot, generation).0, "{stamp:?}");
                    }
                }
            }
        }
        assert!(Stamp::NONE.is_none() && !Stamp::NONE.is_local(), "none");
        assert!(!Stamp::OUTSIDE.is_none() && !Stamp::OUTSIDE.is_local(), "outside");
        assert_ne!(Stamp::OUTSIDE.provenance(), Stamp::NONE.provenance(), "outside is not none");
    }
}
