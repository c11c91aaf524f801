//! A network namespace, held by a file descriptor and by nothing else.
//!
//! It has no name under `/run/netns` on purpose: when the process that made it ends, in whatever way, the kernel
//! removes the namespace with its links, routes and rules.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::leftovers;
use crate::run::{checked, checked_with_input};

/// Enough for a thread that only waits on sockets; hundreds of them run during a matrix of probes.
const STACK_BYTES: usize = 256 * 1024;

/// A handle to a network namespace; it lives until its last handle and its last process, thread and socket are gone.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    fd: OwnedFd,
}

impl Namespace {
    /// Makes an empty namespace with loopback up and IPv6 duplicate address detection off, so that addresses are
    /// usable at once. `name` appears in errors, thread names and [`crate::leftovers()`] only.
    ///
    /// # Errors
    /// When the kernel refuses it: the caller needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN).
    pub fn new(name: &str) -> Result<Self> {
        let opened = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<OwnedFd> {
                    unshare(CloneFlags::CLONE_NEWNET)
                        .context("cannot make a network namespace: this needs root, or CAP_SYS_ADMIN")?;
                    Ok(File::open("/proc/thread-self/ns/net")?.into())
                })
                .join()
        });
        let fd = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let namespace = Self(Arc::new(Inner { name: name.to_owned(), fd }));
        leftovers::register(name, namespace.0.fd.as_fd())?;
        for scope in ["default", "all"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        // The kernel limits ICMP errors to each host, redirects included: a refusal would look like a denial.
        namespace.sysctl("net/ipv4/icmp_ratemask", "0")?;
        namespace.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        namespace.ip(["link set lo up"])?;
        Ok(namespace)
    }

    /// Its name, unique in this machine while the process lives.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A path by which other processes of root can open it: for `nsenter --net=PATH` and `ip link set DEV netns PATH`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.fd.as_raw_fd())
    }

    /// Moves the calling thread into the namespace for good. Threads of a pool must not be moved: see [`Self::run`].
    ///
    /// # Errors
    /// When the kernel refuses it (CAP_SYS_ADMIN).
    pub fn enter(&self) -> Result<()> {
        setns(&self.0.fd, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter namespace {}", self.name()))
    }

    /// Runs `work` inside, on a thread of its own, and returns what it returned. Sockets that it opened stay in the
    /// namespace wherever they are used later. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// Those of `work`, or when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name(self.thread_name("run"))
                .spawn_scoped(scope, || {
                    self.enter()?;
                    work()
                })
                .context("cannot start a thread")?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that stays in the namespace. `label` shows in the thread's name (15 bytes in all).
    ///
    /// # Errors
    /// When no thread can be started; what fails inside is in the thread's own result.
    pub fn thread<T: Send + 'static>(
        &self,
        label: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let namespace = self.clone();
        std::thread::Builder::new()
            .name(self.thread_name(label))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                namespace.enter()?;
                drop(namespace);
                work()
            })
            .context("cannot start a thread")
    }

    /// A command that enters the namespace before it executes `program`. Unlike `ip netns exec` it leaves the mounts
    /// alone, so that bpffs stays where it is (and `/sys/class/net` shows the caller's links, not the namespace's).
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let inner = Arc::clone(&self.0);
        // SAFETY: between fork and exec only the setns system call is made, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || setns(&inner.fd, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
        }
        command
    }

    /// Runs `program` with `arguments` inside and returns its stdout.
    ///
    /// # Errors
    /// When it fails, with its stderr.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        checked(self.command(program).args(arguments)).with_context(|| format!("in namespace {}", self.name()))
    }

    /// Runs `program` inside with `input` on its stdin and returns its stdout.
    ///
    /// # Errors
    /// When it fails, with its stderr and the numbered lines of its input.
    pub fn tool_with_input(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        checked_with_input(self.command(program).args(arguments), input)
            .with_context(|| format!("in namespace {}", self.name()))
    }

    /// Runs `ip` commands (each without the leading `ip`) inside, in one batch that ends at the first that fails.
    ///
    /// # Errors
    /// When one fails, with its line.
    pub fn ip<S: AsRef<str>>(&self, commands: impl IntoIterator<Item = S>) -> Result<()> {
        let batch: String = commands.into_iter().map(|command| format!("{}\n", command.as_ref())).collect();
        self.tool_with_input("ip", &["-batch", "-"], &batch).map(drop)
    }

    /// Loads an nftables script inside.
    ///
    /// # Errors
    /// When nft refuses it; nothing of it is then in force.
    pub fn nft(&self, script: &str) -> Result<()> {
        // nft wants the last line ended.
        self.tool_with_input("nft", &["-f", "-"], &format!("{script}\n")).map(drop)
    }

    /// Writes `value` to the sysctl `key` (with slashes: `net/ipv4/ip_forward`) of the namespace.
    ///
    /// # Errors
    /// When the kernel has no such setting or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| {
            std::fs::write(&path, value)
                .with_context(|| format!("cannot set {key} to {value} in namespace {}", self.name()))
        })
    }

    /// Thread names carry the testbed's number, by which [`crate::leftovers()`] knows them: `pc3-label`.
    fn thread_name(&self, label: &str) -> String {
        let bed = leftovers::bed_number(self.name()).unwrap_or("");
        format!("pc{bed}-{label}").chars().filter(|c| *c != '\0').take(15).collect()
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}
