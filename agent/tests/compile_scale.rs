//! What compiling costs at 100,000 pods, 10,000 policies and 250 local pods, and what is held for it. Run it in release, by
//! hand: `cargo test --release -p portcullis --test compile_scale -- --ignored --nocapture`. The cluster is that of `cargo
//! xtask bench scale`, of which the other tests here say that it is one.
#![expect(clippy::print_stdout, reason = "the measurement is the test's answer")]
#![expect(clippy::unwrap_used, reason = "helpers of a test")]

#[path = "../benches/scale/objects.rs"]
mod objects;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use objects::Size;
use portcullis::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers, Touched};
use portcullis::convert::{self, Converted, Invalid};
use portcullis::index::Cluster;
use portcullis::model::*;
use portcullis::state::LocalId;
use portcullis::state::flat::Flat;
use serde::de::DeserializeOwned;
use serde_json::Value;

const FULL: Size = Size { pods: 100_000, policies: 10_000, nodes: 5_000, local: 250 };
const SMALL: Size = Size { pods: 500, policies: 50, nodes: 20, local: 10 };

/// The system's allocator, counting what is in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tells how much more is in use than before.
fn held(what: &str, before: &mut usize) {
    let now = IN_USE.load(Ordering::Relaxed);
    println!("{what}: {:.1} MB held, {} MB resident in all", (now as f64 - *before as f64) / 1e6, resident_megabytes());
    *before = now;
}

fn read<T: DeserializeOwned, M>(object: Value, conversion: fn(&T) -> Result<Converted<M>, Vec<Invalid>>) -> M {
    let object: T = serde_json::from_value(object).unwrap();
    let converted = conversion(&object).unwrap();
    assert!(converted.warnings.is_empty(), "{:?}", converted.warnings);
    converted.value
}

fn pod(size: &Size, number: u32) -> Pod {
    with_uid(objects::pod(size, number), number)
}

fn local_pod(size: &Size, number: u32) -> Pod {
    with_uid(objects::local_pod(size, number, "node0", &format!("10.244.0.{}", number + 2)), 1 << 24 | number)
}

fn with_uid(mut object: Value, number: u32) -> Pod {
    object["metadata"]["uid"] = format!("{number:08x}-0000-4000-8000-{number:012x}").into();
    read(object, convert::pod)
}

fn policy(size: &Size, number: u32, port: u16) -> Policy {
    read(objects::policy(size, number, port), convert::network_policy)
}

fn cluster(size: &Size) -> Cluster {
    let mut cluster = Cluster::default();
    let mut set = |object| assert!(cluster.apply(Change::Set(object)), "an object twice");
    (0..size.namespaces()).for_each(|n| set(Object::Namespace(read(objects::namespace(n), convert::namespace))));
    (0..size.remote()).for_each(|n| set(Object::Pod(pod(size, n))));
    (0..size.local).for_each(|n| set(Object::Pod(local_pod(size, n))));
    (0..size.policies).for_each(|n| set(Object::Policy(policy(size, n, 8000))));
    for n in 0..size.services() {
        set(Object::Service(read(objects::service(size, n), convert::service)));
        set(Object::EndpointSlice(read(objects::slice(size, n), convert::endpoint_slice).unwrap()));
    }
    set(Object::Node(read(objects::node(0), convert::node)));
    cluster
}

fn local_pods(size: &Size, cluster: &Cluster) -> Vec<LocalPod> {
    let pods = (0..size.local).map(|number| {
        let (namespace, name) = objects::local_name(size, number);
        Arc::clone(&cluster.pods[&Name::new(namespace, name)])
    });
    pods.map(|pod| LocalPod { id: LocalId { pod: pod.key.clone(), uid: pod.uid.clone() }, pod }).collect()
}

fn node_facts() -> NodeFacts {
    NodeFacts {
        addresses: BTreeSet::from(["10.200.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap()]),
        service_ranges: vec!["10.0.0.0/16".parse().unwrap()],
    }
}

#[test]
fn the_cluster_is_as_large_as_was_asked() {
    let cluster = cluster(&SMALL);
    let counts = [cluster.pods.len(), cluster.policies.len(), cluster.namespaces.len(), cluster.services.len()];
    assert_eq!(counts, [500, 50, 10, 20], "pods, policies, namespaces, Services: no two of one name");
    let addresses: HashSet<_> = cluster.pods.values().flat_map(|pod| pod.addresses.clone()).collect();
    assert_eq!(addresses.len(), 500, "no two pods of one address");
    assert!(cluster.slices.values().all(|slice| !slice.addresses.is_empty()), "Services have backends");
    let nodes: HashSet<_> = cluster.pods.values().map(|pod| pod.node.clone()).collect();
    assert_eq!(nodes.len(), 21, "pods are on every node");
}

#[test]
fn pods_that_come_later_are_others() {
    let names: HashSet<PodKey> = (0..1_500).map(|number| pod(&SMALL, number).key).collect();
    assert_eq!(names.len(), 1_500);
}

#[test]
fn policies_concern_the_local_pods_and_edits_differ() {
    let cluster = cluster(&SMALL);
    for LocalPod { pod, .. } in local_pods(&SMALL, &cluster) {
        let selecting = cluster.policies.values().filter(|policy| cluster.selects(&policy.subject, &pod)).count();
        assert!(selecting >= 3, "{selecting} policies select {}", pod.key);
    }
    let edited = 2 * SMALL.namespaces();
    let (one, other) = (policy(&SMALL, edited, 8000), policy(&SMALL, edited, 8001));
    assert!(one.id == other.id && one != other, "an edit is another version of the same policy");
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "a measurement"]
fn measure() {
    let mut before = IN_USE.load(Ordering::Relaxed);
    let mut cluster = cluster(&FULL);
    held("cluster", &mut before);
    let local = local_pods(&FULL, &cluster);
    let node = node_facts();
    let mut compiler = Compiler::new(Numbers::default(), BTreeMap::new());
    let start = Instant::now();
    let desired = compiler.compile(&Input { cluster: &cluster, local: &local, node: &node }, &Dirty::all());
    println!("first compile: {:?}", start.elapsed());
    held("compiler", &mut before);
    let flat = Flat::of(desired, 0);
    held("rows as they are in the tables", &mut before);
    drop(flat);
    println!(
        "addresses {}, ranges {}, ports {}, sets {}, profile rows {}, profiles {}, verdict rows {}, services {}, reaches {}, rules {}",
        desired.addresses.len(),
        desired.ranges.len(),
        desired.ports.len(),
        desired.set_defaults.len(),
        desired.profiles.len(),
        desired.profile_defaults.len(),
        desired.verdicts.len(),
        desired.services.len(),
        desired.reaches.len(),
        desired.rules.len()
    );

    let mut change = |name: &str, change: Change, compiler: &mut Compiler| {
        let key = match &change {
            Change::Set(object) => object.key(),
            Change::Gone(key) => key.clone(),
        };
        cluster.apply(change);
        let input = Input { cluster: &cluster, local: &local, node: &node };
        let dirty = Dirty { objects: BTreeSet::from([key]), ..Dirty::default() };
        let start = Instant::now();
        compiler.compile(&input, &dirty);
        let took = start.elapsed();
        let Touched::Keys(keys) = compiler.touched() else { panic!("not the first") };
        let touched =
            [keys.addresses.len(), keys.profiles.len(), keys.verdicts.len(), keys.reaches.len(), keys.endpoints.len()];
        compiler.settle();
        let start = Instant::now();
        compiler.compile(&input, &Dirty::default());
        println!(
            "{name}: {took:?}, then {:?} to settle; addresses, profiles, verdicts, reaches, endpoints touched: {touched:?}",
            start.elapsed()
        );
    };
    compiler.settle();
    change("nothing new", Change::Set(Object::Pod(pod(&FULL, 7))), &mut compiler);
    let namespaces = FULL.namespaces();
    let mut new = pod(&FULL, 100 * namespaces + 4);
    change("pod added", Change::Set(Object::Pod(new.clone())), &mut compiler);
    new.labels = [("app", "app-3"), ("tier", "front")].into_iter().collect();
    change("pod relabelled", Change::Set(Object::Pod(new.clone())), &mut compiler);
    change("pod gone", Change::Gone(ObjectKey::Pod(new.key)), &mut compiler);
    let edited = policy(&FULL, 2 * namespaces + 7, 8004);
    change("policy edited", Change::Set(Object::Policy(edited.clone())), &mut compiler);
    change("policy gone", Change::Gone(ObjectKey::Policy(edited.id)), &mut compiler);
    let mut wide = policy(&FULL, 2 * namespaces + 7, 8000);
    wide.ingress.as_mut().unwrap()[0].peer = PeerMatch::Atom(PeerAtom::Pods {
        namespaces: NamespaceScope::Matching(Selector::everything()),
        pods: Selector::In("version".into(), BTreeSet::from(["v1".into()])),
    });
    change("policy about a third of all pods", Change::Set(Object::Policy(wide.clone())), &mut compiler);
    change("policy about a third of all pods gone", Change::Gone(ObjectKey::Policy(wide.id)), &mut compiler);
    let labels = [("kubernetes.io/metadata.name", objects::namespace_name(8)), ("team", "other".to_owned())];
    let relabelled = Namespace { name: objects::namespace_name(8).into(), labels: labels.into_iter().collect() };
    change("namespace relabelled", Change::Set(Object::Namespace(relabelled)), &mut compiler);
    held("after the changes", &mut before);
}
