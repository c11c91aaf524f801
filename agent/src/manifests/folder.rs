//! Looking at folders and files.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::ManifestError;
use super::problem::{Problem, Severity};
use super::store::Contents;

/// Whether the folder can be read at all.
pub(super) fn check(dir: &Path) -> Result<(), ManifestError> {
    let folder_error = |source| ManifestError::Folder { path: dir.to_owned(), source };
    if !std::fs::metadata(dir).map_err(folder_error)?.is_dir() {
        return Err(ManifestError::NoFolder { path: dir.to_owned() });
    }
    std::fs::read_dir(dir).map(drop).map_err(folder_error)
}

/// Names with a leading dot are left out: editors' and kubelet's own files.
pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// `*.yaml`, `*.yml`, `*.json`.
pub(super) fn is_manifest(path: &Path) -> bool {
    path.file_name().is_some_and(|name| !is_hidden(name))
        && path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// What is under a path.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Folders.
    pub dirs: Vec<PathBuf>,
    /// Manifests.
    pub files: Vec<PathBuf>,
    /// Those of `files` that are links.
    pub links: Vec<PathBuf>,
    /// Places that are there but could not be looked into, so that nobody knows what is in them.
    pub unread: Vec<PathBuf>,
    /// What is wrong with places.
    pub problems: Vec<(PathBuf, Problem)>,
}

/// Walks a folder, or looks at a single file. What vanishes meanwhile is left out.
pub(super) fn scan(path: &Path) -> Scan {
    let mut scan = Scan::default();
    let visible = |entry: &DirEntry| entry.depth() == 0 || !is_hidden(entry.file_name());
    for entry in WalkDir::new(path).follow_links(true).into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => scan.dirs.push(entry.into_path()),
            Ok(entry) if is_manifest(entry.path()) => {
                if entry.path_is_symlink() {
                    scan.links.push(entry.path().to_owned());
                }
                scan.files.push(entry.into_path());
            }
            Ok(_) => {}
            Err(error) => {
                let problem = problem(path, &error);
                if let Some((place, _)) = problem.as_ref().filter(|(_, problem)| problem.severity == Severity::Error) {
                    scan.unread.push(place.clone());
                }
                scan.problems.extend(problem);
            }
        }
    }
    scan.files.sort_unstable();
    scan
}

fn problem(root: &Path, error: &walkdir::Error) -> Option<(PathBuf, Problem)> {
    let place = error.path().unwrap_or(root).to_owned();
    if let Some(ancestor) = error.loop_ancestor() {
        let message = format!("this link leads back to {}, which is read already; it was left out", ancestor.display());
        return Some((place.clone(), Problem::of_file(place, Severity::Warning, message)));
    }
    match error.io_error() {
        Some(source) if source.kind() == io::ErrorKind::NotFound => {
            // A link that leads nowhere is worth a word; a file that vanished during the walk is not.
            let dangling = place != root && is_manifest(&place) && place.symlink_metadata().is_ok();
            let message = "this link leads nowhere; it was left out";
            dangling.then(|| (place.clone(), Problem::of_file(place, Severity::Warning, message)))
        }
        Some(source) => {
            let message = format!("cannot be read: {source}; what was read from it earlier stays in force");
            Some((place.clone(), Problem::of_file(place, Severity::Error, message)))
        }
        None => None,
    }
}

/// Whether to look for programs that have the file open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    /// Leave a file alone that somebody is writing.
    Respected,
    /// Read it all the same.
    Ignored,
}

/// What a file holds, owned.
#[derive(Debug)]
pub(super) enum Look {
    Text(String),
    Unreadable(String),
    BeingWritten,
    Gone,
}

impl Look {
    pub(super) fn as_ref(&self) -> Contents<'_> {
        match self {
            Self::Text(text) => Contents::Text(text),
            Self::Unreadable(reason) => Contents::Unreadable(reason),
            Self::BeingWritten => Contents::BeingWritten,
            Self::Gone => Contents::Gone,
        }
    }
}

/// Reads a file.
pub(super) fn read(path: &Path, writers: Writers) -> Look {
    match try_read(path, writers) {
        Ok(look) => look,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Look::Gone,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Look::Unreadable("it is not UTF-8 text".to_owned()),
        Err(error) => Look::Unreadable(error.to_string()),
    }
}

fn try_read(path: &Path, writers: Writers) -> io::Result<Look> {
    // Opening a FIFO would wait for its writer.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(Look::Unreadable("it is no regular file".to_owned()));
    }
    if writers == Writers::Respected && is_being_written(&file) {
        return Ok(Look::BeingWritten);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if writers == Writers::Respected && is_being_written(&file) {
        return Ok(Look::BeingWritten);
    }
    Ok(Look::Text(text))
}

/// `F_SETSIG` of fcntl(2), which libc does not name on every target.
const F_SETSIG: libc::c_int = 10;

/// Whether some process has the file open for writing: then the kernel refuses a read lease with EAGAIN (fcntl(2),
/// "Leases"), and its close will be notified. Where leases cannot be had (another owner's file without CAP_LEASE, a
/// file system without them) nobody can tell, and the file is read.
fn is_being_written(file: &File) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: the three calls take integers only, on a descriptor that `file` keeps open. A process that opens the file
    // for writing while the lease is held has this process signalled; SIGURG, ignored unless somebody handles it, takes
    // the place of SIGIO, which would end the process.
    unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) == -1 {
            return false;
        }
        if libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == -1 {
            return io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
    false
}
