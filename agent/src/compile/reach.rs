//! How much of each Service port the egress sets reach.
//!
//! The row of a set and a port that were both in force before never goes straight from one value to another: while
//! addresses and ports move between classes it says [`ServiceReach::Part`], under which each packet is judged where it
//! leaves, and gets its new value when the tables have settled.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::classes::Classes;
use super::services::Services;
use super::sets::{Sets, Writing};
use crate::model::{Direction, Verdict};
use crate::state::{ClassId, LocalId, PortClass, ServiceNumber, ServiceReach, SetId};

/// The backends of a port as the tables see them, in order and without repetition.
type Pairs = Vec<Seat>;

/// One backend, or several that look alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seat {
    class: ClassId,
    port: PortClass,
    /// The endpoints that have the backend's address as their own.
    owners: Vec<LocalId>,
    /// It is a process of this node: what is sent there passes no exit.
    here: bool,
}

/// No pairs: what the port leads to is not known.
type Seen = Option<Pairs>;

#[derive(Debug)]
struct SetReach {
    default: ServiceReach,
    rows: FxHashMap<ServiceNumber, ServiceReach>,
}

/// What each egress set reaches.
#[derive(Debug, Default)]
pub(super) struct Reaches {
    sets: FxHashMap<SetId, SetReach>,
    /// How the tables see each port's backends, and each such view once.
    seen: FxHashMap<ServiceNumber, Arc<Seen>>,
    views: FxHashSet<Arc<Seen>>,
    /// Rows that say "part" until the tables have settled.
    pending: FxHashSet<(SetId, ServiceNumber)>,
    /// Rows that said so until they did.
    ripe: FxHashSet<(SetId, ServiceNumber)>,
    /// Rows that say what the set's default says. A row that goes is the last thing to go, one that changes the first thing to
    /// change: so a row that comes to say the default changes now and goes when the tables have settled.
    redundant: FxHashSet<(SetId, ServiceNumber)>,
    /// Sets that may not reach the processes of this node behind a port, but others behind it. Where the host leads a packet is
    /// not known before it has, and what ends in the node meets no hook again: all of the port is denied.
    mixed: BTreeSet<(SetId, ServiceNumber)>,
}

/// What a set reaches of a port.
#[derive(Clone, Copy, Debug)]
struct Reached {
    reach: ServiceReach,
    /// See [`Reaches::mixed`].
    mixed: bool,
    /// A process of this node is among what is denied.
    denies_here: bool,
}

impl Reached {
    const PART: Self = Self { reach: ServiceReach::Part, mixed: false, denies_here: false };
}

/// What tells how the tables see a backend.
pub(super) struct View<'a> {
    pub(super) classes: &'a Classes,
    pub(super) class_of: &'a dyn Fn(IpAddr) -> ClassId,
    pub(super) owners: &'a dyn Fn(IpAddr) -> Vec<LocalId>,
    /// Whether an address is this node's.
    pub(super) is_own: &'a dyn Fn(IpAddr) -> bool,
}

impl Reaches {
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty() || !self.redundant.is_empty()
    }

    /// Ports of which sets are denied all, since policy denies the processes of this node behind them.
    pub(super) const fn mixed(&self) -> &BTreeSet<(SetId, ServiceNumber)> {
        &self.mixed
    }

    fn note_mixed(&mut self, key: (SetId, ServiceNumber), mixed: bool) {
        if mixed {
            self.mixed.insert(key);
        } else {
            self.mixed.remove(&key);
        }
    }

    /// These sets are gone.
    pub(super) fn drop_sets(&mut self, sets: &[SetId], tables: &mut super::tables::Tables) {
        for set in sets {
            if let Some(reach) = self.sets.remove(set) {
                tables.reach_defaults(*set, None);
                for port in reach.rows.into_keys() {
                    tables.reaches((*set, port), None);
                }
            }
        }
        if !sets.is_empty() {
            self.mixed.retain(|(set, _)| self.sets.contains_key(set));
        }
    }

    /// The tables have settled: these sets and ports are gone.
    pub(super) fn settle(&mut self, sets: &[SetId], ports: &[ServiceNumber], tables: &mut super::tables::Tables) {
        self.drop_sets(sets, tables);
        for (set, reach) in &mut self.sets {
            for port in ports {
                if reach.rows.remove(port).is_some() {
                    tables.reaches((*set, *port), None);
                }
            }
        }
        for port in ports {
            self.seen.remove(port);
        }
        self.mixed.retain(|(_, port)| !ports.contains(port));
        self.views.retain(|view| Arc::strong_count(view) > 1);
        for (set, port) in std::mem::take(&mut self.redundant) {
            let Some(reach) = self.sets.get_mut(&set) else { continue };
            if reach.rows.get(&port) == Some(&reach.default) {
                reach.rows.remove(&port);
                tables.reaches((set, port), None);
            }
        }
        self.ripe = std::mem::take(&mut self.pending);
        self.ripe.retain(|(set, port)| self.sets.contains_key(set) && !ports.contains(port));
    }

    /// Ports of which the tables see a backend otherwise than before: a look at each, since classes of ports or ranges moved.
    /// Most are seen as they were, and are not to be judged again for every set.
    pub(super) fn find_changed(&self, services: &mut Services, view: &View<'_>, writing: &Writing<'_>) {
        let is_other = |port: &ServiceNumber| {
            let seen = pairs(*port, services, view, writing);
            self.seen.get(port).is_none_or(|known| **known != seen)
        };
        let changed: Vec<ServiceNumber> = services.all().filter(is_other).collect();
        services.changed.extend(changed);
    }

    /// Brings the rows of changed ports and of fresh sets up to date. Gives the sets that were in force and reach
    /// otherwise now.
    pub(super) fn update(
        &mut self,
        services: &mut Services,
        sets: &mut Sets,
        fresh_sets: &[SetId],
        view: &View<'_>,
        writing: &mut Writing<'_>,
    ) -> FxHashSet<SetId> {
        let changed = std::mem::take(&mut services.changed);
        let fresh_ports = std::mem::take(&mut services.fresh);
        let ripe = std::mem::take(&mut self.ripe);
        let mut differing = FxHashSet::default();
        let egress = |id: &SetId| sets.get(*id).is_some_and(|set| set.direction() == Direction::Egress);
        let fresh_sets: Vec<SetId> = fresh_sets.iter().copied().filter(egress).collect();
        if changed.is_empty() && ripe.is_empty() && fresh_sets.is_empty() {
            return differing;
        }

        let mut wanted: FxHashSet<ServiceNumber> = changed.iter().copied().collect();
        wanted.extend(ripe.iter().map(|(_, port)| *port));
        if !fresh_sets.is_empty() {
            wanted.extend(services.all());
        }
        for port in &changed {
            let seen = pairs(*port, services, view, writing);
            let seen = self.views.get(&seen).cloned().unwrap_or_else(|| Arc::new(seen));
            self.views.insert(Arc::clone(&seen));
            self.seen.insert(*port, seen);
        }
        let mut indexes: FxHashMap<*const Seen, usize> = FxHashMap::default();
        let mut distinct: Vec<Arc<Seen>> = Vec::new();
        let mut pairs_of: FxHashMap<ServiceNumber, usize> = FxHashMap::default();
        for port in wanted {
            let Some(seen) = self.seen.get(&port) else { continue };
            let index = *indexes.entry(Arc::as_ptr(seen)).or_insert_with(|| {
                distinct.push(Arc::clone(seen));
                distinct.len() - 1
            });
            pairs_of.insert(port, index);
        }

        for id in &fresh_sets {
            let reaches: Vec<Reached> =
                distinct.iter().map(|pairs| reach(*id, pairs.as_ref().as_ref(), sets, view, writing)).collect();
            let mut votes: FxHashMap<ServiceReach, usize> = FxHashMap::default();
            for (port, index) in &pairs_of {
                if let Some(reached) = reaches.get(*index) {
                    *votes.entry(reached.reach).or_default() += 1;
                    self.note_mixed((*id, *port), reached.mixed);
                }
            }
            let most = votes.into_iter().max_by_key(|(reach, count)| (*count, *reach));
            let default = most.map_or(ServiceReach::Part, |(reach, _)| reach);
            writing.tables.reach_defaults(*id, Some(default));
            let mut rows = FxHashMap::default();
            let now = pairs_of.iter().filter_map(|(port, index)| Some((*port, reaches.get(*index)?.reach)));
            let gone = services.retired.iter().map(|port| (*port, ServiceReach::Part));
            for (port, reach) in now.chain(gone).filter(|(_, reach)| *reach != default) {
                writing.tables.reaches((*id, port), Some(reach));
                rows.insert(port, reach);
            }
            self.sets.insert(*id, SetReach { default, rows });
        }

        let fresh_sets: FxHashSet<SetId> = fresh_sets.into_iter().collect();
        let older: Vec<SetId> = self.sets.keys().copied().filter(|id| !fresh_sets.contains(id)).collect();
        let mut concerned: FxHashSet<(SetId, ServiceNumber)> = ripe.clone();
        concerned.extend(older.iter().flat_map(|set| changed.iter().map(|port| (*set, *port))));
        let mut judged: FxHashMap<(SetId, usize), Reached> = FxHashMap::default();
        for (set, port) in concerned {
            let Some(index) = pairs_of.get(&port) else { continue };
            let Some(pairs) = distinct.get(*index) else { continue };
            let reached = *(judged.entry((set, *index)))
                .or_insert_with(|| reach(set, pairs.as_ref().as_ref(), sets, view, writing));
            let target = reached.reach;
            if self.sets.contains_key(&set) {
                self.note_mixed((set, port), reached.mixed);
            }
            let Some(state) = self.sets.get_mut(&set) else { continue };
            let before = state.rows.get(&port).copied().unwrap_or(state.default);
            let settled = fresh_ports.contains(&port) || (ripe.contains(&(set, port)) && !changed.contains(&port));
            // What ends in the node is left to no exit: it is denied from now on.
            let at_once = settled || before == target || reached.denies_here;
            let shown = if at_once { target } else { ServiceReach::Part };
            if shown == target {
                self.pending.remove(&(set, port));
            } else {
                self.pending.insert((set, port));
            }
            if before != shown && !fresh_ports.contains(&port) {
                differing.insert(set);
            }
            if shown != state.default || state.rows.contains_key(&port) {
                state.rows.insert(port, shown);
                writing.tables.reaches((set, port), Some(shown));
                if shown == state.default {
                    self.redundant.insert((set, port));
                }
            }
        }
        differing
    }
}

fn pairs(port: ServiceNumber, services: &Services, view: &View<'_>, writing: &Writing<'_>) -> Option<Pairs> {
    let (protocol, backends) = services.get(port)?;
    let mut seen = FxHashSet::default();
    let mut pairs = Vec::new();
    for backend in backends? {
        let seat = Seat {
            class: (view.class_of)(backend.address),
            port: super::ports::class_of(writing.tables, protocol, backend.port),
            owners: (view.owners)(backend.address),
            here: (view.is_own)(backend.address),
        };
        if seen.insert(seat.clone()) {
            pairs.push(seat);
        }
    }
    Some(pairs)
}

fn reach(id: SetId, pairs: Option<&Pairs>, sets: &mut Sets, view: &View<'_>, writing: &mut Writing<'_>) -> Reached {
    let Some(pairs) = pairs else { return Reached::PART };
    // No policy denies what nobody gets: kube-proxy refuses it, as it does without policy, and where it has heard of a
    // backend that is not known here yet, the exit tells.
    if pairs.is_empty() {
        return Reached::PART;
    }
    let (mut allowing, mut several) = (None, false);
    let (mut denial, mut denial_here) = (None, None);
    let mut differs = false;
    for Seat { class, port, owners, here } in pairs {
        let mut verdict_for = |itself| {
            let profile = sets.profile(id, *class, itself, view.classes, writing)?;
            Some(writing.profiles.verdict(profile, *port, writing.ports))
        };
        let Some(verdict) = verdict_for(false) else { return Reached::PART };
        let own = if owners.is_empty() { None } else { verdict_for(true) };
        let user = |owner: &LocalId| {
            sets.get(id).is_some_and(|set| set.users.contains(owner) || set.past_users.contains(owner))
        };
        // Endpoints of one set differ here: the one that is itself the backend may reach it when the others may not, or
        // another rule decides for it.
        differs |= own.is_some_and(|own| own != verdict) && owners.iter().any(user);
        match verdict.verdict {
            Verdict::Allow => several |= *allowing.get_or_insert(verdict.rule) != verdict.rule,
            Verdict::Deny => {
                denial = denial.or(Some(verdict.rule));
                if *here {
                    denial_here = denial_here.or(Some(verdict.rule));
                }
            }
        }
    }
    let denies_here = denial_here.is_some();
    let (reach, mixed) = match (allowing, denial) {
        (Some(rule), None) if !several && !differs => (ServiceReach::All(rule), false),
        (None, Some(rule)) if !differs => (ServiceReach::None(rule), false),
        _ => match denial_here {
            Some(rule) => (ServiceReach::None(rule), true),
            None => (ServiceReach::Part, false),
        },
    };
    Reached { reach, mixed, denies_here }
}
