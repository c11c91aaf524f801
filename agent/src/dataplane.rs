//! The kernel's side of enforcement: the door to BPF.
//!
//! Maps and links are pinned under one directory, so that they outlive the agent: a new one finds them, swaps the
//! programs atomically and goes on. The directory carries the layout's version and belongs to one network namespace.

mod attach;
mod bpf;
mod clock;
mod counters;
mod grace;
mod host;
mod layouts;
mod links;
mod load;
mod lock;
mod memory;
mod pins;
mod ranges;
mod seeds;
mod test_run;
mod uninstall;
mod verified;

use std::io;
use std::path::{Path, PathBuf};

pub use attach::{Direction, HANDLES, Hooks, PRIORITY};
pub use counters::Counters;
pub use grace::{Grace, grace_period};
pub use host::namespace_of_this_thread;
pub use load::{Dataplane, Found, Settings};
pub use ranges::RangeTable;
pub use test_run::{TestInput, TestOutput};
pub use uninstall::{Removed, check_owner, uninstall};

/// The layout's version: part of every pin's path, raised when any table's layout changes.
pub const LAYOUT: &str = if cfg!(feature = "other-layout") { "v0" } else { "v2" };

/// Why the kernel cannot be used, or refused something.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The agent was built without its programs.
    #[error("this binary was built without its BPF programs: run `cargo xtask build-ebpf`, then build it again")]
    NoPrograms,
    /// A capability is missing.
    #[error("missing {missing}: this must run as root, or with {needed}")]
    Capability {
        /// Which.
        missing: &'static str,
        /// All that are needed.
        needed: String,
    },
    /// The kernel is older than 5.10.
    #[error("this kernel ({release}) is too old: 5.10 or newer is needed")]
    Kernel {
        /// `uname -r`.
        release: String,
    },
    /// No BPF file system where the pins should be.
    #[error("{} is not on a BPF file system, and none could be mounted there: {source}; mount one with `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    NoBpffs {
        /// The pin directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The pins are another network namespace's.
    #[error("{} belongs to another network namespace: give this one a --pin-dir of its own", path.display())]
    OtherNamespace {
        /// The pin directory.
        path: PathBuf,
    },
    /// Another process writes what is pinned here.
    #[error(
        "{} is in use by another agent, or is being uninstalled: stop that first, or give this one a --pin-dir of its own",
        path.display()
    )]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// The programs or maps could not be loaded.
    #[error("cannot load the BPF programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// They could not be loaded, perhaps for want of memory that the kernel counts by process limits.
    #[error(
        "{source}; before Linux 5.11 programs and tables count against RLIMIT_MEMLOCK, which is {limit} bytes here and may not \
         be raised: give the agent CAP_SYS_RESOURCE"
    )]
    MemoryLimit {
        /// The limit, in bytes.
        limit: u64,
        /// What the kernel said.
        source: Box<DataplaneError>,
    },
    /// A program was refused.
    #[error("program {name}: {source}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        source: aya::programs::ProgramError,
    },
    /// A map is not there or not of the expected kind.
    #[error("map {name}: {source}")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// The table of ranges has no room.
    #[error("the ranges table is full ({capacity} entries): raise its size in the agent's settings")]
    RangesFull {
        /// Its entries.
        capacity: u32,
    },
    /// A hook could not be taken.
    #[error("cannot attach to {device} ({hook}): {reason}")]
    Attach {
        /// The device.
        device: String,
        /// Which hook.
        hook: &'static str,
        /// Why.
        reason: String,
    },
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A call of the kernel failed.
    #[error("{call}: {source}")]
    Call {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl DataplaneError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::File { path: path.to_owned(), source }
    }

    fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { name, source }
    }
}
