//! The guests' file system: busybox, the tools and the test programs, as an archive that the kernel unpacks into memory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::packages::Kernel;
use super::parts::{MODULES, PROGRAMS, Part, parts};
use crate::live::FEATURE;
use crate::process;
use crate::workspace;

/// Programs that the tests call, besides those of xtables and busybox.
const TOOLS: [&str; 8] = ["ip", "tc", "nft", "conntrack", "ipvsadm", "kmod", "ping", "wg"];
const XTABLES: [&str; 2] = ["/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"];
/// What is loaded at run time, and therefore no program names it.
const FOLDERS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/xtables", "/etc/iproute2"];
const SYSTEM: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// busybox itself, and what the kernel would run if our first program could not be: it would wait for somebody.
const WITHOUT_APPLETS: [&str; 3] = ["busybox", "init", "linuxrc"];
/// Drivers of real devices, of which an emulated machine has none.
const WITHOUT: [&str; 2] = ["kernel/drivers/net/ethernet", "kernel/drivers/net/wireless"];
/// Where modules of the network and those that they need are.
const MODULE_FOLDERS: [&str; 5] = ["kernel/net", "kernel/drivers/net", "kernel/lib", "kernel/crypto", "kernel/arch"];

/// The archive that all guests share.
pub(crate) struct Image {
    archive: PathBuf,
    folder: PathBuf,
}

/// Builds the test programs and puts everything together.
pub(crate) fn build(folder: &Path) -> Result<Image> {
    let programs = build_programs()?;
    let tree = Tree::new(folder.join("image"))?;
    tree.add_tools()?;
    for program in &programs {
        // The tests start the agent by the path that it was built at.
        let own = if program.ends_with("debug/portcullis") {
            program.clone()
        } else {
            Path::new("/tests").join(name_of(program).unwrap_or_default())
        };
        tree.add_stripped(program, &own)?;
    }
    let archive = folder.join("image.cpio");
    tree.archive(&archive)?;
    Ok(Image { archive, folder: folder.to_owned() })
}

impl Image {
    /// The archive for one kernel: this one, its modules and what it is to run, one after the other.
    pub(crate) fn for_kernel(&self, kernel: &Kernel) -> Result<PathBuf> {
        let tree = Tree::new(self.folder.join(format!("{}.modules", kernel.series)))?;
        let release = kernel.modules.file_name().context("modules without a release")?;
        let place = tree.at("lib/modules").join(release);
        fs::create_dir_all(&place)?;
        let present = MODULE_FOLDERS.iter().filter(|path| kernel.modules.join(path).exists());
        process::run_silently(
            Command::new("cp")
                .args(["--recursive", "--parents"])
                .args(present)
                .arg(&place)
                .current_dir(&kernel.modules),
        )?;
        for path in WITHOUT.map(|path| place.join(path)) {
            if path.exists() {
                fs::remove_dir_all(path)?;
            }
        }
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            let from = kernel.modules.join(name);
            if from.exists() { fs::copy(from, place.join(name)).map(drop)? } else { fs::write(place.join(name), "")? }
        }
        process::run_silently(Command::new("depmod").arg("--basedir").arg(&tree.0).arg(release))?;
        tree.write("init", &init(&parts(kernel.series)?))?;
        let modules = self.folder.join(format!("{}.modules.cpio", kernel.series));
        tree.archive(&modules)?;
        let whole = self.folder.join(format!("{}.cpio", kernel.series));
        let mut to = fs::File::create(&whole)?;
        for part in [&self.archive, &modules] {
            std::io::copy(&mut fs::File::open(part)?, &mut to)?;
        }
        fs::remove_file(modules)?;
        Ok(whole)
    }
}

/// Builds the agent and the test programs; gives their paths.
fn build_programs() -> Result<Vec<PathBuf>> {
    let mut paths = BTreeSet::new();
    for (package, tests) in PROGRAMS {
        let mut command = workspace::cargo();
        command.args(["build", "--package", package, "--features", FEATURE, "--message-format", "json", "--bins"]);
        for test in tests {
            command.args(["--test", test]);
        }
        let text = process::output_of(&mut command).context("cannot build what runs in the guests")?;
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        paths.extend(messages.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))));
    }
    Ok(paths.into_iter().collect())
}

/// `judges_live` of `judges_live-0123456789abcdef`.
fn name_of(program: &Path) -> Option<String> {
    let file = program.file_name()?.to_str()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

/// A folder that becomes an archive.
struct Tree(PathBuf);

impl Tree {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn add_tools(&self) -> Result<()> {
        for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "lib/modules"] {
            fs::create_dir_all(self.at(folder))?;
        }
        let busybox = found("busybox")?;
        self.copy(&busybox, &self.at("/bin/busybox"))?;
        let applets = process::output_of(Command::new(&busybox).arg("--list"))?;
        fs::create_dir_all(self.at("/bin"))?;
        for applet in applets.lines().filter(|applet| !WITHOUT_APPLETS.contains(applet) && !TOOLS.contains(applet)) {
            let place = self.at("/bin").join(applet);
            if !place.exists() {
                symlink("busybox", place)?;
            }
        }
        for tool in TOOLS {
            self.add(&found(tool)?)?;
        }
        for name in ["modprobe", "insmod"] {
            let place = self.at("/bin").join(name);
            drop(fs::remove_file(&place));
            symlink(found("kmod")?, place)?;
        }
        // The kernel calls it by this name when it misses a module.
        fs::create_dir_all(self.at("/sbin"))?;
        symlink(found("kmod")?, self.at("/sbin/modprobe"))?;
        for xtables in XTABLES {
            self.add(Path::new(xtables))?;
        }
        for entry in fs::read_dir("/usr/sbin")?.flatten() {
            let (path, target) = (entry.path(), entry.path().canonicalize().unwrap_or_default());
            if XTABLES.iter().any(|xtables| Path::new(xtables) == target && path != target) {
                symlink(target, self.at(path))?;
            }
        }
        for folder in FOLDERS.map(Path::new).into_iter().filter(|folder| folder.exists()) {
            for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_file()) {
                self.add(&entry.path())?;
            }
        }
        for file in ["/etc/protocols", "/etc/services"].map(Path::new).into_iter().filter(|file| file.exists()) {
            self.add(file)?;
        }
        Ok(())
    }

    /// Copies a file, and if it is a program the libraries that it is linked with.
    fn add(&self, file: &Path) -> Result<()> {
        let place = self.at(file);
        self.copy(file, &place)?;
        self.add_libraries(file)
    }

    fn add_stripped(&self, file: &Path, own: &Path) -> Result<()> {
        let place = self.at(own);
        fs::create_dir_all(place.parent().context("a program at the top")?)?;
        process::run_silently(Command::new("strip").arg("-o").arg(&place).arg(file))?;
        self.add_libraries(file)
    }

    fn add_libraries(&self, file: &Path) -> Result<()> {
        // It fails for scripts, data and static programs, which need nothing.
        let Ok(listed) = process::output_of(Command::new("ldd").arg(file)) else { return Ok(()) };
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
            let place = self.at(library);
            if !place.exists() {
                self.copy(library, &place)?;
            }
        }
        Ok(())
    }

    fn copy(&self, from: &Path, place: &Path) -> Result<()> {
        fs::create_dir_all(place.parent().context("a file at the top")?)?;
        fs::copy(from, place).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.at(name), text)?;
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Uncompressed, since the emulated machine copies faster than it unpacks.
    fn archive(&self, to: &Path) -> Result<()> {
        let script = "find . | cpio --create --format newc --owner 0:0 --quiet > \"$0\"";
        process::run_silently(Command::new("sh").args(["-c", script]).arg(to).current_dir(&self.0))
    }
}

fn found(tool: &str) -> Result<PathBuf> {
    match SYSTEM.iter().map(|folder| Path::new(folder).join(tool)).find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => bail!("{tool} is missing, though its package is installed"),
    }
}

/// The first program of a guest: it runs every part and says on the console how each went. See [`super::report`].
fn init(parts: &[&Part]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin\nmount -t proc proc /proc\nmount -t sysfs sysfs \
         /sys\nmount -t devtmpfs dev /dev\nmount -t tmpfs tmp /tmp\nmount -t bpf bpf /sys/fs/bpf\nip link set lo up\n\
         now() { cut -d' ' -f1 /proc/uptime; }\necho \"@@ kernel $(uname -r) $(now)\"\n",
    );
    for module in MODULES {
        script.push_str(&format!("modprobe {module}\n"));
    }
    for part in parts {
        script.push_str(&format!(
            "start=$(now)\n(cd /tests; {} time -f 'times user %U s, kernel %S s' timeout {} ./{} --test-threads=1 --nocapture {}) \
             > /tmp/output 2>&1\n\
             echo \"@@ part {} $? $start $(now)\"\n\
             grep -aE '^(test .* )?(verified|attached|skipped|judged)|^(test result|times)' /tmp/output\n",
            part.environment.join(" "),
            part.patience,
            part.test,
            part.filters.join(" "),
            part.name.replace(' ', "_"),
        ));
        // All of it, if it is short; what is at both ends otherwise: the console is a slow line.
        script.push_str("grep -aq '^test result: ok' /tmp/output || { head -c 6000 /tmp/output; echo; echo ...; tail -c 6000 /tmp/output; echo; }\n");
    }
    script.push_str("echo \"@@ end $(now)\"\npoweroff -f\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_known_without_its_hash() {
        let rows = [("/t/judges_live-0123456789abcdef", "judges_live"), ("/t/portcullis", "portcullis")];
        for (path, expected) in rows {
            assert_eq!(name_of(Path::new(path)).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn every_part_is_run_and_built() {
        let parts = parts("newest").unwrap();
        let script = init(&parts);
        for part in parts {
            assert!(script.contains(&format!("@@ part {} ", part.name)), "{} is not run", part.name);
            assert!(PROGRAMS.iter().any(|(_, tests)| tests.contains(&part.test)), "{} is not built", part.test);
        }
    }
}
