//! Tables and endpoints: from desired to the kernel.

use std::collections::BTreeSet;

use portcullis_common::layout::{BANKS, EndpointRow, endpoint_flag, endpoint_word, mac_word, node_flag};

use super::delta::Delta;
use super::{ReconcileError, Reconciler, Settings};
use crate::state::plan::{self, Kernel, Step};
use crate::state::simulate::endpoint_row;
use crate::state::{EndpointPolicy, RuleNumber};

impl Reconciler {
    /// Writes what the compiler wants, make before break, and puts new devices under it.
    pub(super) fn write_tables(&mut self, first: bool) -> Result<(), ReconcileError> {
        let desired = self.compiler.desired();
        if let Err(full) = self.image.sizes().check(desired) {
            // Nothing has been written: what this compile touched is unknown to the next.
            self.behind = true;
            if first {
                // No endpoint uses this compiler's numbers yet, so nothing waits for what was kept for the way there: without
                // this, what the compiler keeps until the tables have settled would fill them for ever.
                self.compiler.settle();
            } else {
                // The sets before are still in force: they must meet what takes the place of this.
                self.compiler.refused();
            }
            return Err(full.into());
        }
        let behind = std::mem::replace(&mut self.behind, true);
        let delta = Delta::of(&self.known, desired, self.compiler.touched(), self.bank, behind);
        if behind {
            // What a pass that failed has given up is free again after a grace period.
            self.dataplane.ranges.wait()?;
            self.image.grace_passed();
            self.slots.grace_passed();
        }
        let made = self.name_rules(behind).and_then(|()| self.make(&delta)).and_then(|()| self.turn(&delta));
        if made.is_err() {
            let (known, wanted) = (&delta.known, &delta.wanted);
            tracing::debug!(
                rows = known.narrow.len(),
                rows_wanted = wanted.narrow.len(),
                addresses = known.wide.len(),
                addresses_wanted = wanted.wide.len(),
                "not everything has room"
            );
            self.compiler.refused();
        }
        made?;
        self.compiler.taken();
        let confirm = self.compiler.desired().endpoints.values().any(|endpoint| endpoint.egress.is_some())
            || self.slots.used.values().any(|slot| slot.content.egress != 0);
        if confirm {
            self.set_node_flag(node_flag::CONFIRM, true);
        }
        self.set_node_flag(node_flag::MASQUERADED, self.settings.masqueraded_clients);
        self.set_node_flag(node_flag::OWN_NODE, self.settings.judge_own_node);
        self.set_node_flag(node_flag::KEEP, self.settings.keep_established);
        if first {
            self.take_new_devices(false);
        } else if self.egress_begins() {
            self.seed_flows_before();
        }
        self.read_inherited();
        let changed = self.flip();
        self.unconfirmed.extend(&changed);
        if !confirm {
            self.set_node_flag(node_flag::CONFIRM, false);
        }
        let swept = plan::sweep(&delta.known, &delta.wanted);
        let (endpoints, rows) = (changed.len(), delta.wanted.narrow.len());
        tracing::debug!(endpoints, rows, swept = swept.len(), first, "tables written");
        if !self.unconfirmed.is_empty() || !swept.is_empty() || self.slots.wait_for_grace() || first {
            self.dataplane.ranges.wait()?;
            self.image.grace_passed();
            self.slots.grace_passed();
            self.set_node_flag(node_flag::STARTING, false);
            self.raise_revisions();
            self.clear_leftovers()?;
            for step in swept {
                self.take(&step)?;
            }
            self.forget_rules()?;
            self.health.changes += 1;
        }
        self.behind = false;
        self.settling = self.compiler.settle();
        Ok(())
    }

    /// Takes a step, and knows what it wrote.
    pub(super) fn take(&mut self, step: &Step) -> Result<(), ReconcileError> {
        plan::take(&mut self.image, &mut self.dataplane.ranges, self.bank, step)?;
        match step {
            Step::PutNarrow(key, value) => drop(self.known.narrow.insert(*key, *value)),
            Step::DropNarrow(key) => drop(self.known.narrow.remove(key)),
            Step::PutWide(key, value) => drop(self.known.wide.insert(*key, *value)),
            Step::DropWide(key) => drop(self.known.wide.remove(key)),
            Step::PutRange(net, value) => drop(self.known.ranges.insert(*net, *value)),
            Step::DropRange(net) => drop(self.known.ranges.remove(net)),
            Step::PutPort(..) | Step::PutRow(..) | Step::PutEndpoint(..) | Step::Grace => {}
        }
        Ok(())
    }

    /// Rows that nothing points to yet. If one has no room, those written so far go again.
    fn make(&mut self, delta: &Delta) -> Result<(), ReconcileError> {
        let mut done: Vec<u64> = Vec::new();
        for step in plan::make(&delta.known, &delta.wanted) {
            if let Err(error) = self.take(&step) {
                for key in done {
                    match delta.known.narrow.get(&key) {
                        Some(before) => self.take(&Step::PutNarrow(key, *before))?,
                        None => self.take(&Step::DropNarrow(key))?,
                    }
                }
                return Err(error);
            }
            if let Step::PutNarrow(key, _) = step {
                done.push(key);
            }
        }
        Ok(())
    }

    /// Addresses, ranges, ports and Services.
    fn turn(&mut self, delta: &Delta) -> Result<(), ReconcileError> {
        let steps = plan::turn(&delta.known, &delta.wanted);
        if delta.known.ports != delta.wanted.ports {
            // Ports come first and cannot fail.
            self.known.ports.clone_from(&delta.wanted.ports);
        }
        steps.iter().try_for_each(|step| self.take(step))
    }

    /// Endpoints whose configuration or verdicts differ get a new word. Gives their devices.
    fn flip(&mut self) -> BTreeSet<u32> {
        let rejudge = std::mem::take(&mut self.rejudge);
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
        if slot.content.bank != self.bank
            && (policy.is_none() && slot.id.is_some() || self.kept.reasons.contains_key(&ifindex))
        {
            // An agent before knew this pod, whose object is gone, or whose policy cannot be read: its last policy stays, in
            // the bank where it is.
            return false;
        }
        let wanted = self.row_of(ifindex, &slot.content, policy);
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

    fn row_of(&self, ifindex: u32, before: &EndpointRow, policy: Option<&EndpointPolicy>) -> EndpointRow {
        let Settings { any_source, open_pending, allow_tunnels, .. } = self.settings;
        // Without addresses none could be checked.
        let policy = policy.filter(|policy| any_source || open_pending || !policy.addresses.is_empty());
        let mut row = endpoint_row(policy, before, self.bank, any_source);
        if let Some(slot) = self.slots.used.get(&ifindex) {
            row.incarnation = slot.incarnation;
        }
        if allow_tunnels && policy.is_some() {
            row.flags |= endpoint_flag::TUNNELS;
        }
        if self.settings.pin_source_mac {
            if row.mac == 0 {
                row.mac = self.first_mac(ifindex);
            }
            if row.mac != 0 {
                row.flags |= endpoint_flag::PINNED;
            }
        }
        row
    }

    /// The Ethernet address of a veth's other end, 0 where it is not known yet. A CNI plugin sets it before it gives the pod
    /// an address, and no container runs before it is done; later the pod itself may have written it.
    fn first_mac(&self, ifindex: u32) -> u64 {
        let link = self.snapshot.links.get(&ifindex).filter(|link| link.pod_addresses().next().is_some());
        link.and_then(|link| link.peer_mac)
            .map_or(0, |[a, b, c, d, e, f]| mac_word([[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)))
    }

    fn raise_revision(&mut self, ifindex: u32) {
        let revision = self.dataplane.next_revision();
        if let Some(slot) = self.slots.used.get_mut(&ifindex) {
            slot.revision = revision;
            self.image.put_endpoint(slot.number, endpoint_word(revision, slot.row));
        }
    }

    /// Once more, for packets that were being judged by what was and have stored that under the new revision.
    fn raise_revisions(&mut self) {
        for ifindex in std::mem::take(&mut self.unconfirmed) {
            self.raise_revision(ifindex);
        }
    }

    /// What the agent before has left in the tables, once no endpoint uses it any more.
    fn clear_leftovers(&mut self) -> Result<(), ReconcileError> {
        if !self.leftovers || self.slots.used.values().any(|slot| slot.content.bank != self.bank) {
            return Ok(());
        }
        let wanted = &self.known;
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
        for number in std::mem::take(&mut self.stale_rules) {
            if !self.rules.known.contains_key(&RuleNumber(number)) {
                self.dataplane.set_rule_name(number, [0; 16])?;
                self.dataplane.counters.reset(number)?;
            }
        }
        self.leftovers = false;
        self.kept.end();
        Ok(())
    }
}
