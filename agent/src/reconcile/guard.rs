//! The hooks as the kernel has them: ours are there and first, whatever others do on the same devices.
//!
//! Filters tell when they change, TCX does not: links are asked for every moment, filters when the kernel says so and
//! from time to time.

use std::collections::{BTreeMap, BTreeSet};

use super::Reconciler;
use crate::dataplane::{Dataplane, Direction, HANDLES, Hooks, PRIORITY};
use crate::endpoints::Link;
use crate::netlink::{Filter, Filters, Qdisc};
use crate::status::Repair;

/// What is known of hooks.
#[derive(Default)]
pub(super) struct Guard {
    filters: Option<Filters>,
    /// How often something had to be put right.
    pub(super) repairs: BTreeMap<Repair, u64>,
    /// Others' filters that may overwrite the stamp, by device.
    pub(super) foreign: BTreeMap<u32, Vec<String>>,
    /// Why pins are not put back.
    pub(super) pins: Option<String>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("repairs", &self.repairs).field("foreign", &self.foreign).finish_non_exhaustive()
    }
}

impl Guard {
    pub(super) fn retain(&mut self, lives: impl Fn(&u32) -> bool) {
        self.foreign.retain(|ifindex, _| lives(ifindex));
    }

    fn filters(&mut self) -> Result<&mut Filters, String> {
        if self.filters.is_none() {
            self.filters = Some(Filters::open().map_err(|error| error.to_string())?);
        }
        self.filters.as_mut().ok_or_else(|| "no netlink socket".into())
    }

    fn on(&mut self, ifindex: u32, direction: Direction) -> Result<Vec<Filter>, String> {
        self.filters()?.on(ifindex, direction == Direction::Ingress).map_err(|error| {
            // Its answers may be out of step.
            self.filters = None;
            error.to_string()
        })
    }

    fn qdisc(&mut self, ifindex: u32) -> Result<Option<Qdisc>, String> {
        self.filters()?.qdiscs().map(|mut found| found.remove(&ifindex)).map_err(|error| {
            self.filters = None;
            error.to_string()
        })
    }
}

/// Which hooks to look at.
#[derive(Clone, Debug)]
pub enum Scope {
    /// What costs next to nothing: links and pins.
    Links,
    /// Everything on these devices.
    Devices(BTreeSet<u32>),
    /// Everything.
    All,
}

/// What is wrong on a hook.
enum Wrong {
    /// Our program is not there.
    Missing,
    /// It is not the first; the handle of its filter, if it is one.
    Behind(u32),
    /// Nothing can be done.
    Hopeless(String),
}

impl Reconciler {
    /// Puts programs on a device, and reads back that they are there.
    pub(super) fn take_hooks(&mut self, link: &Link, hooks: Hooks) -> Result<(), String> {
        self.prepare_qdisc(link)?;
        self.dataplane.attach(link.ifindex, &link.name, hooks).map_err(|error| error.to_string())?;
        for direction in Direction::BOTH {
            self.look_at_filters(link, direction);
            // Another program may have been first already.
            self.put_right(link, hooks, direction)?;
        }
        Ok(())
    }

    /// Takes what is ours off a device.
    pub(super) fn leave_hooks(&mut self, link: &Link) {
        self.devices.guard.foreign.remove(&link.ifindex);
        self.dataplane.detach(link.ifindex, Some(&link.name));
        if self.dataplane.pins_links() {
            for direction in Direction::BOTH {
                let filters = self.devices.guard.on(link.ifindex, direction).unwrap_or_default();
                if filters.iter().any(is_ours) {
                    Dataplane::detach_filters(&link.name, direction);
                }
            }
        }
    }

    /// Looks after hooks and pins, and puts right what others have changed. Gives the number of repairs.
    pub fn check_hooks(&mut self, scope: &Scope) -> u64 {
        let before: u64 = self.devices.guard.repairs.values().sum();
        self.check_pins();
        let links = self.dataplane.pins_links();
        if links || !matches!(scope, Scope::Links) {
            let attached: Vec<(u32, u64, Hooks)> =
                self.devices.attached.iter().map(|(ifindex, (link, hooks))| (*ifindex, *link, *hooks)).collect();
            for (ifindex, incarnation, hooks) in attached {
                if matches!(scope, Scope::Devices(devices) if !devices.contains(&ifindex)) {
                    continue;
                }
                let link = self.snapshot.links.get(&ifindex).filter(|link| link.incarnation == incarnation).cloned();
                let Some(mut link) = link else { continue };
                // It may be gone, or have another name: netlink will tell, later.
                let Some(name) = name_of(ifindex) else { continue };
                link.name = name;
                let with_filters = links && !matches!(scope, Scope::Links);
                if let Err(reason) = self.check_device(&link, hooks, with_filters) {
                    tracing::error!(device = link.name, "not enforced: {reason}");
                    self.devices.attached.remove(&ifindex);
                    self.devices.failures.insert(ifindex, reason);
                }
            }
        }
        self.devices.guard.repairs.values().sum::<u64>() - before
    }

    fn check_device(&mut self, link: &Link, hooks: Hooks, with_filters: bool) -> Result<(), String> {
        for direction in Direction::BOTH {
            if with_filters {
                self.look_at_filters(link, direction);
            }
            let Some(repair) = self.put_right(link, hooks, direction)? else { continue };
            *self.devices.guard.repairs.entry(repair).or_default() += 1;
            let (device, hook) = (&link.name, direction.name());
            tracing::warn!(device, hook, "{}", repair.explain());
        }
        Ok(())
    }

    /// Brings our program back to the first place of a hook. Tells what was wrong.
    fn put_right(&mut self, link: &Link, hooks: Hooks, direction: Direction) -> Result<Option<Repair>, String> {
        let Some(wrong) = self.what_is_wrong(link, hooks, direction)? else { return Ok(None) };
        let text = |error: crate::dataplane::DataplaneError| error.to_string();
        let repair = match wrong {
            Wrong::Hopeless(reason) => return Err(reason),
            Wrong::Behind(handle) if !self.dataplane.pins_links() => {
                self.dataplane.move_filter(&link.name, hooks, direction, handle).map_err(text)?;
                Repair::Displaced
            }
            Wrong::Behind(_) => {
                self.dataplane.attach_one(link.ifindex, &link.name, hooks, direction).map_err(text)?;
                Repair::Displaced
            }
            Wrong::Missing => {
                self.prepare_qdisc(link)?;
                self.dataplane.attach_one(link.ifindex, &link.name, hooks, direction).map_err(text)?;
                Repair::Missing
            }
        };
        match self.what_is_wrong(link, hooks, direction)? {
            None => Ok(Some(repair)),
            // The filter was found behind another where it was put in place of an older one.
            Some(Wrong::Behind(handle)) if repair == Repair::Missing && !self.dataplane.pins_links() => {
                self.dataplane.move_filter(&link.name, hooks, direction, handle).map_err(text)?;
                Ok(Some(repair))
            }
            Some(Wrong::Hopeless(reason)) => Err(reason),
            Some(_) => Err(format!(
                "somebody takes the first place on tc {} of {} away from {} again and again",
                direction.name(),
                link.name,
                hooks.program(direction)
            )),
        }
    }

    fn what_is_wrong(&mut self, link: &Link, hooks: Hooks, direction: Direction) -> Result<Option<Wrong>, String> {
        let Some(ours) = self.dataplane.program_id(hooks, direction) else { return Ok(Some(Wrong::Missing)) };
        if self.dataplane.pins_links() {
            let ids = match self.dataplane.query(link.ifindex, direction) {
                Ok(ids) => ids,
                // It is gone, which netlink will tell.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
                Err(error) => {
                    return Err(format!("cannot ask what is on tc {} of {}: {error}", direction.name(), link.name));
                }
            };
            return Ok(match ids.iter().position(|id| *id == ours) {
                Some(0) => None,
                Some(_) => Some(Wrong::Behind(0)),
                None => Some(Wrong::Missing),
            });
        }
        let filters = self.devices.guard.on(link.ifindex, direction)?;
        if filters.is_empty() && name_of(link.ifindex).is_none() {
            return Ok(None);
        }
        if direction == Direction::Ingress {
            self.note_foreign(link, &filters);
        }
        let other = Direction::BOTH.into_iter().find(|other| *other != direction);
        let others = other.and_then(|other| self.dataplane.program_id(hooks, other));
        if others.is_some() && filters.iter().any(|filter| filter.program == others) {
            return Ok(Some(Wrong::Hopeless(no_clsact(&link.name))));
        }
        let kept = filters.iter().find(|filter| filter.program == Some(ours)).map(|filter| filter.handle);
        let first: Vec<&Filter> = filters.iter().filter(|filter| filter.chain == 0).collect();
        let at = first.iter().position(|filter| is_ours(filter) && filter.program == Some(ours));
        for filter in filters.iter().filter(|filter| is_ours(filter) && kept.is_some_and(|kept| kept != filter.handle))
        {
            // Left over from an agent that was stopped while it moved a filter.
            Dataplane::detach_filter(&link.name, direction, filter.handle);
        }
        Ok(match at.and_then(|at| Some((at, first.get(at)?))) {
            None => Some(Wrong::Missing),
            Some((0, _)) => None,
            Some((_, filter)) => Some(Wrong::Behind(filter.handle)),
        })
    }

    /// Filters on a device that has links: those that an agent before has left go, and others' are noted.
    fn look_at_filters(&mut self, link: &Link, direction: Direction) {
        if !self.dataplane.pins_links() {
            return;
        }
        // A kernel without filters has none.
        let filters = self.devices.guard.on(link.ifindex, direction).unwrap_or_default();
        if filters.iter().any(is_ours) {
            Dataplane::detach_filters(&link.name, direction);
        }
        if direction == Direction::Ingress {
            self.note_foreign(link, &filters);
        }
    }

    fn note_foreign(&mut self, link: &Link, filters: &[Filter]) {
        if self.settings.stamp_in_mark {
            return;
        }
        let foreign = filters.iter().filter(|filter| filter.may_classify && !is_ours(filter));
        let told: Vec<String> = foreign.map(|filter| tell(&link.name, filter)).collect();
        if told.is_empty() {
            self.devices.guard.foreign.remove(&link.ifindex);
        } else if self.devices.guard.foreign.insert(link.ifindex, told.clone()).as_ref() != Some(&told) {
            told.iter().for_each(|text| tracing::warn!("{text}"));
        }
    }

    /// Where programs are filters: a device's `ffff:` must be able to have both hooks, or be absent.
    fn prepare_qdisc(&mut self, link: &Link) -> Result<(), String> {
        if self.dataplane.pins_links() || self.devices.guard.qdisc(link.ifindex)? != Some(Qdisc::Ingress) {
            return Ok(());
        }
        if !self.settings.replace_ingress_qdisc {
            return Err(no_clsact(&link.name));
        }
        tracing::warn!(device = link.name, "its ingress qdisc gives way to clsact, with every filter on it");
        let removed = self.devices.guard.filters()?.remove_ingress_qdisc(link.ifindex);
        removed.map_err(|error| error.to_string())
    }

    fn check_pins(&mut self) {
        match self.dataplane.restore_pins() {
            Ok(0) => self.devices.guard.pins = None,
            Ok(restored) => {
                self.devices.guard.pins = None;
                *self.devices.guard.repairs.entry(Repair::Pin).or_default() += restored as u64;
                tracing::warn!(restored, "{}", Repair::Pin.explain());
            }
            Err(error) => {
                let text = format!("pins cannot be put back, so enforcement would end with this agent: {error}");
                if self.devices.guard.pins.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                self.devices.guard.pins = Some(text);
            }
        }
    }
}

fn name_of(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()
}

fn is_ours(filter: &Filter) -> bool {
    filter.kind == "bpf" && filter.priority == PRIORITY && HANDLES.contains(&filter.handle)
}

fn no_clsact(device: &str) -> String {
    format!(
        "{device} has an ingress qdisc, on which an egress filter would run on ingress; remove it (`tc qdisc del dev \
         {device} ingress`), or let the agent do so with --replace-ingress-qdisc"
    )
}

fn tell(device: &str, filter: &Filter) -> String {
    let Filter { kind, priority, handle, name, .. } = filter;
    let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    format!(
        "{device}: the {kind} filter{name} on tc ingress (priority {priority}, handle {handle:#x}) may end with TC_ACT_OK, \
         which overwrites the stamp that this agent's programs leave in tc_index: what it passes is judged without; let it \
         end with TC_ACT_UNSPEC, or give the stamp another place with --stamp mark:16"
    )
}
