//! Ranges: the CIDRs that policies name and the service ranges, each knowing the wider ones around it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::atoms::{self, AtomId, Signature};
use crate::model::Family;

/// One range.
#[derive(Debug, Default)]
pub(super) struct Range {
    atom: Option<AtomId>,
    service: bool,
    /// The atoms of this range and of all wider ones.
    atoms: Signature,
    /// This range or a wider one is a service range.
    translatable: bool,
}

/// All ranges.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ranges: FxHashMap<IpNet, Range>,
    /// How many ranges there are of each length, by family.
    lengths: BTreeMap<(Family, u8), u32>,
    /// Ranges that came or went, or became or ceased to be service ranges.
    changed: Vec<IpNet>,
}

impl Ranges {
    pub(super) fn set_atom(&mut self, net: IpNet, atom: Option<AtomId>) {
        self.change(net, |range| range.atom = atom);
    }

    pub(super) fn set_service(&mut self, net: IpNet, service: bool) {
        if self.ranges.get(&net).is_some_and(|range| range.service) != service {
            self.change(net, |range| range.service = service);
        }
    }

    fn change(&mut self, net: IpNet, change: impl FnOnce(&mut Range)) {
        let length = (Family::of(&net.addr()), net.prefix_len());
        let range = self.ranges.entry(net).or_insert_with(|| {
            *self.lengths.entry(length).or_default() += 1;
            Range::default()
        });
        change(range);
        if range.atom.is_none() && !range.service {
            self.ranges.remove(&net);
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
        self.changed.push(net);
    }

    /// The longest range around an address.
    pub(super) fn longest(&self, address: IpAddr) -> Option<IpNet> {
        self.around(address, u8::MAX).next()
    }

    /// The ranges around an address with fewer than `below` bits, the longest first.
    pub(super) fn around(&self, address: IpAddr, below: u8) -> impl Iterator<Item = IpNet> {
        let family = Family::of(&address);
        let lengths = self.lengths.range((family, 0)..(family, below)).rev();
        lengths.filter_map(move |((_, length), _)| {
            let net = IpNet::new(address, *length).ok()?.trunc();
            self.ranges.contains_key(&net).then_some(net)
        })
    }

    /// What came, went or changed since the last call; the atoms of every range are up to date afterwards.
    pub(super) fn take_changed(&mut self) -> Vec<IpNet> {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return changed;
        }
        // The wider ones first, so that each finds its next wider one complete.
        let mut nets: Vec<IpNet> = self.ranges.keys().copied().collect();
        nets.sort_unstable_by_key(IpNet::prefix_len);
        for net in nets {
            let wider = self.around(net.addr(), net.prefix_len()).next().and_then(|wider| self.ranges.get(&wider));
            let mut signature = wider.map(|wider| wider.atoms.clone()).unwrap_or_default();
            let translatable = wider.is_some_and(|wider| wider.translatable);
            if let Some(range) = self.ranges.get_mut(&net) {
                if let Some(atom) = range.atom {
                    atoms::insert(&mut signature, atom);
                }
                range.atoms = signature;
                range.translatable = translatable || range.service;
            }
        }
        changed
    }

    pub(super) fn exists(&self, net: &IpNet) -> bool {
        self.ranges.contains_key(net)
    }

    pub(super) fn atoms(&self, range: Option<IpNet>) -> &[AtomId] {
        range.and_then(|net| self.ranges.get(&net)).map_or(&[], |range| range.atoms.as_slice())
    }

    pub(super) fn translatable(&self, range: Option<IpNet>) -> bool {
        range.and_then(|net| self.ranges.get(&net)).is_some_and(|range| range.translatable)
    }

    /// All ranges within this one, itself included.
    pub(super) fn within(&self, net: IpNet) -> impl Iterator<Item = IpNet> {
        self.ranges.keys().copied().filter(move |other| net.contains(other))
    }
}
