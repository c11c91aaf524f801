//! Maps as memory: the kernel's arrays, mapped into the agent (BPF_F_MMAPABLE, kernel 5.5).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use aya::maps::MapData;

use super::DataplaneError;
use super::host::call;
use crate::state::image::Memory;

/// An array map's memory.
struct Mapped {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is shared with the kernel by design and only read and written through atomics.
unsafe impl Send for Mapped {}
// SAFETY: likewise.
unsafe impl Sync for Mapped {}

impl Memory for Mapped {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for the life of self, page-aligned, of this length.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what `map` has mapped, once. Failure leaves a mapping that the process's end takes away.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}

/// Maps a whole array map. Its elements lie one after another, each rounded up to eight bytes.
pub(super) fn map(data: &MapData) -> Result<Arc<dyn Memory>, DataplaneError> {
    let info = data.info().map_err(DataplaneError::map("info"))?;
    let bytes = (info.value_size() as usize).next_multiple_of(8) * info.max_entries() as usize;
    // SAFETY: a fresh shared mapping of the map's file descriptor; the kernel keeps the map while it is mapped.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            data.fd().as_fd().as_raw_fd(),
            0,
        )
    };
    let start = if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) };
    let start = start.ok_or_else(|| call("mmap of a map", io::Error::last_os_error()))?;
    Ok(Arc::new(Mapped { start, words: bytes / 8 }))
}
