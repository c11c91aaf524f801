//! The few calls of bpf(2) that aya does not offer by number: devices are asked by index, since names move, and pins are
//! made of descriptors, so that one that fails does not end a link.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// BPF_MPROG_MAX of kernel/bpf/mprog.c: so many programs fit on a hook.
const MPROG_MAX: usize = 64;

#[repr(C)]
#[derive(Default)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: a structure as the command expects it, whose pointers outlive the call.
    let status = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status as libc::c_int) }
}

/// The ids of the programs on a TCX hook of a device, in the order in which they run.
pub(super) fn query(ifindex: u32, ingress: bool) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MPROG_MAX];
    let mut attributes = QueryAttributes {
        ifindex,
        attach_type: if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS },
        ids: ids.as_mut_ptr() as u64,
        count: MPROG_MAX as u32,
        ..QueryAttributes::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attributes) {
        Ok(_) => Ok(ids.into_iter().take(attributes.count as usize).collect()),
        // No program was ever on the hook.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Detaches a link at once. Otherwise it ends with its last reference, and that of a pin is given up a grace period after
/// the pin's removal (`bpf_free_inode`); until then its program cannot be attached to the hook anew.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = link.as_raw_fd() as u32;
    bpf(BPF_LINK_DETACH, &mut fd).map(drop)
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Pins what a descriptor refers to.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attributes =
        ObjectAttributes { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, ..ObjectAttributes::default() };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// A descriptor of what is pinned.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let mut attributes = ObjectAttributes { path: path.as_ptr() as u64, ..ObjectAttributes::default() };
    let fd = bpf(BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the call has just made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
