//! One guest, from start to power-off.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::Image;
use super::packages::Kernel;
use super::parts;
use super::report::{self, Guest};
use crate::process;

/// cmpxchg16b of QEMU 7.2 leaves wrong flags behind when it emulates a single CPU, and kernels with per-CPU lists crash at
/// random: so the CPU has none. Haswell is the oldest with all that Debian's newest kernels are built for.
const CPU: &str = "Haswell-v4,-cx16";
/// The BPF maps and the archive with the programs are both in memory.
const MEMORY: &str = "3072";

/// Grace periods at once, since making and removing namespaces waits for hundreds of them; no check of the timer, which a
/// busy machine emulates too late for it; and nothing of what only makes a real machine safer, at a cost in every call.
const APPEND: &str = "console=ttyS0 quiet panic=-1 mitigations=off rcupdate.rcu_expedited=1 no_timer_check \
                      init_on_alloc=0 hardened_usercopy=off cgroup_disable=memory apparmor=0 audit=0 nokaslr";

/// Boots it, waits until it has powered off or `limit` is over, and reads what it said.
pub(crate) fn run(kernel: &Kernel, image: &Image, limit: Duration) -> Result<Guest> {
    let archive = image.for_kernel(kernel)?;
    let log = archive.with_extension("log");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,tb-size=512", "-cpu", CPU, "-smp", "1", "-m", MEMORY]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&archive);
    command.args(["-append", APPEND]);
    let output = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(output.try_clone()?).stderr(Stdio::null());
    let begun = Instant::now();
    // A guest that hangs says so by what is missing in its output.
    let ended = process::run_within(&mut command, limit);
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    drop(fs::remove_file(archive));
    if let Err(error) = ended {
        eprintln!("  kernel {}: {error:#}", kernel.series);
    }
    let expected = parts::parts(kernel.series)?.iter().map(|part| part.name).collect();
    let guest = report::read(kernel.series, expected, &said, took);
    eprintln!("{}", report::summary(&guest));
    Ok(guest)
}
