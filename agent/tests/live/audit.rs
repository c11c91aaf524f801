//! Tables that somebody else writes: put right, counted, told.

use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData};
use portcullis::dataplane::LAYOUT;
use portcullis_testbed::{Outcome, Probe, Protocol, Shape};
use serde_json::json;

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 3] = [("x/a", 0), ("x/b", 0), ("x/c", 0)];

fn map(pins: &Path, name: &str) -> MapData {
    MapData::from_pin(pins.join(LAYOUT).join("maps").join(name)).unwrap()
}

fn array<V: Pod>(pins: &Path, name: &str) -> Array<MapData, V> {
    Array::try_from(Map::Array(map(pins, name))).unwrap()
}

/// The first element that is not zero.
fn first<V: Pod + PartialEq + Default>(array: &Array<MapData, V>) -> (u32, V) {
    (0..array.len()).map(|at| (at, array.get(&at, 0).unwrap())).find(|(_, value)| *value != V::default()).unwrap()
}

/// Changes a table, and gives a way to see that it is as it was.
type Edit = fn(&Path) -> Box<dyn Fn(&Path) -> bool>;

/// The rows of narrow or wide buckets: each row's words.
type Rows<V> = fn(&V) -> Vec<Vec<u64>>;

fn narrow(bucket: &[u64; 16]) -> Vec<Vec<u64>> {
    (0..8).filter(|way| bucket[*way] != 0).map(|way| vec![bucket[way], bucket[way + 8]]).collect()
}

fn wide(bucket: &[u64; 32]) -> Vec<Vec<u64>> {
    let key = |way: usize| &bucket[8 + 3 * way..11 + 3 * way];
    (0..8).filter(|way| bucket[*way] != 0).map(|way| [key(way), &bucket[way..=way]].concat()).collect()
}

/// Puts something else where the first bucket is. What was in it must be in the table again, whichever bucket has it, and
/// what was put there must not.
fn change_rows<V>(pins: &Path, name: &'static str, rows: Rows<V>, edit: fn(V) -> V) -> Box<dyn Fn(&Path) -> bool>
where
    V: Pod + PartialEq + Default + 'static,
{
    let mut table = array::<V>(pins, name);
    let occupied = (0..table.len()).map(|at| (at, table.get(&at, 0).unwrap()));
    let (at, value) = occupied.into_iter().find(|(_, bucket)| !rows(bucket).is_empty()).unwrap();
    table.set(at, edit(value), 0).unwrap();
    let (right, wrong) = (rows(&value), rows(&edit(value)));
    Box::new(move |pins| {
        let table = array::<V>(pins, name);
        let all: Vec<Vec<u64>> = table.iter().flat_map(|bucket| rows(&bucket.unwrap())).collect();
        let count = |row: &Vec<u64>| all.iter().filter(|other| *other == row).count();
        right.iter().all(|row| count(row) == 1) && wrong.iter().all(|row| right.contains(row) || count(row) == 0)
    })
}

/// Puts something else where the first element is.
fn change<V>(pins: &Path, name: &'static str, edit: impl FnOnce(V) -> V) -> Box<dyn Fn(&Path) -> bool>
where
    V: Pod + PartialEq + Default + 'static,
{
    let mut table = array::<V>(pins, name);
    let (at, value) = first(&table);
    table.set(at, edit(value), 0).unwrap();
    Box::new(move |pins| array::<V>(pins, name).get(&at, 0).unwrap() == value)
}

#[test]
fn what_somebody_else_writes_into_a_table_is_put_right_and_counted() {
    let mut plan = Plan::new(Shape::Routed, &PODS);
    plan.arguments = ["--audit-interval", "1", "--max-ranges", "64"].map(str::to_owned).into();
    let cluster = LiveCluster::new(&plan);
    let from = json!([{"podSelector": {"matchLabels": {"pod": "c"}}}, {"ipBlock": {"cidr": "198.18.0.0/15"}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": from, "ports": [{"port": 80, "endPort": 90}]}],
    });
    cluster.enforce(&[policy("x", "guard", &spec)]);
    let agent = &cluster.agents[0];
    let ask = |pod: &str| {
        let to = cluster.pod("x/b").v4().unwrap();
        Probe::new(cluster.pod(pod), to, Protocol::Tcp, 80).timeout(std::time::Duration::from_millis(1000)).run()
    };
    let gone: Edit = |pins| {
        drop(change(pins, "ENDPOINTS", |_: u64| 0));
        // Its revision rises with what is judged again.
        Box::new(|pins| first(&array::<u64>(pins, "ENDPOINTS")).0 == 0)
    };
    let rows: [(&str, &str, Edit); 18] = [
        ("a profile or verdict has another value", "rows", |pins| {
            change_rows(pins, "NARROW", narrow, |mut bucket: [u64; 16]| {
                let way = (0..8).find(|way| bucket[*way] != 0).unwrap();
                bucket[way + 8] ^= 1 << 32;
                bucket
            })
        }),
        ("a bucket of profiles or verdicts is empty", "rows", |pins| change_rows(pins, "NARROW", narrow, |_| [0; 16])),
        ("an address has another class", "addresses", |pins| {
            change_rows(pins, "WIDE", wide, |mut bucket: [u64; 32]| {
                let way = (0..8).find(|way| bucket[*way] != 0).unwrap();
                bucket[way] ^= 1;
                bucket
            })
        }),
        ("an address is no longer found", "addresses", |pins| {
            change_rows(pins, "WIDE", wide, |mut bucket: [u64; 32]| {
                let way = (0..8).find(|way| bucket[*way] != 0).unwrap();
                bucket[way] ^= 1 << 63;
                bucket
            })
        }),
        ("a bucket of addresses is empty", "addresses", |pins| change_rows(pins, "WIDE", wide, |_| [0; 32])),
        ("a row that nobody has", "rows", |pins| {
            change_rows(pins, "NARROW", narrow, |mut bucket| {
                let way = (0..8).find(|way| bucket[*way] == 0).unwrap();
                (bucket[way], bucket[way + 8]) = (0x1234 << 48 | 77, 1);
                bucket
            })
        }),
        ("an endpoint has no policy", "endpoints", |pins| {
            let rows = array::<[u64; 8]>(pins, "ROWS");
            let policies: Vec<(u32, [u64; 8])> = (0..rows.len()).map(|at| (at, rows.get(&at, 0).unwrap())).collect();
            let word = first(&array::<u64>(pins, "ENDPOINTS")).1;
            let (at, right) = policies[word as u32 as usize];
            array::<[u64; 8]>(pins, "ROWS").set(at, [0; 8], 0).unwrap();
            Box::new(move |pins| array::<[u64; 8]>(pins, "ROWS").get(&at, 0).unwrap() == right)
        }),
        ("a slot is another pod's", "identities", |pins| {
            let mut texts = array::<[u64; 48]>(pins, "IDENTITIES");
            let right = texts.get(&0, 0).unwrap();
            let mut wrong = right;
            wrong[0] ^= 1;
            texts.set(0, wrong, 0).unwrap();
            Box::new(move |pins| array::<[u64; 48]>(pins, "IDENTITIES").get(&0, 0).unwrap() == right)
        }),
        ("an endpoint is gone", "endpoints", gone),
        ("an endpoint that nobody has", "endpoints", |pins| {
            array::<u64>(pins, "ENDPOINTS").set(900, 1 << 32 | 5, 0).unwrap();
            Box::new(|pins| array::<u64>(pins, "ENDPOINTS").get(&900, 0).unwrap() == 0)
        }),
        ("a device is gone", "interfaces", |pins| change(pins, "INTERFACES", |_: [u64; 8]| [0; 8])),
        ("a device that is no pod's", "interfaces", |pins| {
            array::<[u64; 8]>(pins, "INTERFACES").set(4000, [1 << 48 | 8096, 0, 0, 0, 0, 0, 0, 0], 0).unwrap();
            Box::new(|pins| array::<[u64; 8]>(pins, "INTERFACES").get(&4000, 0).unwrap() == [0; 8])
        }),
        ("ports have other classes", "ports", |pins| {
            let mut ports = array::<[u64; 64]>(pins, "PORTS");
            let at = (0..ports.len()).find(|at| ports.get(at, 0).unwrap() != [0; 64]).unwrap();
            let value = ports.get(&at, 0).unwrap();
            ports.set(at, [7; 64], 0).unwrap();
            Box::new(move |pins| array::<[u64; 64]>(pins, "PORTS").get(&at, 0).unwrap() == value)
        }),
        ("a range is gone", "ranges", |pins| {
            let mut ranges = LpmTrie::<_, [u32; 5], u64>::try_from(Map::LpmTrie(map(pins, "RANGES"))).unwrap();
            let keys: Vec<Key<[u32; 5]>> = ranges.keys().map(Result::unwrap).collect();
            let count = keys.len();
            ranges.remove(&keys[0]).unwrap();
            ranges.insert(&Key::new(32 + 96 + 9, keys[0].data()), 1 << 32 | 99, 0).unwrap();
            Box::new(move |pins| {
                let ranges = LpmTrie::<_, [u32; 5], u64>::try_from(Map::LpmTrie(map(pins, "RANGES"))).unwrap();
                ranges.keys().count() == count
            })
        }),
        ("the node's flags", "node", |pins| {
            change(pins, "NODE", |mut node: [u64; 11]| {
                node[1] ^= 3;
                node
            })
        }),
        ("the node's seed", "node", |pins| {
            change(pins, "NODE", |mut node: [u64; 11]| {
                node[0] ^= 1;
                node
            })
        }),
        ("the node's lifetimes and tunnels", "node", |pins| {
            change(pins, "NODE", |mut node: [u64; 11]| {
                node[2] = 1;
                node[10] = 53;
                node
            })
        }),
        ("a rule's name", "rules", |pins| change(pins, "RULES", |_: [u8; 16]| [9; 16])),
    ];
    let full = ("an endpoint is gone while a table is full", "endpoints", gone);
    // As it is, before anybody changes anything. By then the agent is done with what the last change has left, which is no
    // repair.
    assert!(ask("x/c").is_answer_of("x/b"), "allowed");
    assert_eq!(ask("x/a"), Outcome::Timeout, "denied");
    for (what, table, edit) in rows.into_iter().chain([full]) {
        if what == full.0 {
            let peers: Vec<_> = (0..200).map(|i| json!({"ipBlock": {"cidr": format!("198.18.{i}.0/24")}})).collect();
            let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]});
            cluster.manifests.write("large", &[policy("x", "large", &spec)]);
            agent.await_metrics("a full table", |samples| {
                let result = [("result", "table-full")];
                samples.iter().any(|s| s.name == "portcullis_updates_total" && s.has(&result) && s.value > 0.0)
            });
        }
        let repairs = || agent.metric("portcullis_table_repairs_total", &[("table", table)]);
        let before = repairs();
        let is_right = edit(agent.pin_dir());
        agent.await_metrics(&format!("{what}: its repair"), |samples| {
            samples
                .iter()
                .any(|s| s.name == "portcullis_table_repairs_total" && s.has(&[("table", table)]) && s.value > before)
        });
        assert!(is_right(agent.pin_dir()), "{what}: is as it was");
        assert!(ask("x/c").is_answer_of("x/b"), "{what}: allowed");
        assert_eq!(ask("x/a"), Outcome::Timeout, "{what}: denied");
    }
    assert!(agent.log().contains("somebody else has changed a table"), "and told");
}
