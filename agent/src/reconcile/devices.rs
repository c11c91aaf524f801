//! Devices: which programs run where, and slots for those that are pods'.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::layout::{EndpointRow, endpoint_flag, endpoint_word, interface_kind, node_flag};

use super::Reconciler;
use super::guard::Guard;
use super::slots::{Second, Slot};
use crate::dataplane::{Found, Hooks};
use crate::endpoints::{Link, LinkLayer, Role};
use crate::state::LocalId;

/// What is attached where.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// By index: the device's incarnation and what runs on it.
    pub(super) attached: BTreeMap<u32, (u64, Hooks)>,
    /// Bridges that the tables name.
    pub(super) bridges: BTreeSet<u32>,
    /// That there is no exit has been said.
    warned_of_no_exit: bool,
    /// Devices that could not be attached to, with the reason.
    pub(super) failures: BTreeMap<u32, String>,
    /// Devices that nothing of ours is on any more, by index with their incarnation.
    left: BTreeMap<u32, u64>,
    /// What is known of the hooks beside that.
    pub(super) guard: Guard,
}

impl Reconciler {
    /// Devices that are gone take their endpoint and hooks with them.
    pub(super) fn forget_gone_devices(&mut self) {
        let snapshot = self.snapshot.clone();
        let links = &snapshot.links;
        let is_same =
            |ifindex: &u32, incarnation: u64| links.get(ifindex).is_some_and(|link| link.incarnation == incarnation);
        let gone: Vec<u32> = self
            .devices
            .attached
            .iter()
            .filter(|(ifindex, (incarnation, _))| !is_same(ifindex, *incarnation))
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in gone {
            self.devices.attached.remove(&ifindex);
            self.dataplane.detach(ifindex, None);
        }
        let ended: Vec<u32> = self
            .slots
            .used
            .iter()
            .filter(|(ifindex, slot)| !is_same(ifindex, slot.link))
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in ended {
            self.drop_slot(ifindex);
        }
        self.drop_seconds(|ifindex, second| is_same(ifindex, second.link));
        self.devices.failures.retain(|ifindex, _| links.contains_key(ifindex));
        self.devices.left.retain(|ifindex, incarnation| is_same(ifindex, *incarnation));
        self.devices.guard.retain(|ifindex| links.contains_key(ifindex));
    }

    fn drop_slot(&mut self, ifindex: u32) {
        self.image.remove_interface(ifindex);
        if let Some(slot) = self.slots.remove(ifindex) {
            // Before the slot is another's.
            self.drop_seconds(|_, second| second.number != slot.number);
            self.image.put_endpoint(slot.number, 0);
            let _ = self.dataplane.set_identity(slot.number, "");
        }
    }

    /// Gives up all second veths but these. Their programs stay, and drop everything.
    fn drop_seconds(&mut self, keep: impl Fn(&u32, &Second) -> bool) {
        let image = &self.image;
        self.slots.seconds.retain(|ifindex, second| {
            let kept = keep(ifindex, second);
            if !kept {
                image.remove_interface(*ifindex);
            }
            kept
        });
    }

    /// Gives new pods' veths a slot and every device its hooks. `closed`: the endpoint stands before its policy does.
    pub(super) fn take_new_devices(&mut self, closed: bool) {
        let roles = self.matcher.roles().clone();
        // Exits before endpoints: what an endpoint's programs defer must be judged where it leaves. And before devices that
        // are exits no more: those may be below one that has just become one.
        let order = |role: &Role| match role {
            Role::Exit => 0,
            Role::None => 1,
            Role::Second { .. } => 3,
            _ => 2,
        };
        let mut sorted: Vec<_> = roles.iter().collect();
        sorted.sort_by_key(|(_, role)| order(role));
        if !closed {
            // Flows that were open before any program saw them are known before one sees their next packet.
            let endpoints = sorted.iter().filter(|(_, role)| order(role) == 2).copied().collect::<Vec<_>>();
            self.seat_endpoints(&endpoints);
            self.seed_flows();
            self.set_node_flag(node_flag::STARTING, self.dataplane.found == Found::Fresh);
        }
        for (ifindex, role) in sorted {
            let Some(link) = self.snapshot.links.get(ifindex).cloned() else { continue };
            let outcome = match role {
                Role::Endpoint(pod) => {
                    let id = LocalId { pod: pod.key.clone(), uid: pod.uid.clone() };
                    self.take_endpoint(&link, Some(id), closed)
                }
                Role::Pending if self.settings.open_pending => self.attach(&link, exit_hooks(&link)),
                Role::Pending | Role::Closed { .. } => self.take_endpoint(&link, None, closed),
                Role::Second { of } => self.take_second(&link, *of),
                Role::Exit => self.attach(&link, exit_hooks(&link)),
                Role::None => self.leave(&link),
            };
            match outcome {
                Ok(()) => drop(self.devices.failures.remove(ifindex)),
                Err(reason) => {
                    if self.devices.failures.insert(*ifindex, reason.clone()).is_none() {
                        tracing::error!(device = link.name, "not enforced: {reason}");
                    }
                }
            }
        }
        self.arm();
        let exits = self.devices.attached.values().any(|(_, hooks)| *hooks != Hooks::Endpoint);
        if !exits && !std::mem::replace(&mut self.devices.warned_of_no_exit, true) {
            tracing::warn!("no device but pods' veths is an exit: what leaves this node otherwise is not judged there");
        }
    }

    /// Gives the pods' veths among these their slots. What goes wrong is told when their hooks are taken.
    fn seat_endpoints(&mut self, roles: &[(&u32, &Role)]) {
        for (ifindex, role) in roles {
            if let (Role::Endpoint(pod), Some(link)) = (role, self.snapshot.links.get(ifindex).cloned()) {
                let id = LocalId { pod: pod.key.clone(), uid: pod.uid.clone() };
                drop(self.seat_endpoint(&link, Some(id), false));
            }
        }
    }

    /// An endpoint's veth. A closed or pending one that turns out to be a pod's keeps its slot.
    fn take_endpoint(&mut self, link: &Link, id: Option<LocalId>, closed: bool) -> Result<(), String> {
        if self.seat_endpoint(link, id, closed)? { self.attach(link, Hooks::Endpoint) } else { Ok(()) }
    }

    /// A further veth of an endpoint: the same slot, so that policy, flows and stamps are the pod's whichever way it sends.
    fn take_second(&mut self, link: &Link, of: u32) -> Result<(), String> {
        let Some(number) = self.slots.used.get(&of).map(|slot| slot.number) else {
            // The pod's own veth has no slot: it waits for its policy, or is closed, and so does this one.
            let closed = self.devices.attached.contains_key(&of);
            return if closed { self.attach(link, Hooks::Endpoint) } else { Ok(()) };
        };
        if self.slots.used.contains_key(&link.ifindex) {
            // It was taken for a pod of its own that nobody knew.
            self.drop_slot(link.ifindex);
        }
        let second = Second { of, number, link: link.incarnation };
        if self.slots.seconds.insert(link.ifindex, second).is_none_or(|before| before.number != number) {
            let put = self.image.put_interface(link.ifindex, interface_kind::ENDPOINT, number);
            if let Err(full) = put {
                self.slots.seconds.remove(&link.ifindex);
                self.attach(link, Hooks::Endpoint)?;
                return Err(format!("closed: {full}"));
            }
        }
        self.attach(link, Hooks::Endpoint)
    }

    /// Gives an endpoint its slot; whether it may have its hooks now.
    fn seat_endpoint(&mut self, link: &Link, id: Option<LocalId>, closed: bool) -> Result<bool, String> {
        if let Some(slot) = self.slots.used.get_mut(&link.ifindex) {
            if id.is_some() && slot.id != id {
                // Of another pod only if what its veth was taken for has been corrected: then no flow of that one serves it.
                let corrected = slot.id.is_some();
                if corrected {
                    slot.incarnation = self.dataplane.next_incarnation();
                }
                slot.id.clone_from(&id);
                let (number, incarnation) = (slot.number, slot.incarnation);
                self.name_slot(number, id.as_ref());
                if corrected {
                    self.endpoint_begins(incarnation, link.incarnation);
                }
            }
        } else {
            // On the first pass a pod that has a policy waits for it, rather than being closed meanwhile.
            if !closed && id.is_some() && !self.has_policy(id.as_ref()) {
                return Ok(false);
            }
            let (Some(row), Some((number, generation))) = (self.slots.take_row(), self.slots.take()) else {
                // Programs on a device that is no endpoint of theirs drop everything: closed, not open.
                self.attach(link, Hooks::Endpoint)?;
                let room = self.image.sizes().endpoints;
                return Err(format!("closed: there is room for {room} endpoints only; raise --max-endpoints"));
            };
            let incarnation = self.dataplane.next_incarnation();
            let flags = endpoint_flag::CLOSED | endpoint_flag::ANY_ADDRESS;
            let content = EndpointRow { flags, incarnation, bank: self.bank, generation, ..EndpointRow::default() };
            let revision = self.dataplane.next_revision();
            self.name_slot(number, id.as_ref());
            self.image.put_row(row, &content);
            self.image.put_endpoint(number, endpoint_word(revision, row));
            let slot = Slot { number, link: link.incarnation, id, generation, incarnation, row, content, revision };
            self.slots.seconds.remove(&link.ifindex);
            self.slots.used.insert(link.ifindex, slot);
            self.endpoint_begins(incarnation, link.incarnation);
            if let Err(full) = self.image.put_interface(link.ifindex, interface_kind::ENDPOINT, number) {
                self.drop_slot(link.ifindex);
                self.attach(link, Hooks::Endpoint)?;
                return Err(format!("closed: {full}"));
            }
            if !closed {
                // Its row is put right before a packet can see it.
                self.open_endpoint(link.ifindex);
            }
        }
        Ok(true)
    }

    pub(super) fn name_slot(&mut self, number: u32, id: Option<&LocalId>) {
        let text = identity(id);
        if let Err(error) = self.dataplane.set_identity(number, &text) {
            tracing::warn!("an agent that starts later will not know pod {text}: {error}");
        }
    }

    fn has_policy(&self, id: Option<&LocalId>) -> bool {
        id.is_some_and(|id| self.compiler.desired().endpoints.contains_key(id))
    }

    /// Where the first tables could not be written: exits have their hooks, which judge only what endpoints defer, and the
    /// endpoints of an agent before the present programs. Every other veth stays as it is: no decision exists for its pod
    /// yet, and nothing is closed before the agent has been in sync once.
    pub(super) fn hook_what_is_known(&mut self) {
        for (ifindex, role) in self.matcher.roles().clone() {
            let Some(link) = self.snapshot.links.get(&ifindex).cloned() else { continue };
            let outcome = match role {
                Role::Exit => self.attach(&link, exit_hooks(&link)),
                Role::Endpoint(_) | Role::Second { .. } | Role::Pending | Role::Closed { .. }
                    if self.slots.holds(ifindex) =>
                {
                    self.attach(&link, Hooks::Endpoint)
                }
                Role::Endpoint(pod) => {
                    Err(format!("pod {pod} is not enforced yet: the first tables could not be written"))
                }
                Role::Second { .. } | Role::Pending | Role::Closed { .. } | Role::None => Ok(()),
            };
            match outcome {
                Ok(()) => drop(self.devices.failures.remove(&ifindex)),
                Err(reason) => drop(self.devices.failures.insert(ifindex, reason)),
            }
        }
        self.arm();
    }

    fn attach(&mut self, link: &Link, hooks: Hooks) -> Result<(), String> {
        if hooks != Hooks::Endpoint && self.slots.holds(link.ifindex) {
            // Once an endpoint, until its link goes.
            return Ok(());
        }
        if self.devices.attached.get(&link.ifindex) == Some(&(link.incarnation, hooks)) {
            return Ok(());
        }
        // Its old programs are not to be taken for the new ones.
        self.devices.attached.remove(&link.ifindex);
        self.devices.left.remove(&link.ifindex);
        self.take_hooks(link, hooks)?;
        self.devices.attached.insert(link.ifindex, (link.incarnation, hooks));
        tracing::debug!(device = link.name, ?hooks, "attached");
        Ok(())
    }

    fn leave(&mut self, link: &Link) -> Result<(), String> {
        if self.slots.holds(link.ifindex) {
            // Once an endpoint, until its link goes.
            return Ok(());
        }
        if link.master.is_some_and(|master| self.devices.failures.contains_key(&master)) {
            // The device above it, whose hooks take the place of these, has none yet.
            return Ok(());
        }
        // Programs may be there of an agent before.
        if self.devices.left.insert(link.ifindex, link.incarnation) != Some(link.incarnation) {
            self.devices.attached.remove(&link.ifindex);
            self.leave_hooks(link);
        }
        Ok(())
    }

    /// Names bridges above pods' veths, and arms the drop of what comes up through them without a stamp once programs are
    /// on every port.
    fn arm(&mut self) {
        let pods: BTreeSet<u32> = self.slots.devices().map(|(ifindex, _)| ifindex).collect();
        let master_of = |ifindex: &u32| self.snapshot.links.get(ifindex).and_then(|link| link.master);
        let bridges: BTreeSet<u32> = pods.iter().filter_map(master_of).collect();
        let ports = self.snapshot.links.values().filter(|link| link.master.is_some_and(|id| bridges.contains(&id)));
        let complete = ports.into_iter().all(|port| self.devices.attached.contains_key(&port.ifindex));
        for gone in self.devices.bridges.difference(&bridges) {
            self.image.remove_interface(*gone);
        }
        for new in bridges.difference(&self.devices.bridges) {
            if let Err(full) = self.image.put_interface(*new, interface_kind::BRIDGE, 0) {
                tracing::warn!("{full}");
            }
        }
        self.devices.bridges = bridges;
        self.set_node_flag(node_flag::ARMED, complete && !self.devices.bridges.is_empty());
    }

    pub(super) fn set_node_flag(&mut self, flag: u64, on: bool) {
        let wanted = if on { self.flags | flag } else { self.flags & !flag };
        if wanted != self.flags {
            self.flags = wanted;
            self.image.set_flags(wanted);
        }
    }
}

/// How the tables name a pod; empty for none.
pub(super) fn identity(id: Option<&LocalId>) -> String {
    id.map(|id| format!("{}/{}/{}", id.pod.namespace, id.pod.name, id.uid)).unwrap_or_default()
}

/// What a device of unknown type carries cannot be read: there the programs find no IP header, so that what a pod's policy
/// has left to the exit is dropped, and all else passes.
fn exit_hooks(link: &Link) -> Hooks {
    Hooks::Exit { ethernet: link.layer == LinkLayer::Ethernet }
}
