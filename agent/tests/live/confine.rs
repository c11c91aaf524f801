//! A program with few capabilities, as a container's runtime leaves it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// linux/capability.h.
const NUMBERS: [(&str, u32); 5] =
    [("NET_BROADCAST", 11), ("NET_ADMIN", 12), ("SYS_RESOURCE", 24), ("PERFMON", 38), ("BPF", 39)];
/// What systemd leaves services, and so containers, of memory that counts as locked: 64 KiB, later 8 MiB.
const LOCKED: u64 = 64 << 10;

/// Leaves a command these capabilities and no other, and no more memory than a container has, as a runtime does: the
/// program of user 0 has what is in the bounding set.
pub(crate) fn confine(command: &mut Command, names: &[String]) {
    let kept: Vec<u32> = names.iter().map(|name| NUMBERS.iter().find(|(known, _)| known == name).unwrap().1).collect();
    // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: LOCKED, rlim_max: LOCKED };
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // Until the kernel knows no further one.
            for number in (0..64).filter(|number| !kept.contains(number)) {
                if libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) != 0 && number < 38 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
