use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::load;
use super::super::store::{Contents, Store};
use super::{BROKEN, World, bad_policy, documents, pod, policy};

/// One change of a folder with few files and few objects, so that they meet.
#[derive(Clone, Debug)]
enum Event {
    Write(usize, Vec<Doc>),
    Remove(usize),
    Rename(usize, usize),
}

#[derive(Clone, Copy, Debug)]
enum Doc {
    Policy(usize, usize),
    Pod(usize, bool),
    Empty,
    Refused(usize),
    Broken,
}

impl Doc {
    fn text(self) -> String {
        match self {
            Self::Policy(name, rules) => policy(&format!("p{name}"), rules),
            Self::Pod(name, web) => pod(&format!("a{name}"), if web { "web" } else { "db" }),
            Self::Empty => "# nothing\n".to_owned(),
            Self::Refused(name) => bad_policy(&format!("p{name}")),
            Self::Broken => BROKEN.to_owned(),
        }
    }
}

fn good() -> impl Strategy<Value = Doc> {
    prop_oneof![
        4 => (0..4_usize, 0..3_usize).prop_map(|(name, rules)| Doc::Policy(name, rules)),
        2 => (0..3_usize, any::<bool>()).prop_map(|(name, web)| Doc::Pod(name, web)),
        1 => Just(Doc::Empty),
    ]
}

fn any_doc() -> impl Strategy<Value = Doc> {
    prop_oneof![3 => good(), 1 => (0..4_usize).prop_map(Doc::Refused), 1 => Just(Doc::Broken)]
}

fn event(doc: impl Strategy<Value = Doc> + 'static) -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_usize, prop::collection::vec(doc, 0..4)).prop_map(|(file, docs)| Event::Write(file, docs)),
        1 => (0..4_usize).prop_map(Event::Remove),
        1 => (0..4_usize, 0..4_usize).prop_map(|(from, to)| Event::Rename(from, to)),
    ]
}

const FILES: [&str; 4] = ["a.yaml", "b.yml", "d/c.yaml", "e.json"];

/// The folder as it is, and what each event says of its files.
#[derive(Default)]
struct Folder(BTreeMap<PathBuf, String>);

impl Folder {
    fn apply(&mut self, event: &Event) -> Vec<(PathBuf, Option<String>)> {
        let path = |file: usize| PathBuf::from(FILES[file]);
        let mut changes = Vec::new();
        match event {
            Event::Write(file, docs) => {
                let texts: Vec<String> = docs.iter().map(|doc| doc.text()).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                changes.push((path(*file), Some(documents(&texts))));
            }
            Event::Remove(file) => changes.push((path(*file), None)),
            Event::Rename(from, to) => {
                if let Some(text) = self.0.get(&path(*from)).cloned().filter(|_| from != to) {
                    changes.push((path(*from), None));
                    changes.push((path(*to), Some(text)));
                }
            }
        }
        for (path, text) in &changes {
            match text {
                Some(text) => self.0.insert(path.clone(), text.clone()),
                None => self.0.remove(path),
            };
        }
        changes
    }

    fn fresh(&self) -> World {
        let mut world = World::default();
        for (path, text) in &self.0 {
            world.store.set(path, Contents::Text(text));
        }
        world.commit();
        world
    }
}

fn take(store: &mut Store, changes: &[(PathBuf, Option<String>)]) {
    for (path, text) in changes {
        store.set(path, text.as_deref().map_or(Contents::Gone, Contents::Text));
    }
}

macro_rules! assert_same_cluster {
    ($left:expr, $right:expr) => {
        prop_assert_eq!(&$left.pods, &$right.pods);
        prop_assert_eq!(&$left.policies, &$right.policies);
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Where every file is good, the way there does not matter.
    #[test]
    fn the_cluster_is_what_a_fresh_look_gives(
        events in prop::collection::vec((event(good()), any::<bool>()), 1..20)
    ) {
        let mut folder = Folder::default();
        let mut world = World::default();
        for (event, ends_round) in &events {
            take(&mut world.store, &folder.apply(event));
            if *ends_round {
                world.commit();
                let fresh = folder.fresh();
                assert_same_cluster!(world.cluster, fresh.cluster);
            }
        }
        world.commit();
        let fresh = folder.fresh();
        assert_same_cluster!(world.cluster, fresh.cluster);
        prop_assert_eq!(world.store.problems().collect::<Vec<_>>(), fresh.store.problems().collect::<Vec<_>>());
    }

    /// Bad files on the way leave no trace once everything is good again.
    #[test]
    fn bad_files_leave_no_trace(
        events in prop::collection::vec(event(any_doc()), 1..20),
        good in prop::collection::vec(prop::collection::vec(good(), 0..4), FILES.len()),
    ) {
        let mut folder = Folder::default();
        let mut world = World::default();
        for event in &events {
            take(&mut world.store, &folder.apply(event));
            world.commit();
            let fresh = folder.fresh();
            for name in fresh.cluster.policies.keys() {
                prop_assert!(world.cluster.policies.contains_key(name), "what is good now is in force: {name}");
            }
        }
        for (file, docs) in good.into_iter().enumerate() {
            take(&mut world.store, &folder.apply(&Event::Write(file, docs)));
        }
        world.commit();
        let fresh = folder.fresh();
        assert_same_cluster!(world.cluster, fresh.cluster);
        prop_assert_eq!(world.store.problems().collect::<Vec<_>>(), fresh.store.problems().collect::<Vec<_>>());
    }
}

#[test]
fn loading_a_folder_reads_all_visible_manifests() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is inside")).expect("our own folder");
        std::fs::write(path, text).expect("our own file");
    };
    for (index, name) in
        ["a.yaml", "b.yml", "deep/er/c.json", ".hidden.yaml", ".git/d.yaml", "e.txt", "f.yaml~", "g.YAML"]
            .iter()
            .enumerate()
    {
        write(name, &policy(&format!("p{index}"), 1));
    }
    write("bad.yaml", BROKEN);
    let loaded = load(dir.path()).expect("it can be read");
    let names: Vec<&str> = loaded.cluster.policies.keys().map(|id| &*id.name).collect();
    assert_eq!(names, ["p0", "p1", "p2"]);
    assert_eq!(loaded.problems.len(), 1, "{:?}", loaded.problems);
    assert_eq!(loaded.problems[0].file, dir.path().join("bad.yaml"));
    assert!(load(&dir.path().join("a.yaml")).is_err(), "a file is no folder");
    assert!(load(Path::new("/nonexistent/manifests")).is_err(), "a folder that is missing");
}
