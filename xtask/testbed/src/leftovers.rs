//! What of ours is still there: asked of the kernel, not of our own books.
//!
//! A namespace lives as long as a descriptor, a process, a thread or a socket holds it, so those are looked for.
//! Namespaces are recognised by the kernel's cookie, which unlike an inode number is never used again.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::lock;

/// A thread that was joined and a process that was waited for are still listed in /proc for a moment.
const GRACE: Duration = Duration::from_secs(2);

struct Known {
    name: String,
    inode: u64,
    cookie: u64,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// Notes a namespace that was just made.
pub(crate) fn register(name: &str, namespace: BorrowedFd<'_>) -> Result<()> {
    let inode = nix::sys::stat::fstat(namespace).context("cannot stat a namespace")?.st_ino;
    let cookie = cookie_of_namespace(namespace).unwrap_or(inode);
    lock(&KNOWN).push(Known { name: name.to_owned(), inode, cookie });
    Ok(())
}

/// The number between the first two dashes of a name `pc<pid>-<number>-...`.
pub(crate) fn bed_number(name: &str) -> Option<&str> {
    name.split('-').nth(1)
}

/// Names every namespace, thread and process of this process's testbeds that still exists; empty when all is gone.
/// Things that are just ending are waited for, up to two seconds.
#[must_use]
pub fn leftovers() -> Vec<String> {
    leftovers_of("")
}

/// Like [`leftovers`], of one testbed only: the one whose [`crate::Testbed::id`] is `id`.
#[must_use]
pub fn leftovers_of(id: &str) -> Vec<String> {
    let deadline = Instant::now() + GRACE;
    loop {
        let found = look(id);
        if found.is_empty() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn look(id: &str) -> Vec<String> {
    let prefix = if id.is_empty() { "pc".to_owned() } else { format!("pc{}-", bed_number(id).unwrap_or("")) };
    let mut found = threads(&prefix);
    let known = lock(&KNOWN);
    let ours: Vec<&Known> = known
        .iter()
        .filter(|known| id.is_empty() || known.name == id || known.name.starts_with(&format!("{id}-")))
        .collect();
    let mut holders = own_descriptors(&ours);
    holders.extend(processes(&ours));
    found.append(&mut holders);
    found
}

fn threads(prefix: &str) -> Vec<String> {
    entries("/proc/self/task")
        .filter_map(|task| fs::read_to_string(format!("/proc/self/task/{task}/comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .filter(|name| {
            name.strip_prefix("pc").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                && name.starts_with(prefix)
        })
        .map(|name| format!("thread {name}"))
        .collect()
}

/// Descriptors of this process that hold one of our namespaces: the namespace's own, or a socket inside it.
fn own_descriptors(ours: &[&Known]) -> Vec<String> {
    let mut found = Vec::new();
    for number in entries("/proc/self/fd").filter_map(|entry| entry.parse::<RawFd>().ok()) {
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else {
            continue;
        };
        let target = target.to_string_lossy();
        if let Some(inode) = inode_in(&target, "net:[")
            && let Some(known) = ours.iter().find(|known| known.inode == inode)
            && fs::File::open(format!("/proc/self/fd/{number}"))
                .is_ok_and(|file| cookie_matches(std::os::fd::AsFd::as_fd(&file), known))
        {
            found.push(format!("namespace {} (descriptor {number})", known.name));
        } else if target.starts_with("socket:[")
            && let Some(cookie) = cookie_of_socket(number)
            && let Some(known) = ours.iter().find(|known| known.cookie == cookie)
        {
            found.push(format!("namespace {} (socket, descriptor {number})", known.name));
        }
    }
    found
}

/// Processes and threads, ours or not, that run inside one of our namespaces.
fn processes(ours: &[&Known]) -> Vec<String> {
    let mut found = Vec::new();
    for process in entries("/proc").filter(|entry| entry.starts_with(|c: char| c.is_ascii_digit())) {
        for task in entries(&format!("/proc/{process}/task")) {
            let path = format!("/proc/{process}/task/{task}/ns/net");
            let Some(inode) = fs::read_link(&path).ok().and_then(|target| inode_in(&target.to_string_lossy(), "net:["))
            else {
                continue;
            };
            let Some(known) = ours.iter().find(|known| known.inode == inode) else {
                continue;
            };
            if fs::File::open(&path).is_ok_and(|file| cookie_matches(std::os::fd::AsFd::as_fd(&file), known)) {
                let name = fs::read_to_string(format!("/proc/{process}/task/{task}/comm")).unwrap_or_default();
                found.push(format!("namespace {} (process {process}, thread {task} {})", known.name, name.trim_end()));
            }
        }
    }
    found
}

fn entries(directory: &str) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn inode_in(target: &str, prefix: &str) -> Option<u64> {
    target.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok()
}

fn cookie_matches(namespace: BorrowedFd<'_>, known: &Known) -> bool {
    cookie_of_namespace(namespace).unwrap_or(known.inode) == known.cookie
}

/// `None` before Linux 5.14, which has no SO_NETNS_COOKIE; the inode number then has to do.
fn cookie_of_namespace(namespace: BorrowedFd<'_>) -> Option<u64> {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).ok()?;
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).ok()?;
            cookie_of_socket(socket.as_raw_fd())
        });
        asked.join().ok().flatten()
    })
}

fn cookie_of_socket(socket: RawFd) -> Option<u64> {
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`; a descriptor that was closed meanwhile gives EBADF.
    let answer = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    (answer == 0).then_some(cookie)
}
