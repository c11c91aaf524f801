//! Flows that user space enters, of which the kernel's connection table has told it.
//!
//! Entries are written by a program, under the bucket's lock like all others, so user space never races with packets. A seed
//! carries revision 0, which no endpoint ever has: the flow's first packet judges it anew, in the direction in which the
//! seed says that it was opened and by the provenance that the seed says. So a seed lets nothing through by itself.

use crate::flow::{self, EXPIRED, FLOW_WAYS, FlowEntry, UNASSURED, state};
use crate::tables::{Event, Tables, read};

/// A flow to enter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// The flow. `last_seen` is how long it has been idle, in jiffies; the lifetime in `state` is chosen here.
    pub entry: FlowEntry,
    /// The endpoint's slot, or [`flow::CONFIRMED`].
    pub owner: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Seeds in one run of the program.
pub const SEEDS: usize = 32;
/// Where they begin in the frame that the program is run on: behind what must look like an Ethernet header.
pub const SEEDS_AT: usize = 16;

/// Enters a flow, unless its place is taken: by an entry that packets have made and that is more than an assumption
/// ([`state::TAKEN_UP`]), or by established flows of others. Tells whether it was entered.
///
/// A flow that nobody has answered proves less than any packet that a program has seen: it takes free and expired places
/// only. Who sends what nobody answers would otherwise choose which flows are forgotten.
///
/// The seed is not the working memory of decisions: the program that calls this is run by a system call, which packets
/// interrupt on some kernels.
#[inline(always)]
pub fn plant<T: Tables>(t: T, seed: &mut Seed) -> bool {
    let Some(node) = t.node() else { return false };
    let (entry, owner) = (&raw mut seed.entry, seed.owner);
    let hash = flow::hash_of(t, entry);
    let Some(bucket) = flow::bucket_of(t, owner, hash) else { return false };
    let tag = flow::tag_of(hash);
    let now = t.now();
    // SAFETY: the caller's seed.
    let last_seen = unsafe {
        (*entry).state = flow::with_lifetime((*entry).key.protocol(), (*entry).state);
        now.wrapping_sub((*entry).last_seen)
    };
    // Without branches, for the reason given in `flow::store`.
    let answered = u32::from(seed.entry.state & state::ANSWERED != 0);
    let least = EXPIRED >> (answered * (EXPIRED.trailing_zeros() - UNASSURED));
    let mut best = 0_u64;
    t.lock(bucket);
    let mut way = 0;
    while way < FLOW_WAYS {
        // SAFETY: every pointer is a table's or the caller's, every index below its length.
        unsafe {
            let known = &raw mut (*bucket).entries[way];
            let known_tag = read(&raw const (*bucket).tags[way]);
            let score = flow::score(node, known, known_tag, now) | way as u64;
            if known_tag == tag && flow::is_same(known, entry) {
                let assumed = read(&raw const (*known).state) & state::TAKEN_UP != 0;
                best = if assumed && answered != 0 || score >= EXPIRED { EXPIRED | way as u64 } else { 0 };
                break;
            }
            if score > best {
                best = score;
            }
        }
        way += 1;
    }
    // Volatile for the reason given in `flow::store`.
    let way = best & 7;
    // SAFETY: a local value.
    let victim = unsafe { read(&raw const way) } as usize;
    let planted = best >= least && victim < FLOW_WAYS;
    if planted {
        // SAFETY: likewise.
        unsafe { flow::put(bucket, victim, tag, entry, last_seen) };
    }
    t.unlock(bucket);
    if planted && best < EXPIRED {
        t.note(Event::FlowEvicted);
    }
    planted
}
