//! Brings the kernel to what the cluster wants: joins matcher, compiler, tables and hooks.
//!
//! One pass takes in what changed, compiles, and applies the difference in the order that [`crate::state::plan`] gives.
//! Nothing here waits for events; the `app` calls it. A pass that fails leaves what was in force, and is tried again.

mod adopt;
mod audit;
mod delta;
mod devices;
mod figures;
mod flows;
mod guard;
mod kept;
mod rules;
mod slots;
mod tables;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_common::flow::Lifetime;

use crate::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts};
use crate::dataplane::{Dataplane, DataplaneError};
use crate::endpoints::{self, Matcher, Snapshot};
use crate::index::Cluster;
use crate::model::{Change, Object, ObjectKey, Pod, PodKey, PolicyId};
use crate::state::LocalId;
use crate::state::flat::Flat;
use crate::state::image::{Full, Image};
use crate::state::plan::StepError;

pub use figures::Health;
pub use guard::Scope;
pub use kept::Unread;
use rules::RuleTable;
use slots::Slots;

/// What the operator has decided.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Only pods whose `spec.nodeName` is this (or that have none) are this node's.
    pub node_name: Option<String>,
    /// The only devices that are exits besides pods' veths; all that qualify if empty.
    pub uplinks: BTreeSet<String>,
    /// The cluster's service ranges.
    pub service_ranges: Vec<IpNet>,
    /// Ranges that this node's pods have addresses of, beside those of the Node object.
    pub pod_ranges: Vec<IpNet>,
    /// Pods may send from addresses that are not theirs.
    pub any_source: bool,
    /// Pods may send what this node would unwrap behind the hooks.
    pub allow_tunnels: bool,
    /// A veth whose pod is not known yet is open, not closed.
    pub open_pending: bool,
    /// Clients from outside that the host has masqueraded pass, whatever policy says of the node's address.
    pub masqueraded_clients: bool,
    /// Policy judges what pods send to addresses of this node, which otherwise is always allowed.
    pub judge_own_node: bool,
    /// Second interfaces of pods are networks of their own, which policy does not know.
    pub second_networks: bool,
    /// Pods send only from the Ethernet address that their interface had at first.
    pub pin_source_mac: bool,
    /// Flows that were let through stay, whatever policy says since.
    pub keep_established: bool,
    /// Idle lifetimes of flows in seconds, beside the defaults.
    pub lifetimes: BTreeMap<Lifetime, u32>,
    /// An `ingress` qdisc where clsact is needed gives way, with all that is on it.
    pub replace_ingress_qdisc: bool,
    /// The stamp is in `mark`, where others' filters leave it alone.
    pub stamp_in_mark: bool,
}

/// Why a pass failed. What was in force is in force.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A table is full.
    #[error(transparent)]
    Full(#[from] Full),
    /// The kernel refused.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

impl From<StepError<DataplaneError>> for ReconcileError {
    fn from(error: StepError<DataplaneError>) -> Self {
        match error {
            StepError::Full(full) => Self::Full(full),
            StepError::Kernel(DataplaneError::RangesFull { capacity }) => {
                let capacity = capacity as usize;
                Self::Full(Full { table: "ranges", used: capacity, capacity })
            }
            StepError::Kernel(error) => Self::Dataplane(error),
        }
    }
}

/// The joint of everything.
pub struct Reconciler {
    settings: Settings,
    dataplane: Dataplane,
    image: Image,
    cluster: Cluster,
    matcher: Matcher,
    snapshot: Arc<Snapshot>,
    compiler: Compiler,
    dirty: Dirty,
    node: NodeFacts,
    /// The bank of tables that this agent writes.
    bank: u32,
    /// Rows of the agent before are still in the tables.
    leftovers: bool,
    /// Counters of rules that the agent before knew and this one does not.
    stale_rules: Vec<u32>,
    /// Endpoints that stay as the agent before has left them.
    kept: kept::Kept,
    /// The seed of the tables' hashes, and the node's flags, as this agent has set them.
    seed: u64,
    flags: u64,
    /// What the tables of our bank hold.
    known: Flat,
    slots: Slots,
    rules: RuleTable,
    /// Pods that are this node's by their objects, of all that the cluster has.
    here: BTreeMap<PodKey, Arc<Pod>>,
    /// Pods of this node as last known, for those whose object is gone.
    last_known: BTreeMap<LocalId, Arc<Pod>>,
    /// What the last compile was given as this node's pods.
    local: Vec<LocalPod>,
    /// Pods or nodes changed since the matcher was told.
    pods_changed: bool,
    /// Devices or addresses changed since the matcher was told.
    devices_changed: bool,
    /// Programs on devices: what is attached where.
    devices: devices::Devices,
    /// The number of passes that changed something, and what went wrong in the last one.
    health: Health,
    /// A pass has failed on its way: everything is compared next time.
    behind: bool,
    /// Endpoints whose flows are to be judged again, until their revision has risen.
    rejudge: BTreeSet<LocalId>,
    /// Devices of endpoints whose revision has risen once, and is to rise again after a grace period, however often waiting
    /// for one fails.
    unconfirmed: BTreeSet<u32>,
    /// Another pass may let go of what was kept for the way.
    settling: bool,
    /// When the kernel's connection table is read.
    connections: flows::Connections,
    /// Policies that changed since a pass last succeeded.
    unsettled: BTreeSet<PolicyId>,
}

impl Reconciler {
    /// Takes over the tables, whatever is in them.
    pub fn new(settings: Settings, dataplane: Dataplane, image: Image) -> Self {
        let matcher = Matcher::new(endpoints::Config::default());
        let mut reconciler = Self {
            settings,
            dataplane,
            image,
            cluster: Cluster::default(),
            matcher,
            snapshot: Arc::default(),
            compiler: Compiler::new(crate::compile::Numbers::default(), BTreeMap::new()),
            dirty: Dirty::all(),
            node: NodeFacts::default(),
            bank: 0,
            leftovers: false,
            stale_rules: Vec::new(),
            kept: kept::Kept::default(),
            seed: 0,
            flags: 0,
            known: Flat::default(),
            slots: Slots::default(),
            rules: RuleTable::default(),
            here: BTreeMap::new(),
            last_known: BTreeMap::new(),
            local: Vec::new(),
            pods_changed: true,
            devices_changed: true,
            devices: devices::Devices::default(),
            health: Health::default(),
            behind: true,
            rejudge: BTreeSet::new(),
            unconfirmed: BTreeSet::new(),
            settling: false,
            connections: flows::Connections::default(),
            unsettled: BTreeSet::new(),
        };
        reconciler.adopt();
        reconciler
    }

    /// Takes in changes of the cluster's objects. Tells whether anything is different now.
    pub fn objects(&mut self, changes: impl IntoIterator<Item = Change>) -> bool {
        let mut different = false;
        for change in changes {
            let change = match change {
                Change::Set(Object::Policy(policy)) if self.settings.judge_own_node => {
                    Change::Set(Object::Policy(policy.judging_own_node()))
                }
                change => change,
            };
            let key = match &change {
                Change::Set(object) => object.key(),
                Change::Gone(key) => key.clone(),
            };
            if self.cluster.apply(change) {
                different = true;
                self.pods_changed |= matches!(key, ObjectKey::Node(_));
                if let ObjectKey::Pod(pod) = &key {
                    self.take_pod(pod);
                }
                if let ObjectKey::Policy(id) = &key {
                    self.unsettled.insert(id.clone());
                }
                if !self.dirty.all {
                    self.dirty.objects.insert(key);
                }
            }
        }
        different
    }

    /// A pod came, changed or went. Those of other nodes are the compiler's alone: there are many.
    fn take_pod(&mut self, key: &PodKey) {
        let pod = self.cluster.pods.get(key);
        let before = match pod.filter(|pod| self.is_here(pod)) {
            Some(pod) => {
                know(&mut self.last_known, pod);
                self.here.insert(key.clone(), Arc::clone(pod))
            }
            None => {
                // One that is behind a veth all the same stays known as it is.
                if let Some(pod) = pod.filter(|pod| self.last_known.contains_key(&id_of(pod))) {
                    know(&mut self.last_known, pod);
                }
                self.here.remove(key)
            }
        };
        self.pods_changed |= before.is_some() || self.here.contains_key(key);
    }

    /// Whether a pod is this node's, as its object says.
    fn is_here(&self, pod: &Pod) -> bool {
        match (&self.settings.node_name, &pod.node) {
            (Some(node), Some(on)) => **node == **on,
            // On no node yet: without an address it is nobody's here.
            (Some(_), None) => !pod.addresses.is_empty(),
            (None, _) => true,
        }
    }

    /// Takes in what the kernel says of devices and addresses.
    pub fn devices(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        self.devices_changed = true;
    }

    /// Whether a pass is worth while though nothing has changed.
    #[must_use]
    pub const fn wants_another(&self) -> bool {
        self.settling
    }

    /// Devices that programs could not be put on, which is tried again.
    #[must_use]
    pub fn unattached(&self) -> Option<&String> {
        self.devices.failures.values().next()
    }

    /// One pass.
    ///
    /// # Errors
    /// A table is full or the kernel refuses; what was in force stays.
    pub fn pass(&mut self) -> Result<(), ReconcileError> {
        let outcome = self.try_pass();
        match &outcome {
            Ok(()) => {
                self.health.succeeded();
                self.unsettled.clear();
            }
            Err(error) => {
                self.health.failed(error.to_string());
            }
        }
        outcome
    }

    fn try_pass(&mut self) -> Result<(), ReconcileError> {
        self.match_devices();
        let first = !self.health.synced;
        self.forget_gone_devices();
        if !first {
            // Before anything else: a new pod's veth is closed until its policy stands.
            self.take_new_devices(true);
        }
        let local = self.local_pods();
        let dirty = std::mem::take(&mut self.dirty);
        let input = Input { cluster: &self.cluster, local: &local, node: &self.node };
        tracing::debug!(objects = dirty.objects.len(), pods = local.len(), all = dirty.all, "compiling");
        let begun = thread_cpu();
        self.compiler.compile(&input, &dirty);
        let cpu = thread_cpu().saturating_sub(begun);
        tracing::debug!(cpu_us = cpu.as_micros() as u64, "compiled");
        self.local = local;
        self.rejudge.extend(self.compiler.desired().rejudge.iter().cloned());
        self.keep();
        if let Err(error) = self.write_tables(first) {
            if first {
                self.hook_what_is_known();
            }
            return Err(error);
        }
        if first {
            self.health.synced = true;
        }
        self.end_other_layouts();
        Ok(())
    }

    /// Pods whose objects name no address have those that an agent before knew, or that the host routes to their veths.
    /// Tells of the others.
    ///
    /// What an address inside the pod's namespace says is not enough: an agent that starts late sees what the pod has made
    /// of it. Such a pod is closed until its address is known (`--pending open` lets it talk under its policy meanwhile,
    /// its addresses unchecked), which with Azure CNI's routes is rare.
    fn learn_addresses(&mut self) -> Vec<String> {
        let mut reports = Vec::new();
        for (ifindex, matched) in self.matcher.endpoints() {
            let id = LocalId { pod: matched.pod.key.clone(), uid: matched.pod.uid.clone() };
            if let Some(known) = self.last_known.get_mut(&id).filter(|known| known.addresses.is_empty()) {
                let slot = self.slots.used.get(ifindex).filter(|slot| slot.id.as_ref() == Some(&id));
                let mut addresses: Vec<IpAddr> = slot.map(|slot| slot.addresses().collect()).unwrap_or_default();
                if addresses.is_empty() {
                    addresses = self.matcher.routed_addresses(*ifindex);
                }
                if !addresses.is_empty() {
                    Arc::make_mut(known).addresses = addresses;
                } else if !self.settings.any_source {
                    let means =
                        if self.settings.open_pending { "its addresses are not checked" } else { "it is closed" };
                    let name = self.snapshot.links.get(ifindex).map(|link| link.name.as_str()).unwrap_or_default();
                    reports.push(format!(
                        "pod {} on veth {name} (ifindex {ifindex}): neither its status.podIPs nor a route of the host names its \
                         address: {means} until one does",
                        id.pod
                    ));
                }
            }
        }
        reports
    }

    /// Tells the matcher what there is.
    fn match_devices(&mut self) {
        if std::mem::take(&mut self.pods_changed) {
            let node = self.settings.node_name.as_deref();
            let object = node.and_then(|name| self.cluster.nodes.get(name));
            let mut pod_ranges = self.settings.pod_ranges.clone();
            pod_ranges.extend(object.iter().flat_map(|node| node.pod_cidrs.iter().copied()));
            let uplinks = (!self.settings.uplinks.is_empty()).then(|| self.settings.uplinks.clone());
            let second_networks = self.settings.second_networks;
            self.matcher.configure(endpoints::Config { pod_ranges, uplinks, second_networks });
            let pods: Vec<_> = self.here.values().filter_map(|pod| endpoints::LocalPod::of(pod)).collect();
            self.matcher.pods(pods);
        }
        if std::mem::take(&mut self.devices_changed) {
            self.matcher.links(self.snapshot.clone());
            self.tell_tunnels();
            let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len() && !net.addr().is_loopback();
            let addresses = self.snapshot.local.iter().map(|local| local.network).filter(single).map(|net| net.addr());
            let node =
                NodeFacts { addresses: addresses.collect(), service_ranges: self.settings.service_ranges.clone() };
            if node != self.node {
                self.node = node;
                self.dirty.node = true;
            }
        }
        let mut reports = self.learn_addresses();
        reports.extend(self.matcher.reports().iter().map(ToString::to_string));
        for report in reports.iter().filter(|report| !self.health.reports.contains(report)) {
            tracing::warn!("{report}");
        }
        self.health.reports = reports;
    }

    /// The pods behind matched veths, each as last known.
    fn local_pods(&mut self) -> Vec<LocalPod> {
        let wanted: BTreeSet<LocalId> = self.slots.endpoints().cloned().collect();
        let matched = self
            .matcher
            .endpoints()
            .values()
            .map(|matched| LocalId { pod: matched.pod.key.clone(), uid: matched.pod.uid.clone() });
        let wanted: BTreeSet<LocalId> = wanted.into_iter().chain(matched).collect();
        let here = &self.here;
        // Of pods that are not here any more only those behind a veth are remembered.
        self.last_known.retain(|id, _| wanted.contains(id) || here.get(&id.pod).is_some_and(|pod| pod.uid == id.uid));
        let mut local = Vec::new();
        for id in wanted {
            if !self.last_known.contains_key(&id)
                && let Some(pod) = self.cluster.pods.get(&id.pod).filter(|pod| pod.uid == id.uid)
            {
                // Another node's by its object, and behind a veth that an agent before knew.
                know(&mut self.last_known, pod);
            }
            let pod = self.last_known.get(&id).cloned();
            local.extend(pod.map(|pod| LocalPod { id, pod }));
        }
        let before: BTreeMap<&LocalId, &Arc<Pod>> = self.local.iter().map(|local| (&local.id, &local.pod)).collect();
        let after: BTreeMap<&LocalId, &Arc<Pod>> = local.iter().map(|local| (&local.id, &local.pod)).collect();
        let came = after.iter().filter(|(id, pod)| !before.get(*id).is_some_and(|known| Arc::ptr_eq(known, pod)));
        let went = before.keys().filter(|id| !after.contains_key(*id));
        self.dirty.local.extend(came.map(|(id, _)| (*id).clone()).chain(went.map(|id| (*id).clone())));
        local
    }
}

/// The processor time of this thread: what a compile costs, whatever else the machine does.
fn thread_cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Takes a pod as its object is now. Addresses that vanish from it stay the pod's: without them nothing would be checked
/// that it sends, or nothing would pass.
fn know(last_known: &mut BTreeMap<LocalId, Arc<Pod>>, pod: &Arc<Pod>) {
    let id = id_of(pod);
    let before = last_known.get(&id).filter(|_| pod.addresses.is_empty()).map(|known| known.addresses.clone());
    let mut pod = pod.clone();
    if let Some(addresses) = before.filter(|addresses| !addresses.is_empty()) {
        Arc::make_mut(&mut pod).addresses = addresses;
    }
    last_known.insert(id, pod);
}

pub(crate) fn id_of(pod: &Pod) -> LocalId {
    LocalId { pod: pod.key.clone(), uid: pod.uid.clone() }
}
