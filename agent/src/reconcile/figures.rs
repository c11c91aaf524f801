//! What can be told of the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::layout::{Counter, endpoint_flag};

use super::Reconciler;
use super::slots::Slot;
use crate::compile::Problem;
use crate::dataplane::Hooks;
use crate::endpoints::Role;
use crate::index::Cluster;
use crate::metrics::RuleFigures;
use crate::model::{Direction, NamespaceScope, Policy, PolicyId};
use crate::status::{DirectionStatus, EndpointState, EndpointStatus, ExitStatus, Repair, TableFill};

/// The cluster's policies by where their subjects are, so that not each is asked about each pod.
struct Policies<'a> {
    named: BTreeMap<&'a str, Vec<&'a Policy>>,
    matching: Vec<&'a Policy>,
}

impl<'a> Policies<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let mut policies = Self { named: BTreeMap::new(), matching: Vec::new() };
        for policy in cluster.policies.values() {
            match &policy.subject.namespaces {
                NamespaceScope::Named(name) => policies.named.entry(name).or_default().push(policy),
                NamespaceScope::Matching(_) => policies.matching.push(policy),
            }
        }
        policies
    }

    /// Those whose subjects may be in a namespace.
    fn about(&self, namespace: &str) -> impl Iterator<Item = &'a Policy> {
        self.named.get(namespace).into_iter().flatten().chain(&self.matching).copied()
    }
}

/// How the passes went.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Everything that was read first is enforced.
    pub synced: bool,
    /// Passes that changed something.
    pub changes: u64,
    /// Passes that failed.
    pub failures: u64,
    /// What went wrong in the last pass, if it failed.
    pub last_error: Option<String>,
    /// Conditions of matching that people should know.
    pub reports: Vec<String>,
    /// Rows that somebody else had changed and that were put right, by table.
    pub repairs: BTreeMap<&'static str, u64>,
}

impl Health {
    pub(super) fn succeeded(&mut self) {
        self.last_error = None;
    }

    pub(super) fn failed(&mut self, error: String) {
        self.failures += 1;
        self.last_error = Some(error);
    }
}

impl Reconciler {
    /// How the passes went.
    #[must_use]
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// The cluster as it is known.
    #[must_use]
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The counts of all rules that apply to pods of this node.
    #[must_use]
    pub fn rule_figures(&self) -> Vec<RuleFigures> {
        let rules = self.compiler.desired().rules.iter();
        let counts = rules.filter_map(|(number, identity)| {
            let Counter { packets, bytes } = self.dataplane.counters.read(number.0).ok()?;
            Some(RuleFigures { rule: identity.clone(), packets, bytes })
        });
        counts.collect()
    }

    /// Packets by drop reason and event, by their number.
    #[must_use]
    pub fn notes(&self) -> BTreeMap<u32, u64> {
        let numbers = 0..self.dataplane.drops.len();
        numbers.filter_map(|number| Some((number, self.dataplane.drops.read(number).ok()?.packets))).collect()
    }

    /// How full the tables are.
    #[must_use]
    pub fn tables(&self) -> Vec<TableFill> {
        let sizes = self.image.sizes();
        // Another agent's tables must fit beside these: see `state::room`.
        let of_memory =
            [("rows", self.known.narrow.len(), sizes.rows()), ("addresses", self.known.wide.len(), sizes.addresses())];
        let others = [
            ("ranges", self.known.ranges.len(), sizes.own_ranges()),
            ("rules", self.rules.known.len(), sizes.rules as usize),
            ("endpoints", self.slots.used.len(), sizes.endpoints as usize),
        ];
        let fill = of_memory.into_iter().chain(others);
        fill.map(|(name, used, capacity)| TableFill { name: name.into(), used: used as u64, capacity: capacity as u64 })
            .collect()
    }

    /// Every endpoint.
    #[must_use]
    pub fn endpoint_statuses(&self) -> Vec<EndpointStatus> {
        let policies = Policies::of(&self.cluster);
        self.slots.used.iter().map(|(ifindex, slot)| self.endpoint_status(*ifindex, slot, &policies)).collect()
    }

    /// How every endpoint is treated: what a scrape asks, which must not look at every policy of the cluster.
    pub fn endpoint_states(&self) -> impl Iterator<Item = EndpointState> {
        self.slots.used.iter().map(|(ifindex, slot)| self.endpoint_state(*ifindex, slot))
    }

    fn endpoint_state(&self, ifindex: u32, slot: &Slot) -> EndpointState {
        let gone = self.matcher.endpoints().get(&ifindex).is_some_and(|matched| matched.pod_gone);
        match (&slot.id, self.matcher.roles().get(&ifindex)) {
            _ if !self.devices.attached.contains_key(&ifindex) => EndpointState::Unenforced,
            (Some(_), _) if gone => EndpointState::PodGone,
            (Some(_), _) if self.kept.reasons.contains_key(&ifindex) => EndpointState::Kept,
            (Some(_), _) if slot.content.flags & endpoint_flag::CLOSED != 0 => EndpointState::Pending,
            (Some(_), _) => EndpointState::Enforced,
            (None, Some(Role::Closed { .. })) => EndpointState::Closed,
            (None, _) => EndpointState::Pending,
        }
    }

    fn endpoint_status(&self, ifindex: u32, slot: &Slot, all: &Policies<'_>) -> EndpointStatus {
        let link = self.snapshot.links.get(&ifindex);
        let state = self.endpoint_state(ifindex, slot);
        let policy = slot.id.as_ref().and_then(|id| self.compiler.desired().endpoints.get(id));
        let direction = |set: u32, direction: Direction| DirectionStatus {
            policy_set: (set != 0).then_some(set),
            policies: if state == EndpointState::Kept { Vec::new() } else { self.policies_of(slot, direction, all) },
        };
        EndpointStatus {
            pod: slot.id.as_ref().map(|id| id.pod.to_string()),
            uid: slot.id.as_ref().map(|id| id.uid.to_string()).filter(|uid| !uid.is_empty()),
            veth: link.map(|link| link.name.clone()).unwrap_or_default(),
            ifindex,
            state,
            addresses: policy.map(|policy| policy.addresses.clone()).unwrap_or_default(),
            ingress: direction(slot.content.ingress, Direction::Ingress),
            egress: direction(slot.content.egress, Direction::Egress),
            revision: slot.revision.into(),
        }
    }

    /// The names of the policies that select the pod for a direction.
    fn policies_of(&self, slot: &Slot, direction: Direction, all: &Policies<'_>) -> Vec<String> {
        let pod = slot.id.as_ref().and_then(|id| self.local.iter().find(|local| local.id == *id));
        let Some(pod) = pod.map(|local| &local.pod) else { return Vec::new() };
        let policies = all.about(&pod.key.namespace).filter(|policy| policy.rules(direction).is_some());
        let selecting = policies.filter(|policy| self.cluster.selects(&policy.subject, pod));
        let selecting: BTreeSet<&PolicyId> = selecting.map(|policy| &policy.id).collect();
        selecting.into_iter().map(ToString::to_string).collect()
    }

    /// Every other device that programs are on.
    #[must_use]
    pub fn exit_statuses(&self) -> Vec<ExitStatus> {
        let exits = self.devices.attached.iter().filter(|(_, (_, hooks))| *hooks != Hooks::Endpoint);
        let named = exits.filter_map(|(ifindex, _)| self.snapshot.links.get(ifindex));
        let hooks = || vec!["from_uplink".to_owned(), "to_uplink".to_owned()];
        named.map(|link| ExitStatus { name: link.name.clone(), hooks: hooks() }).collect()
    }

    /// What a person should know about and act on.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.health.last_error.iter().cloned().collect();
        let because = self.kept.reasons.iter();
        let because = because.map(|(ifindex, reason)| {
            format!("pod {}: its policy is kept from before: {reason}", self.pod_behind(*ifindex))
        });
        problems.extend(because);
        problems.extend(self.health.reports.iter().cloned());
        problems.extend(self.compiler.problems().iter().map(ToString::to_string));
        problems.extend(self.devices.failures.values().cloned());
        problems.extend(self.devices.guard.foreign.values().flatten().cloned());
        problems.extend(self.devices.guard.pins.iter().cloned());
        problems
    }

    /// Policies that could be read and are not in force, each with the reason: those that have changed since something last
    /// was written, if they select a pod of this node, and those of pods that keep what they had.
    #[must_use]
    pub fn unenforced_policies(&self) -> BTreeMap<PolicyId, String> {
        let mut unenforced = BTreeMap::new();
        for problem in self.compiler.problems() {
            if let Problem::TooManyPortRanges { pod } = problem
                && let Some(local) = self.local.iter().find(|local| local.id.pod == *pod)
            {
                let selecting = self.cluster.policies.values();
                let selecting = selecting.filter(|policy| self.cluster.selects(&policy.subject, &local.pod));
                unenforced.extend(selecting.map(|policy| (policy.id.clone(), problem.to_string())));
            }
        }
        if let Some(error) = &self.health.last_error {
            for id in &self.unsettled {
                let policy = self.cluster.policies.get(id);
                let concerns = |policy: &&Arc<Policy>| {
                    self.local.iter().any(|local| self.cluster.selects(&policy.subject, &local.pod))
                };
                if policy.filter(concerns).is_some() {
                    unenforced.insert(id.clone(), format!("{error}; what was in force stays"));
                }
            }
        }
        unenforced
    }

    /// How often hooks and pins had to be put right.
    #[must_use]
    pub fn repairs(&self) -> BTreeMap<Repair, u64> {
        Repair::ALL.map(|repair| (repair, self.devices.guard.repairs.get(&repair).copied().unwrap_or(0))).into()
    }

    /// Devices that should have programs and have none.
    #[must_use]
    pub fn unenforced_devices(&self) -> u64 {
        self.devices.failures.keys().filter(|ifindex| !self.devices.attached.contains_key(ifindex)).count() as u64
    }

    /// Others' filters that may overwrite the stamp.
    #[must_use]
    pub fn foreign_filters(&self) -> u64 {
        self.devices.guard.foreign.values().map(Vec::len).sum::<usize>() as u64
    }

    /// Veths that are pods', or surely some pod's.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        self.slots.used.len()
    }

    /// The highest revision in force.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.slots.used.values().map(|slot| u64::from(slot.revision)).max().unwrap_or(0)
    }
}
