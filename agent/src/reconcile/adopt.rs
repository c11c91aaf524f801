//! What the agent before has left: endpoints keep slots and flows, programs are swapped, and new tables are built in the
//! other bank beside the old ones, which decide until the endpoints have moved.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::layout::{BANKS, interface_kind, interface_kind_of, interface_slot_of};

use super::slots::{Second, Slot};
use super::{Reconciler, rules};
use crate::compile::{Compiler, Numbers};
use crate::dataplane::Found;
use crate::endpoints::PodId;
use crate::model::PodKey;
use crate::state::{LocalId, RuleIdentity, RuleNumber};

impl Reconciler {
    /// Reads the tables as they are.
    pub(super) fn adopt(&mut self) {
        self.follow_lifetimes();
        let mut adopted: BTreeMap<u32, Slot> = BTreeMap::new();
        let mut seconds = BTreeMap::new();
        let mut generations = BTreeMap::new();
        if self.dataplane.found == Found::Adopted && self.image.seed() != 0 {
            self.leftovers = true;
            let pinned: BTreeSet<u32> = self.dataplane.pinned_devices().into_iter().collect();
            let (mut banks, mut gone) = (BTreeSet::new(), BTreeSet::new());
            // Of several devices of one endpoint the oldest is its own.
            let mut words: Vec<u64> = self.image.interfaces().collect();
            words.sort_unstable_by_key(|word| *word as u32);
            for word in words.into_iter().filter(|word| interface_kind_of(*word) == interface_kind::ENDPOINT) {
                let (ifindex, number) = (word as u32, interface_slot_of(word));
                let endpoint = self.image.endpoint(number);
                if endpoint == 0 {
                    continue;
                }
                let content = self.image.row(endpoint as u32);
                generations.insert(number, content.generation);
                let id = self.dataplane.identity(number).and_then(|text| parse(&text));
                if self.dataplane.pins_links() && !(pinned.contains(&ifindex) && self.dataplane.link_is_on(ifindex)) {
                    // Its device has gone. If there is one of that index, it is another.
                    self.image.remove_interface(ifindex);
                    gone.insert(number);
                    continue;
                }
                if let Some((of, _)) = adopted.iter().find(|(_, slot)| slot.number == number) {
                    seconds.insert(ifindex, Second { of: *of, number, link: 0 });
                    continue;
                }
                if let Some(id) = &id {
                    self.matcher.adopt(ifindex, PodId { key: id.pod.clone(), uid: id.uid.clone() });
                }
                banks.insert(content.bank);
                let slot = Slot {
                    number,
                    link: 0,
                    id,
                    generation: content.generation,
                    incarnation: content.incarnation,
                    row: endpoint as u32,
                    content,
                    revision: (endpoint >> 32) as u32,
                };
                adopted.insert(ifindex, slot);
            }
            for number in gone.into_iter().filter(|number| adopted.values().all(|slot| slot.number != *number)) {
                self.image.put_endpoint(number, 0);
                let _ = self.dataplane.set_identity(number, "");
            }
            self.take_bank(&banks);
        } else {
            self.image.set_seed(random());
        }
        self.seed = self.image.seed();
        self.flags = self.image.flags();
        let first = self.dataplane.next_incarnation();
        self.slots.start(self.image.sizes().endpoints, adopted, seconds, generations, first);
    }

    /// Takes a bank that no endpoint uses, and clears what an agent that was stopped half-way has left in it.
    fn take_bank(&mut self, used: &BTreeSet<u32>) {
        self.bank = (0..BANKS).find(|bank| !used.contains(bank)).unwrap_or(0);
        let ours = |key: &[u64; 3]| (key[2] >> 48) as u32 & 0xff == self.bank;
        let stale: Vec<[u64; 3]> = self.image.wide_rows().map(|(key, _)| key).filter(ours).collect();
        stale.iter().for_each(|key| self.image.remove_wide(key));
        self.image.clear_ports(self.bank);
        if let Err(error) = self.dataplane.ranges.clear(self.bank) {
            tracing::warn!("cannot clear ranges that an agent before has left: {error}");
        }
        self.image.grace_passed();
    }

    /// Called with the first snapshot and objects: adopted endpoints are those whose device is still there, and rules get
    /// back the numbers that they counted under.
    pub fn settle_adoption(&mut self) {
        let links = &self.snapshot.links;
        for (ifindex, slot) in &mut self.slots.used {
            // A device that is gone keeps the incarnation 0, which no device has, and so is forgotten.
            slot.link = links.get(ifindex).map_or(0, |link| link.incarnation);
        }
        for (ifindex, second) in &mut self.slots.seconds {
            second.link = links.get(ifindex).map_or(0, |link| link.incarnation);
        }
        let stored: BTreeMap<[u8; 16], u32> =
            self.dataplane.rule_names().map(|(number, hash)| (hash, number)).collect();
        let adopted: BTreeMap<RuleNumber, RuleIdentity> = rules::all_names(&self.cluster)
            .filter_map(|identity| Some((RuleNumber(*stored.get(&rules::hash(&identity))?), identity)))
            .collect();
        let above = |highest: Option<u32>, least: u32| highest.map_or(least, |number| (number + 1).max(least));
        let (mut set, mut profile) = (None, None);
        for (key, value) in self.image.narrow_rows() {
            use portcullis_common::layout::narrow;
            let first = (key >> 32) as u32 & 0x0fff_ffff;
            match key >> 60 {
                narrow::PROFILE | narrow::PROFILE_ITSELF | narrow::SET_DEFAULT => {
                    set = set.max(Some(first));
                    profile = profile.max(Some(value as u32));
                }
                narrow::REACH | narrow::REACH_DEFAULT => set = set.max(Some(first)),
                _ => profile = profile.max(Some(first)),
            }
        }
        let old = self.slots.used.values().map(|slot| slot.content);
        let sets = old.flat_map(|row| [row.ingress, row.egress]).filter(|set| *set != 0).collect();
        self.kept.start(&self.image, &sets, stored.clone());
        let start = Numbers::default();
        let numbers = Numbers {
            set: above(set, start.set),
            profile: above(profile, start.profile),
            rule: above(stored.values().copied().max(), start.rule),
            ..start
        };
        self.stale_rules =
            stored.values().copied().filter(|number| !adopted.contains_key(&RuleNumber(*number))).collect();
        self.rules.known.clone_from(&adopted);
        self.compiler = Compiler::new(numbers, adopted);
        self.compiler.limit_rules(self.dataplane.counters.len());
    }

    /// Programs of an agent of another layout go, unless a device has none of ours yet: then they are all that judges there,
    /// and go once it has.
    pub(super) fn end_other_layouts(&mut self) {
        if !self.devices.failures.keys().all(|ifindex| self.devices.attached.contains_key(ifindex)) {
            return;
        }
        match self.dataplane.end_other_layouts() {
            Ok(0) => {}
            Ok(links) => tracing::info!(links, "took away the programs of an agent of another layout"),
            Err(error) => {
                tracing::error!("programs of an agent of another layout still judge by what that knew: {error}")
            }
        }
    }

    /// Pins of devices that are gone, which nothing else would remove.
    pub fn forget_stale_pins(&mut self) {
        for ifindex in self.dataplane.pinned_devices() {
            if !self.snapshot.links.contains_key(&ifindex) {
                self.dataplane.detach(ifindex, None);
            }
        }
    }
}

fn parse(text: &str) -> Option<LocalId> {
    let mut parts = text.splitn(3, '/');
    let pod = PodKey::new(parts.next()?, parts.next()?);
    Some(LocalId { pod, uid: parts.next()?.into() })
}

/// A number that nobody outside can guess.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) | 1
}
