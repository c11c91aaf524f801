//! The programs, one for each hook. Allowed packets return TC_ACT_UNSPEC, which is TCX_NEXT: other programs on the hook
//! still run, and legacy filters after them.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use portcullis_common::decide;
use portcullis_common::seed::SEEDS;

use crate::maps::{Maps, count_drop, plant};
use crate::skb::{ETHERNET, Skb, packet, write_stamp};

/// TCX_NEXT and TC_ACT_UNSPEC.
const NEXT: i32 = -1;
/// TCX_DROP and TC_ACT_SHOT.
const DROP: i32 = 2;

macro_rules! judge {
    ($context:expr, $link:expr, $decide:path) => {{
        let skb = $context.skb.skb;
        // SAFETY: the program's context.
        unsafe {
            let mut packet = packet(skb, $link);
            let outcome = $decide(Maps, &mut packet, &Skb(skb));
            match outcome {
                Ok(()) => {
                    write_stamp(skb, packet.stamp);
                    NEXT
                }
                Err(why) => {
                    count_drop(why, packet.size);
                    DROP
                }
            }
        }
    }};
}

/// tc ingress of a pod's host veth.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    judge!(context, ETHERNET, decide::from_pod)
}

/// tc egress of a pod's host veth.
#[classifier]
pub fn to_pod(context: TcContext) -> i32 {
    judge!(context, ETHERNET, decide::to_pod)
}

/// tc egress of an exit with Ethernet headers.
#[classifier]
pub fn to_uplink(context: TcContext) -> i32 {
    judge!(context, ETHERNET, decide::to_uplink)
}

/// tc egress of an exit without link-layer headers.
#[classifier]
pub fn to_uplink_l3(context: TcContext) -> i32 {
    judge!(context, 0, decide::to_uplink)
}

/// tc ingress of an exit with Ethernet headers.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    judge!(context, ETHERNET, decide::from_uplink)
}

/// tc ingress of an exit without link-layer headers.
#[classifier]
pub fn from_uplink_l3(context: TcContext) -> i32 {
    judge!(context, 0, decide::from_uplink)
}

/// Nothing at all: what benchmarks subtract.
#[classifier]
pub fn nothing(_context: TcContext) -> i32 {
    NEXT
}

/// Drops everything: what stands in for a program of ours while that is moved before another, so that nothing passes
/// between.
#[classifier]
pub fn closed(_context: TcContext) -> i32 {
    DROP
}

/// The time in jiffies, for user space, which cannot ask otherwise. Run by BPF_PROG_TEST_RUN, attached nowhere.
#[classifier]
pub fn clock(_context: TcContext) -> i32 {
    use portcullis_common::Tables;
    Maps.now() as i32
}

/// Enters flows that user space has learnt of; tells how many. Run by BPF_PROG_TEST_RUN on a frame of seeds, attached
/// nowhere.
#[classifier]
pub fn seed(context: TcContext) -> i32 {
    let mut planted = 0;
    let mut index = 0;
    while index < SEEDS as u32 {
        planted += plant(context.skb.skb, index);
        index += 1;
    }
    planted as i32
}
