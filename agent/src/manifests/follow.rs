//! Following a folder by inotify.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use inotify::{EventMask, EventOwned, Inotify};
use tokio::sync::mpsc::Sender;

use super::ManifestError;
use super::folder::{self, Look, Writers};
use super::problem::{Problem, ProblemCounts, Severity};
use super::store::{Contents, Store, Unread};
use super::watch::Watches;
use crate::model::Change;

/// How long to gather further changes after one was told: a burst gives a batch at once and one per this time.
pub const PAUSE: Duration = Duration::from_millis(50);

/// How long to wait for the second half of a renaming, whose two events the kernel queues one after the other.
const RENAME: Duration = Duration::from_millis(2);

/// How long to wait before looking again at a file that somebody has open for writing, doubled up to [`LAST_RETRY`].
/// The notification of a close alone is not enough: the kernel sends it shortly before it takes back the right to write
/// (`__fput` of fs/file_table.c), so that a file may still look open when it comes.
const FIRST_RETRY: Duration = Duration::from_millis(1);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Room for some hundred events at once.
const EVENTS: usize = 64 * 1024;

/// Events taken at once, so that somebody who never stops writing does not keep changes from being told.
const AT_ONCE: usize = 4096;

/// What changed in a folder.
#[derive(Debug)]
pub struct Batch {
    /// To be applied to the cluster, all before it is compiled.
    pub changes: Vec<Change>,
    /// Problems that are new, or that stand again in a file that was read again; by file.
    pub problems: Vec<Problem>,
    /// All problems that stand now, the older ones too.
    pub standing: ProblemCounts,
    /// What could never be read since the start.
    pub unread: Unread,
    /// The first batch: what the folder holds at the start.
    pub initial: bool,
}

/// Reads a folder and tells its contents, then every change, until nobody listens any more.
///
/// A file is read when it is closed after writing, renamed or deleted; one that some process has open for writing is
/// left alone until it is closed, and looked at now and then meanwhile. The first change is told at once; those that follow within `pause` come together.
/// The folder may vanish and come back.
///
/// # Errors
/// Where the folder cannot be read at the start, or the kernel gives no notifications.
pub async fn follow(dir: &Path, pause: Duration, sender: Sender<Batch>) -> Result<(), ManifestError> {
    folder::check(dir)?;
    let inotify = Inotify::init()?;
    let mut follower = Follower::new(dir, Watches::new(inotify.watches()));
    let mut events = inotify.into_event_stream(vec![0; EVENTS])?;
    let (next, batch) = in_background(follower, |follower| {
        follower.look_at_everything();
        Some(follower.batch(true))
    })
    .await?;
    follower = next;
    let Some(batch) = batch else { return Ok(()) };
    if sender.send(batch).await.is_err() {
        return Ok(());
    }
    let mut retry = FIRST_RETRY;
    loop {
        let first = tokio::select! {
            event = events.next() => match event {
                Some(event) => Some(event?),
                None => return Ok(()),
            },
            () = tokio::time::sleep(retry), if !follower.being_written.is_empty() => None,
            () = sender.closed() => return Ok(()),
        };
        let gathered = match first {
            Some(first) => {
                retry = FIRST_RETRY;
                gather(first, &mut events).await?
            }
            None => {
                retry = LAST_RETRY.min(retry * 2);
                Vec::new()
            }
        };
        let (next, batch) = in_background(follower, move |follower| follower.act(gathered)).await?;
        follower = next;
        if let Some(batch) = batch {
            if sender.send(batch).await.is_err() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Files are read outside the threads that serve everything else.
async fn in_background(
    mut follower: Follower,
    work: impl FnOnce(&mut Follower) -> Option<Batch> + Send + 'static,
) -> Result<(Follower, Option<Batch>), ManifestError> {
    let task = tokio::task::spawn_blocking(move || {
        let batch = work(&mut follower);
        (follower, batch)
    });
    task.await.map_err(|_| ManifestError::Interrupted)
}

/// All events that are there already, and the other half of a renaming that is there by half.
async fn gather(
    first: EventOwned,
    events: &mut (impl Stream<Item = std::io::Result<EventOwned>> + Unpin),
) -> std::io::Result<Vec<EventOwned>> {
    let mut events = Pin::new(events);
    let mut open_renames = BTreeSet::new();
    let mut gathered = Vec::new();
    let mut next = Some(first);
    while let Some(event) = next.take() {
        if event.mask.contains(EventMask::MOVED_FROM) {
            open_renames.insert(event.cookie);
        } else if event.mask.contains(EventMask::MOVED_TO) {
            open_renames.remove(&event.cookie);
        }
        gathered.push(event);
        if gathered.len() >= AT_ONCE && open_renames.is_empty() {
            break;
        }
        next = match events.next().now_or_never() {
            Some(event) => event.transpose()?,
            None if open_renames.is_empty() => None,
            None => {
                open_renames.clear();
                tokio::time::timeout(RENAME, events.next()).await.ok().flatten().transpose()?
            }
        };
    }
    Ok(gathered)
}

/// What has to be looked at again.
#[derive(Default)]
struct Dirty {
    everything: bool,
    trees: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

struct Follower {
    root: PathBuf,
    watches: Watches,
    store: Store,
    standing: ProblemCounts,
    unread: Unread,
    /// Files that were left alone because somebody has them open for writing.
    being_written: BTreeSet<PathBuf>,
}

impl Follower {
    fn new(root: &Path, watches: Watches) -> Self {
        Self {
            root: root.to_owned(),
            watches,
            store: Store::default(),
            standing: ProblemCounts::default(),
            unread: Unread::default(),
            being_written: BTreeSet::new(),
        }
    }

    fn act(&mut self, events: Vec<EventOwned>) -> Option<Batch> {
        let mut dirty = Dirty { files: self.being_written.clone(), ..Dirty::default() };
        for event in events {
            self.note(&event, &mut dirty);
        }
        if dirty.everything {
            self.look_at_everything();
        } else {
            let inside = |path: &PathBuf| path.ancestors().skip(1).any(|above| dirty.trees.contains(above));
            for tree in dirty.trees.iter().filter(|tree| !inside(tree)) {
                self.look_at_tree(tree);
            }
            for file in dirty.files.iter().filter(|file| !inside(file) && !dirty.trees.contains(*file)) {
                self.store.set_problem(file, None);
                self.look_at_file(file);
            }
        }
        let (standing, unread) = (self.standing, self.unread.clone());
        let batch = self.batch(false);
        let same = batch.standing == standing && batch.unread == unread;
        let nothing = batch.changes.is_empty() && batch.problems.is_empty() && same;
        (!nothing).then_some(batch)
    }

    fn batch(&mut self, initial: bool) -> Batch {
        let outcome = self.store.commit();
        self.standing = ProblemCounts::of(self.store.problems());
        self.unread = self.store.unread();
        let unknown = self.being_written.iter().filter(|file| !self.store.knows(file));
        let reason = |file: &PathBuf| format!("{}: it is still being written", file.display());
        self.unread.places.extend(unknown.map(|file| (file.clone(), reason(file))));
        let unread = self.unread.clone();
        Batch { changes: outcome.changes, problems: outcome.problems, standing: self.standing, unread, initial }
    }

    fn note(&mut self, event: &EventOwned, dirty: &mut Dirty) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            dirty.everything = true;
            return;
        }
        let name = event.name.as_deref();
        if self.watches.leads_to_root(&event.wd, name) {
            dirty.everything = true;
        }
        for path in self.watches.paths(&event.wd) {
            match name {
                Some(name) => self.note_entry(&path, name, event.mask, dirty),
                None if path == self.root => dirty.everything = true,
                None => {
                    dirty.trees.insert(path);
                }
            }
        }
        if event.mask.contains(EventMask::IGNORED) {
            self.watches.forget(&event.wd);
        }
    }

    fn note_entry(&self, folder: &Path, name: &OsStr, mask: EventMask, dirty: &mut Dirty) {
        let path = folder.join(name);
        let is_link = || path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        let comes_or_goes = EventMask::CREATE | EventMask::MOVED_TO | EventMask::MOVED_FROM | EventMask::DELETE;
        if folder::is_hidden(name) {
            // Kubelet's mounted ConfigMaps: files are links through the hidden link `..data`, which a renaming swaps.
            // The same may be done under any other hidden name.
            let swapped = name.as_bytes().starts_with(b"..") || mask.contains(EventMask::MOVED_TO) || is_link();
            if swapped && mask.intersects(comes_or_goes) {
                dirty.trees.insert(folder.to_owned());
            }
        } else if mask.contains(EventMask::ISDIR) || self.watches.is_watched(&path) || is_link() {
            dirty.trees.insert(path);
        } else if folder::is_manifest(&path) && (mask != EventMask::CREATE || has_other_names(&path)) {
            dirty.files.insert(path);
        }
    }

    fn look_at_everything(&mut self) {
        let above = self.watches.watch_above(&self.root);
        let root = self.root.clone();
        self.look_at_tree(&root);
        if !root.is_dir() {
            let message = "the folder is gone, and with it all that it provided; it is read again when it comes back";
            self.store.set_problem(&root, Some(Problem::of_file(&root, Severity::Error, message)));
        } else if let Err(error) = above {
            let message = format!("it will not be noticed if this folder is replaced: {error}");
            self.store.set_problem(&root, Some(Problem::of_file(&root, Severity::Error, message)));
        }
    }

    fn look_at_tree(&mut self, tree: &Path) {
        let scan = self.watches.cover(tree);
        let old_problems: Vec<PathBuf> = self.store.problems_under(tree).map(Path::to_owned).collect();
        for place in old_problems {
            self.store.set_problem(&place, None);
        }
        let listed: BTreeSet<&PathBuf> = scan.files.iter().collect();
        let unlisted: Vec<PathBuf> = self
            .store
            .files_under(tree)
            .filter(|file| !listed.contains(&file.to_path_buf()))
            .map(Path::to_owned)
            .collect();
        for file in unlisted {
            let contents = if scan.unread.iter().any(|place| file.starts_with(place)) {
                Contents::Unreadable("its folder cannot be read")
            } else {
                Contents::Gone
            };
            self.store.set(&file, contents);
        }
        for (place, problem) in scan.problems {
            self.store.set_problem(&place, Some(problem));
        }
        self.being_written.retain(|file| !file.starts_with(tree));
        for file in &scan.files {
            self.look_at_file(file);
        }
    }

    fn look_at_file(&mut self, file: &Path) {
        let look = folder::read(file, Writers::Respected);
        if matches!(look, Look::BeingWritten) {
            self.being_written.insert(file.to_owned());
        } else {
            self.being_written.remove(file);
        }
        self.store.set(file, look.as_ref());
    }
}

/// A file that appears under a second name is complete at once, and no writer closes it.
fn has_other_names(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.nlink() > 1)
}
