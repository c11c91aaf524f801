//! The maps, and [`Tables`] over them. Sizes are the defaults; the loader sets them and the constants that mask indices.

use aya_ebpf::bindings::{__sk_buff, bpf_spin_lock as kernel_lock};
use aya_ebpf::btf_maps;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_skb_load_bytes, bpf_spin_lock, bpf_spin_unlock};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key};
use portcullis_common::flow::{self, FlowBucket};
use portcullis_common::layout::{
    BANKS, CHUNK, CHUNKS, Counter, EndpointRow, INTERFACE_BUCKETS, InterfaceBucket, NarrowBucket, NodeConfig,
    PortChunk, RangeKey, RuleName, Size, VerdictWord, WideBucket,
};
use portcullis_common::layout::{Identity, Meta};
use portcullis_common::packet::{Drop, REASONS, Shape};
use portcullis_common::seed::{self, SEEDS_AT, Seed};
use portcullis_common::tables::{Event, Tables, Work};
use portcullis_common::unusual::{self, Came, Course};
use portcullis_common::verdict::{self, Asked};
use portcullis_common::{Address, Stamp, stamp};
use portcullis_common::{classify, decide, exit, fragment, related};

/// User space writes these arrays through memory that it maps, one aligned word at a time.
const MMAPABLE: u32 = 1 << 10;

#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);
/// One seed at a time. Not in `WORK`: the program that enters seeds is run by a system call, and before kernel 5.19 packets
/// interrupt it, whose decisions use that.
#[map]
static SEED: PerCpuArray<Seed> = PerCpuArray::with_max_entries(1, 0);
#[map]
static NODE: Array<NodeConfig> = Array::with_max_entries(1, MMAPABLE);
#[map]
static INTERFACES: Array<InterfaceBucket> = Array::with_max_entries(INTERFACE_BUCKETS, MMAPABLE);
#[map]
static ENDPOINTS: Array<u64> = Array::with_max_entries(stamp::SLOTS, MMAPABLE);
#[map]
static ROWS: Array<EndpointRow> = Array::with_max_entries(4 * stamp::SLOTS, MMAPABLE);
#[map]
static NARROW: Array<NarrowBucket> = Array::with_max_entries(1024, MMAPABLE);
#[map]
static WIDE: Array<WideBucket> = Array::with_max_entries(1024, MMAPABLE);
#[map]
static PORTS: Array<PortChunk> = Array::with_max_entries(BANKS * CHUNKS, MMAPABLE);
#[map]
static RANGES: LpmTrie<RangeKey, u64> = LpmTrie::with_max_entries(1024, 0);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1024, 0);
#[map]
static DROPS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(REASONS, 0);
/// What a new agent learns from the one before it; no program reads these three.
#[map]
static META: Array<Meta> = Array::with_max_entries(1, MMAPABLE);
#[map]
static IDENTITIES: Array<Identity> = Array::with_max_entries(stamp::SLOTS, 0);
#[map]
static RULES: Array<RuleName> = Array::with_max_entries(1024, 0);
// The verifier finds the lock in a bucket by BTF, so these two are declared by BTF.
#[btf_map]
static FLOWS: btf_maps::Array<FlowBucket, 1024, 0> = btf_maps::Array::new();
#[btf_map]
static CONFIRMED: btf_maps::Array<FlowBucket, 1024, 0> = btf_maps::Array::new();

/// What the loader fixes before the programs are verified; the verifier sees constants.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Constants {
    /// Buckets of the narrow table less one.
    narrow_mask: u32,
    /// Buckets of the wide table less one.
    wide_mask: u32,
    /// Logarithm of the buckets of one endpoint's share of flows.
    share_bits: u32,
    /// Buckets of the table of confirmed flows less one.
    confirmed_mask: u32,
    /// 1 where readers of flows take the lock.
    locked_reads: u32,
    /// Where the stamp travels: see [`crate::skb`].
    pub(crate) stamp_in: u32,
    /// The lowest of the sixteen bits of `mark` that carry it.
    pub(crate) stamp_shift: u32,
    /// 1 in the test build: device and stamp are taken from `cb[]`.
    pub(crate) test: u32,
}

#[unsafe(no_mangle)]
static CONSTANTS: Constants = Constants {
    narrow_mask: 1023,
    wide_mask: 1023,
    share_bits: 2,
    confirmed_mask: 1023,
    locked_reads: 0,
    stamp_in: 0,
    stamp_shift: 0,
    test: 0,
};

/// The constants as the loader set them.
#[inline(always)]
pub(crate) fn constants() -> Constants {
    // SAFETY: a valid static. Volatile, because the loader changes what the compiler believes constant.
    unsafe { (&raw const CONSTANTS).read_volatile() }
}

/// One constant.
macro_rules! constant {
    ($field:ident) => {
        // SAFETY: as in `constants`.
        unsafe { (&raw const CONSTANTS.$field).read_volatile() }
    };
}

/// Counts a drop.
#[inline(always)]
pub(crate) fn count_drop(reason: Drop, size: Size) {
    bump(&DROPS, reason.0, size);
}

#[inline(always)]
fn bump(counters: &PerCpuArray<Counter>, index: u32, size: Size) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the map's own element of this CPU, which nothing interrupts while the program runs on it... but a
        // nested program could; a lost count is then the worst.
        unsafe {
            (*counter).packets += size.packets();
            (*counter).bytes += size.bytes();
        }
    }
}

/// The maps as [`Tables`].
#[derive(Clone, Copy)]
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn work(self) -> Option<*mut Work> {
        WORK.get_ptr_mut(0)
    }
    #[inline(always)]
    fn find_flow_locked(self, which: u32, owner: u32) -> bool {
        find_flow_locked(which, owner) != 0
    }
    #[inline(always)]
    fn peer_value(self, bank: u32, address: &Address) -> u64 {
        peer_value(bank, address.words[0], address.words[1])
    }
    #[inline(always)]
    fn store_flow(self, which: u32, owner: u32) {
        store_flow(which, owner);
    }
    #[inline(always)]
    fn egress(self, slot: u32, to: Address, asked: Asked) -> VerdictWord {
        VerdictWord(egress(slot, to.words[0], to.words[1], asked.0))
    }
    #[inline(always)]
    fn ingress(self, slot: u32, from: Address, asked: Asked) -> VerdictWord {
        VerdictWord(ingress(slot, from.words[0], from.words[1], asked.0))
    }
    #[inline(always)]
    fn judge_exit(self, sender: u32, stamp: Stamp, size: Size) -> Drop {
        Drop(judge_exit(sender, stamp.0.into(), size.0))
    }
    #[inline(always)]
    fn exit_confirms(self, size: Size) -> bool {
        exit_confirms(size.0) != 0
    }
    #[inline(always)]
    fn unusual_from_pod(self, slot: u32, shape: Shape, size: Size) -> Course {
        Course(unusual_from_pod(slot, shape.0, size.0))
    }
    #[inline(always)]
    fn unusual_to_pod(self, slot: u32, shape: Shape, size: Size, came: Came) -> Course {
        Course(unusual_to_pod(slot, shape.0, size.0, came.0))
    }
    #[inline(always)]
    fn unusual_at_exit(self, sender: u32, shape: Shape, size: Size) -> Course {
        Course(unusual_at_exit(sender, shape.0, size.0))
    }
    #[inline(always)]
    fn remember_fragment(self, slot: u32, hook: u32) -> Drop {
        Drop(remember_fragment(slot, hook))
    }
    #[inline(always)]
    fn recall_fragment(self, slot: u32, hook: u32) -> Drop {
        Drop(recall_fragment(slot, hook))
    }
    #[inline(always)]
    fn keep(self, which: u32, slot: u32, owner: u32) -> bool {
        keep(which, slot, owner) != 0
    }
    #[inline(always)]
    fn related_confirms(self, size: Size) -> bool {
        related_confirms(size.0) != 0
    }
    #[inline(always)]
    fn node(self) -> Option<*const NodeConfig> {
        NODE.get_ptr(0)
    }
    #[inline(always)]
    fn interfaces(self, bucket: u32) -> Option<*const InterfaceBucket> {
        INTERFACES.get_ptr(bucket)
    }
    #[inline(always)]
    fn endpoint(self, slot: u32) -> u64 {
        // SAFETY: the map's own element, an aligned word.
        ENDPOINTS.get_ptr(slot).map_or(0, |word| unsafe { word.read_volatile() })
    }
    #[inline(always)]
    fn row(self, index: u32) -> Option<*const EndpointRow> {
        ROWS.get_ptr(index)
    }
    #[inline(always)]
    fn narrow(self, bucket: u32) -> Option<*const NarrowBucket> {
        NARROW.get_ptr(bucket & constant!(narrow_mask))
    }
    #[inline(always)]
    fn wide(self, bucket: u32) -> Option<*const WideBucket> {
        WIDE.get_ptr(bucket & constant!(wide_mask))
    }
    #[inline(always)]
    fn range(self, bank: u32, address: &Address) -> u64 {
        RANGES.get(Key::new(160, RangeKey::new(bank, address))).copied().unwrap_or(0)
    }
    #[inline(always)]
    fn port_class(self, element: u32, place: usize) -> u16 {
        let place = place & (CHUNK - 1);
        // SAFETY: the map's own element, the index masked to its length.
        PORTS.get_ptr(element).map_or(0, |chunk| unsafe { (&raw const (*chunk).classes[place]).read_volatile() })
    }
    #[inline(always)]
    fn flows(self, slot: u32, hash: u32) -> Option<*mut FlowBucket> {
        let bits = constant!(share_bits);
        FLOWS.get_ptr_mut((slot << bits) | (hash & ((1 << bits) - 1)))
    }
    #[inline(always)]
    fn confirmed(self, hash: u32) -> Option<*mut FlowBucket> {
        CONFIRMED.get_ptr_mut(hash & constant!(confirmed_mask))
    }
    #[inline(always)]
    fn locked_reads(self) -> bool {
        constant!(locked_reads) != 0
    }
    #[inline(always)]
    fn lock(self, bucket: *mut FlowBucket) {
        // SAFETY: the lock of a map's element.
        unsafe { bpf_spin_lock((&raw mut (*bucket).lock).cast::<kernel_lock>()) };
    }
    #[inline(always)]
    fn unlock(self, bucket: *mut FlowBucket) {
        // SAFETY: likewise, taken before.
        unsafe { bpf_spin_unlock((&raw mut (*bucket).lock).cast::<kernel_lock>()) };
    }
    #[inline(always)]
    fn now(self) -> u32 {
        // SAFETY: no arguments.
        (unsafe { bpf_jiffies64() }) as u32
    }
    #[inline(always)]
    fn count(self, rule: u32, size: Size) {
        bump(&COUNTERS, rule, size);
    }
    #[inline(always)]
    fn note(self, event: Event) {
        bump(&DROPS, event as u32, Size::one(0));
    }
}

/// Enters the seed at a place in the frame that the program is run on; 1 if it was entered. A global function: see
/// [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn plant(skb: *mut __sk_buff, index: u32) -> u32 {
    let Some(place) = SEED.get_ptr_mut(0) else { return 0 };
    let offset = SEEDS_AT as u32 + index * size_of::<Seed>() as u32;
    // SAFETY: the program's context; the helper checks that the frame is long enough, and fills one seed.
    let status = unsafe { bpf_skb_load_bytes(skb.cast(), offset, place.cast(), size_of::<Seed>() as u32) };
    if status != 0 {
        return 0;
    }
    // SAFETY: this CPU's element, which only this program uses; see `SEED`.
    seed::plant(Maps, unsafe { &mut *place }).into()
}

/// Global functions: the verifier follows each once, with any arguments, and not again where it is called (kernel 5.6,
/// 51c39bb1d5d1). Until 5.12 they may take numbers only.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn peer_value(bank: u32, first: u64, second: u64) -> u64 {
    classify::peer_value(Maps, classify::seed(Maps), bank, &Address { words: [first, second] })
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_flow_locked(which: u32, owner: u32) -> u32 {
    flow::find_locked(Maps, which, owner).into()
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn store_flow(which: u32, owner: u32) -> u32 {
    flow::store(Maps, which, owner);
    0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn egress(slot: u32, first: u64, second: u64, asked: u64) -> u64 {
    verdict::egress(Maps, slot, Address { words: [first, second] }, Asked(asked)).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn ingress(slot: u32, first: u64, second: u64, asked: u64) -> u64 {
    verdict::ingress(Maps, slot, Address { words: [first, second] }, Asked(asked)).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn judge_exit(sender: u32, stamp: u32, size: u64) -> u32 {
    exit::judge(Maps, sender, Stamp(stamp as u16), Size(size)).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn exit_confirms(size: u64) -> u32 {
    exit::confirms(Maps, Size(size)).into()
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn unusual_from_pod(slot: u32, shape: u32, size: u64) -> u32 {
    unusual::from_pod(Maps, slot, Shape(shape), Size(size)).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn unusual_to_pod(slot: u32, shape: u32, size: u64, came: u64) -> u32 {
    unusual::to_pod(Maps, slot, Shape(shape), Size(size), Came(came)).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn unusual_at_exit(sender: u32, shape: u32, size: u64) -> u32 {
    unusual::at_exit(Maps, sender, Shape(shape), Size(size)).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn remember_fragment(slot: u32, hook: u32) -> u32 {
    fragment::remember(Maps, slot, hook).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn recall_fragment(slot: u32, hook: u32) -> u32 {
    fragment::recall(Maps, slot, hook).0
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn related_confirms(size: u64) -> u32 {
    related::confirms(Maps, Size(size)).into()
}

/// See [`peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn keep(which: u32, slot: u32, owner: u32) -> u32 {
    decide::keep(Maps, which, slot, owner).into()
}
