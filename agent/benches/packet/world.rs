//! A cluster with one isolated pod and a number of rules, in the kernel's tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use portcullis::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers};
use portcullis::convert;
use portcullis::dataplane::{Dataplane, Settings};
use portcullis::index::Cluster;
use portcullis::model::{Change, Object, Pod};
use portcullis::state::LocalId;
use portcullis::state::flat::Flat;
use portcullis::state::image::{Image, Sizes};
use portcullis::state::plan;
use portcullis_common::Address;
use portcullis_common::layout::{EndpointRow, endpoint_word, interface_kind};
use serde_json::json;

use crate::Result;

/// The pod that the rules are about, in slot 0.
pub(crate) const ISOLATED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// A pod that no policy selects, in slot 1.
pub(crate) const FREE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Another pod that the rules are about, in slot 2; a rule admits each of the two to the other on [`MUTUAL`].
pub(crate) const ALSO: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
/// See [`ALSO`].
pub(crate) const MUTUAL: u16 = 900;
/// A pod of another node that no rule names.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 2, 255, 254);
/// An address that no table knows.
pub(crate) const UNKNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A Service's address.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The Service range.
const SERVICES: &str = "10.96.0.0/16";

/// The devices of slots 0 to 2.
pub(crate) const DEVICES: [u32; 3] = [4001, 4002, 4003];
/// A revision that nothing else has.
pub(crate) const REVISION: u32 = 7;

/// The pod of another node that rule `i` names.
pub(crate) fn peer(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 0, 0)) + i)
}

/// The IPv6 address that belongs to a pod beside an IPv4 address.
pub(crate) fn sixth(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(u16::from);
    Ipv6Addr::new(0xfd00, 0x10, a, b, 0, 0, c, d)
}

/// The address outside that rule `i` names.
pub(crate) fn outside(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + i)
}

/// An address in the range that rule `i` names.
pub(crate) fn in_range(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(101, 0, 0, 0)) + (i << 8) + 7)
}

/// The port that rule `i` names.
pub(crate) fn port(i: u32) -> u16 {
    1000 + i as u16
}

/// Tables and programs.
pub(crate) struct World {
    /// Rules in each direction.
    pub(crate) rules: u32,
    /// The programs.
    pub(crate) dataplane: Dataplane,
    /// The tables.
    pub(crate) image: Image,
}

/// Removes the pins that a run has made.
struct Pins(std::path::PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    /// Compiles a cluster of this many rules and writes it into fresh maps.
    pub(crate) fn new(rules: u32) -> Result<Self> {
        let pin_dir = std::path::PathBuf::from(format!("/sys/fs/bpf/portcullis-bench-{}-{rules}", std::process::id()));
        let pins = Pins(pin_dir.clone());
        // Both directions' rules have counters, and their addresses, ranges and rows room.
        let sizes = Sizes { rules: 1 << 15, ..Sizes::default() };
        let settings = Settings { pin_dir, sizes, clsact: false, mark_shift: None, test: true };
        let (mut dataplane, mut image) = Dataplane::open(&settings)?;
        // The maps live as long as we do: pins would only outlive a run that is interrupted.
        drop(pins);
        image.set_seed(0x1234_5678_9abc_def1);
        let hour = 3600 * dataplane.jiffies;
        image.set_lifetimes(&[hour; 16]);

        let (cluster, local) = cluster(rules)?;
        let node =
            NodeFacts { addresses: ["10.0.0.4".parse::<IpAddr>()?].into(), service_ranges: vec![SERVICES.parse()?] };
        let mut compiler = Compiler::new(Numbers::default(), std::collections::BTreeMap::new());
        let desired = compiler.compile(&Input { cluster: &cluster, local: &local, node: &node }, &Dirty::all());
        let wanted = Flat::of(desired, 0);
        let known = Flat::default();
        for step in plan::make(&known, &wanted).into_iter().chain(plan::turn(&known, &wanted)) {
            plan::take(&mut image, &mut dataplane.ranges, 0, &step)?;
        }
        for (slot, pod) in local.iter().enumerate() {
            let slot = slot as u32;
            let policy = desired.endpoints.get(&pod.id).ok_or("the compiler left an endpoint out")?;
            let row = EndpointRow {
                v4: Address::from(policy.addresses[0]),
                v6: Address::from(policy.addresses[1]),
                ingress: policy.ingress.map_or(0, |set| set.0),
                egress: policy.egress.map_or(0, |set| set.0),
                incarnation: slot + 1,
                generation: 1,
                ..EndpointRow::default()
            };
            image.put_row(slot, &row);
            image.put_endpoint(slot, endpoint_word(REVISION, slot));
            image.put_interface(DEVICES[slot as usize], interface_kind::ENDPOINT, slot)?;
        }
        Ok(Self { rules, dataplane, image })
    }
}

fn cluster(rules: u32) -> Result<(Cluster, Vec<LocalPod>)> {
    let mut cluster = Cluster::default();
    let mut local = Vec::new();
    let mut put = |object| {
        cluster.apply(Change::Set(object));
    };
    let namespace: core::Namespace = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
    put(Object::Namespace(convert::namespace(&namespace).map_err(refused)?.value));
    for (name, address) in [("isolated", ISOLATED), ("free", FREE), ("also", ALSO)] {
        let pod = pod(name, address)?;
        let id = LocalId { pod: pod.key.clone(), uid: pod.uid.clone() };
        local.push(LocalPod { id, pod: Arc::new(pod.clone()) });
        put(Object::Pod(pod));
    }
    put(Object::Pod(pod("stranger", STRANGER)?));
    for i in 0..rules {
        put(Object::Pod(pod(&format!("peer-{i}"), peer(i))?));
    }
    let rule = |side: &str, i: u32| {
        let peers = json!([
            {"podSelector": {"matchLabels": {"name": format!("peer-{i}")}}},
            {"ipBlock": {"cidr": format!("{}/32", outside(i))}},
            {"ipBlock": {"cidr": format!("{}/24", Ipv4Addr::from(u32::from(in_range(i)) - 7))}},
        ]);
        let mut ports = vec![json!({"protocol": "TCP", "port": port(i)})];
        if i == rules - 1 {
            ports.push(json!({"protocol": "UDP", "port": port(i)}));
        }
        json!({side: peers, "ports": ports})
    };
    let mutual = |side: &str| {
        let pods = json!([{"podSelector": {"matchLabels": {"isolated": "yes"}}}]);
        json!({side: pods, "ports": [{"protocol": "TCP", "port": MUTUAL}]})
    };
    let all = |side: &str| [mutual(side)].into_iter().chain((0..rules).map(|i| rule(side, i))).collect::<Vec<_>>();
    let policy: networking::NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"namespace": "bench", "name": "rules"},
        "spec": {
            "podSelector": {"matchLabels": {"isolated": "yes"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": all("from"),
            "egress": all("to"),
        },
    }))?;
    put(Object::Policy(convert::network_policy(&policy).map_err(refused)?.value));
    Ok((cluster, local))
}

fn pod(name: &str, address: Ipv4Addr) -> Result<Pod> {
    let isolated = if matches!(name, "isolated" | "also") { "yes" } else { "no" };
    let object: core::Pod = serde_json::from_value(json!({
        "metadata": {
            "namespace": "bench", "name": name, "uid": name, "labels": {"name": name, "isolated": isolated},
        },
        "spec": {"containers": []},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}, {"ip": sixth(address)}]},
    }))?;
    Ok(convert::pod(&object).map_err(refused)?.value)
}

fn refused(findings: Vec<convert::Invalid>) -> String {
    format!("{findings:?}")
}
