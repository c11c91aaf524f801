//! Two CPUs at once on one bucket of flows: nobody reads an entry that is half one thing and half another, nor one that is
//! another flow's.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use portcullis_common::Address;
use portcullis_common::flow::{self, FlowBucket, FlowEntry, FlowKey};
use portcullis_common::layout::{EndpointRow, InterfaceBucket, NarrowBucket, NodeConfig, Size, WideBucket};
use portcullis_common::seed::{self, Seed};
use portcullis_common::tables::{Event, Tables, Work};

/// One bucket, as the kernel's map has it, with a lock that spins as the kernel's does.
struct Shared {
    bucket: UnsafeCell<FlowBucket>,
    node: NodeConfig,
    locked_reads: bool,
}

// SAFETY: the bucket is read and written by volatile accesses of words, as programs on several CPUs do it.
unsafe impl Sync for Shared {}

/// One CPU: the bucket, and working memory of its own.
#[derive(Clone, Copy)]
struct Cpu<'a> {
    shared: &'a Shared,
    work: *mut Work,
}

impl Tables for Cpu<'_> {
    fn work(self) -> Option<*mut Work> {
        Some(self.work)
    }
    fn node(self) -> Option<*const NodeConfig> {
        Some(&raw const self.shared.node)
    }
    fn flows(self, _slot: u32, _hash: u32) -> Option<*mut FlowBucket> {
        Some(self.shared.bucket.get())
    }
    fn confirmed(self, _hash: u32) -> Option<*mut FlowBucket> {
        None
    }
    fn locked_reads(self) -> bool {
        self.shared.locked_reads
    }
    fn lock(self, bucket: *mut FlowBucket) {
        let lock = lock_of(bucket);
        while lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
    }
    fn unlock(self, bucket: *mut FlowBucket) {
        lock_of(bucket).store(0, Ordering::Release);
    }
    fn now(self) -> u32 {
        1
    }
    fn interfaces(self, _bucket: u32) -> Option<*const InterfaceBucket> {
        None
    }
    fn endpoint(self, _slot: u32) -> u64 {
        0
    }
    fn row(self, _index: u32) -> Option<*const EndpointRow> {
        None
    }
    fn narrow(self, _bucket: u32) -> Option<*const NarrowBucket> {
        None
    }
    fn wide(self, _bucket: u32) -> Option<*const WideBucket> {
        None
    }
    fn range(self, _bank: u32, _address: &Address) -> u64 {
        0
    }
    fn port_class(self, _element: u32, _place: usize) -> u16 {
        0
    }
    fn count(self, _rule: u32, _size: Size) {}
    fn note(self, _event: Event) {}
}

fn lock_of<'a>(bucket: *mut FlowBucket) -> &'a AtomicU32 {
    // SAFETY: an aligned word of the bucket, which nothing else accesses.
    unsafe { AtomicU32::from_ptr(&raw mut (*bucket).lock.val) }
}

/// Keys that share the bucket: more than it has ways.
const KEYS: u64 = 12;

fn key(number: u64) -> FlowKey {
    FlowKey { peer: Address::v4(number as u32), local: Address::v4(7), ports: number | 80 << 16 | 6 << 32 }
}

/// The entry of a key under a revision: every field tells both.
fn entry(number: u64, revision: u32) -> FlowEntry {
    let mark = revision.wrapping_mul(0x9e37_79b9) ^ number as u32;
    FlowEntry {
        key: key(number),
        incarnation: 3,
        revision,
        rule: mark,
        peer_incarnation: !mark,
        provenance: mark as u16,
        ..FlowEntry::default()
    }
}

/// Each CPU in turn stores an entry, looks one up, and enters a seed. Gives how many were found.
fn run(shared: &Shared, cpu: u32, rounds: u32) -> u64 {
    let mut work = Work::default();
    let tables = Cpu { shared, work: &raw mut work };
    let mut found = 0;
    for round in 1..=rounds {
        let number = u64::from(round.wrapping_mul(7 + cpu) % KEYS as u32);
        let revision = round * 2 + cpu;
        if round % 3 == 0 {
            seed::plant(tables, &mut Seed { entry: entry(number, revision), owner: 0, reserved: 0 });
        } else {
            // SAFETY: this CPU's own memory.
            unsafe { (*tables.work).flows[0] = entry(number, revision) };
            flow::store(tables, 0, 0);
        }
        let asked = u64::from(round.wrapping_mul(5 + cpu) % KEYS as u32);
        // SAFETY: likewise.
        unsafe {
            (*tables.work).flows[0] = FlowEntry { key: key(asked), incarnation: 3, ..FlowEntry::default() };
        }
        if flow::find(tables, 0, 0) {
            // SAFETY: likewise.
            let read = unsafe { (*tables.work).flows[0] };
            let whole = entry(asked, read.revision);
            let told = (read.rule, read.peer_incarnation, read.provenance);
            assert_eq!(told, (whole.rule, whole.peer_incarnation, whole.provenance), "key {asked}: torn, or another's");
            found += 1;
        }
    }
    found
}

#[test]
fn two_cpus_on_one_bucket_read_whole_entries_of_their_own_flow() {
    for locked_reads in [false, true] {
        // SAFETY: all zeroes is an empty bucket.
        let bucket = UnsafeCell::new(unsafe { std::mem::zeroed() });
        let node = NodeConfig { seed: 5, lifetimes: [1000; 16], ..NodeConfig::default() };
        let shared = Shared { bucket, node, locked_reads };
        let found: u64 = thread::scope(|scope| {
            let shared = &shared;
            let cpus = [0, 1].map(|cpu| scope.spawn(move || run(shared, cpu, 400_000)));
            cpus.into_iter().map(|cpu| cpu.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
        });
        assert!(found > 10_000, "they met: {found}");
    }
}
