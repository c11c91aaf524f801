//! What pinned links say of themselves.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Dataplane, Direction};

impl Dataplane {
    /// Whether the links pinned for a device are still on it. The kernel lets go of a link when its device goes, and says
    /// from then on that it is on device 0: the index may be another device's by now.
    #[must_use]
    pub fn link_is_on(&self, ifindex: u32) -> bool {
        let on = |direction| device_of(&self.link_pin(ifindex, direction)).is_ok_and(|device| device == ifindex);
        on(Direction::Ingress) && on(Direction::Egress)
    }
}

/// Numbers of include/uapi/linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// The beginning of `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
struct Get {
    path: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The beginning of `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` of a TCX link.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    /// What follows is aligned to eight bytes.
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

/// The device that a pinned TCX link is on; 0 if it has gone.
fn device_of(pin: &Path) -> io::Result<u32> {
    info_of(pin).map(|info| info.ifindex)
}

/// The id of the program behind a pinned TCX link; 0 if it is another kind.
pub(super) fn program_of(pin: &Path) -> io::Result<u32> {
    info_of(pin).map(|info| info.program)
}

/// What a pinned TCX link says of itself; zeroes if it is another kind.
fn info_of(pin: &Path) -> io::Result<Info> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get { path: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attributes and the path are valid for the call, and of the length given.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of::<Get>()) };
    let fd = match i32::try_from(fd) {
        // SAFETY: a file descriptor that the kernel has just given, and nobody else has.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    let mut info = Info::default();
    let ask = GetInfo {
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        length: size_of::<Info>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: as above; the kernel writes no more than the length given into `info`.
    let status = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const ask, size_of::<GetInfo>()) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if info.kind == BPF_LINK_TYPE_TCX { Ok(info) } else { Ok(Info::default()) }
}
