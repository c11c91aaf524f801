//! The pods of this node that are enforced, and the policy sets of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::policies::Policies;
use super::sets::{Reading, Sets};
use super::{Dirty, LocalPod, Problem};
use crate::model::ObjectKey;
use crate::model::{Direction, Pod, PolicyId};
use crate::state::{EndpointPolicy, LocalId, SetId};

/// One local pod.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) pod: Arc<Pod>,
    /// The policies that select it.
    pub(super) applicable: BTreeSet<PolicyId>,
    pub(super) ingress: Option<SetId>,
    pub(super) egress: Option<SetId>,
    fits: bool,
}

/// What reading local pods changed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// New, or with other sets or addresses than before.
    pub(super) flipped: BTreeSet<LocalId>,
    /// Addresses of endpoints that came, went or flipped.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// All local pods.
#[derive(Debug, Default)]
pub(super) struct Locals {
    locals: BTreeMap<LocalId, Local>,
    /// Addresses that endpoints have or had since the tables last settled, of endpoints that are gone too.
    own: BTreeMap<LocalId, BTreeSet<IpAddr>>,
    /// Two claim one address only by mistake, but until that is mended both see themselves in it.
    owners: BTreeMap<IpAddr, BTreeSet<LocalId>>,
    marked: BTreeSet<LocalId>,
    /// Have lost sets that never were in force: they flip, whatever they get.
    bereft: BTreeSet<LocalId>,
}

impl Locals {
    /// Takes sets that never were in force from their endpoints, which are to get others.
    pub(super) fn take_back(&mut self, untaken: &BTreeSet<SetId>, sets: &mut Sets) {
        for (id, local) in &mut self.locals {
            for held in [&mut local.ingress, &mut local.egress] {
                if let Some(set) = held.take_if(|set| untaken.contains(set)) {
                    sets.leave(set, id);
                    self.bereft.insert(id.clone());
                }
            }
        }
        self.marked.extend(self.bereft.iter().cloned());
    }

    /// Marks pods whose policies may be others now.
    pub(super) fn mark(&mut self, concerned: impl Fn(&LocalId, &Local) -> bool) {
        let marked = self.locals.iter().filter(|(id, local)| concerned(id, local)).map(|(id, _)| id.clone());
        self.marked.extend(marked);
    }

    pub(super) fn namespace_changed(&mut self, namespace: &Arc<str>) {
        self.mark(|id, _| id.pod.namespace == *namespace);
    }

    pub(super) fn tier_changed(&mut self) {
        self.mark(|_, local| !local.applicable.is_empty());
    }

    /// Takes in the local pods and finds the sets of those that are marked.
    pub(super) fn read(
        &mut self,
        local: &[LocalPod],
        dirty: &Dirty,
        policies: &Policies,
        sets: &mut Sets,
        reading: &mut Reading<'_>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        for id in std::mem::take(&mut self.bereft) {
            let addresses = self.locals.get(&id).map(|local| local.pod.addresses.clone());
            outcome.addresses.extend(addresses.into_iter().flatten());
            outcome.flipped.insert(id);
        }
        let pods_dirty = dirty.objects.iter().any(|key| matches!(key, ObjectKey::Pod(_)));
        if dirty.all || !dirty.local.is_empty() || pods_dirty {
            self.take_in(local, sets, reading, &mut outcome);
        }
        for id in std::mem::take(&mut self.marked) {
            self.find_sets(&id, policies, sets, reading, &mut outcome);
        }
        outcome
    }

    fn take_in(&mut self, local: &[LocalPod], sets: &mut Sets, reading: &mut Reading<'_>, outcome: &mut Outcome) {
        let mut gone: BTreeSet<LocalId> = self.locals.keys().cloned().collect();
        for LocalPod { id, pod } in local.iter().filter(|local| !local.pod.host_network) {
            gone.remove(id);
            if self.locals.get(id).is_some_and(|known| Arc::ptr_eq(&known.pod, pod) || known.pod == *pod) {
                continue;
            }
            self.marked.insert(id.clone());
            if let Some(known) = self.locals.get_mut(id) {
                let before = std::mem::replace(&mut known.pod, Arc::clone(pod));
                if before.addresses != pod.addresses {
                    // What it sees as itself flips with its sets.
                    let sees_itself = !before.addresses.is_empty();
                    for set in [known.ingress, known.egress].into_iter().flatten().filter(|_| sees_itself) {
                        self.marked.extend(sets.supersede(set));
                    }
                    self.disown(id, &before.addresses, outcome);
                    outcome.flipped.insert(id.clone());
                }
            } else {
                let applicable = BTreeSet::new();
                let new = Local { pod: Arc::clone(pod), applicable, ingress: None, egress: None, fits: true };
                self.locals.insert(id.clone(), new);
                outcome.flipped.insert(id.clone());
            }
            for address in &pod.addresses {
                self.owners.entry(*address).or_default().insert(id.clone());
                self.own.entry(id.clone()).or_default().insert(*address);
                outcome.addresses.insert(*address);
            }
        }
        for id in gone {
            let Some(known) = self.locals.remove(&id) else { continue };
            self.marked.remove(&id);
            self.disown(&id, &known.pod.addresses, outcome);
            for set in [known.ingress, known.egress].into_iter().flatten() {
                sets.leave(set, &id);
            }
            reading.tables.endpoints(id, None);
        }
    }

    fn disown(&mut self, id: &LocalId, addresses: &[IpAddr], outcome: &mut Outcome) {
        for address in addresses {
            if let Some(owners) = self.owners.get_mut(address) {
                owners.remove(id);
                if owners.is_empty() {
                    self.owners.remove(address);
                }
            }
            outcome.addresses.insert(*address);
        }
    }

    pub(super) fn find_sets(
        &mut self,
        id: &LocalId,
        policies: &Policies,
        sets: &mut Sets,
        reading: &mut Reading<'_>,
        outcome: &mut Outcome,
    ) {
        let Some(local) = self.locals.get_mut(id) else { return };
        local.applicable = policies.selecting(&id.pod.namespace, &local.pod.labels, reading.pods);
        local.fits = true;
        for direction in [Direction::Ingress, Direction::Egress] {
            let tiers = policies.in_order(&local.applicable, direction);
            let before = match direction {
                Direction::Ingress => local.ingress,
                Direction::Egress => local.egress,
            };
            let mut set = None;
            if !tiers.is_empty() {
                let (found, fits) = sets.intern(direction, &tiers, &local.pod.ports, reading);
                local.fits &= fits;
                set = Some(if fits { found } else { before.unwrap_or(found) });
            }
            if set == before {
                continue;
            }
            if let Some(before) = before {
                sets.flip_from(before, id);
            }
            if let Some(set) = set.and_then(|set| sets.get_mut(set)) {
                set.users.insert(id.clone());
            }
            match direction {
                Direction::Ingress => local.ingress = set,
                Direction::Egress => local.egress = set,
            }
            outcome.flipped.insert(id.clone());
            outcome.addresses.extend(&local.pod.addresses);
        }
        let policy =
            EndpointPolicy { addresses: local.pod.addresses.clone(), ingress: local.ingress, egress: local.egress };
        reading.tables.endpoints(id.clone(), Some(policy));
    }

    /// The tables have settled: only the addresses that endpoints have now are their own.
    pub(super) fn forget_past(&mut self) {
        let current = self.locals.iter().map(|(id, local)| (id.clone(), local.pod.addresses.iter().copied().collect()));
        self.own = current.collect();
    }

    /// The addresses that an endpoint has or had since the tables last settled.
    pub(super) fn own(&self, id: &LocalId) -> impl Iterator<Item = IpAddr> {
        self.own.get(id).into_iter().flatten().copied()
    }

    /// The endpoints that have an address.
    pub(super) fn owners(&self, address: IpAddr) -> impl Iterator<Item = &LocalId> {
        self.owners.get(&address).into_iter().flatten()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&LocalId, &Local)> {
        self.locals.iter()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &LocalId> {
        self.locals.keys()
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let unfit = self.locals.iter().filter(|(_, local)| !local.fits);
        unfit.map(|(id, _)| Problem::TooManyPortRanges { pod: id.pod.clone() })
    }
}
