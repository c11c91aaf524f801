//! Waiting until every packet program that was running has ended.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use super::DataplaneError;
use super::host::call;

/// A way to wait for an RCU grace period, inside which programs run.
#[derive(Debug)]
pub enum Grace {
    /// `membarrier(MEMBARRIER_CMD_GLOBAL)`, whose whole work is `synchronize_rcu` (kernel/sched/membarrier.c). Refused
    /// with EINVAL where CPUs run in full dynticks mode, and absent without CONFIG_MEMBARRIER.
    Membarrier,
    /// Writing an element of a map of maps, whose system call returns after `synchronize_rcu`, so that no program uses the
    /// map that was there before (maybe_wait_bpf_programs, kernel commit 1ae80cf31938, since 4.18).
    MapOfMaps {
        /// A map of one map.
        outer: OwnedFd,
        /// That map.
        inner: OwnedFd,
    },
}

impl Grace {
    /// The best way that this kernel has.
    fn choose() -> Result<Self, DataplaneError> {
        match membarrier() {
            Ok(()) => Ok(Self::Membarrier),
            Err(refused) => {
                let other = Self::map_of_maps()?;
                tracing::info!(
                    "membarrier is refused ({refused}): grace periods are waited for by writes to a map of maps"
                );
                Ok(other)
            }
        }
    }

    /// By a map of maps.
    ///
    /// # Errors
    /// The kernel makes none for us.
    pub fn map_of_maps() -> Result<Self, DataplaneError> {
        let inner = create(libc_bpf::ARRAY, 0).map_err(|error| call("bpf(BPF_MAP_CREATE)", error))?;
        let outer = create(libc_bpf::ARRAY_OF_MAPS, inner.as_raw_fd().cast_unsigned());
        let outer = outer.map_err(|error| call("bpf(BPF_MAP_CREATE) of a map of maps", error))?;
        Ok(Self::MapOfMaps { outer, inner })
    }

    /// Waits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn wait(&self) -> Result<(), DataplaneError> {
        match self {
            Self::Membarrier => membarrier().map_err(|error| call("membarrier", error)),
            Self::MapOfMaps { outer, inner } => {
                update(outer, inner.as_raw_fd()).map_err(|error| call("bpf(BPF_MAP_UPDATE_ELEM)", error))
            }
        }
    }
}

/// Waits until every packet program that is running now has ended. The way to wait is chosen once.
///
/// # Errors
/// The kernel refuses all ways.
pub fn grace_period() -> Result<(), DataplaneError> {
    static GRACE: OnceLock<Grace> = OnceLock::new();
    let grace = match GRACE.get() {
        Some(grace) => grace,
        None => {
            let chosen = Grace::choose()?;
            GRACE.get_or_init(|| chosen)
        }
    };
    grace.wait()
}

fn membarrier() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Numbers of include/uapi/linux/bpf.h.
mod libc_bpf {
    pub(super) const MAP_CREATE: libc::c_long = 0;
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const ARRAY: u32 = 2;
    pub(super) const ARRAY_OF_MAPS: u32 = 12;
}

/// The beginning of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// The beginning of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// An array of one element of four bytes.
fn create(map_type: u32, inner_map_fd: u32) -> io::Result<OwnedFd> {
    let attributes = Create { map_type, key_size: 4, value_size: 4, max_entries: 1, map_flags: 0, inner_map_fd };
    // SAFETY: the attributes are valid for the call, and of the length given.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, libc_bpf::MAP_CREATE, &raw const attributes, size_of::<Create>()) };
    match i32::try_from(fd) {
        // SAFETY: a file descriptor that the kernel has just given, and nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes the only element of a map.
fn update(map: &OwnedFd, value: i32) -> io::Result<()> {
    let key = 0_u32;
    let attributes = Update {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the attributes, key and value are valid for the call.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, libc_bpf::MAP_UPDATE_ELEM, &raw const attributes, size_of::<Update>()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(all(test, feature = "live"))]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_write_to_a_map_of_maps_waits_as_membarrier_does() {
        let grace = Grace::map_of_maps().unwrap();
        let Grace::MapOfMaps { inner, .. } = &grace else { panic!("not what was asked for") };
        let time = |work: &dyn Fn()| {
            let begun = Instant::now();
            (0..10).for_each(|_| work());
            begun.elapsed()
        };
        let plain = time(&|| update(inner, 7).unwrap());
        let waited = time(&|| grace.wait().unwrap());
        // A grace period takes some milliseconds, tens of microseconds where it is expedited; a plain write takes one.
        assert!(waited > plain * 5, "a write that waits for nothing: {waited:?} against {plain:?}");
        grace_period().unwrap();
    }
}
