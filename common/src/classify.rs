//! From endpoint, peer, protocol and port to a verdict, by a constant number of look-ups.

use crate::address::Address;
use crate::layout::{
    VerdictWord, WAYS, endpoint_flag, interface_kind, interface_kind_of, interface_slot_of, narrow, narrow_key, peer,
    port_place, reach, rule, wide, wide_key,
};
use crate::tables::{Event, Tables, narrow_buckets, narrow_hash, read, wide_buckets, wide_hash, wide_tag};

/// The interface word of a device, 0 if it is none of ours.
#[inline(always)]
pub fn interface<T: Tables>(t: T, ifindex: u32) -> u64 {
    let Some(bucket) = t.interfaces(ifindex & (crate::layout::INTERFACE_BUCKETS - 1)) else { return 0 };
    let mut way = 0;
    while way < WAYS {
        // SAFETY: the pointer is a table's, the index below its length.
        let word = unsafe { read(&raw const (*bucket).words[way]) };
        if word as u32 == ifindex && word != 0 {
            return word;
        }
        way += 1;
    }
    0
}

/// The slot of the endpoint behind a device, if it is one.
#[inline(always)]
pub fn endpoint_slot<T: Tables>(t: T, ifindex: u32) -> Option<u32> {
    let word = interface(t, ifindex);
    (interface_kind_of(word) == interface_kind::ENDPOINT).then(|| interface_slot_of(word))
}

/// The seed of the node's hashes.
#[inline(always)]
pub fn seed<T: Tables>(t: T) -> u64 {
    // SAFETY: the pointer is a table's.
    t.node().map_or(0, |node| unsafe { read(&raw const (*node).seed) })
}

/// The value of a narrow row, 0 if it is missing.
#[inline(always)]
pub fn narrow_row<T: Tables>(t: T, seed: u64, key: u64) -> u64 {
    let buckets = narrow_buckets(narrow_hash(seed, key));
    let mut choice = 0;
    while choice < 2 {
        let Some(bucket) = t.narrow(buckets[choice]) else { return 0 };
        let mut way = 0;
        while way < WAYS {
            // SAFETY: the pointer is a table's, the index below its length.
            if unsafe { read(&raw const (*bucket).keys[way]) } == key {
                // SAFETY: likewise. The key was written after the value, and changes only after a grace period.
                return unsafe { read(&raw const (*bucket).values[way]) };
            }
            way += 1;
        }
        choice += 1;
    }
    0
}

/// The value of a wide row without its tag, 0 if it is missing.
#[inline(always)]
pub fn wide_row<T: Tables>(t: T, seed: u64, address: &Address, third: u64) -> u64 {
    let [first, second] = address.words;
    let hash = wide_hash(seed, &[first, second, third]);
    let buckets = wide_buckets(hash);
    let tag = wide_tag(hash);
    let mut choice = 0;
    while choice < 2 {
        let Some(bucket) = t.wide(buckets[choice]) else { return 0 };
        let mut way = 0;
        while way < WAYS {
            // SAFETY: the pointer is a table's, the index below its length.
            let value = unsafe { read(&raw const (*bucket).values[way]) };
            if value & 0xffff << 48 == tag {
                // SAFETY: likewise. The key was written before the value, and changes only after a grace period.
                let key = unsafe {
                    [
                        read(&raw const (*bucket).keys[way][0]),
                        read(&raw const (*bucket).keys[way][1]),
                        read(&raw const (*bucket).keys[way][2]),
                    ]
                };
                if key[0] == first && key[1] == second && key[2] == third {
                    return value & 0x0000_ffff_ffff_ffff;
                }
            }
            way += 1;
        }
        choice += 1;
    }
    0
}

/// What the tables know of an address: the exact row (which includes the ranges that cover it), or else the longest
/// range, or else nothing: class 0.
#[inline(always)]
pub fn peer_value<T: Tables>(t: T, seed: u64, bank: u32, address: &Address) -> u64 {
    let exact = wide_row(t, seed, address, wide_key(wide::PEER, bank, 0, 0));
    if exact != 0 { exact } else { t.range(bank, address) }
}

/// The verdict of a policy set for a peer, protocol and port.
#[inline(always)]
pub fn classify<T: Tables>(t: T, seed: u64, question: &Question) -> VerdictWord {
    let kind = if question.itself { narrow::PROFILE_ITSELF } else { narrow::PROFILE };
    let mut profile = narrow_row(t, seed, narrow_key(kind, question.set, peer::number(question.peer)));
    if profile == 0 {
        profile = narrow_row(t, seed, narrow_key(narrow::SET_DEFAULT, question.set, 0));
    }
    let (element, place) = port_place(question.bank, question.protocol, question.port);
    let class = t.port_class(element, place);
    let mut verdict = narrow_row(t, seed, narrow_key(narrow::VERDICT, profile as u32, class as u32));
    if verdict == 0 {
        verdict = narrow_row(t, seed, narrow_key(narrow::PROFILE_DEFAULT, profile as u32, 0));
    }
    if verdict == 0 {
        t.note(Event::RowMissing);
        return VerdictWord::new(false, rule::MISSING);
    }
    VerdictWord(verdict)
}

/// What [`classify`] is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The policy set, not 0.
    pub set: u32,
    /// The bank of the set.
    pub bank: u32,
    /// The peer's value.
    pub peer: u64,
    /// Whether the peer is the endpoint itself.
    pub itself: bool,
    /// The IP protocol.
    pub protocol: u8,
    /// The port that policy asks about.
    pub port: u16,
}

/// What an egress set reaches of the Service port behind a translatable address; 0 where no Service is known.
#[inline(always)]
pub fn service_reach<T: Tables>(
    t: T,
    seed: u64,
    row: &EndpointView,
    address: &Address,
    protocol: u8,
    port: u16,
) -> u64 {
    let service = wide_row(t, seed, address, wide_key(wide::SERVICE, row.bank, protocol, port));
    if service == 0 {
        return 0;
    }
    let named = narrow_row(t, seed, narrow_key(narrow::REACH, row.egress, peer::number(service)));
    if named != 0 {
        return named;
    }
    let default = narrow_row(t, seed, narrow_key(narrow::REACH_DEFAULT, row.egress, 0));
    if default == 0 { reach::PART } else { default }
}

/// An endpoint as one packet sees it: its row, read once, and its revision, read before anything is classified.
#[derive(Clone, Copy, Debug)]
pub struct EndpointView {
    /// The slot.
    pub slot: u32,
    /// The revision.
    pub revision: u32,
    /// The set for ingress, or 0.
    pub ingress: u32,
    /// The set for egress, or 0.
    pub egress: u32,
    /// See [`endpoint_flag`].
    pub flags: u32,
    /// See [`crate::layout::EndpointRow::incarnation`].
    pub incarnation: u32,
    /// See [`crate::layout::EndpointRow::bank`].
    pub bank: u32,
    /// See [`crate::layout::EndpointRow::generation`].
    pub generation: u32,
    /// The index of its row. Not the row's address: the verifier follows no pointer through a copied struct.
    row: u32,
}

impl EndpointView {
    /// The endpoint in a slot, if there is one.
    #[inline(always)]
    pub fn of<T: Tables>(t: T, slot: u32) -> Option<Self> {
        let word = t.endpoint(slot);
        if word == 0 {
            return None;
        }
        let index = word as u32;
        let row = t.row(index)?;
        // SAFETY: a table's pointer; rows are immutable while a word points to them, and for a grace period after.
        unsafe {
            Some(Self {
                slot,
                revision: (word >> 32) as u32,
                ingress: read(&raw const (*row).ingress),
                egress: read(&raw const (*row).egress),
                flags: read(&raw const (*row).flags),
                incarnation: read(&raw const (*row).incarnation),
                bank: read(&raw const (*row).bank),
                generation: read(&raw const (*row).generation),
                row: index,
            })
        }
    }

    /// The pod's address of a family; `::` where it has none.
    #[inline(always)]
    #[must_use]
    pub fn address<T: Tables>(&self, t: T, v4: bool) -> Address {
        let Some(row) = t.row(self.row) else { return Address::UNSPECIFIED };
        // SAFETY: as in `of`.
        unsafe {
            if v4 {
                Address { words: [read(&raw const (*row).v4.words[0]), read(&raw const (*row).v4.words[1])] }
            } else {
                Address { words: [read(&raw const (*row).v6.words[0]), read(&raw const (*row).v6.words[1])] }
            }
        }
    }

    /// Whether its frames may come from an Ethernet address.
    #[inline(always)]
    #[must_use]
    pub fn may_speak_for<T: Tables>(&self, t: T, mac: u64) -> bool {
        // SAFETY: as in `of`.
        self.flags & endpoint_flag::PINNED == 0
            || t.row(self.row).is_some_and(|row| unsafe { read(&raw const (*row).mac) } == mac)
    }

    /// Whether no decision exists for it yet.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.flags & endpoint_flag::CLOSED != 0
    }

    /// Whether policy restricts it in some direction.
    #[inline(always)]
    #[must_use]
    pub const fn is_enforced(&self) -> bool {
        self.ingress != 0 || self.egress != 0 || self.is_closed()
    }

    /// Whether its addresses are to be checked.
    #[inline(always)]
    #[must_use]
    pub const fn checks_addresses(&self) -> bool {
        self.flags & endpoint_flag::ANY_ADDRESS == 0
    }
}
