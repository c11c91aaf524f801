//! Single addresses: who has them, and what the tables say of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Problem;
use super::classes::{Classes, KindId, KindKey};
use super::pods::Pods;
use super::ranges::Ranges;
use super::tables::Tables;
use crate::model::{Pod, PodKey};
use crate::state::{ClassId, PeerEntry};

/// The pods that claim an address: one, nearly always.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "there is one for each address of the cluster, and two words are enough")]
enum Owners {
    #[default]
    Nobody,
    One(Arc<Pod>),
    Several(Box<Vec<Arc<Pod>>>),
}

impl Owners {
    fn as_slice(&self) -> &[Arc<Pod>] {
        match self {
            Self::Nobody => &[],
            Self::One(pod) => std::slice::from_ref(pod),
            Self::Several(pods) => pods,
        }
    }

    /// Puts the pod of a name in place of what it was before, or takes it away.
    fn set(&mut self, key: &PodKey, pod: Option<&Arc<Pod>>) {
        let others = self.as_slice().iter().filter(|other| other.key != *key);
        let mut pods: Vec<Arc<Pod>> = others.chain(pod).cloned().collect();
        *self = match (pods.pop(), pods.is_empty()) {
            (None, _) => Self::Nobody,
            (Some(pod), true) => Self::One(pod),
            (Some(pod), false) => {
                pods.push(pod);
                Self::Several(Box::new(pods))
            }
        };
    }
}

/// What is known of one address.
#[derive(Debug, Default)]
struct Record {
    pods: Owners,
    /// In this node's local table.
    own: bool,
    /// How many Services have it.
    services: u32,
    kind: Option<KindId>,
    shown: PeerEntry,
}

impl Record {
    fn is_empty(&self) -> bool {
        self.pods.as_slice().is_empty() && !self.own && self.services == 0
    }
}

/// What showing addresses anew changed.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Old and new classes of addresses that moved.
    pub(super) moves: FxHashSet<(ClassId, ClassId)>,
    /// Addresses that moved.
    pub(super) moved: BTreeMap<IpAddr, (ClassId, ClassId)>,
    /// An address or range became translatable or the own node's, or ceased to be.
    pub(super) flags_changed: bool,
    /// Some address is the node's now, or no longer: ingress from it is another's.
    pub(super) own_node_changed: bool,
}

/// What may have to be written anew.
#[derive(Debug)]
pub(super) struct Concerned {
    addresses: BTreeSet<IpAddr>,
    ranges: BTreeSet<IpNet>,
}

/// An address as it was and as it should be.
struct Look {
    before: PeerEntry,
    entry: PeerEntry,
    /// What holds where the tables do not name it.
    fallback: PeerEntry,
}

/// All addresses that pods, Services or this node have.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    records: BTreeMap<IpAddr, Record>,
    /// Whose owners changed.
    changed: BTreeSet<IpAddr>,
    contested: BTreeSet<IpAddr>,
    /// In a class of their own while endpoints flip.
    on_way: BTreeSet<IpAddr>,
    maybe_empty: FxHashSet<KindId>,
}

impl Addresses {
    /// A pod has an address now, or gives it up, or is another kind of pod.
    pub(super) fn claim(&mut self, address: IpAddr, key: &PodKey, pods: &Pods) {
        let record = self.records.entry(address).or_default();
        let pod = pods.member(key).map(|member| &member.pod).filter(|pod| pod.addresses.contains(&address));
        record.pods.set(key, pod);
        if record.pods.as_slice().len() > 1 {
            self.contested.insert(address);
        } else {
            self.contested.remove(&address);
        }
        self.changed.insert(address);
    }

    pub(super) fn set_own(&mut self, address: IpAddr, own: bool) {
        let record = self.records.entry(address).or_default();
        if record.own != own {
            record.own = own;
        }
        self.changed.insert(address);
    }

    pub(super) fn add_service(&mut self, address: IpAddr) {
        self.records.entry(address).or_default().services += 1;
        self.changed.insert(address);
    }

    pub(super) fn remove_service(&mut self, address: IpAddr) {
        if let Some(record) = self.records.get_mut(&address) {
            record.services = record.services.saturating_sub(1);
            self.changed.insert(address);
        }
    }

    /// Ranges came or went: the addresses in them may have another longest range.
    pub(super) fn ranges_changed(&mut self, nets: &[IpNet]) {
        // A look at every address once costs less than many looks at parts.
        if nets.len() > 16 {
            self.changed.extend(self.records.keys());
            return;
        }
        for net in nets {
            let within = self.records.range(net.network()..=net.broadcast());
            self.changed.extend(within.map(|(address, _)| *address));
        }
    }

    /// The pod that an address is taken to be of: where two claim it, the one with the greater uid, then name.
    fn winner(record: &Record) -> Option<&PodKey> {
        let pods = record.pods.as_slice().iter();
        pods.max_by(|one, other| (&one.uid, &one.key).cmp(&(&other.uid, &other.key))).map(|pod| &pod.key)
    }

    /// Finds the kind of every changed address. Gives the addresses.
    pub(super) fn find_kinds(&mut self, pods: &Pods, ranges: &Ranges, classes: &mut Classes) -> BTreeSet<IpAddr> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.extend(&self.on_way);
        for address in &changed {
            let Some(record) = self.records.get_mut(address) else { continue };
            let winner = Self::winner(record).and_then(|key| pods.member(key));
            let kind = (!record.is_empty()).then(|| {
                classes.kind(KindKey {
                    group: winner.map(|member| member.group),
                    range: ranges.longest(*address),
                    // Whatever Services have it too: anybody may write a node's address into a Service (externalIPs), and the
                    // node's own traffic must not end with that. With IPVS the node holds all cluster addresses; what is
                    // sent to those has their backends' addresses where it leaves.
                    own_node: record.own,
                })
            });
            if record.kind == kind {
                continue;
            }
            if let Some(before) = record.kind {
                if let Some(before) = classes.get_mut(before) {
                    before.addresses.remove(address);
                }
                self.maybe_empty.insert(before);
            }
            if let Some(kind) = kind.and_then(|kind| classes.get_mut(kind)) {
                kind.addresses.insert(*address);
            }
            record.kind = kind;
        }
        changed
    }

    /// Finds what may have to be written anew: what changed, all addresses whose kind moved or whose range changed, and the
    /// ranges that changed.
    pub(super) fn concerned(
        &self,
        changed: BTreeSet<IpAddr>,
        changed_ranges: &[IpNet],
        moves: &[KindId],
        ranges: &Ranges,
        classes: &Classes,
    ) -> Concerned {
        let mut nets: BTreeSet<IpNet> = changed_ranges.iter().flat_map(|net| ranges.within(*net)).collect();
        nets.extend(changed_ranges);
        let bare = moves.iter().filter_map(|kind| classes.get(*kind)).map(|kind| kind.key);
        nets.extend(bare.filter(|key| KindKey::bare(key.range) == *key).filter_map(|key| key.range));

        let mut addresses = changed;
        let by_kind = moves.iter().copied();
        let by_range = nets.iter().flat_map(|net| classes.kinds_of_range(Some(*net))).copied();
        for kind in by_kind.chain(by_range).filter_map(|kind| classes.get(kind)) {
            addresses.extend(&kind.addresses);
        }
        Concerned { addresses, ranges: nets }
    }

    /// From which class to which the addresses move.
    pub(super) fn pairs(
        &self,
        concerned: &Concerned,
        ranges: &Ranges,
        classes: &Classes,
        tables: &Tables,
    ) -> FxHashSet<(ClassId, ClassId)> {
        let looks = concerned.addresses.iter().filter_map(|address| self.look(*address, ranges, classes, tables));
        looks.map(|look| (look.before.class, look.entry.class)).filter(|(from, to)| from != to).collect()
    }

    /// Writes what the tables say of ranges and addresses. `transits`: the class on the way for those that move so.
    /// `flips`: endpoints flip to other sets.
    pub(super) fn show(
        &mut self,
        concerned: Concerned,
        transits: &FxHashMap<(ClassId, ClassId), ClassId>,
        flips: bool,
        ranges: &Ranges,
        classes: &Classes,
        tables: &mut Tables,
    ) -> Shown {
        let mut shown = Shown::default();
        for net in concerned.ranges {
            let entry = ranges.exists(&net).then(|| fallback(Some(net), ranges, classes));
            let before = tables.desired.ranges.get(&net).is_some_and(|before| before.translatable);
            shown.flags_changed |= before != entry.is_some_and(|entry| entry.translatable);
            tables.ranges(net, entry);
        }
        for address in concerned.addresses {
            let Some(Look { before, mut entry, fallback }) = self.look(address, ranges, classes, tables) else {
                continue;
            };
            if let Some(transit) = transits.get(&(before.class, entry.class)) {
                entry.class = *transit;
            }
            // While endpoints flip, an old set would judge what was left to the exit by an address that it never was for. So
            // that address stays translatable until the tables have settled: the exit knows what becomes of it.
            let stays = flips && before.translatable && !entry.translatable;
            entry.translatable |= stays;
            if stays || classes.is_transit(entry.class) {
                self.on_way.insert(address);
            } else {
                self.on_way.remove(&address);
            }
            if before.class != entry.class {
                shown.moves.insert((before.class, entry.class));
                shown.moved.insert(address, (before.class, entry.class));
            }
            shown.flags_changed |= (before.translatable, before.own_node) != (entry.translatable, entry.own_node);
            shown.own_node_changed |= before.own_node != entry.own_node;
            tables.addresses(address, (entry != fallback).then_some(entry));
            let Some(record) = self.records.get_mut(&address) else { continue };
            record.shown = entry;
            if record.is_empty() && !self.on_way.contains(&address) {
                self.records.remove(&address);
            }
        }
        shown
    }

    fn look(&self, address: IpAddr, ranges: &Ranges, classes: &Classes, tables: &Tables) -> Option<Look> {
        let record = self.records.get(&address)?;
        let fallback = fallback(ranges.longest(address), ranges, classes);
        let kind = record.kind.and_then(|kind| Some((kind, classes.get(kind)?)));
        let mut entry = kind.map_or(fallback, |(id, _)| PeerEntry {
            class: classes.class_of(id),
            translatable: record.services > 0 || record.own || fallback.translatable,
            // A process of this node may send from an address that is a Service's as well (an externalIP, a load balancer's
            // that is the node's own); as a destination such an address is the Service's.
            own_node: record.own,
        });
        // An address that was not known before was seen as its range is, for every set that was in force.
        let known = tables.desired.addresses.contains_key(&address) || record.shown != PeerEntry::default();
        let before = if known { record.shown } else { fallback };
        if classes.is_on_way(before.class, entry.class) {
            entry.class = before.class;
        }
        Some(Look { before, entry, fallback })
    }

    /// The class of an address, as shown last.
    pub(super) fn class_of(&self, address: IpAddr, ranges: &Ranges, classes: &Classes) -> ClassId {
        let record = self.records.get(&address);
        record.map_or_else(|| classes.bare_class(ranges.longest(address)), |record| record.shown.class)
    }

    /// Forgets kinds that nothing is of any more.
    pub(super) fn drop_empty_kinds(&mut self, changed_ranges: &[IpNet], ranges: &Ranges, classes: &mut Classes) {
        let mut candidates = std::mem::take(&mut self.maybe_empty);
        for net in changed_ranges.iter().filter(|net| !ranges.exists(net)) {
            candidates.extend(classes.kinds_of_range(Some(*net)));
        }
        for id in candidates {
            let Some(kind) = classes.get(id) else { continue };
            let bare = KindKey::bare(kind.key.range) == kind.key;
            let of_range = bare && kind.key.range.is_none_or(|net| ranges.exists(&net));
            if kind.addresses.is_empty() && !of_range {
                classes.drop_kind(id);
            }
        }
    }

    /// Addresses that several pods claim.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let contested = self.contested.iter().filter_map(|address| Some((*address, self.records.get(address)?)));
        contested
            .filter_map(|(address, record)| {
                let winner = Self::winner(record)?;
                let keys = record.pods.as_slice().iter().map(|pod| &pod.key);
                let others = keys.filter(|key| *key != winner).cloned().collect();
                Some(Problem::AddressClaimedTwice { address, taken_as: winner.clone(), others })
            })
            .collect()
    }
}

/// What the tables say of an address of this range that they do not name.
fn fallback(range: Option<IpNet>, ranges: &Ranges, classes: &Classes) -> PeerEntry {
    PeerEntry { class: classes.bare_class(range), translatable: ranges.translatable(range), own_node: false }
}
