//! What `decide` asks of the tables: BPF maps in the kernel, ordinary memory in tests.

use crate::address::Address;
use crate::flow::{FlowBucket, FlowEntry};
use crate::layout::{EndpointRow, InterfaceBucket, NarrowBucket, NodeConfig, Size, VerdictWord, WideBucket};
use crate::packet::{Drop, Headers, Shape};
use crate::stamp::Stamp;
use crate::unusual::{Came, Course};
use crate::verdict::Asked;

/// The tables and the few services of the kernel that a decision needs. Passed by value: in the programs it is a
/// zero-sized name for the maps.
///
/// Pointers are valid for the whole decision; what they point to may change at any moment, so it is read by
/// [`read`], never by reference.
pub trait Tables: Copy {
    /// Memory for one decision, this CPU's own: not the stack, of which programs have 512 bytes, and opaque to the
    /// verifier, which would otherwise follow each shape of packet through everything.
    fn work(self) -> Option<*mut Work>;
    /// What holds for the whole node.
    fn node(self) -> Option<*const NodeConfig>;
    /// A bucket of the interface table.
    fn interfaces(self, bucket: u32) -> Option<*const InterfaceBucket>;
    /// The word of the endpoint in a slot; 0 where there is none.
    fn endpoint(self, slot: u32) -> u64;
    /// The endpoint row at an index.
    fn row(self, index: u32) -> Option<*const EndpointRow>;
    /// [`crate::classify::peer_value`]. The programs make it a function that the verifier follows once, instead of once
    /// for every path that leads to it.
    #[inline(always)]
    fn peer_value(self, bank: u32, address: &Address) -> u64 {
        crate::classify::peer_value(self, crate::classify::seed(self), bank, address)
    }
    /// [`crate::flow::find_locked`]; likewise.
    #[inline(always)]
    fn find_flow_locked(self, which: u32, owner: u32) -> bool {
        crate::flow::find_locked(self, which, owner)
    }
    /// [`crate::flow::store`]; likewise.
    #[inline(always)]
    fn store_flow(self, which: u32, owner: u32) {
        crate::flow::store(self, which, owner);
    }
    /// [`crate::verdict::egress`]; likewise.
    #[inline(always)]
    fn egress(self, slot: u32, to: Address, asked: Asked) -> VerdictWord {
        crate::verdict::egress(self, slot, to, asked)
    }
    /// [`crate::verdict::ingress`]; likewise.
    #[inline(always)]
    fn ingress(self, slot: u32, from: Address, asked: Asked) -> VerdictWord {
        crate::verdict::ingress(self, slot, from, asked)
    }
    /// [`crate::exit::judge`]; likewise.
    #[inline(always)]
    fn judge_exit(self, sender: u32, stamp: Stamp, size: Size) -> Drop {
        crate::exit::judge(self, sender, stamp, size)
    }
    /// [`crate::exit::confirms`]; likewise.
    #[inline(always)]
    fn exit_confirms(self, size: Size) -> bool {
        crate::exit::confirms(self, size)
    }
    /// [`crate::unusual::from_pod`]; likewise.
    #[inline(always)]
    fn unusual_from_pod(self, slot: u32, shape: Shape, size: Size) -> Course {
        crate::unusual::from_pod(self, slot, shape, size)
    }
    /// [`crate::unusual::to_pod`]; likewise.
    #[inline(always)]
    fn unusual_to_pod(self, slot: u32, shape: Shape, size: Size, came: Came) -> Course {
        crate::unusual::to_pod(self, slot, shape, size, came)
    }
    /// [`crate::unusual::at_exit`]; likewise.
    #[inline(always)]
    fn unusual_at_exit(self, sender: u32, shape: Shape, size: Size) -> Course {
        crate::unusual::at_exit(self, sender, shape, size)
    }
    /// [`crate::fragment::remember`]; likewise.
    #[inline(always)]
    fn remember_fragment(self, slot: u32, hook: u32) -> Drop {
        crate::fragment::remember(self, slot, hook)
    }
    /// [`crate::fragment::recall`]; likewise.
    #[inline(always)]
    fn recall_fragment(self, slot: u32, hook: u32) -> Drop {
        crate::fragment::recall(self, slot, hook)
    }
    /// [`crate::decide::keep`]; likewise.
    #[inline(always)]
    fn keep(self, which: u32, slot: u32, owner: u32) -> bool {
        crate::decide::keep(self, which, slot, owner)
    }
    /// [`crate::related::confirms`]; likewise.
    #[inline(always)]
    fn related_confirms(self, size: Size) -> bool {
        crate::related::confirms(self, size)
    }
    /// A bucket of the narrow table; the table masks the number.
    fn narrow(self, bucket: u32) -> Option<*const NarrowBucket>;
    /// A bucket of the wide table; the table masks the number.
    fn wide(self, bucket: u32) -> Option<*const WideBucket>;
    /// The peer value of the longest range that covers an address, 0 where none does.
    fn range(self, bank: u32, address: &Address) -> u64;
    /// The class at a place of the port table.
    fn port_class(self, element: u32, place: usize) -> u16;
    /// The flow bucket of an endpoint's share that a hash names.
    fn flows(self, slot: u32, hash: u32) -> Option<*mut FlowBucket>;
    /// The bucket that a hash names in the node-wide table of what exits have allowed.
    fn confirmed(self, hash: u32) -> Option<*mut FlowBucket>;
    /// Whether readers must take the lock, where loads may pass each other (any CPU but x86).
    fn locked_reads(self) -> bool;
    /// Takes a bucket's lock. Until [`Tables::unlock`] nothing is called.
    fn lock(self, bucket: *mut FlowBucket);
    /// Gives it back.
    fn unlock(self, bucket: *mut FlowBucket);
    /// The time in jiffies, low word.
    fn now(self) -> u32;
    /// Counts a packet for a rule.
    fn count(self, rule: u32, size: Size);
    /// Counts something that is no rule's.
    fn note(self, event: Event);
}

/// The working memory of one decision.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// The packet's headers.
    pub headers: Headers,
    /// The headers of the packet that an ICMP error quotes.
    pub quoted: Headers,
    /// The judged endpoint's flow, and another's: the deferred sender's, or what an exit has allowed.
    pub flows: [FlowEntry; 2],
}

/// What is counted beside rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// A flow took the place of a live one, since its bucket was full.
    FlowEvicted = 32,
    /// An established flow was judged again, since its endpoint's revision rose.
    Rejudged = 33,
    /// A row that another row points to was missing.
    RowMissing = 34,
    /// A packet of a local pod had no valid stamp and was judged in full.
    Unstamped = 35,
    /// A packet in the middle of a flow that nothing is known of was let through: who opened the flow is assumed.
    TakenUp = 36,
    /// A packet in the middle of a flow that nothing is known of was dropped.
    NotTakenUp = 37,
    /// As [`Event::FlowEvicted`], and the flow was an established one.
    EstablishedEvicted = 38,
}

/// Reads a word that may change at any moment.
///
/// # Safety
/// `place` comes from a table (or is a field of what it points to), is aligned, and is valid while the program runs.
#[inline(always)]
pub unsafe fn read<T: Copy>(place: *const T) -> T {
    // SAFETY: the caller's.
    unsafe { place.read_volatile() }
}

const MIX: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// Mixes one more word into a hash (the steps of splitmix64).
#[inline(always)]
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(MIX[0]);
    let hash = (hash ^ hash >> 29).wrapping_mul(MIX[1]);
    hash ^ hash >> 32
}

/// A hash of three words. They are mixed side by side, not one after another: a packet waits for one chain of
/// multiplications, not three. The seed goes in before every multiplication, so that what collides depends on it.
#[inline(always)]
#[must_use]
pub const fn hash_of_three(seed: u64, words: [u64; 3]) -> u64 {
    let a = (words[0] ^ seed).wrapping_mul(MIX[0]);
    let b = (words[1] ^ seed.rotate_left(21)).wrapping_mul(MIX[1]);
    let c = (words[2] ^ seed.rotate_left(42)).wrapping_mul(MIX[2]);
    let hash = (a ^ a >> 32).wrapping_add(b ^ b >> 29).wrapping_add(c ^ c >> 31);
    let hash = hash.wrapping_mul(MIX[0]);
    hash ^ hash >> 32
}

/// The hash of a narrow key. Its low half names the first bucket, its high half the second.
#[inline(always)]
#[must_use]
pub const fn narrow_hash(seed: u64, key: u64) -> u64 {
    mix(seed, key)
}

/// The hash of a wide key. Bits 0 to 23 name the first bucket, 24 to 47 the second, the rest is the tag.
#[inline(always)]
#[must_use]
pub const fn wide_hash(seed: u64, key: &[u64; 3]) -> u64 {
    hash_of_three(seed, *key)
}

/// The tag of a wide key's hash, in place: the upper 16 bits, never 0.
#[inline(always)]
#[must_use]
pub const fn wide_tag(hash: u64) -> u64 {
    hash & 0xffff << 48 | 1 << 48
}

/// The two buckets where a narrow key may stand, before masking.
#[inline(always)]
#[must_use]
pub const fn narrow_buckets(hash: u64) -> [u32; 2] {
    [hash as u32, (hash >> 32) as u32]
}

/// The two buckets where a wide key may stand, before masking.
#[inline(always)]
#[must_use]
pub const fn wide_buckets(hash: u64) -> [u32; 2] {
    [hash as u32 & 0x00ff_ffff, (hash >> 24) as u32 & 0x00ff_ffff]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{wide, wide_key};

    type Key<'a> = &'a dyn Fn(u32) -> [u64; 3];

    /// The fullest of 1,024 buckets for these hashes' low bits.
    fn fullest(hashes: impl Iterator<Item = u64>) -> usize {
        let mut load = [0; 1024];
        hashes.for_each(|hash| load[hash as usize & 1023] += 1);
        load.into_iter().max().unwrap_or(0)
    }

    #[test]
    fn neighbouring_addresses_and_ports_spread_as_random_numbers_would() {
        // Of 8,192 random numbers in 1,024 buckets the fullest has 18 to 22, rarely more than 26.
        for seed in [1, 0x1234_5678_9abc_def1, u64::MAX] {
            let v4 = |i: u32| Address::v4((0x0a01_0000 + i).to_be()).words;
            let v6 = |i: u32| Address::v6([0x2001_0db8_u32.to_be(), 0, 0, i.to_be()]).words;
            let peer = wide_key(wide::PEER, 0, 0, 0);
            let rows: [(&str, Key<'_>); 5] = [
                ("IPv4 peers", &|i| [v4(i)[0], v4(i)[1], peer]),
                ("IPv6 peers", &|i| [v6(i)[0], v6(i)[1], peer]),
                ("IPv4 /24s", &|i| [v4(i << 8)[0], v4(i << 8)[1], peer]),
                ("Service ports", &|i| [v4(1)[0], v4(1)[1], wide_key(wide::SERVICE, 0, 6, i as u16)]),
                ("local ports", &|i| [0, v4(1)[1], u64::from(i) | 80 << 16 | 6 << 32]),
            ];
            for (message, key) in rows {
                for shift in [0, 24, 48] {
                    let hashes = (0..8192).map(|i| wide_hash(seed, &key(i)) >> shift);
                    let fullest = fullest(hashes);
                    assert!(fullest <= 28, "{message}, seed {seed:x}, bits from {shift}: {fullest} in one bucket");
                }
            }
        }
    }
}
