//! Desired tables in the form that memory holds: keys and values as numbers.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::Address;
use portcullis_common::layout::{VALID, VerdictWord, narrow, narrow_key, peer, reach, wide, wide_key};

use super::desired::{
    ClassId, Desired, PeerEntry, PortClass, ProfileId, ServiceKeyPort, ServiceNumber, ServiceReach, SetId, TableVerdict,
};
use crate::model::{Protocol, Verdict};

/// The rows of one bank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flat {
    /// Narrow rows.
    pub narrow: HashMap<u64, u64>,
    /// Wide rows.
    pub wide: HashMap<[u64; 3], u64>,
    /// Ranges.
    pub ranges: BTreeMap<IpNet, u64>,
    /// Port classes in runs: (protocol, first) to (last, class).
    pub ports: BTreeMap<(Protocol, u16), (u16, u16)>,
}

impl Flat {
    /// From desired tables, for a bank.
    #[must_use]
    pub fn of(desired: &Desired, bank: u32) -> Self {
        let mut flat = Self::default();
        flat.narrow.reserve(desired.profiles.len() + desired.verdicts.len() + desired.reaches.len());
        desired.profiles.keys().for_each(|key| flat.put_profile(desired, *key));
        desired.set_defaults.keys().for_each(|set| flat.put_set_default(desired, *set));
        desired.verdicts.keys().for_each(|key| flat.put_verdict(desired, *key));
        desired.profile_defaults.keys().for_each(|profile| flat.put_profile_default(desired, *profile));
        desired.reaches.keys().for_each(|key| flat.put_reach(desired, *key));
        desired.reach_defaults.keys().for_each(|set| flat.put_reach_default(desired, *set));
        desired.addresses.keys().for_each(|address| flat.put_address(desired, *address, bank));
        desired.services.keys().for_each(|port| flat.put_service(desired, *port, bank));
        desired.ranges.keys().for_each(|net| flat.put_range(desired, *net));
        flat.put_ports(desired);
        flat
    }

    /// Takes over a row of desired tables, if they have it.
    pub fn put_profile(&mut self, desired: &Desired, key: (SetId, ClassId, bool)) {
        let row = desired.profiles.get(&key).map(|profile| VALID | u64::from(profile.0));
        put(&mut self.narrow, profile_key(key), row);
    }

    /// Likewise.
    pub fn put_set_default(&mut self, desired: &Desired, set: SetId) {
        let row = desired.set_defaults.get(&set).map(|profile| VALID | u64::from(profile.0));
        put(&mut self.narrow, narrow_key(narrow::SET_DEFAULT, set.0, 0), row);
    }

    /// Likewise.
    pub fn put_verdict(&mut self, desired: &Desired, key: (ProfileId, PortClass)) {
        let row = desired.verdicts.get(&key).map(|verdict| verdict_word(*verdict));
        put(&mut self.narrow, narrow_key(narrow::VERDICT, key.0.0, u32::from(key.1.0)), row);
    }

    /// Likewise.
    pub fn put_profile_default(&mut self, desired: &Desired, profile: ProfileId) {
        let row = desired.profile_defaults.get(&profile).map(|verdict| verdict_word(*verdict));
        put(&mut self.narrow, narrow_key(narrow::PROFILE_DEFAULT, profile.0, 0), row);
    }

    /// Likewise.
    pub fn put_reach(&mut self, desired: &Desired, key: (SetId, ServiceNumber)) {
        let row = desired.reaches.get(&key).map(|reached| reach_word(*reached));
        put(&mut self.narrow, narrow_key(narrow::REACH, key.0.0, key.1.0), row);
    }

    /// Likewise.
    pub fn put_reach_default(&mut self, desired: &Desired, set: SetId) {
        let row = desired.reach_defaults.get(&set).map(|reached| reach_word(*reached));
        put(&mut self.narrow, narrow_key(narrow::REACH_DEFAULT, set.0, 0), row);
    }

    /// Likewise.
    pub fn put_address(&mut self, desired: &Desired, address: IpAddr, bank: u32) {
        let row = desired.addresses.get(&address).map(|entry| peer_word(*entry));
        put(&mut self.wide, address_key(address, bank), row);
    }

    /// Likewise.
    pub fn put_service(&mut self, desired: &Desired, port: ServiceKeyPort, bank: u32) {
        let row = desired.services.get(&port).map(|service| peer::VALID | u64::from(service.0));
        put(&mut self.wide, service_key(port, bank), row);
    }

    /// Likewise.
    pub fn put_range(&mut self, desired: &Desired, net: IpNet) {
        if let Some(entry) = desired.ranges.get(&net) {
            self.ranges.insert(net, peer_word(*entry));
        }
    }

    /// Takes over all port classes.
    pub fn put_ports(&mut self, desired: &Desired) {
        self.ports = desired.ports.iter().map(|(at, (last, class))| (*at, (*last, class.0))).collect();
    }
}

fn put<K: Eq + std::hash::Hash>(rows: &mut HashMap<K, u64>, key: K, row: Option<u64>) {
    if let Some(row) = row {
        rows.insert(key, row);
    }
}

/// The narrow key of a profile's row.
#[must_use]
pub fn profile_key((set, class, itself): (SetId, ClassId, bool)) -> u64 {
    narrow_key(if itself { narrow::PROFILE_ITSELF } else { narrow::PROFILE }, set.0, class.0)
}

/// The wide key of an address.
#[must_use]
pub fn address_key(address: IpAddr, bank: u32) -> [u64; 3] {
    let [first, second] = Address::from(address).words;
    [first, second, wide_key(wide::PEER, bank, 0, 0)]
}

/// The wide key of a Service port.
#[must_use]
pub fn service_key(port: ServiceKeyPort, bank: u32) -> [u64; 3] {
    let [first, second] = Address::from(port.address).words;
    [first, second, wide_key(wide::SERVICE, bank, port.protocol.0, port.port)]
}

fn verdict_word(verdict: TableVerdict) -> u64 {
    VerdictWord::new(verdict.verdict == Verdict::Allow, verdict.rule.0).0
}

fn reach_word(reached: ServiceReach) -> u64 {
    match reached {
        ServiceReach::All(rule) => reach::all(rule.0),
        ServiceReach::Part => reach::PART,
        ServiceReach::None(rule) => reach::none(rule.0),
    }
}

fn peer_word(entry: PeerEntry) -> u64 {
    peer::VALID
        | u64::from(entry.class.0)
        | if entry.translatable { peer::TRANSLATABLE } else { 0 }
        | if entry.own_node { peer::OWN_NODE } else { 0 }
}
