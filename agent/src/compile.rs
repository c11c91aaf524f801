//! Compiles the policies that concern this node's pods into the tables that the packet programs decide with.
//!
//! # How
//!
//! Rules of applicable policies become *atoms*, the questions that they ask about a peer. Addresses of which the same atoms
//! hold are of one *class*. What a *policy set* says of a class is a *profile*; what a profile says of a *port class* (ports
//! of which the same questions hold) is the verdict. All of it is kept from one compile to the next, so that a change
//! costs what it touches.
//!
//! # Make before break
//!
//! A packet may meet the tables at any moment of an update. Whoever writes them keeps this order; where a step has several
//! writes, they may come in any order, one element each:
//!
//! 1. Rows that are new: `verdicts`, `profile_defaults`, `profiles`, `set_defaults`, `reaches`, `reach_defaults`, `rules`.
//!    (`reaches` rows that changed are written here too.)
//! 2. Peers and ports move: (a) `ports`; (b) `ranges` that are new or changed; (c) `addresses`, new, changed and gone;
//!    (d) `ranges` that are gone.
//! 3. `services`, then `endpoints`: each flips to its new sets at once.
//! 4. After a grace period: rows that are gone.
//! 5. [`Compiler::settle`], and one more compile, which lets go of what was kept for the way.
//!
//! In return the tables that a compile gives hold:
//!
//! - A row under a number that was there before means what it meant. A changed policy is a new set, a changed profile a
//!   new profile, another set of atoms another class. A number is given again only two settlements after its release.
//! - Sets, classes, port classes, profiles and Service ports that are in force no more stay, with all rows for every other
//!   number old and new, until [`Compiler::settle`]. So every combination that a packet can meet on the way has its row.
//! - Atoms and questions about ports that only new sets ask do not matter to older ones, and dead ones to nobody. So
//!   classes that split or merge for them look alike to every set in force, in whatever order their addresses move.
//! - What a set in force learns on the way is that pods declare a new number under a port's name: it matters to new classes
//!   only, and (a) comes before (c).
//! - Where an address goes to another class while endpoints flip from sets that tell the two apart, it goes through a class
//!   of its own, of which those sets say what was and all others what will be; it goes on when the tables have settled.
//! - A reach that changes says [`ServiceReach::Part`](crate::state::ServiceReach::Part) on the way.

mod addresses;
mod atoms;
mod classes;
mod local;
mod numbers;
mod pods;
mod policies;
mod ports;
mod profiles;
mod ranges;
mod reach;
mod rules;
mod services;
mod sets;
mod tables;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
pub use numbers::{FIRST_RULE, Numbers, RULE_CLOSED, RULE_NO_POLICY, RULE_NODE_PROCESS};
pub use tables::{Touched, TouchedKeys};

use crate::index::Cluster;
use crate::model::{ObjectKey, Pod, PodKey, Protocol, ServiceKey};
use crate::state::{Desired, LocalId, RuleIdentity, RuleNumber};

/// What is known of this node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The addresses in this node's local table.
    pub addresses: BTreeSet<IpAddr>,
    /// The cluster's service ranges.
    pub service_ranges: Vec<IpNet>,
}

/// A pod of this node that is to be enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Which incarnation it is.
    pub id: LocalId,
    /// The object as last known. The cluster may hold it no more, or hold a later incarnation.
    pub pod: Arc<Pod>,
}

/// Everything that a compile reads.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The cluster's objects.
    pub cluster: &'a Cluster,
    /// The pods of this node that are enforced, in any order.
    pub local: &'a [LocalPod],
    /// The node.
    pub node: &'a NodeFacts,
}

/// What may have changed since the last compile. What is named needlessly costs a look and changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Anything: everything is compared.
    pub all: bool,
    /// These objects came, changed or went.
    pub objects: BTreeSet<ObjectKey>,
    /// These local pods came, changed or went.
    pub local: BTreeSet<LocalId>,
    /// The node's facts.
    pub node: bool,
}

impl Dirty {
    /// Anything may have changed.
    #[must_use]
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }
}

/// What the compiler could not take as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// Two pods have one address.
    #[error(
        "address {address} is claimed by more than one pod: it is taken as {taken_as}'s, though {} too; \
         delete the pod that does not run",
        claimed(others)
    )]
    AddressClaimedTwice {
        /// The address.
        address: IpAddr,
        /// The pod with the greatest uid (then name), whose address it is taken to be.
        taken_as: PodKey,
        /// The other claimants.
        others: Vec<PodKey>,
    },
    /// A Service leads to processes of this node, which policy denies to a pod, and to others, which it allows.
    #[error(
        "port {port}/{protocol} of Service {service} is closed to pod {pod}: its policy denies processes of this node that are \
         among the Service's backends and allows others of them, and which one a connection would get cannot be known before \
         it has got there; allow the node's addresses on that port, or keep processes of nodes out of the Service"
    )]
    NodeBehindService {
        /// The Service.
        service: ServiceKey,
        /// Its protocol.
        protocol: Protocol,
        /// Its port.
        port: u16,
        /// One of the pods.
        pod: PodKey,
    },
    /// The policies of an endpoint ask about more port ranges than the tables can tell apart.
    #[error(
        "the policies of the pods of this node name too many different port ranges: pod {pod} keeps its previous policy, \
         or has none of its rules in force and is isolated; use fewer or wider port ranges"
    )]
    TooManyPortRanges {
        /// The endpoint.
        pod: PodKey,
    },
}

fn claimed(others: &[PodKey]) -> String {
    others.iter().map(|key| format!("{key} claims it")).collect::<Vec<_>>().join(", ")
}

/// Compiles, and keeps what it knows from one compile to the next.
#[derive(Debug)]
pub struct Compiler {
    tables: tables::Tables,
    touched: Touched,
    problems: Vec<Problem>,
    atoms: atoms::Atoms,
    pods: pods::Pods,
    ranges: ranges::Ranges,
    addresses: addresses::Addresses,
    classes: classes::Classes,
    ports: ports::Ports,
    profiles: profiles::Profiles,
    rules: rules::RuleNumbers,
    sets: sets::Sets,
    policies: policies::Policies,
    locals: local::Locals,
    services: services::Services,
    reaches: reach::Reaches,
    node: NodeFacts,
    own_node_atom: Option<atoms::AtomId>,
    /// Atoms born or dead in this compile.
    passing: update::Passing,
    /// How often the tables have settled.
    now: u64,
    settled: bool,
    /// This compile follows one that had no room.
    after_refusal: bool,
    /// What the last compile gave was not put in force.
    refused: bool,
    first: bool,
    /// Endpoints' own addresses changed or moved, so that rows for their former classes may be left.
    own_rows_left: bool,
}

impl Compiler {
    /// A compiler that knows nothing yet. `first`: the lowest free number of each kind, so that numbers never collide with
    /// those that a previous agent left in the tables. `rules`: the numbers that it counted under, which the same rules get
    /// again, so that counters go on.
    #[must_use]
    pub fn new(first: Numbers, rules: BTreeMap<RuleNumber, RuleIdentity>) -> Self {
        Self {
            tables: tables::Tables::default(),
            touched: Touched::All,
            problems: Vec::new(),
            atoms: atoms::Atoms::default(),
            pods: pods::Pods::default(),
            ranges: ranges::Ranges::default(),
            addresses: addresses::Addresses::default(),
            classes: classes::Classes::new(first.class),
            ports: ports::Ports::new(first.port_class),
            profiles: profiles::Profiles::new(first.profile),
            rules: rules::RuleNumbers::new(first.rule, rules),
            sets: sets::Sets::new(first.set),
            policies: policies::Policies::default(),
            locals: local::Locals::default(),
            services: services::Services::new(first.service),
            reaches: reach::Reaches::default(),
            node: NodeFacts::default(),
            own_node_atom: None,
            passing: update::Passing::default(),
            now: 0,
            settled: false,
            after_refusal: false,
            refused: false,
            first: true,
            own_rows_left: false,
        }
    }

    /// What the tables should hold.
    #[must_use]
    pub const fn desired(&self) -> &Desired {
        &self.tables.desired
    }

    /// What the last compile changed in [`Self::desired`].
    #[must_use]
    pub const fn touched(&self) -> &Touched {
        &self.touched
    }

    /// What the last compile could not take as it is, in a stable order.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The tables hold what the last compile gave, all endpoints use it, and a grace period has passed: the next compile lets
    /// go of what was kept for the way. Tells whether there is anything of that kind, so that a compile is worth while.
    pub fn settle(&mut self) -> bool {
        self.settled = true;
        self.own_rows_left
            || self.pods.has_gone_numbers()
            || self.classes.has_retired()
            || self.reaches.is_pending()
            || self.ports.has_retired()
            || self.sets.has_retired()
            || !self.services.retired.is_empty()
    }

    /// Rules have counters below this number.
    pub fn limit_rules(&mut self, end: u32) {
        self.rules.limit(end);
    }

    /// Endpoints flip now to what the last compile gave.
    pub fn taken(&mut self) {
        self.sets.taken();
    }

    /// What the last compile gave had no room, and no endpoint has flipped to it: the next compile lets go of policy sets
    /// that nobody wants any more and that never were in force, which nothing on the way can need. Without that, a table
    /// that a change has overfilled would stay too small after the change is taken back.
    pub const fn refused(&mut self) {
        self.refused = true;
    }

    /// Brings the tables up to date with the input, of which nothing but `dirty` has changed since the last call. The first
    /// call reads everything.
    pub fn compile(&mut self, input: &Input<'_>, dirty: &Dirty) -> &Desired {
        self.tables.keep_touched = !self.first;
        self.tables.desired.rejudge.clear();
        let sweep = std::mem::take(&mut self.settled);
        let own_rows_left = sweep && std::mem::take(&mut self.own_rows_left);
        // What had no room is in no table: nothing of it is kept for a way that it never began.
        self.after_refusal = std::mem::take(&mut self.refused);
        if self.after_refusal {
            self.classes.end_transits();
            self.forget_refused();
        }
        if sweep {
            self.sweep();
        }
        let everything;
        let dirty = if self.first || dirty.all {
            everything = self.everything(input);
            &everything
        } else {
            dirty
        };

        let mut services = self.read_objects(input, dirty);
        services.extend(self.read_node(input, dirty));
        self.read_services(input, services);
        let mut outcome = self.read_locals(input, dirty);
        self.learn_numbers();
        let changed_ranges = self.settle_atoms();
        let changes = self.classify(&changed_ranges, &mut outcome);
        self.write_rows(changes, &outcome, own_rows_left);

        self.rules.drop_unused(&mut self.tables, self.now);
        if sweep {
            self.rules.forget_adopted(self.now);
        }
        self.addresses.drop_empty_kinds(&changed_ranges, &self.ranges, &mut self.classes);
        self.pods.drop_empty_groups();
        self.problems = self.addresses.problems();
        self.problems.extend(self.locals.problems());
        self.problems.extend(self.mixed_services());
        self.problems.sort();
        self.problems.dedup();

        let keys = std::mem::take(&mut self.tables.touched);
        self.touched = if self.first { Touched::All } else { Touched::Keys(Box::new(keys)) };
        self.first = false;
        &self.tables.desired
    }

    /// Services that are closed to pods since processes of this node are behind them.
    fn mixed_services(&self) -> Vec<Problem> {
        let of = |(set, number): &(crate::state::SetId, crate::state::ServiceNumber)| {
            let users = self.sets.get(*set).map(|set| &set.users);
            let named = self.services.name(*number);
            named.into_iter().flat_map(move |(service, protocol, port)| {
                users.into_iter().flatten().map(move |user| Problem::NodeBehindService {
                    service: service.clone(),
                    protocol,
                    port,
                    pod: user.pod.clone(),
                })
            })
        };
        self.reaches.mixed().iter().flat_map(of).collect()
    }

    /// Names everything that is there or was.
    fn everything(&self, input: &Input<'_>) -> Dirty {
        let cluster = input.cluster;
        let mut objects = BTreeSet::new();
        objects.extend(cluster.namespaces.keys().cloned().map(ObjectKey::Namespace));
        objects.extend(self.pods.namespace_names().cloned().map(ObjectKey::Namespace));
        objects.extend(cluster.pods.keys().cloned().map(ObjectKey::Pod));
        objects.extend(self.pods.member_keys().cloned().map(ObjectKey::Pod));
        objects.extend(cluster.tiers.keys().cloned().map(ObjectKey::Tier));
        objects.extend(self.policies.tier_names().cloned().map(ObjectKey::Tier));
        objects.extend(cluster.policies.keys().cloned().map(ObjectKey::Policy));
        objects.extend(self.policies.ids().cloned().map(ObjectKey::Policy));
        let (services, slices) = self.services.keys();
        objects.extend(cluster.services.keys().cloned().chain(services).map(ObjectKey::Service));
        objects.extend(cluster.slices.keys().cloned().chain(slices).map(ObjectKey::EndpointSlice));
        let mut local: BTreeSet<LocalId> = input.local.iter().map(|local| local.id.clone()).collect();
        local.extend(self.locals.ids().cloned());
        Dirty { all: true, objects, local, node: true }
    }

    /// Sets that nobody uses and that never were in force go.
    fn forget_refused(&mut self) {
        let now = self.now;
        if self.rules.overflows() {
            // Rules that would fit may have numbers that do not, given while others held those that do: their sets are made
            // anew.
            let untaken = self.sets.untaken().clone();
            self.locals.take_back(&untaken, &mut self.sets);
        }
        let mut reading = sets::Reading {
            atoms: &mut self.atoms,
            ports: &mut self.ports,
            pods: &self.pods,
            rules: &mut self.rules,
            tables: &mut self.tables,
            now,
        };
        let sets = self.sets.drop_untaken(&mut reading);
        if !sets.is_empty() {
            // What nobody has any more must have gone before it is asked for again, or it would keep its number.
            self.rules.drop_unused(&mut self.tables, now);
            self.reaches.drop_sets(&sets, &mut self.tables);
            let used = self.sets.profiles_in_use();
            self.profiles.retain(&used, &mut self.tables, now);
        }
    }

    /// The tables have settled: what was kept for the way goes.
    fn sweep(&mut self) {
        self.now += 1;
        let now = self.now;
        let mut reading = sets::Reading {
            atoms: &mut self.atoms,
            ports: &mut self.ports,
            pods: &self.pods,
            rules: &mut self.rules,
            tables: &mut self.tables,
            now,
        };
        let sets = self.sets.drop_retired(&mut reading);
        for (name, protocol, number) in self.pods.take_gone_numbers() {
            self.sets.drop_number(&name, protocol, number, &mut self.atoms);
        }
        let ports = self.ports.drop_retired(now);
        self.profiles.drop_port_classes(&ports, &mut self.tables);
        let classes = self.classes.drop_retired(now);
        self.classes.end_transits();
        self.sets.drop_classes(&classes, &mut self.tables);
        let service_ports = self.services.drop_retired(now);
        self.reaches.settle(&sets, &service_ports, &mut self.tables);
        self.locals.forget_past();
        if !sets.is_empty() || !classes.is_empty() {
            let used = self.sets.profiles_in_use();
            self.profiles.retain(&used, &mut self.tables, now);
        }
    }

    /// Takes in changed objects. Gives the Services to read again.
    fn read_objects(&mut self, input: &Input<'_>, dirty: &Dirty) -> BTreeSet<ServiceKey> {
        let cluster = input.cluster;
        let mut services = BTreeSet::new();
        // In the order of ObjectKey pods would come before namespaces; asked together, namespaces first save work.
        for key in &dirty.objects {
            if let ObjectKey::Namespace(name) = key {
                let labels = cluster.namespaces.get(name).map(|namespace| &namespace.labels);
                self.locals.namespace_changed(name);
                for group in self.pods.set_namespace(name, labels) {
                    self.classes.unsettle_group(group);
                }
            }
        }
        for key in &dirty.objects {
            match key {
                ObjectKey::Namespace(_) | ObjectKey::Node(_) => {}
                ObjectKey::Pod(key) => self.read_pod(key, cluster, &mut services),
                ObjectKey::Service(key) => {
                    services.insert(key.clone());
                }
                ObjectKey::EndpointSlice(name) => {
                    let service = cluster.slices.get(name).map(|slice| &slice.service);
                    services.extend(self.services.set_slice(name, service));
                }
                ObjectKey::Policy(id) => {
                    self.policies.set_policy(id, cluster.policies.get(id), &self.pods, &mut self.locals);
                }
                ObjectKey::Tier(name) => {
                    if self.policies.set_tier(name, cluster.tiers.get(name)) {
                        self.locals.tier_changed();
                    }
                }
            }
        }
        services
    }

    fn read_pod(&mut self, key: &PodKey, cluster: &Cluster, services: &mut BTreeSet<ServiceKey>) {
        let change = self.pods.set_pod(key, cluster.pods.get(key));
        for address in change.addresses {
            self.addresses.claim(address, key, &self.pods);
        }
        for group in change.groups.iter().filter_map(|group| self.pods.group_of(*group)) {
            services.extend(self.services.selecting(group));
        }
    }

    /// Takes in the node's facts. Gives the Services to read again.
    fn read_node(&mut self, input: &Input<'_>, dirty: &Dirty) -> Vec<ServiceKey> {
        if !dirty.node || self.node == *input.node {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.node, input.node.clone());
        for address in before.addresses.symmetric_difference(&self.node.addresses) {
            self.addresses.set_own(*address, self.node.addresses.contains(address));
            let leading: Vec<_> = self.services.leading_to(*address).collect();
            self.services.changed.extend(leading);
        }
        let ranges = |facts: &NodeFacts| -> BTreeSet<IpNet> { facts.service_ranges.iter().map(IpNet::trunc).collect() };
        let (old, new) = (ranges(&before), ranges(&self.node));
        for net in old.symmetric_difference(&new) {
            self.ranges.set_service(*net, new.contains(net));
        }
        if before.addresses == self.node.addresses { Vec::new() } else { self.services.with_node_ports() }
    }

    fn read_services(&mut self, input: &Input<'_>, services: BTreeSet<ServiceKey>) {
        for key in services {
            let (before, after) = self.services.set_service(
                &key,
                input.cluster,
                &self.pods,
                &self.node.addresses,
                &mut self.tables,
                self.now,
            );
            if before != after {
                after.into_iter().for_each(|address| self.addresses.add_service(address));
                before.into_iter().for_each(|address| self.addresses.remove_service(address));
            }
        }
    }

    /// Takes in local pods and gives each its policy sets.
    fn read_locals(&mut self, input: &Input<'_>, dirty: &Dirty) -> local::Outcome {
        let mut reading = sets::Reading {
            atoms: &mut self.atoms,
            ports: &mut self.ports,
            pods: &self.pods,
            rules: &mut self.rules,
            tables: &mut self.tables,
            now: self.now,
        };
        self.locals.read(input.local, dirty, &self.policies, &mut self.sets, &mut reading)
    }

    /// Numbers that pods declare under a port's name for the first time reach the sets that ask for the name.
    fn learn_numbers(&mut self) {
        let numbers = self.pods.take_new_numbers();
        let mut reading = sets::Reading {
            atoms: &mut self.atoms,
            ports: &mut self.ports,
            pods: &self.pods,
            rules: &mut self.rules,
            tables: &mut self.tables,
            now: self.now,
        };
        for (name, protocol, number) in numbers {
            self.sets.add_number(&name, protocol, number, &mut reading);
        }
    }
}
