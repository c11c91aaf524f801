//! The tables in ordinary memory, read by the same decision that the packet programs make: for tests, and for answers
//! without a kernel.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;

use ipnet::IpNet;
use portcullis_common::flow::FlowBucket;
use portcullis_common::layout::{Counter, EndpointRow, InterfaceBucket, NarrowBucket, NodeConfig, Size, WideBucket};
use portcullis_common::packet::{Drop, REASONS};
use portcullis_common::stamp::SLOTS;
use portcullis_common::tables::{Event, Tables, Work};
use portcullis_common::{Address, layout::INTERFACE_BUCKETS};

use super::image::{Image, Regions, Sizes};

/// Peer values of ranges.
pub type Ranges = BTreeMap<(u32, IpNet), u64>;

/// A whole set of tables in ordinary memory.
pub struct MemoryTables {
    /// The part that user space writes word by word.
    pub image: Image,
    /// The ranges of each bank.
    pub ranges: Ranges,
    /// Jiffies, as the decision reads them.
    pub now: u32,
    kernel: UnsafeCell<Kernel>,
}

/// What only decisions write.
struct Kernel {
    flows: Vec<FlowBucket>,
    confirmed: Vec<FlowBucket>,
    counters: Vec<Counter>,
    drops: Vec<Counter>,
    work: Work,
}

// SAFETY: all zeroes is an empty bucket.
const EMPTY: FlowBucket = unsafe { std::mem::zeroed() };

impl MemoryTables {
    /// Empty tables.
    #[must_use]
    pub fn new(sizes: Sizes) -> Self {
        let image = Image::new(Regions::ordinary(&sizes), sizes);
        image.set_seed(0x0123_4567_89ab_cdef);
        image.set_lifetimes(&[1_000_000; 16]);
        let kernel = Kernel {
            flows: vec![EMPTY; (sizes.endpoints as usize) << sizes.share_bits],
            confirmed: vec![EMPTY; sizes.confirmed_buckets as usize],
            counters: vec![Counter::default(); sizes.rules as usize],
            drops: vec![Counter::default(); REASONS as usize],
            work: Work::default(),
        };
        Self { image, ranges: Ranges::new(), now: 1, kernel: UnsafeCell::new(kernel) }
    }

    /// Forgets every flow.
    pub fn forget_flows(&mut self) {
        let kernel = self.kernel.get_mut();
        kernel.flows.fill(EMPTY);
        kernel.confirmed.fill(EMPTY);
    }

    /// The counter of a rule.
    pub fn counter(&mut self, rule: u32) -> Counter {
        self.kernel.get_mut().counters.get(rule as usize).copied().unwrap_or_default()
    }

    /// How many packets were dropped for a reason that is no rule's.
    pub fn drops(&mut self, reason: Drop) -> u64 {
        self.kernel.get_mut().drops.get(reason.0 as usize).map_or(0, |counter| counter.packets)
    }

    /// What each rule has counted since the last call, of those that have.
    pub fn take_counts(&mut self) -> Vec<(u32, Counter)> {
        let counters = &mut self.kernel.get_mut().counters;
        let counted = (0..).zip(counters.iter()).filter(|(_, counter)| counter.packets > 0);
        let counts = counted.map(|(rule, counter)| (rule, *counter)).collect();
        counters.fill(Counter::default());
        counts
    }

    /// Rules that have counted, since the last call.
    pub fn take_counted(&mut self) -> Vec<u32> {
        let counters = &mut self.kernel.get_mut().counters;
        let counted = counters.iter().enumerate().filter(|(_, counter)| counter.packets > 0);
        let rules = counted.map(|(rule, _)| rule as u32).collect();
        counters.fill(Counter::default());
        rules
    }
}

impl Tables for &MemoryTables {
    fn work(self) -> Option<*mut Work> {
        // SAFETY: decisions run one at a time, on the thread that has the tables: they are not Sync.
        Some(unsafe { &raw mut (*self.kernel.get()).work })
    }
    fn node(self) -> Option<*const NodeConfig> {
        Some(self.image.regions().node.words().as_ptr().cast())
    }
    fn interfaces(self, bucket: u32) -> Option<*const InterfaceBucket> {
        at(self.image.regions().interfaces.words(), bucket, INTERFACE_BUCKETS)
    }
    fn endpoint(self, slot: u32) -> u64 {
        if slot < SLOTS { self.image.endpoint(slot) } else { 0 }
    }
    fn row(self, index: u32) -> Option<*const EndpointRow> {
        at(self.image.regions().rows.words(), index, 4 * SLOTS)
    }
    fn narrow(self, bucket: u32) -> Option<*const NarrowBucket> {
        let buckets = self.image.sizes().narrow_buckets;
        at(self.image.regions().narrow.words(), bucket & (buckets - 1), buckets)
    }
    fn wide(self, bucket: u32) -> Option<*const WideBucket> {
        let buckets = self.image.sizes().wide_buckets;
        at(self.image.regions().wide.words(), bucket & (buckets - 1), buckets)
    }
    fn range(self, bank: u32, address: &Address) -> u64 {
        let address = std::net::IpAddr::from(*address);
        let covering = self.ranges.iter().filter(|((of, net), _)| *of == bank && net.contains(&address));
        covering.max_by_key(|((_, net), _)| net.prefix_len()).map_or(0, |(_, value)| *value)
    }
    fn port_class(self, element: u32, place: usize) -> u16 {
        let words = self.image.regions().ports.words();
        let index = element as usize * (portcullis_common::layout::CHUNK / 4) + place / 4;
        let word = words.get(index).map_or(0, |word| word.load(std::sync::atomic::Ordering::Relaxed));
        (word >> (16 * (place % 4))) as u16
    }
    fn flows(self, slot: u32, hash: u32) -> Option<*mut FlowBucket> {
        let bits = self.image.sizes().share_bits;
        // SAFETY: as in `work`.
        let flows = unsafe { &mut (*self.kernel.get()).flows };
        flows.get_mut(((slot << bits) | hash & ((1 << bits) - 1)) as usize).map(|bucket| &raw mut *bucket)
    }
    fn confirmed(self, hash: u32) -> Option<*mut FlowBucket> {
        // SAFETY: as in `work`.
        let confirmed = unsafe { &mut (*self.kernel.get()).confirmed };
        let mask = confirmed.len() - 1;
        confirmed.get_mut(hash as usize & mask).map(|bucket| &raw mut *bucket)
    }
    fn locked_reads(self) -> bool {
        false
    }
    fn lock(self, _bucket: *mut FlowBucket) {}
    fn unlock(self, _bucket: *mut FlowBucket) {}
    fn now(self) -> u32 {
        self.now
    }
    fn count(self, rule: u32, size: Size) {
        // SAFETY: as in `work`.
        let counters = unsafe { &mut (*self.kernel.get()).counters };
        bump(counters, rule, size);
    }
    fn note(self, event: Event) {
        // SAFETY: as in `work`.
        let drops = unsafe { &mut (*self.kernel.get()).drops };
        bump(drops, event as u32, Size::one(0));
    }
}

fn bump(counters: &mut [Counter], index: u32, size: Size) {
    if let Some(counter) = counters.get_mut(index as usize) {
        counter.packets += size.packets();
        counter.bytes += size.bytes();
    }
}

fn at<T>(words: &[std::sync::atomic::AtomicU64], index: u32, length: u32) -> Option<*const T> {
    let start = index as usize * (size_of::<T>() / 8);
    (index < length).then(|| words.get(start..)).flatten().map(|words| words.as_ptr().cast())
}
