//! Tables and endpoints: from desired to the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_common::Address;
use portcullis_common::layout::{BANKS, EndpointRow, endpoint_flag, endpoint_word, node_flag};

use super::{ReconcileError, Reconciler};
use crate::state::EndpointPolicy;
use crate::state::flat::Flat;
use crate::state::plan::{self, Kernel, Step};

impl Reconciler {
    /// Writes what the compiler wants, make before break, and puts new devices under it.
    pub(super) fn write_tables(&mut self, first: bool) -> Result<(), ReconcileError> {
        let wanted = Flat::of(self.compiler.desired(), self.bank);
        self.name_rules()?;
        self.make(&wanted)?;
        self.turn(&wanted)?;
        let confirm = self.compiler.desired().endpoints.values().any(|endpoint| endpoint.egress.is_some());
        if confirm {
            self.set_node_flag(node_flag::CONFIRM, true);
        }
        if first {
            self.take_new_devices(false);
        }
        let changed = self.flip();
        if !confirm {
            self.set_node_flag(node_flag::CONFIRM, false);
        }
        let swept = plan::sweep(&self.known, &wanted);
        tracing::debug!(endpoints = changed.len(), rows = wanted.narrow.len(), swept = swept.len(), first, "compiled");
        if changed.is_empty() && swept.is_empty() && !self.slots.wait_for_grace() && !first {
            self.known = wanted;
            self.settling = self.compiler.settle();
            return Ok(());
        }
        self.dataplane.ranges.wait()?;
        self.image.grace_passed();
        self.slots.grace_passed();
        self.raise_revisions(&changed);
        if first && self.leftovers {
            // Endpoints whose pod is not known any more still point to the old bank's sets: they are closed by now.
            self.clear_leftovers(&wanted)?;
        }
        for step in swept {
            self.take(&step)?;
        }
        self.known = wanted;
        self.forget_rules()?;
        self.health.changes += 1;
        self.settling = self.compiler.settle();
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<(), ReconcileError> {
        Ok(plan::take(&mut self.image, &mut self.dataplane.ranges, self.bank, step)?)
    }

    /// Rows that nothing points to yet. If one has no room, those written so far go again.
    fn make(&mut self, wanted: &Flat) -> Result<(), ReconcileError> {
        let mut done: Vec<(u64, u64)> = Vec::new();
        for step in plan::make(&self.known, wanted) {
            if let Err(error) = self.take(&step) {
                for (key, _) in done.iter().filter(|(key, _)| !self.known.narrow.contains_key(key)) {
                    self.image.remove_narrow(*key);
                }
                for (key, _) in &done {
                    if let Some(before) = self.known.narrow.get(key) {
                        self.image.put_narrow(*key, *before)?;
                    }
                }
                return Err(error);
            }
            if let Step::PutNarrow(key, value) = step {
                done.push((key, value));
            }
        }
        Ok(())
    }

    /// Addresses, ranges, ports and Services. What is written is known at once, so that a later pass goes on from there.
    fn turn(&mut self, wanted: &Flat) -> Result<(), ReconcileError> {
        let steps = plan::turn(&self.known, wanted);
        // Ports come first and cannot fail.
        self.known.ports.clone_from(&wanted.ports);
        for step in steps {
            self.take(&step)?;
            match step {
                Step::PutWide(key, value) => drop(self.known.wide.insert(key, value)),
                Step::DropWide(key) => drop(self.known.wide.remove(&key)),
                Step::PutRange(net, value) => drop(self.known.ranges.insert(net, value)),
                Step::DropRange(net) => drop(self.known.ranges.remove(&net)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Endpoints whose configuration or verdicts differ get a new word. Gives their devices.
    fn flip(&mut self) -> BTreeSet<u32> {
        let rejudge = self.compiler.desired().rejudge.clone();
        let devices: Vec<u32> = self.slots.used.keys().copied().collect();
        let mut changed = BTreeSet::new();
        for ifindex in devices {
            let id = self.slots.used.get(&ifindex).and_then(|slot| slot.id.clone());
            let must = id.is_some_and(|id| rejudge.contains(&id));
            if self.open_endpoint(ifindex) {
                changed.insert(ifindex);
            } else if must {
                self.raise_revision(ifindex);
                changed.insert(ifindex);
            }
        }
        changed
    }

    /// Brings the row of an endpoint to its policy; tells whether that changed anything.
    pub(super) fn open_endpoint(&mut self, ifindex: u32) -> bool {
        let Some(slot) = self.slots.used.get(&ifindex) else { return false };
        let policy = slot.id.as_ref().and_then(|id| self.compiler.desired().endpoints.get(id));
        let wanted = self.row_of(&slot.content, policy);
        if wanted == slot.content {
            return false;
        }
        let Some(row) = self.slots.take_row() else {
            // All rows wait for a grace period: the next pass has one.
            return false;
        };
        let revision = self.dataplane.next_revision();
        self.image.put_row(row, &wanted);
        if let Some(slot) = self.slots.used.get_mut(&ifindex) {
            self.image.put_endpoint(slot.number, endpoint_word(revision, row));
            slot.content = wanted;
            slot.revision = revision;
            let before = std::mem::replace(&mut slot.row, row);
            self.slots.drop_row(before);
        }
        true
    }

    fn row_of(&self, before: &EndpointRow, policy: Option<&EndpointPolicy>) -> EndpointRow {
        let identity = EndpointRow {
            incarnation: before.incarnation,
            generation: before.generation,
            bank: self.bank,
            ..EndpointRow::default()
        };
        let Some(policy) = policy else {
            return EndpointRow { flags: endpoint_flag::CLOSED | endpoint_flag::ANY_ADDRESS, ..identity };
        };
        let of_family = |v4: bool| {
            let address = policy.addresses.iter().find(|address| address.is_ipv4() == v4);
            address.map_or(Address::UNSPECIFIED, |address: &IpAddr| Address::from(*address))
        };
        let any = self.settings.any_source || policy.addresses.is_empty();
        EndpointRow {
            v4: of_family(true),
            v6: of_family(false),
            ingress: policy.ingress.map_or(0, |set| set.0),
            egress: policy.egress.map_or(0, |set| set.0),
            flags: if any { endpoint_flag::ANY_ADDRESS } else { 0 },
            ..identity
        }
    }

    fn raise_revision(&mut self, ifindex: u32) {
        let revision = self.dataplane.next_revision();
        if let Some(slot) = self.slots.used.get_mut(&ifindex) {
            slot.revision = revision;
            self.image.put_endpoint(slot.number, endpoint_word(revision, slot.row));
        }
    }

    /// Once more, for packets that were being judged by what was and have stored that under the new revision.
    fn raise_revisions(&mut self, devices: &BTreeSet<u32>) {
        for ifindex in devices {
            self.raise_revision(*ifindex);
        }
    }

    /// What the agent before has left in the tables and this one does not use.
    fn clear_leftovers(&mut self, wanted: &Flat) -> Result<(), ReconcileError> {
        let narrow: Vec<u64> =
            self.image.narrow_rows().map(|(key, _)| key).filter(|key| !wanted.narrow.contains_key(key)).collect();
        narrow.into_iter().for_each(|key| self.image.remove_narrow(key));
        let wide: Vec<[u64; 3]> =
            self.image.wide_rows().map(|(key, _)| key).filter(|key| !wanted.wide.contains_key(key)).collect();
        wide.iter().for_each(|key| self.image.remove_wide(key));
        for bank in (0..BANKS).filter(|bank| *bank != self.bank) {
            self.dataplane.ranges.clear(bank)?;
            self.image.clear_ports(bank);
        }
        self.leftovers = false;
        Ok(())
    }
}
