use std::path::Path;

use super::super::problem::Severity;
use super::super::store::Contents;
use super::{BROKEN, World, bad_policy, documents, lines, pod, policy, policy_key};
use crate::model::{Change, ObjectKey};

#[test]
fn good_files_come_change_and_go() {
    let mut world = World::default();
    world.put("a.yaml", &documents(&[&policy("p", 1), &policy("q", 1)]));
    assert_eq!((world.rules("p"), world.rules("q")), (Some(1), Some(1)), "both documents count");
    let outcome = world.put("a.yaml", &documents(&[&policy("p", 2), &policy("q", 1)]));
    assert_eq!(outcome.changes.len(), 1, "only what is different is told: {:?}", outcome.changes);
    assert_eq!(world.rules("p"), Some(2));
    world.put("a.yaml", &policy("p", 2));
    assert_eq!(world.rules("q"), None, "an object that left its file is gone");
    world.round(&[("a.yaml", None)]);
    assert!(world.cluster.policies.is_empty(), "and with the file the rest");
}

#[test]
fn a_file_read_twice_unchanged_tells_nothing() {
    let mut world = World::default();
    let text = documents(&[&bad_policy("p"), BROKEN, &pod("a", "web")]);
    assert!(!world.put("a.yaml", &text).problems.is_empty());
    let again = world.put("a.yaml", &text);
    assert!(again.changes.is_empty() && again.problems.is_empty(), "unchanged: {again:?}");
    let edited = world.put("a.yaml", &format!("{text}# edited\n"));
    assert!(edited.changes.is_empty(), "a comment changes no object: {edited:?}");
    let told = lines(&edited.problems, Severity::Error);
    assert!(
        told.iter().any(|line| line.contains("spec.ingress[0].ports[0].port")),
        "a new attempt is told anew: {told:?}"
    );
}

#[test]
fn renaming_and_moving_between_files_changes_nothing() {
    let mut world = World::default();
    world.put("a.yaml", &documents(&[&policy("p", 1), &policy("q", 1)]));
    let renamed = world.round(&[("a.yaml", None), ("b.yaml", Some(&documents(&[&policy("p", 1), &policy("q", 1)])))]);
    assert!(renamed.changes.is_empty(), "a renamed file: {:?}", renamed.changes);
    let split = world.round(&[("b.yaml", Some(&policy("q", 1))), ("c.yaml", Some(&policy("p", 1)))]);
    assert!(split.changes.is_empty() && split.problems.is_empty(), "a split file: {split:?}");
}

#[test]
fn a_bad_object_keeps_its_last_good_version() {
    let mut world = World::default();
    world.put("a.yaml", &documents(&[&policy("p", 1), &policy("q", 1)]));
    world.put("a.yaml", &documents(&[&bad_policy("p"), &policy("q", 2)]));
    assert_eq!(world.rules("p"), Some(1), "the last good version stays");
    assert_eq!(world.rules("q"), Some(2), "everything else goes on");
    assert!(world.errors().iter().all(|line| !line.contains("not enforced")), "a version of it is in force");
    world.put("a.yaml", &documents(&[&bad_policy("p"), &policy("q", 3)]));
    assert_eq!(world.rules("p"), Some(1), "however often the file is read");
    world.put("a.yaml", &documents(&[&bad_policy("p").replace("port: 0", "port: {}")]));
    assert_eq!((world.rules("p"), world.rules("q")), (Some(1), None), "wrong types too; what left the file goes");
    world.put("a.yaml", &policy("p", 4));
    assert_eq!(world.rules("p"), Some(4), "until it is corrected");
    assert!(world.errors().is_empty(), "then nothing is wrong: {:?}", world.errors());
    world.put("a.yaml", &bad_policy("p"));
    world.round(&[("a.yaml", None)]);
    assert_eq!(world.rules("p"), None, "a bad object that is removed is gone");
}

#[test]
fn a_bad_object_keeps_its_last_good_version_when_its_file_is_renamed() {
    let mut world = World::default();
    world.put("a.yaml", &policy("p", 1));
    world.round(&[("a.yaml", None), ("b.yaml", Some(&bad_policy("p")))]);
    assert_eq!(world.rules("p"), Some(1));
    world.put("b.yaml", &format!("{}# again\n", bad_policy("p")));
    assert_eq!(world.rules("p"), Some(1), "and later");
}

#[test]
fn while_a_document_cannot_be_understood_its_file_loses_nothing() {
    let rows: &[(&str, &str)] = &[
        ("no YAML", BROKEN),
        ("no kind", "apiVersion: v1\nmetadata: {name: a}\n"),
        ("no name", "apiVersion: v1\nkind: Pod\nmetadata: {}\n"),
        ("no object", "[1]\n"),
    ];
    for (what, bad) in rows {
        let mut world = World::default();
        world.put("a.yaml", &documents(&[&policy("p", 1), &policy("q", 1)]));
        world.put("a.yaml", &documents(&[&policy("p", 2), bad, &policy("new", 1)]));
        assert_eq!(world.rules("q"), Some(1), "{what}: nothing is removed");
        assert_eq!(world.rules("p"), Some(2), "{what}: good documents are taken in");
        assert_eq!(world.rules("new"), Some(1), "{what}: new ones too");
        world.put("a.yaml", &documents(&[bad, bad]));
        assert_eq!(
            (world.rules("p"), world.rules("q"), world.rules("new")),
            (Some(2), Some(1), Some(1)),
            "{what}: still"
        );
        world.put("a.yaml", &policy("p", 3));
        assert_eq!((world.rules("p"), world.rules("q")), (Some(3), None), "{what}: until all of it is understood");
        world.put("a.yaml", bad);
        world.round(&[("a.yaml", None)]);
        assert_eq!(world.rules("p"), None, "{what}: a file that is gone provides nothing");
    }
}

#[test]
fn a_file_that_cannot_be_read_or_is_being_written_loses_nothing() {
    let mut world = World::default();
    world.put("a.yaml", &policy("p", 1));
    world.store.set(Path::new("a.yaml"), Contents::BeingWritten);
    let writing = world.commit();
    assert!(writing.changes.is_empty() && writing.problems.is_empty(), "being written is no problem: {writing:?}");
    world.store.set(Path::new("a.yaml"), Contents::Unreadable("permission denied"));
    world.commit();
    assert_eq!(world.rules("p"), Some(1));
    assert!(world.errors()[0].contains("a.yaml: cannot be read: permission denied"), "{:?}", world.errors());
    world.put("a.yaml", &policy("p", 1));
    assert!(world.errors().is_empty(), "readable again, though unchanged: {:?}", world.errors());
}

#[test]
fn of_an_object_in_two_files_the_first_by_path_counts() {
    let mut world = World::default();
    world.put("b.yaml", &policy("p", 2));
    world.put("c.yaml", &policy("p", 3));
    assert_eq!(world.rules("p"), Some(2), "the first stays");
    let errors = world.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("c.yaml: document 1: NetworkPolicy default/p: "), "one place: {errors:?}");
    assert!(errors[0].contains("b.yaml (document 1)"), "and the other: {errors:?}");
    world.put("a.yaml", &policy("p", 1));
    assert_eq!(world.rules("p"), Some(1), "an earlier path takes over");
    assert_eq!(world.errors().len(), 2, "one for each that does not count");
    world.round(&[("a.yaml", None)]);
    assert_eq!(world.rules("p"), Some(2), "and hands back when it goes");
    world.put("b.yaml", &bad_policy("p"));
    assert_eq!(world.rules("p"), Some(2), "bad, it keeps what it said");
    world.round(&[("b.yaml", None)]);
    assert_eq!(world.rules("p"), Some(3), "the last that is left");
    assert!(world.errors().is_empty(), "{:?}", world.errors());
    world.put("c.yaml", &documents(&[&policy("p", 4), &policy("p", 5)]));
    assert_eq!(world.rules("p"), Some(4), "in one file the first document");
    let errors = world.errors();
    assert!(errors.len() == 1 && errors[0].starts_with("c.yaml: document 2:"), "{errors:?}");
    assert!(errors[0].contains("document 1 of this file"), "{errors:?}");
}

#[test]
fn a_policy_that_was_never_valid_is_reported_when_it_selects_pods() {
    let unenforced = |world: &World| world.errors().iter().filter(|line| line.contains("not enforced")).count();
    let mut world = World::default();
    world.put("p.yaml", &bad_policy("p"));
    assert_eq!((world.errors().len(), unenforced(&world)), (1, 0), "it selects no pod: {:?}", world.errors());
    world.put("other.yaml", &pod("a", "db"));
    assert_eq!(unenforced(&world), 0, "nor this one");
    let told = world.put("pod.yaml", &pod("b", "web")).problems;
    let told = lines(&told, Severity::Error);
    assert!(
        told.len() == 1 && told[0].starts_with("p.yaml: document 1: NetworkPolicy default/p: no version"),
        "{told:?}"
    );
    assert!(told[0].contains("does not protect them"), "{told:?}");
    assert!(world.put("pod2.yaml", &pod("c", "web")).problems.is_empty(), "once");
    world.put("p.yaml", &policy("p", 1));
    assert!(world.errors().is_empty(), "enforced: {:?}", world.errors());
    world.put("q.yaml", &bad_policy("q").replace("app: web", "app: \"-\""));
    assert_eq!(unenforced(&world), 1, "where nobody can tell what it selects: {:?}", world.errors());
    world.put("q.yaml", &bad_policy("q").replace("port: 0", "port: {}"));
    assert_eq!(unenforced(&world), 1, "a wrong type: {:?}", world.errors());
    world.round(&[("q.yaml", None)]);
    assert!(world.errors().is_empty(), "gone: {:?}", world.errors());
}

#[test]
fn lists_hold_objects() {
    let mut world = World::default();
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
        - {apiVersion: v1, kind: PodList, items: [{metadata: {name: x}}, {metadata: {name: y}}]}\n\
        - {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n";
    let typed = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- {metadata: {name: s, \
        labels: {kubernetes.io/service-name: web}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}\n\
        - {metadata: {name: orphan}, addressType: IPv4}\n";
    let rest = "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"web\"}, \"spec\": {}}\n\
        {\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n\"}}\n";
    world.round(&[("a.yaml", Some(list)), ("b.yml", Some(typed)), ("c.json", Some(rest))]);
    let cluster = &world.cluster;
    let counts = (
        cluster.namespaces.len(),
        cluster.pods.len(),
        cluster.slices.len(),
        cluster.services.len(),
        cluster.nodes.len(),
    );
    assert_eq!(counts, (1, 2, 1, 1, 1), "{:?}", world.errors());
    assert!(world.errors().is_empty(), "{:?}", world.errors());
}

#[test]
fn one_round_tells_an_object_once() {
    let mut world = World::default();
    world.put("a.yaml", &policy("p", 1));
    for version in 2..5 {
        world.store.set(Path::new("a.yaml"), Contents::Text(&policy("p", version)));
    }
    let changes = world.commit().changes;
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!(matches!(&changes[0], Change::Set(object) if object.key() == policy_key("p")));
    world.store.set(Path::new("a.yaml"), Contents::Gone);
    let changes = world.commit().changes;
    let gone: Vec<ObjectKey> = changes
        .into_iter()
        .filter_map(|change| match change {
            Change::Gone(key) => Some(key),
            Change::Set(_) => None,
        })
        .collect();
    assert_eq!(gone, [policy_key("p")]);
}

#[test]
fn what_was_never_read_is_told_until_it_is() {
    let mut world = World::default();
    let unread = |world: &World| {
        let unread = world.store.unread();
        let places: Vec<String> = unread.places.keys().map(|path| path.display().to_string()).collect();
        let policies: Vec<String> = unread.policies.keys().map(|policy| policy.name.to_string()).collect();
        (places.join(" "), policies.join(" "))
    };
    let of = |places: &str, policies: &str| (places.to_owned(), policies.to_owned());
    world.put("a.yaml", &documents(&[&policy("p", 1), BROKEN]));
    assert_eq!(unread(&world), of("a.yaml", ""), "a file that never was understood");
    world.put("a.yaml", &documents(&[&policy("p", 2), BROKEN, BROKEN]));
    assert_eq!(unread(&world), of("a.yaml", ""), "nor the next time");
    world.put("b.yaml", &policy("q", 1));
    world.put("b.yaml", BROKEN);
    assert_eq!(unread(&world), of("a.yaml", ""), "one that was: what it provided stays");
    world.round(&[("a.yaml", None), ("c.yaml", Some(BROKEN))]);
    assert_eq!(unread(&world), of("c.yaml", ""), "under another name");
    world.put("c.yaml", &bad_policy("r"));
    assert_eq!(unread(&world), of("", "r"), "of a refused policy the name is known");
    world.put("c.yaml", &documents(&[&policy("r", 1), &bad_policy("q")]));
    assert_eq!(unread(&world), of("", ""), "a version of q was valid");
    world.store.set(Path::new("d.yaml"), Contents::Unreadable("a reason"));
    world.commit();
    assert_eq!(unread(&world), of("d.yaml", ""), "a file that cannot be read");
    world.round(&[("d.yaml", None)]);
    assert_eq!(unread(&world), of("", ""), "is removed");
}
