//! The periodic comparison of what the tables hold with what they should: whatever wrote there, it is put right.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::layout::{endpoint_word, interface_kind, interface_word, wide_bank};
use portcullis_common::stamp::SLOTS;

use super::{ReconcileError, Reconciler, devices, rules, tunnels};
use crate::state::RuleNumber;
use crate::state::plan::{Kernel, Step};

impl Reconciler {
    /// Compares every table with what this agent wrote, and repairs what differs. Gives the number of repairs. Counters and
    /// flows are the programs' own. While tables of the agent before are still in use, what is in them is left alone.
    ///
    /// A pass that failed on its way is no hindrance: what it has written is known step by step.
    ///
    /// # Errors
    /// A table is full or the kernel refuses; what was repaired until then stays so.
    pub fn audit(&mut self) -> Result<usize, ReconcileError> {
        if !self.health.synced {
            return Ok(0);
        }
        let before: u64 = self.health.repairs.values().sum();
        self.follow_lifetimes();
        // The seed first: every other row is looked up by it.
        let node = self.audit_node();
        self.repaired("node", node);
        let misplaced = self.image.drop_misplaced();
        self.repaired("rows", misplaced.0);
        self.repaired("addresses", misplaced.1);
        let endpoints = self.audit_endpoints();
        self.repaired("endpoints", endpoints);
        let identities = self.audit_identities();
        self.repaired("identities", identities);
        let interfaces = self.audit_interfaces()?;
        self.repaired("interfaces", interfaces);
        let ports = self.image.repair_ports(self.bank, &self.known.ports);
        self.repaired("ports", ports);
        let (rows, addresses) = (self.audit_rows(), self.audit_addresses());
        let steps = || rows.iter().chain(&addresses);
        let drops = |step: &Step| matches!(step, Step::DropNarrow(_) | Step::DropWide(_));
        for step in steps().filter(|step| drops(step)) {
            self.take(step)?;
        }
        if misplaced != (0, 0) || steps().any(drops) {
            // What was not ours may have the room that ours needs.
            self.dataplane.ranges.wait()?;
            self.image.grace_passed();
        }
        for step in steps().filter(|step| !drops(step)) {
            self.take(step)?;
        }
        self.repaired("rows", rows.len());
        self.repaired("addresses", addresses.len());
        let ranges = self.dataplane.ranges.repair(self.bank, &self.known.ranges)?;
        self.repaired("ranges", ranges);
        let names = self.audit_rule_names()?;
        self.repaired("rules", names);
        let repaired = self.health.repairs.values().sum::<u64>() - before;
        if repaired > 0 {
            // Flows were perhaps judged by what was wrong: the next pass has them judged again.
            self.rejudge.extend(self.slots.used.values().filter_map(|slot| slot.id.clone()));
        }
        Ok(usize::try_from(repaired).unwrap_or(usize::MAX))
    }

    /// Counts and tells of repairs.
    pub(super) fn repaired(&mut self, table: &'static str, count: usize) {
        if count > 0 {
            *self.health.repairs.entry(table).or_default() += count as u64;
            tracing::error!(table, count, "somebody else has changed a table: it has been put right");
        }
    }

    fn audit_node(&self) -> usize {
        let mut repaired = 0;
        if self.image.seed() != self.seed {
            self.image.set_seed(self.seed);
            repaired += 1;
        }
        if self.image.flags() != self.flags {
            self.image.set_flags(self.flags);
            repaired += 1;
        }
        let lifetimes = self.connections.lifetimes;
        if self.image.lifetimes() != lifetimes {
            self.image.set_lifetimes(&lifetimes);
            repaired += 1;
        }
        let tunnels = tunnels::wanted(&self.snapshot);
        if !self.devices_changed && self.image.tunnels() != tunnels {
            self.image.set_tunnels(tunnels);
            repaired += 1;
        }
        repaired
    }

    /// Whose each slot is, which an agent after this one will ask.
    fn audit_identities(&mut self) -> usize {
        let slots = self.slots.used.values().map(|slot| (slot.number, slot.id.clone()));
        let wrong: Vec<_> = slots
            .filter(|(number, id)| {
                self.dataplane.identity(*number).unwrap_or_default() != devices::identity(id.as_ref())
            })
            .collect();
        for (number, id) in &wrong {
            self.name_slot(*number, id.as_ref());
        }
        wrong.len()
    }

    fn audit_rows(&self) -> Vec<Step> {
        let known = &self.known.narrow;
        let wrong = known.iter().filter(|(key, value)| self.image.narrow(**key) != Some(**value));
        let mut steps: Vec<Step> = wrong.map(|(key, value)| Step::PutNarrow(*key, *value)).collect();
        if !self.leftovers {
            let strays = self.image.narrow_rows().map(|(key, _)| key).filter(|key| !known.contains_key(key));
            steps.extend(strays.map(Step::DropNarrow));
        }
        steps
    }

    fn audit_addresses(&self) -> Vec<Step> {
        let known = &self.known.wide;
        let wrong = known.iter().filter(|(key, value)| self.image.wide(key) != Some(**value));
        let mut steps: Vec<Step> = wrong.map(|(key, value)| Step::PutWide(*key, *value)).collect();
        let strays = self.image.wide_rows().map(|(key, _)| key).filter(|key| !known.contains_key(key));
        let strays = strays.filter(|key| !self.leftovers || wide_bank(key[2]) == self.bank);
        steps.extend(strays.map(Step::DropWide));
        steps
    }

    fn audit_endpoints(&self) -> usize {
        let mut repaired = 0;
        let mut free: BTreeSet<u32> = (0..SLOTS).collect();
        for slot in self.slots.used.values() {
            free.remove(&slot.number);
            if self.image.row(slot.row) != slot.content {
                self.image.put_row(slot.row, &slot.content);
                repaired += 1;
            }
            let word = endpoint_word(slot.revision, slot.row);
            if self.image.endpoint(slot.number) != word {
                self.image.put_endpoint(slot.number, word);
                repaired += 1;
            }
        }
        for slot in free.into_iter().filter(|slot| self.image.endpoint(*slot) != 0) {
            self.image.put_endpoint(slot, 0);
            repaired += 1;
        }
        repaired
    }

    fn audit_interfaces(&self) -> Result<usize, ReconcileError> {
        let endpoints = self.slots.devices().map(|(ifindex, slot)| (ifindex, interface_kind::ENDPOINT, slot));
        let bridges = self.devices.bridges.iter().map(|ifindex| (*ifindex, interface_kind::BRIDGE, 0));
        let wanted: BTreeMap<u32, (u32, u32)> =
            endpoints.chain(bridges).map(|(ifindex, kind, slot)| (ifindex, (kind, slot))).collect();
        let mut found: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for word in self.image.interfaces() {
            found.entry(word as u32).or_default().push(word);
        }
        let mut repaired = 0;
        for (ifindex, words) in &found {
            let right = wanted.get(ifindex).map(|(kind, slot)| interface_word(*ifindex, *kind, *slot));
            if right.is_none_or(|right| *words != [right]) {
                self.image.remove_interface(*ifindex);
                repaired += 1;
            }
        }
        for (ifindex, (kind, slot)) in &wanted {
            let right = interface_word(*ifindex, *kind, *slot);
            if found.get(ifindex).is_none_or(|words| *words != [right]) {
                self.image.put_interface(*ifindex, *kind, *slot)?;
                repaired += usize::from(!found.contains_key(ifindex));
            }
        }
        Ok(repaired)
    }

    fn audit_rule_names(&mut self) -> Result<usize, ReconcileError> {
        let found: BTreeMap<u32, [u8; 16]> = self.dataplane.rule_names().collect();
        let mut right: Vec<(u32, [u8; 16])> =
            self.rules.known.iter().map(|(number, identity)| (number.0, rules::hash(identity))).collect();
        right.retain(|(number, hash)| found.get(number) != Some(hash));
        if !self.leftovers {
            let strays = found.keys().filter(|number| !self.rules.known.contains_key(&RuleNumber(**number)));
            right.extend(strays.map(|number| (*number, [0; 16])));
        }
        for (number, hash) in &right {
            self.dataplane.set_rule_name(*number, *hash)?;
        }
        Ok(right.len())
    }
}
