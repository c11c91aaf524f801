//! A machine's cgroups. Its first process is put into them before it gets a cgroup namespace, so that inside they are
//! the roots of all hierarchies, and no two kubelets meet in one `/kubepods`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use super::plan::Machine;

const MOUNTS: &str = "/sys/fs/cgroup";
/// The folder around the machines' own, in each hierarchy.
const PARENT: &str = "portcullis-cluster";

/// A hierarchy, as `/proc/self/cgroup` tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// `cpu,cpuacct`, `name=systemd`; empty for version 2.
    controllers: String,
    /// Where this process is in it.
    path: String,
}

impl Hierarchy {
    /// The folder under [`MOUNTS`]. Version 2 has it all to itself where there is no version 1.
    fn mount(&self, is_alone: bool) -> PathBuf {
        match self.controllers.as_str() {
            "" if is_alone => PathBuf::from(MOUNTS),
            "" => Path::new(MOUNTS).join("unified"),
            controllers => Path::new(MOUNTS).join(controllers.trim_start_matches("name=")),
        }
    }

    /// The folder in which [`PARENT`] is made. Version 2 alone admits controllers only below groups that have no
    /// processes, which this process's own group is not; the root is exempt.
    fn base(&self, is_alone: bool) -> PathBuf {
        let mount = self.mount(is_alone);
        if is_alone { mount } else { mount.join(self.path.trim_start_matches('/')) }
    }
}

fn hierarchies(listing: &str) -> Vec<Hierarchy> {
    let parts = listing.lines().filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok());
    parts
        .map(|[controllers, path]: [&str; 2]| Hierarchy { controllers: controllers.into(), path: path.into() })
        .collect()
}

fn own() -> Result<(Vec<Hierarchy>, bool)> {
    let all = hierarchies(&fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?);
    let is_alone = all.len() == 1 && all[0].controllers.is_empty();
    Ok((all, is_alone))
}

/// The folders that a machine needs, parents first, made or not.
pub(super) fn folders(machine: Machine) -> Result<Vec<PathBuf>> {
    let Mounted { there, is_alone } = mounted()?;
    Ok(there
        .iter()
        .flat_map(|hierarchy| {
            let parent = hierarchy.base(is_alone).join(PARENT);
            [parent.clone(), parent.join(machine.name())]
        })
        .collect())
}

/// Makes the folders.
pub(super) fn make(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let Some(above) = folder.parent() else { continue };
        // A cpuset is born empty, and no process may enter it so.
        for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| above.join(file).exists()) {
            let inherited = fs::read(above.join(file))?;
            if !inherited.trim_ascii().is_empty() && folder.join("tasks").exists() {
                fs::write(folder.join(file), inherited)?;
            }
        }
        pass_on_controllers(above);
    }
    Ok(())
}

/// In version 2, lets the groups below have all controllers that this one has. Where that cannot be, kubelet says what
/// it misses.
fn pass_on_controllers(folder: &Path) {
    let listed = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in listed.split_whitespace() {
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Puts this process into the machine's groups.
pub(super) fn enter(machine: Machine) -> Result<()> {
    for folder in folders(machine)?.iter().filter(|folder| folder.ends_with(machine.name())) {
        fs::write(folder.join("cgroup.procs"), "0").with_context(|| format!("cannot enter {}", folder.display()))?;
    }
    Ok(())
}

/// The hierarchies of this machine, as they are mounted.
pub(super) struct Mounted {
    there: Vec<Hierarchy>,
    is_alone: bool,
}

/// Asks for what is mounted, which must be done before `/sys` is mounted anew.
pub(super) fn mounted() -> Result<Mounted> {
    let (all, is_alone) = own()?;
    Ok(Mounted { there: all.into_iter().filter(|hierarchy| hierarchy.mount(is_alone).exists()).collect(), is_alone })
}

/// Mounts the hierarchies anew, as a process in a namespace of its own sees them.
pub(super) fn mount_own(mounted: &Mounted) -> Result<()> {
    let cgroup = |kind: &str, place: &Path, options: Option<&str>| {
        fs::create_dir_all(place)?;
        mount(Some("cgroup"), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("cannot mount {}", place.display()))
    };
    if mounted.is_alone {
        cgroup("cgroup2", Path::new(MOUNTS), None)?;
        // Only a group without processes may pass controllers on.
        let place = Path::new(MOUNTS).join("init");
        fs::create_dir_all(&place)?;
        fs::write(place.join("cgroup.procs"), "0")?;
        pass_on_controllers(Path::new(MOUNTS));
        return Ok(());
    }
    mount(Some("cgroup"), MOUNTS, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("cannot mount a tmpfs")?;
    for hierarchy in &mounted.there {
        let place = hierarchy.mount(false);
        match hierarchy.controllers.as_str() {
            "" => cgroup("cgroup2", &place, None)?,
            name if name.starts_with("name=") => cgroup("cgroup", &place, Some(&format!("none,{name}")))?,
            controllers => cgroup("cgroup", &place, Some(controllers))?,
        }
    }
    Ok(())
}

/// The processes in these groups and all below.
pub(super) fn processes(folders: &[PathBuf]) -> Vec<i32> {
    let mut found: Vec<i32> = folders
        .iter()
        .flat_map(|folder| walkdir::WalkDir::new(folder).into_iter().flatten())
        .filter(|entry| entry.file_name() == "cgroup.procs")
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .flat_map(|listed| listed.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Removes groups with all below. The kernel may need a moment after the last process has ended.
pub(super) fn remove(folders: &[PathBuf]) -> Result<()> {
    for attempt in 0.. {
        for folder in folders.iter().rev() {
            let entries = walkdir::WalkDir::new(folder).contents_first(true).into_iter().flatten();
            for entry in entries.filter(|entry| entry.file_type().is_dir()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
        let Some(left) = folders.iter().find(|folder| folder.exists()) else { break };
        if attempt == 50 {
            bail!("the cgroup {} cannot be removed: {:?} are in it", left.display(), processes(folders));
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_and_placed() {
        let hybrid = hierarchies("12:cpu,cpuacct:/a\n9:name=systemd:/\n0::/user.slice\n");
        let rows = [
            (0, "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a", "controllers together"),
            (1, "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd/", "a name instead of a controller"),
            (2, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/user.slice", "version 2 beside version 1"),
        ];
        for (index, mount, base, message) in rows {
            assert_eq!(hybrid[index].mount(false), Path::new(mount), "{message}");
            assert_eq!(hybrid[index].base(false), Path::new(base), "{message}");
        }
        let alone = hierarchies("0::/user.slice/session-1.scope\n");
        assert_eq!(alone[0].base(true), Path::new("/sys/fs/cgroup"), "version 2 alone: at its root");
    }
}
