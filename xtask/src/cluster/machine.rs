//! A machine: namespaces of its own, with a first process whose end takes everything with it.
//!
//! Inside, all paths are the standard ones: `/sys/fs/bpf`, cgroups, `/run` and `/proc` are mounted anew, and the folders
//! that kubelet and containerd write to are its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::plan::Machine;
use super::state::{FOLDER, State, folder_of};
use super::{cgroups, control, node, supervise};

/// The copy of this program that the cluster runs, since the one that cargo builds may be replaced at any time.
pub(super) const PROGRAM: &str = "xtask";

/// Forwarding, what would drop packets whose way back is another, and what would keep an interface from asking for its
/// neighbours during its first second.
const SYSCTLS: [(&str, &str); 8] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Present with the module br_netfilter only; kube-proxy needs them where pods hang on a bridge.
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
];

/// Starts a machine and returns the id of its first process.
pub(super) fn start(machine: Machine) -> Result<i32> {
    let folder = folder_of(machine);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let log = fs::File::create(folder.join("machine.log"))?;
    let output = Command::new(Path::new(FOLDER).join(PROGRAM))
        .args(["cluster", "enter", &machine.name()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(log)
        .output()
        .context("cannot start the cluster's program")?;
    let id = String::from_utf8_lossy(&output.stdout).trim().parse();
    match id {
        Ok(id) if output.status.success() => Ok(id),
        _ => {
            let complaint = fs::read_to_string(folder.join("machine.log")).unwrap_or_default();
            bail!("{} cannot be started: {}", machine.name(), complaint.trim())
        }
    }
}

/// What `start` runs: enters the machine's cgroups and namespaces, starts its first process and prints its id.
pub(super) fn enter(name: &str) -> Result<()> {
    let machine = named(name)?;
    cgroups::enter(machine)?;
    let namespace = Path::new("/run/netns").join(machine.namespace());
    let file = fs::File::open(&namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    // A terminal's signals are not for it.
    nix::unistd::setsid().context("cannot leave the session")?;
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    unshare(own).context("cannot make namespaces")?;
    // What is mounted inside stays inside.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .context("cannot part from this machine's mounts")?;
    let child = Command::new("/proc/self/exe")
        .args(["cluster", "init", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the first process")?;
    super::say(&child.id().to_string());
    Ok(())
}

/// The first process of a machine.
pub(super) fn init(name: &str) -> Result<()> {
    let machine = named(name)?;
    let state = State::read()?.context("there is no cluster")?;
    nix::unistd::sethostname(name).context("cannot set the host's name")?;
    mount_own()?;
    for (name, value) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        if path.exists() {
            fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let services = match machine {
        Machine::Control => control::services(&state)?,
        Machine::Node(node) => node::prepare(&state, node)?,
    };
    supervise::run(&folder_of(machine), &services)
}

fn named(name: &str) -> Result<Machine> {
    Machine::named(name).with_context(|| format!("there is no machine `{name}`"))
}

fn mount_own() -> Result<()> {
    // Shared within, so that what kubelet mounts for one pod reaches others that ask for it.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        .context("cannot share mounts within")?;
    let hierarchies = cgroups::mounted()?;
    fresh("proc", "/proc", None)?;
    fresh("sysfs", "/sys", None)?;
    cgroups::mount_own(&hierarchies)?;
    fresh("bpf", "/sys/fs/bpf", None)?;
    // Not every kernel has it, and only debugging needs it.
    let _ = fresh("tracefs", "/sys/kernel/tracing", None);
    fresh("tmpfs", "/run", Some("mode=755"))?;
    fs::create_dir_all("/run/lock")?;
    Ok(())
}

fn fresh(kind: &str, place: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), options).with_context(|| format!("cannot mount {place}"))
}

/// Puts a machine's own folder, which is made, where programs look for it.
pub(super) fn bind_folder(own: &Path, place: &str) -> Result<()> {
    fs::create_dir_all(own).with_context(|| format!("cannot make {}", own.display()))?;
    bind(own, place)?;
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot share {place}"))
}

/// Puts one file or folder in the place of another.
pub(super) fn bind(own: &Path, place: &str) -> Result<()> {
    mount(Some(own), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot put {} in the place of {place}", own.display()))
}
