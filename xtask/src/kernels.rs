//! The kernel matrix: Debian's kernels booted under QEMU, with the live tests run inside.
//!
//! There is no hardware virtualization in most CI machines, so everything is emulated; a kernel boots in about six
//! seconds. What runs in a guest is in [`parts`], and only what depends on the kernel is worth running there.

mod boot;
mod image;
mod packages;
mod parts;
mod report;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::apt;
use crate::stages::Outcome;
use crate::workspace::Metadata;

/// What the stage calls, or puts into the guests: Debian's packages.
const PACKAGES: [&str; 12] = [
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "kmod",
    "xz-utils",
    "binutils",
    "iproute2",
    "iptables",
    "nftables",
    "ipvsadm",
    "conntrack",
    "wireguard-tools",
];

/// Guests at the same time. Each is one CPU, and one core is enough for one.
const AT_ONCE: usize = 2;

/// Where kernels, images and logs are kept.
fn folder() -> Result<PathBuf> {
    Ok(Metadata::read()?.target_directory()?.join("kernels"))
}

/// Boots every kernel, and fails unless every part passed in each.
pub(crate) fn run(limit: Duration) -> Result<Outcome> {
    match prepare() {
        Ok(kernels) => {
            let image = image::build(&folder()?)?;
            boot_all(&kernels, &image, limit)
        }
        // A machine without QEMU or without a way to Debian may do all else; a CI that skipped this would prove nothing.
        Err(error) if std::env::var("CI").as_deref() != Ok("true") => {
            let reason = format!("kernels skipped: {error:#}");
            eprintln!("  {reason}");
            Ok(Outcome::PassedExcept(reason))
        }
        Err(error) => Err(error),
    }
}

fn prepare() -> Result<Vec<packages::Kernel>> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the guests are x86-64, and this machine is {}", std::env::consts::ARCH);
    }
    apt::ensure(&PACKAGES, "testing on other kernels")?;
    packages::fetch_all(&folder()?)
}

fn boot_all(kernels: &[packages::Kernel], image: &image::Image, limit: Duration) -> Result<Outcome> {
    // Those with most to do come first, so that no core waits for another at the end.
    let mut queue = Vec::new();
    for kernel in kernels {
        queue.push((parts::parts(kernel.series)?.len(), kernel));
    }
    queue.sort_by_key(|(parts, _)| std::cmp::Reverse(*parts));
    let waiting: Mutex<VecDeque<&packages::Kernel>> = Mutex::new(queue.into_iter().map(|(_, kernel)| kernel).collect());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let mut results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut results = Vec::new();
                    while let Some(kernel) = next() {
                        results.push(boot::run(kernel, image, limit));
                    }
                    results
                })
            })
            .collect();
        let results =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        results.collect::<Vec<_>>().into_iter().flatten().collect::<Result<Vec<report::Guest>>>()
    })?;
    results.sort_by_key(|guest| kernels.iter().position(|kernel| kernel.series == guest.series));
    eprintln!("\n{}", report::table(&results));
    let failures = report::failures(&results);
    if !failures.is_empty() {
        bail!("{}; each kernel's whole output is in {}", failures.join("; "), folder()?.display());
    }
    Ok(Outcome::Passed)
}
