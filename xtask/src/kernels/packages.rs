//! Debian's kernels, fetched by apt into the target directory, and installed nowhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Small, without drivers of hardware, and with every module of the network.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
/// The series that are tested; `None` is the newest that Debian has.
const SERIES: [(&str, Option<[u32; 2]>); 4] =
    [("5.10", Some([5, 10])), ("6.1", Some([6, 1])), ("6.12", Some([6, 12])), ("newest", None)];
/// Debian's releases that have these series, by the path of their archive.
const RELEASES: [(&str, &[&str]); 2] = [
    ("debian", &["bullseye", "bookworm", "trixie", "trixie-backports", "sid"]),
    ("debian-security", &["bullseye-security", "bookworm-security", "trixie-security"]),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The series that was asked for.
    pub(crate) series: &'static str,
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, unpacked, with its indices.
    pub(crate) modules: PathBuf,
}

/// Every kernel of the matrix, or those that `PORTCULLIS_KERNELS` names (`5.10,newest`). Those that were fetched before are taken as they are.
pub(crate) fn fetch_all(folder: &Path) -> Result<Vec<Kernel>> {
    let mut apt = None;
    let mut kernels = Vec::new();
    let chosen = std::env::var("PORTCULLIS_KERNELS").ok();
    let is_chosen = |series: &str| chosen.as_ref().is_none_or(|list| list.split(',').any(|one| one == series));
    for (series, wanted) in SERIES.into_iter().filter(|(series, _)| is_chosen(series)) {
        let place = folder.join(series);
        if !place.exists() {
            let apt = match &apt {
                Some(apt) => apt,
                None => apt.insert(Apt::new(&folder.join("apt"))?),
            };
            fetch(apt, &place, series, wanted)?;
        }
        kernels.push(find(series, &place)?);
    }
    Ok(kernels)
}

/// apt with sources and state of its own, so that nothing of the machine's changes.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(folder: &Path) -> Result<Self> {
        let sources = sources()?;
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let list = folder.join("sources.list");
        fs::write(&list, sources)?;
        let shown = |name: &str| folder.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", shown("lists")),
            format!("Dir::Cache={}", shown("cache")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The folder is root's where root works, and apt would warn that its own user cannot write there.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let apt = Self { options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect() };
        process::run(apt.command("apt-get").arg("update")).context("cannot read Debian's lists of packages")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C");
        command
    }

    /// Every version of a package with what it depends on.
    fn versions(&self, package: &str) -> Result<Vec<(String, Vec<String>)>> {
        let text = process::output_of(self.command("apt-cache").args(["show", "--all-versions", package]))?;
        Ok(records(&text))
    }
}

/// The same mirror as the machine's own, with the releases that it lacks.
fn sources() -> Result<String> {
    let format = ["--format", "$(REPO_URI)", "Created-By: Packages"];
    let own = process::output_of(Command::new("apt-get").arg("indextargets").args(format))?;
    let mut lines = String::new();
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    for (archive, releases) in RELEASES {
        let is_it = |uri: &&str| uri.trim_end_matches('/').rsplit('/').next() == Some(archive);
        let Some(uri) = own.lines().find(is_it) else {
            bail!("no package source of this machine is Debian's archive `{archive}`, where the kernels are");
        };
        for release in releases {
            lines.push_str(&format!("deb {signed}{uri} {release} main\n"));
        }
    }
    Ok(lines)
}

fn fetch(apt: &Apt, place: &Path, series: &str, wanted: Option<[u32; 2]>) -> Result<()> {
    let versions = apt.versions(METAPACKAGE)?;
    let fitting = versions.iter().filter(|(version, _)| wanted.is_none_or(|wanted| numbers(version)[..2] == wanted));
    let Some((version, depends)) = fitting.max_by_key(|(version, _)| numbers(version)) else {
        let known: Vec<&str> = versions.iter().map(|(version, _)| version.as_str()).collect();
        bail!("Debian has no kernel {series}: {METAPACKAGE} has the versions {}", known.join(", "));
    };
    let image = depends.iter().find(|name| name.starts_with("linux-image-"));
    let image = image.with_context(|| format!("{METAPACKAGE} {version} depends on no kernel"))?;
    // Since 7.3 the image and its modules are packages of their own, on which an empty one depends.
    let parts: Vec<String> = apt
        .versions(image)?
        .into_iter()
        .filter(|(own, _)| own == version)
        .flat_map(|(_, depends)| depends)
        .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
        .collect();
    let wanted = if parts.is_empty() { vec![image.clone()] } else { parts };
    eprintln!("  kernel {series}: {version}");
    let draft = place.with_file_name(format!("{series}.draft"));
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir_all(&draft)?;
    let names: Vec<String> = wanted.iter().map(|name| format!("{name}={version}")).collect();
    process::run(apt.command("apt-get").arg("download").args(names).current_dir(&draft))?;
    for entry in fs::read_dir(&draft)? {
        let package = entry?.path();
        process::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&draft))?;
        fs::remove_file(package)?;
    }
    let kernel = find(series_of(series), &draft)?;
    // Unpacked here once, not by the emulated machine each time.
    process::run(Command::new("find").arg(&kernel.modules).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]))?;
    fs::rename(&draft, place)?;
    Ok(())
}

fn series_of(series: &str) -> &'static str {
    SERIES.iter().map(|(name, _)| *name).find(|name| *name == series).unwrap_or("newest")
}

/// The image and the modules in an unpacked package, which have moved in the course of the years.
fn find(series: &'static str, place: &Path) -> Result<Kernel> {
    let modules = ["usr/lib/modules", "lib/modules"].into_iter().map(|path| place.join(path));
    let modules = modules.filter_map(|path| fs::read_dir(path).ok()?.next()?.ok()).map(|entry| entry.path()).next();
    let modules = modules.with_context(|| format!("{} has no modules: remove it and try again", place.display()))?;
    let boot = fs::read_dir(place.join("boot")).into_iter().flatten().flatten().map(|entry| entry.path());
    let image = boot.chain([modules.join("vmlinuz")]).find(|path| {
        path.exists() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    });
    let image = image.with_context(|| format!("{} has no kernel image: remove it and try again", place.display()))?;
    Ok(Kernel { series, image, modules })
}

/// Reads what `apt-cache show` prints: versions, and the names of what they depend on.
fn records(text: &str) -> Vec<(String, Vec<String>)> {
    let field = |record: &str, name: &str| {
        let value = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_default().to_owned()
    };
    let names = |list: &str| {
        let names = list.split([',', '|']).filter_map(|one| one.split_whitespace().next());
        names.map(str::to_owned).collect()
    };
    let records = text.split("\n\n").filter(|record| !record.trim().is_empty());
    records.map(|record| (field(record, "Version"), names(&field(record, "Depends")))).collect()
}

/// The first three numbers of a version.
fn numbers(version: &str) -> [u32; 3] {
    let mut found = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| found.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_dependencies_are_read_from_apt_cache() {
        let text = "Package: a\nVersion: 7.3.4-1~bpo13+1\nDepends: b-7.3 (= 7.3.4), c | d (>= 1)\n\nPackage: a\nVersion: 6.1.1-1\n";
        let names = ["b-7.3", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(records(text), [("7.3.4-1~bpo13+1".to_owned(), names), ("6.1.1-1".to_owned(), Vec::new())]);
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let rows = [
            ("6.12.107-1", [6, 12, 107]),
            ("5.10.262-1", [5, 10, 262]),
            ("7.3.4-1~bpo13+1", [7, 3, 4]),
            ("6.1", [6, 1, 0]),
        ];
        for (version, expected) in rows {
            assert_eq!(numbers(version), expected, "{version}");
        }
    }
}
