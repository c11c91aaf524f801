//! The few calls of the kernel that benchmarks need: BPF_PROG_TEST_RUN, and a program that gives every run another source
//! port and then calls the program under test, so that each packet is of a flow that was never seen.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::Result;
use crate::frame::SOURCE_PORT;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_ARRAY: u32 = 3;
const SCHED_CLS: u32 = 3;

fn bpf(command: libc::c_int, attributes: &mut [u64; 16]) -> io::Result<libc::c_long> {
    // SAFETY: zero-extended attributes, valid for the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Runs a program `repeat` times on one packet. Gives its last answer and the nanoseconds of one run.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8], repeat: u32) -> Result<(i32, u32)> {
    let mut attributes = [0; 16];
    attributes[..8].copy_from_slice(&[
        pair(program.as_raw_fd() as u32, 0),
        pair(frame.len() as u32, 0),
        frame.as_ptr() as u64,
        0,
        pair(repeat, 0),
        pair(context.len() as u32, 0),
        context.as_ptr() as u64,
        0,
    ]);
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok(((attributes[0] >> 32) as i32, (attributes[4] >> 32) as u32))
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// One instruction.
const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (destination as u64 | (source as u64) << 4) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// Loads the program that rotates the source port and goes on with `next`.
pub(crate) fn in_front_of(next: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let owned = |answer: libc::c_long| {
        // SAFETY: a file descriptor that the kernel has just given us.
        unsafe { OwnedFd::from_raw_fd(answer as i32) }
    };
    let mut attributes = [0; 16];
    attributes[..2].copy_from_slice(&[pair(PROG_ARRAY, 4), pair(4, 1)]);
    let array = owned(bpf(MAP_CREATE, &mut attributes)?);

    let (key, value) = (0_u32, next.as_raw_fd());
    let mut attributes = [0; 16];
    attributes[..4].copy_from_slice(&[array.as_raw_fd() as u64, (&raw const key) as u64, (&raw const value) as u64, 0]);
    bpf(MAP_UPDATE, &mut attributes)?;

    let port = SOURCE_PORT as i16;
    let program = [
        instruction(0xbf, 6, 1, 0, 0),                 // r6 = r1
        instruction(0x61, 2, 1, 76, 0),                // r2 = skb->data
        instruction(0x61, 3, 1, 80, 0),                // r3 = skb->data_end
        instruction(0xbf, 4, 2, 0, 0),                 // r4 = r2
        instruction(0x07, 4, 0, 0, 64),                // r4 += 64
        instruction(0x2d, 4, 3, 3, 0),                 // if r4 > r3 skip the next three
        instruction(0x69, 5, 2, port, 0),              // r5 = *(u16 *)(r2 + port)
        instruction(0x07, 5, 0, 0, 1),                 // r5 += 1
        instruction(0x6b, 2, 5, port, 0),              // *(u16 *)(r2 + port) = r5
        instruction(0xbf, 1, 6, 0, 0),                 // r1 = r6
        instruction(0x18, 2, 1, 0, array.as_raw_fd()), // r2 = the map
        0,                                             // (the upper half of that)
        instruction(0xb7, 3, 0, 0, 0),                 // r3 = 0
        instruction(0x85, 0, 0, 0, 12),                // tail call
        instruction(0xb7, 0, 0, 0, 77),                // r0 = 77: the call failed
        instruction(0x95, 0, 0, 0, 0),                 // exit
    ];
    let licence = c"GPL";
    let mut attributes = [0; 16];
    attributes[..3].copy_from_slice(&[
        pair(SCHED_CLS, program.len() as u32),
        program.as_ptr() as u64,
        licence.as_ptr() as u64,
    ]);
    let program = owned(bpf(PROG_LOAD, &mut attributes)?);
    Ok((program, array))
}
