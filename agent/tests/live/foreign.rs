//! Other people's programs: a few instructions each, attached to the same hooks as ours.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use portcullis_testbed::Node;

/// include/uapi/linux/bpf.h and pkt_cls.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// What a program answers.
pub(crate) const NEXT: i32 = -1;
pub(crate) const PASS: i32 = 0;
pub(crate) const DROP: i32 = 2;

/// Attributes as 32-bit words, zeros to their end.
fn bpf(command: libc::c_long, words: &[u32]) -> io::Result<i32> {
    let mut attributes = [0_u32; 32];
    attributes[..words.len()].copy_from_slice(words);
    let size = size_of_val(&attributes);
    // SAFETY: attributes of any size are taken if what the kernel does not know is zero; pointers outlive the call.
    let status = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(status).unwrap()) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it for the caller.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pointer<T>(of: *const T) -> [u32; 2] {
    let address = of as u64;
    [address as u32, (address >> 32) as u32]
}

/// A classifier of these instructions.
fn load(instructions: &[[u32; 2]]) -> OwnedFd {
    let license = c"GPL";
    let [at, at_high] = pointer(instructions.as_ptr());
    let [license, license_high] = pointer(license.as_ptr());
    let count = u32::try_from(instructions.len()).unwrap();
    owned(bpf(BPF_PROG_LOAD, &[BPF_PROG_TYPE_SCHED_CLS, count, at, at_high, license, license_high]).unwrap())
}

/// A program that answers this to every packet.
pub(crate) fn answers(verdict: i32) -> OwnedFd {
    // mov r0, verdict; exit
    load(&[[0xb7, verdict as u32], [0x95, 0]])
}

/// A program that sends every packet out of another device.
pub(crate) fn redirects(ifindex: u32) -> OwnedFd {
    // mov r1, ifindex; mov r2, 0; call bpf_redirect; exit
    load(&[[0x1b7, ifindex], [0x2b7, 0], [0x85, 23], [0x95, 0]])
}

/// Pins something, for `tc`, which takes programs by path.
pub(crate) fn pin(fd: &OwnedFd, path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let [at, at_high] = pointer(path.as_ptr());
    bpf(BPF_OBJ_PIN, &[at, at_high, fd.as_raw_fd() as u32]).unwrap();
}

fn pinned(path: &Path) -> OwnedFd {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let [at, at_high] = pointer(path.as_ptr());
    owned(bpf(BPF_OBJ_GET, &[at, at_high]).unwrap())
}

/// Puts a program on a TCX hook of a node's device, before or after all others; it goes with the link.
pub(crate) fn attach(node: &Node, ifindex: u32, ingress: bool, program: &OwnedFd, before: bool) -> OwnedFd {
    let hook = if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
    let flags = if before { BPF_F_BEFORE } else { 0 };
    let words = [program.as_raw_fd() as u32, ifindex, hook, flags];
    owned(node.namespace().run(|| Ok(bpf(BPF_LINK_CREATE, &words)?)).unwrap())
}

/// Our link of a hook, as anybody with the right to may open it.
fn link_of(pin_dir: &Path, ifindex: u32, ingress: bool) -> OwnedFd {
    pinned(&link_pin(pin_dir, ifindex, ingress))
}

pub(crate) fn link_pin(pin_dir: &Path, ifindex: u32, ingress: bool) -> PathBuf {
    let hook = if ingress { "ingress" } else { "egress" };
    pin_dir.join(portcullis::dataplane::LAYOUT).join("links").join(format!("{ifindex}-{hook}"))
}

/// Detaches our link.
pub(crate) fn detach_ours(pin_dir: &Path, ifindex: u32, ingress: bool) {
    bpf(BPF_LINK_DETACH, &[link_of(pin_dir, ifindex, ingress).as_raw_fd() as u32]).unwrap();
}

/// Puts another program in the place of ours.
pub(crate) fn replace_ours(pin_dir: &Path, ifindex: u32, ingress: bool, program: &OwnedFd) {
    let link = link_of(pin_dir, ifindex, ingress);
    bpf(BPF_LINK_UPDATE, &[link.as_raw_fd() as u32, program.as_raw_fd() as u32]).unwrap();
}

/// What runs on a TCX hook: the names of programs, empty for those without.
pub(crate) fn names(node: &Node, device: &str, ingress: bool) -> Vec<String> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let hook = if ingress { TcAttachType::Ingress } else { TcAttachType::Egress };
    let (_, programs) = node.namespace().run(|| Ok(SchedClassifier::query_tcx(device, hook)?)).unwrap();
    programs.iter().map(|program| program.name_as_str().unwrap_or_default().to_owned()).collect()
}
