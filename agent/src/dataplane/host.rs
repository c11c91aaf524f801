//! What the agent needs of the machine: kernel, capabilities, a BPF file system; and its network namespace's name.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DataplaneError;

/// The oldest kernel that the programs are made for.
const OLDEST: (u32, u32) = (5, 10);

/// Checks the kernel's version.
pub(super) fn check_kernel() -> Result<(), DataplaneError> {
    let uname = nix::sys::utsname::uname().map_err(|error| call("uname", error.into()))?;
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST { Err(DataplaneError::Kernel { release }) } else { Ok(()) }
}

/// Whether the kernel has TCX links (6.6).
pub(super) fn has_tcx() -> bool {
    aya::util::KernelVersion::current().is_ok_and(|version| version >= aya::util::KernelVersion::new(6, 6, 0))
}

/// Whether a directory exists and is on a BPF file system.
pub(super) fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes sure that a directory is on a BPF file system, mounting one at /sys/fs/bpf if that is where it is missing.
pub(super) fn ensure_bpffs(dir: &Path) -> Result<(), DataplaneError> {
    let existing = dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing) {
        let standard = Path::new("/sys/fs/bpf");
        let failed = |source| DataplaneError::NoBpffs { path: dir.to_owned(), source };
        if !dir.starts_with(standard) {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "the pin directory is elsewhere")));
        }
        mount(Some("bpf"), standard, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(|error| failed(error.into()))?;
        tracing::info!("mounted a BPF file system at {}", standard.display());
    }
    std::fs::create_dir_all(dir).map_err(DataplaneError::file(dir))
}

/// A number that names this thread's network namespace: its cookie, which the kernel never gives twice (5.14), or else
/// the inode of its file.
///
/// # Errors
/// The namespace's file cannot be read.
pub fn namespace_of_this_thread() -> Result<u64, DataplaneError> {
    if let Some(cookie) = cookie() {
        return Ok(cookie);
    }
    let path = Path::new("/proc/thread-self/ns/net");
    Ok(std::fs::metadata(path).map_err(DataplaneError::file(path))?.ino())
}

fn cookie() -> Option<u64> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: the option's value is a u64; both pointers are valid for the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (status == 0).then_some(cookie)
}

/// include/uapi/asm-generic/socket.h, since 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

pub(super) fn call(call: &'static str, source: io::Error) -> DataplaneError {
    DataplaneError::Call { call, source }
}

/// Every link takes a descriptor, two for each device: more than the usual soft limit of 1,024 has room for.
pub(super) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure, which the first call fills in.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The memory that programs and maps may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// The control group's alone.
    None,
    /// RLIMIT_MEMLOCK, in bytes, which may not be raised.
    Locked(u64),
}

impl MemoryLimit {
    /// Says of a failed load that this may be why.
    pub(super) fn blame(self, error: DataplaneError) -> DataplaneError {
        match self {
            Self::None => error,
            Self::Locked(limit) => DataplaneError::MemoryLimit { limit, source: error.into() },
        }
    }
}

/// Before 5.11 programs and maps count against RLIMIT_MEMLOCK, for all processes of a user together. To raise it takes
/// CAP_SYS_RESOURCE. A limit that is high enough does as well, so nothing has failed yet where it may not be raised.
pub(super) fn raise_memory_limit() -> MemoryLimit {
    if aya::util::KernelVersion::current().is_ok_and(|version| version >= aya::util::KernelVersion::new(5, 11, 0)) {
        return MemoryLimit::None;
    }
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid structure, which the second call fills in.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) == 0
            || libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) != 0
        {
            return MemoryLimit::None;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
    }
    MemoryLimit::Locked(limit.rlim_max)
}

/// A capability by its number and name (linux/capability.h).
type Capability = (u32, &'static str);

/// What the agent cannot do without.
pub(super) const OF_THE_AGENT: &[Capability] = &[(12, "CAP_NET_ADMIN"), (39, "CAP_BPF"), (38, "CAP_PERFMON")];
/// What it takes to remove everything: nothing is loaded.
pub(super) const OF_UNINSTALL: &[Capability] = &[(12, "CAP_NET_ADMIN"), (39, "CAP_BPF")];

/// Fails if one of these is missing.
pub(super) fn check_capabilities(needed: &[Capability]) -> Result<(), DataplaneError> {
    let Some(effective) = effective_capabilities() else { return Ok(()) };
    let holds = |number: u32| effective & 1 << number != 0;
    // CAP_SYS_ADMIN (21) includes CAP_BPF and CAP_PERFMON, and is all there was before 5.8.
    let may = |number: u32| holds(number) || number > 21 && holds(21);
    match needed.iter().find(|(number, _)| !may(*number)) {
        None => Ok(()),
        Some((_, missing)) => {
            let names: Vec<&str> = needed.iter().map(|(_, name)| *name).collect();
            Err(DataplaneError::Capability { missing, needed: names.join(", ") })
        }
    }
}

fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}
