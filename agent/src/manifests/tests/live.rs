//! Real files, real notifications; every step waits for the batch that tells it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::{Batch, ManifestError, Severity, follow};
use super::{BROKEN, bad_policy, documents, policy, rules};
use crate::index::Cluster;

/// A folder that is followed, and what has been told of it.
pub(super) struct Followed {
    dir: TempDir,
    batches: mpsc::Receiver<Batch>,
    pub cluster: Cluster,
    pub told: Vec<String>,
    pub count: usize,
    task: JoinHandle<Result<(), ManifestError>>,
}

impl Followed {
    /// Follows `root` inside a folder of our own, once `prepare` has filled that.
    pub(super) async fn start(root: &str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a folder of our own");
        prepare(dir.path());
        let (sender, batches) = mpsc::channel(16);
        let followed = dir.path().join(root);
        let task = tokio::spawn(async move { follow(&followed, Duration::from_millis(50), sender).await });
        let mut this = Self { dir, batches, cluster: Cluster::default(), told: Vec::new(), count: 0, task };
        assert!(this.batch().await.initial, "the first batch is what the folder holds");
        this
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("our own file");
    }

    async fn batch(&mut self) -> Batch {
        let batch = tokio::time::timeout(Duration::from_secs(20), self.batches.recv()).await;
        let batch = batch.expect("a batch is told in time").expect("the folder is followed");
        self.count += 1;
        for change in &batch.changes {
            assert!(self.cluster.apply(change.clone()), "a change changes something: {change:?}");
        }
        self.told.extend(batch.problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string));
        batch
    }

    /// Waits until the cluster is as expected; every state on the way is checked, too.
    pub(super) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool, always: impl Fn(&Self) -> bool) {
        loop {
            assert!(always(self), "{what}: a state in between: {:?}", self.names());
            if done(self) {
                return;
            }
            let told = tokio::time::timeout(Duration::from_secs(20), self.batch()).await;
            assert!(told.is_ok(), "{what}: not reached from {:?}, {:?}", self.names(), self.told);
        }
    }

    pub(super) async fn expect(&mut self, what: &str, expected: &[(&str, usize)]) {
        let expected: BTreeSet<(String, usize)> =
            expected.iter().map(|(name, rules)| ((*name).to_owned(), *rules)).collect();
        self.until(what, |this| this.names() == expected, |_| true).await;
    }

    pub(super) fn names(&self) -> BTreeSet<(String, usize)> {
        let names = self.cluster.policies.keys().map(|id| id.name.to_string());
        names.filter_map(|name| rules(&self.cluster, &name).map(|rules| (name, rules))).collect()
    }

    pub(super) async fn stop(self) {
        drop(self.batches);
        let ended = tokio::time::timeout(Duration::from_secs(20), self.task).await;
        ended.expect("it ends when nobody listens").expect("it does not panic").expect("it does not fail");
    }
}

#[tokio::test]
async fn files_are_written_renamed_and_deleted() {
    let mut folder = Followed::start("", |dir| fs::write(dir.join("a.yaml"), policy("a", 1)).expect("our own")).await;
    folder.expect("at the start", &[("a", 1)]).await;
    folder.write("a.yaml", &policy("a", 2));
    folder.expect("written in place", &[("a", 2)]).await;
    folder.write(".b.tmp", &policy("b", 1));
    fs::rename(folder.path(".b.tmp"), folder.path("b.yaml")).expect("our own");
    folder.expect("written beside and renamed", &[("a", 2), ("b", 1)]).await;
    folder.write("b.tmp", &policy("b", 2));
    fs::rename(folder.path("b.tmp"), folder.path("b.yaml")).expect("our own");
    folder.expect("replaced by renaming", &[("a", 2), ("b", 2)]).await;
    fs::rename(folder.path("b.yaml"), folder.path("c.yaml")).expect("our own");
    folder.write("d.yaml", &policy("d", 1));
    let keeps_b = |this: &Followed| rules(&this.cluster, "b") == Some(2);
    folder.until("renamed: never gone", |this| rules(&this.cluster, "d").is_some(), keeps_b).await;
    fs::hard_link(folder.path("d.yaml"), folder.path("e.txt")).expect("our own");
    fs::rename(folder.path("e.txt"), folder.path("f.txt")).expect("our own");
    fs::remove_file(folder.path("d.yaml")).expect("our own");
    folder.expect("deleted", &[("a", 2), ("b", 2)]).await;
    fs::hard_link(folder.path("f.txt"), folder.path("f.yaml")).expect("our own");
    folder.expect("a second name", &[("a", 2), ("b", 2), ("d", 1)]).await;
    fs::rename(folder.path("f.yaml"), folder.path(".f.yaml")).expect("our own");
    folder.expect("hidden", &[("a", 2), ("b", 2)]).await;
    assert!(folder.told.is_empty(), "{:?}", folder.told);
    folder.stop().await;
}

#[tokio::test]
async fn a_file_is_never_read_half_written() {
    // The first half is a policy of its own, so that reading it would show.
    let half = |path: PathBuf, name: &str| {
        let mut file = File::create(path).expect("our own");
        file.write_all(policy(name, 2).as_bytes()).expect("our own");
        file.flush().expect("our own");
        file
    };
    let finish = |mut file: File, name: &str| {
        file.write_all(format!("---\n{}", policy(name, 1)).as_bytes()).expect("our own");
    };
    let mut at_start = None;
    let mut folder = Followed::start("", |dir| {
        fs::write(dir.join("a.yaml"), policy("a", 1)).expect("our own");
        at_start = Some(half(dir.join("s.yaml"), "s"));
    })
    .await;
    folder.expect("what is still being written at the start is not read", &[("a", 1)]).await;
    let in_place = half(folder.path("a.yaml"), "a");
    // A file in a new folder is found by looking, not by its own notification.
    fs::create_dir(folder.path("new")).expect("our own");
    let in_new = half(folder.path("new/n.yaml"), "n");
    folder.write("z.yaml", &policy("z", 1));
    folder.write("y.yaml", &policy("y", 1));
    fs::rename(folder.path("y.yaml"), folder.path("new/y.yaml")).expect("our own");
    let untouched = |this: &Followed| {
        let rules = |name| rules(&this.cluster, name);
        (rules("a"), rules("s"), rules("n")) == (Some(1), None, None)
    };
    let others = |this: &Followed| rules(&this.cluster, "z").is_some() && rules(&this.cluster, "y").is_some();
    folder.until("other files are read, the three that are open are not", others, untouched).await;
    finish(in_place, "b");
    let whole = |this: &Followed| rules(&this.cluster, "a") == Some(1) || rules(&this.cluster, "b").is_some();
    folder.until("closed: both documents at once", |this| rules(&this.cluster, "a") == Some(2), whole).await;
    if let Some(file) = at_start {
        finish(file, "t");
    }
    finish(in_new, "o");
    let all = [("a", 2), ("b", 1), ("n", 2), ("o", 1), ("s", 2), ("t", 1), ("y", 1), ("z", 1)];
    folder.expect("all closed", &all).await;
    assert!(folder.told.is_empty(), "{:?}", folder.told);
    folder.stop().await;
}

#[tokio::test]
async fn a_file_whose_close_is_not_notified_is_read_all_the_same() {
    let mut folder = Followed::start("in", |dir| {
        fs::create_dir(dir.join("in")).expect("our own");
        fs::create_dir(dir.join("out")).expect("our own");
    })
    .await;
    let mut file = File::create(folder.path("out/h.yaml")).expect("our own");
    file.write_all(policy("h", 1).as_bytes()).expect("our own");
    // The close is notified to the folder in which the file was opened.
    fs::hard_link(folder.path("out/h.yaml"), folder.path("in/h.yaml")).expect("our own");
    folder.write("in/z.yaml", &policy("z", 1));
    folder.expect("open for writing under its other name", &[("z", 1)]).await;
    file.write_all(format!("---\n{}", policy("i", 1)).as_bytes()).expect("our own");
    drop(file);
    folder.expect("closed", &[("h", 1), ("i", 1), ("z", 1)]).await;
    folder.stop().await;
}

#[tokio::test]
async fn bad_files_keep_what_was_good() {
    let mut folder = Followed::start("", |dir| {
        fs::write(dir.join("a.yaml"), documents(&[&policy("a", 1), &policy("b", 1)])).expect("our own");
    })
    .await;
    folder.expect("at the start", &[("a", 1), ("b", 1)]).await;
    folder.write("a.yaml", &documents(&[&bad_policy("a"), BROKEN, &policy("c", 1)]));
    folder.expect("good documents are taken in, nothing is lost", &[("a", 1), ("b", 1), ("c", 1)]).await;
    let told = folder.told.join("\n");
    assert!(told.contains("a.yaml: document 1: NetworkPolicy default/a: spec.ingress[0].ports[0].port: "), "{told}");
    assert!(told.contains("a.yaml: document 2: "), "{told}");
    folder.write("a.yaml", &policy("a", 2));
    folder.expect("corrected", &[("a", 2)]).await;
    folder.write("a.yaml", BROKEN);
    folder.write("b.yaml", &policy("b", 1));
    folder.expect("broken once more", &[("a", 2), ("b", 1)]).await;
    fs::remove_file(folder.path("a.yaml")).expect("our own");
    folder.expect("removed", &[("b", 1)]).await;
    folder.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_missing_is_refused_at_the_start() {
    let (sender, _batches) = mpsc::channel(1);
    let missing = follow(Path::new("/nonexistent/manifests"), Duration::ZERO, sender).await;
    let message = missing.expect_err("there is none").to_string();
    assert!(message.contains("/nonexistent/manifests"), "{message}");
}
