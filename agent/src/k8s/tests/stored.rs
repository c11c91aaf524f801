//! What follows from what was told.

use serde_json::{Value, json};

use super::super::kind::Kind;
use super::super::object::{Named, read};
use super::super::store::{Severity, Store, Told};
use crate::model::Change;

fn namespace(name: &str, label: &str) -> Named {
    read(Kind::Namespace, &json!({"metadata": {"name": name, "labels": {"l": label}}}).to_string()).1
}

fn policy(spec: &Value) -> Named {
    let metadata = json!({"name": "guard", "namespace": "x", "uid": "u"});
    read(Kind::NetworkPolicy, &json!({"metadata": metadata, "spec": spec}).to_string()).1
}

/// What changes, by the object's name.
fn changes(store: &mut Store) -> Vec<String> {
    let (changes, _) = store.changes();
    let show = |change: Change| match change {
        Change::Set(object) => format!("+{}", object.key()),
        Change::Gone(key) => format!("-{key}"),
    };
    changes.into_iter().map(show).collect()
}

#[test]
fn a_list_sweeps_what_it_does_not_tell() {
    let kind = Kind::Namespace;
    let mut store = Store::default();
    store.take(Told::Begin(kind));
    store.take(Told::There(kind, vec![namespace("a", "1"), namespace("b", "1")]));
    assert_eq!(changes(&mut store), ["+Namespace a", "+Namespace b"], "what is there is told before the list ends");
    store.take(Told::End(kind));
    assert!(changes(&mut store).is_empty(), "nothing was there before");

    store.take(Told::Begin(kind));
    store.take(Told::There(kind, vec![namespace("b", "2"), namespace("c", "1")]));
    // The connection breaks: the list begins anew, and says something else.
    store.take(Told::Begin(kind));
    store.take(Told::There(kind, vec![namespace("b", "2")]));
    changes(&mut store);
    store.take(Told::End(kind));
    let mut gone = changes(&mut store);
    gone.sort();
    assert_eq!(gone, ["-Namespace a", "-Namespace c"], "whose deletion nobody saw");

    store.take(Told::Gone(kind, crate::model::ObjectKey::Namespace("b".into())));
    store.take(Told::Gone(kind, crate::model::ObjectKey::Namespace("b".into())));
    assert_eq!(changes(&mut store), ["-Namespace b"], "once");
    assert_eq!(store.count(kind), 0);
}

#[test]
fn a_refused_version_leaves_the_last_good_one() {
    let kind = Kind::NetworkPolicy;
    let (good, bad) = (json!({"podSelector": {}}), json!({"podSelector": {}, "ingress": 5}));
    let mut store = Store::default();
    store.take(Told::Begin(kind));
    store.take(Told::There(kind, vec![policy(&bad)]));
    let (changed, problems) = store.changes();
    assert!(changed.is_empty() && problems.len() == 1, "{problems:?}");
    assert_eq!(problems[0].severity, Severity::Error);
    let said = problems[0].to_string();
    assert!(
        said.starts_with("NetworkPolicy x/guard: spec.ingress: ") && said.ends_with("so it is not enforced"),
        "{said}"
    );
    assert_eq!(store.unread.len(), 1, "an agent before may have known a good version");

    store.take(Told::There(kind, vec![policy(&bad)]));
    assert!(store.changes().1.is_empty(), "the same again is not told again");

    store.take(Told::There(kind, vec![policy(&good)]));
    assert_eq!(changes(&mut store), ["+NetworkPolicy x/guard"]);
    assert!(store.unread.is_empty(), "it is known now");

    store.take(Told::There(kind, vec![policy(&bad)]));
    let (changed, problems) = store.changes();
    assert!(changed.is_empty() && store.unread.is_empty(), "the good version is kept");
    assert!(problems[0].to_string().ends_with("its last good version stays in force"), "{problems:?}");

    store.take(Told::Begin(kind));
    store.take(Told::There(kind, vec![policy(&bad)]));
    store.take(Told::End(kind));
    assert!(changes(&mut store).is_empty(), "it is refused, not gone");
    store.take(Told::Begin(kind));
    store.take(Told::End(kind));
    assert_eq!(changes(&mut store), ["-NetworkPolicy x/guard"], "and now it is gone");
}

#[test]
fn what_has_no_name_is_told_and_stops_nothing() {
    let kind = Kind::Namespace;
    let nameless = read(kind, r#"{"metadata": {"labels": {}}}"#).1;
    let mut store = Store::default();
    store.take(Told::There(kind, vec![nameless, namespace("a", "1")]));
    let (changed, problems) = store.changes();
    assert_eq!((changed.len(), problems.len()), (1, 1), "{problems:?}");
    assert_eq!(problems[0].to_string(), "a Namespace whose name cannot be read: metadata.name: missing");
}

#[test]
fn messages_are_one_short_line() {
    let long = json!({"podSelector": {}, "policyTypes": [format!("a\nb{}", "x".repeat(100_000))]});
    let mut store = Store::default();
    store.take(Told::There(Kind::NetworkPolicy, vec![policy(&long)]));
    let said = store.changes().1[0].to_string();
    assert!(said.len() < 1000 && !said.contains('\n'), "{} bytes", said.len());
}

#[test]
fn a_warning_is_told_once_as_long_as_it_stands() {
    let kind = Kind::NetworkPolicy;
    let from = |cidr: &str| json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]});
    let (odd, other, good) = (from("10.1.2.3/8"), from("10.1.2.4/8"), from("10.0.0.0/8"));
    let mut store = Store::default();
    let mut told = |spec: &Value| {
        store.take(Told::Begin(kind));
        store.take(Told::There(kind, vec![policy(spec)]));
        store.take(Told::End(kind));
        store.changes().1.len()
    };
    assert_eq!(told(&odd), 1, "news");
    assert_eq!(told(&odd), 0, "the same by another list");
    assert_eq!(told(&other), 1, "another warning");
    assert_eq!(told(&good), 0, "none");
    assert_eq!(told(&odd), 1, "again after it was put right");
}
