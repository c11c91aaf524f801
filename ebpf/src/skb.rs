//! What the programs read from and write to the packet's metadata. The only place that knows where the stamp travels.

use core::mem::MaybeUninit;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_pull_data};
use portcullis_common::Stamp;
use portcullis_common::decide::Packet;
use portcullis_common::layout::Size;
use portcullis_common::packet::{Drop, Frame, Plain, Readable, Shape, protocol, read_all, source_mac};
use portcullis_common::tables::{Tables, Work};

use crate::maps::{Maps, constants};

/// The length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// The length of an IPv6 header.
const IPV6_HEADER: u32 = 40;
/// The length of a hop-by-hop header with a jumbo payload option alone (RFC 2675).
const JUMBO_OPTION: u32 = 8;
/// The stamp is `skb->tc_index`.
pub(crate) const STAMP_IN_TC_INDEX: u32 = 0;
/// Bytes that must be readable at once: link header, IPv6's, and TCP's or a neighbour advertisement's. What stands behind
/// options and extension headers is loaded by the kernel's helper, wherever it is.
const READABLE: u32 = 14 + 40 + 24;

/// The metadata that a decision needs.
///
/// # Safety
/// `skb` is the program's context.
#[inline(always)]
pub(crate) unsafe fn packet(skb: *mut __sk_buff, link: usize) -> Packet {
    // SAFETY: the caller's. Volatile, so that every field is read by one load of its own width, as the kernel demands.
    unsafe {
        let constants = constants();
        // Every field is read in its own place and order, so that the compiler cannot merge two reads into one through a
        // computed address, which the kernel refuses.
        let mut packet = Packet {
            ifindex: (&raw const (*skb).ifindex).read_volatile(),
            ingress_ifindex: (&raw const (*skb).ingress_ifindex).read_volatile(),
            size: Size::one((&raw const (*skb).len).read_volatile()),
            link,
            vlan: (&raw const (*skb).vlan_present).read_volatile() != 0,
            stamp: Stamp((&raw const (*skb).tc_index).read_volatile() as u16),
        };
        if constants.stamp_in != STAMP_IN_TC_INDEX {
            packet.stamp = Stamp(((&raw const (*skb).mark).read_volatile() >> (constants.stamp_shift & 31)) as u16);
        }
        if constants.test != 0 {
            packet.ifindex = (&raw const (*skb).cb[0]).read_volatile();
            packet.ingress_ifindex = (&raw const (*skb).cb[1]).read_volatile();
            packet.stamp = Stamp((&raw const (*skb).cb[2]).read_volatile() as u16);
        }
        if (&raw const (*skb).gso_segs).read_volatile() > 1 {
            packet.size = Size(wire_size(skb, link as u32));
        }
        packet
    }
}

/// The size on the wire of a packet that a device will cut into segments. A global function: see
/// [`crate::maps::peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn wire_size(skb: *mut __sk_buff, link: u32) -> u64 {
    // SAFETY: the program's context.
    unsafe {
        let bytes = (&raw const (*skb).len).read_volatile();
        let segments = (&raw const (*skb).gso_segs).read_volatile();
        if segments < 2 {
            return Size::one(bytes).0;
        }
        let link = if link == 0 { 0 } else { ETHERNET as u32 };
        let headers = segment_headers(skb, link);
        // What is too long for IPv6's own field tells its length in a hop-by-hop option, which the kernel takes away before
        // it makes segments (`ipv6_hopopt_jumbo_remove`).
        let is_jumbo = bytes > link + IPV6_HEADER + 0xffff
            && headers > IPV6_HEADER + JUMBO_OPTION
            && load_byte(skb, link).is_some_and(|first| first >> 4 == 6)
            && load_byte(skb, link + 6) == Some(0);
        let option = if is_jumbo { JUMBO_OPTION } else { 0 };
        Size::segmented(bytes - option, segments, link + headers - option).0
    }
}

/// The bytes of IP and transport headers that every segment carries (as `qdisc_pkt_len_init` in net/core/dev.c counts
/// them). 0 where the headers are not those of TCP or UDP, which the kernel does not segment.
#[inline(always)]
unsafe fn segment_headers(skb: *mut __sk_buff, link: u32) -> u32 {
    // SAFETY: the caller's context. Every load is checked by the helper and goes to the stack.
    unsafe {
        let Some(first) = load_byte(skb, link) else { return 0 };
        let (mut length, mut next) = if first >> 4 == 4 {
            let Some(protocol) = load_byte(skb, link + 9) else { return 0 };
            (u32::from(first & 0xf) << 2, protocol)
        } else {
            let Some(next) = load_byte(skb, link + 6) else { return 0 };
            (40, next)
        };
        let mut headers = 0;
        // IPv6 extension headers, as many as anybody sends before segments.
        while headers < 4 && matches!(next, 0 | 43 | 60) && first >> 4 == 6 {
            let (Some(following), Some(units)) = (load_byte(skb, link + length), load_byte(skb, link + length + 1))
            else {
                return 0;
            };
            next = following;
            length += (u32::from(units) + 1) << 3;
            headers += 1;
        }
        match next {
            protocol::TCP => match load_byte(skb, link + length + 12) {
                Some(offset) => length + (u32::from(offset >> 4) << 2),
                None => 0,
            },
            protocol::UDP => length + 8,
            _ => 0,
        }
    }
}

#[inline(always)]
unsafe fn load_byte(skb: *mut __sk_buff, offset: u32) -> Option<u8> {
    let mut byte = 0_u8;
    // SAFETY: the caller's context, and one byte of stack.
    let status = unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut byte).cast(), 1) };
    (status == 0).then_some(byte)
}

/// Writes the stamp that a packet goes on with.
///
/// # Safety
/// `skb` is the program's context.
#[inline(always)]
pub(crate) unsafe fn write_stamp(skb: *mut __sk_buff, stamp: Stamp) {
    // SAFETY: the caller's.
    unsafe {
        let constants = constants();
        let value = u32::from(stamp.0);
        // The fences keep the compiler from merging the stores into one through a computed address: the kernel allows
        // the context to be written at constant offsets only.
        if constants.test != 0 {
            // A benchmark runs one packet many times, which must find the stamp that it came with each time.
            if (&raw const (*skb).cb[3]).read_volatile() != 0 {
                compiler_fence(Ordering::SeqCst);
                (&raw mut (*skb).cb[4]).write_volatile(value);
                compiler_fence(Ordering::SeqCst);
                return;
            }
            compiler_fence(Ordering::SeqCst);
            (&raw mut (*skb).cb[2]).write_volatile(value);
            compiler_fence(Ordering::SeqCst);
            return;
        }
        if constants.stamp_in == STAMP_IN_TC_INDEX {
            compiler_fence(Ordering::SeqCst);
            (&raw mut (*skb).tc_index).write_volatile(value);
            return;
        }
        let shift = constants.stamp_shift & 31;
        let mark = (&raw const (*skb).mark).read_volatile();
        (&raw mut (*skb).mark).write_volatile(mark & !(0xffff << shift) | value << shift);
        compiler_fence(Ordering::SeqCst);
    }
}

/// A packet's readable bytes.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    data: usize,
    end: usize,
    length: usize,
}

impl Bytes {
    /// The bytes of a packet, its headers brought into the linear part if they are not.
    ///
    /// # Safety
    /// `skb` is the program's context.
    #[inline(always)]
    pub(crate) unsafe fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let length = (&raw const (*skb).len).read_volatile();
            let bytes = Self::linear(skb);
            if bytes.data + READABLE as usize > bytes.end {
                let wanted = if length < READABLE { length } else { READABLE };
                if bytes.data + wanted as usize > bytes.end {
                    bpf_skb_pull_data(skb, wanted);
                    return Self::linear(skb);
                }
            }
            bytes
        }
    }

    #[inline(always)]
    unsafe fn linear(skb: *mut __sk_buff) -> Self {
        // SAFETY: the caller's.
        unsafe {
            Self {
                data: (&raw const (*skb).data).read_volatile() as usize,
                end: (&raw const (*skb).data_end).read_volatile() as usize,
                length: (&raw const (*skb).len).read_volatile() as usize,
            }
        }
    }
}

impl Frame for Bytes {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let start = self.data + offset;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet. The address may be unaligned, which the machines that the kernel verifies this for
        // allow; the compiler must not assume otherwise than by T, and emits loads of T's words.
        Some(unsafe { (start as *const T).read() })
    }
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }
}

/// All of a packet, linear or not, by a helper for each load: no range of packet pointers has to be proved.
struct Anywhere(*mut __sk_buff);

impl Frame for Anywhere {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the program's context, and a place of the size that is told.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset as u32, value.as_mut_ptr().cast(), size_of::<T>() as u32)
        };
        // SAFETY: filled, and every bit pattern is a value.
        (failed == 0).then(|| unsafe { value.assume_init() })
    }
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the program's context.
        unsafe { (&raw const (*self.0).len).read_volatile() as usize }
    }
}

/// A packet by its context.
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Readable for Skb {
    #[inline(always)]
    unsafe fn read_headers(&self, work: *mut Work, link: usize) -> Shape {
        // What the kernel has not linearised, or what is not of the most usual kind, goes the long way: a call and its
        // return cost as much as reading the headers here.
        // SAFETY: the program's context, and the working memory of this decision.
        if unsafe { (*work).headers.parse_usual(&Bytes::linear(self.0), link) } {
            return Shape::IP;
        }
        // The function finds the working memory itself: it may not be handed a pointer to it (before 5.12).
        Shape(read_headers(self.0, link as u32))
    }
    #[inline(always)]
    fn source_mac(&self) -> u64 {
        // SAFETY: the program's context. Whatever enters a device that writes Ethernet headers has one in its linear part
        // (eth_type_trans).
        source_mac(&unsafe { Bytes::linear(self.0) })
    }
}

/// Reads the headers into the working memory. A global function: see [`crate::maps::peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn read_headers(skb: *mut __sk_buff, link: u32) -> u32 {
    let Some(work) = Maps.work() else { return Drop::MALFORMED.0 };
    // SAFETY: the program's context, and the working memory of this decision.
    unsafe {
        let bytes = Bytes::of(skb);
        let link = if link == 0 { 0 } else { ETHERNET };
        read_all(&bytes, work, link, |offset, quoted| Shape(read_rare(skb, offset as u32, quoted.into()))).0
    }
}

/// Reads the IP packet at an offset the long way, or one that an ICMP error quotes. See [`crate::maps::peer_value`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn read_rare(skb: *mut __sk_buff, offset: u32, quoted: u32) -> u32 {
    let Some(work) = Maps.work() else { return Drop::MALFORMED.0 };
    // SAFETY: the working memory of this decision.
    unsafe {
        let headers = if quoted == 0 { &mut (*work).headers } else { &mut (*work).quoted };
        headers.parse_rare(&Anywhere(skb), (offset & 0xffff) as usize, quoted != 0).0
    }
}
