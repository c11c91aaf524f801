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
        desired.ranges.keys().for_each(|net| flat.put_range(desired, *net, bank));
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
        let alone = || desired.ranges.get(&IpNet::from(address)).filter(|_| !is_mapped(address));
        let row = desired.addresses.get(&address).or_else(alone).map(|entry| peer_word(*entry));
        put(&mut self.wide, address_key(address, bank), row);
    }

    /// Likewise.
    pub fn put_service(&mut self, desired: &Desired, port: ServiceKeyPort, bank: u32) {
        let row = desired.services.get(&port).map(|service| peer::VALID | u64::from(service.0));
        put(&mut self.wide, service_key(port, bank), row);
    }

    /// Likewise. See [`alone_in`].
    pub fn put_range(&mut self, desired: &Desired, net: IpNet, bank: u32) {
        if let Some(address) = alone_in(net) {
            self.put_address(desired, address, bank);
        } else if let Some(entry) = desired.ranges.get(&net) {
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

/// The only address of a range of one: it has an exact row like a pod's, since looking that up costs the same however
/// many there are, while the kernel's longest-prefix table takes longer with each doubling of its entries. Both rows of
/// one address, where a pod has it, are the same row: that of the pod includes the range.
#[must_use]
pub fn alone_in(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len() && !is_mapped(net.addr())).then(|| net.addr())
}

/// Whether an IPv6 address stands for an IPv4 one, whose exact row it would share.
fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_one_address_is_an_exact_row_and_gives_way_to_a_pods() {
        let entry = |class| PeerEntry { class: ClassId(class), translatable: false, own_node: false };
        let mut desired = Desired::default();
        let nets = ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/24", "fd00::1/128", "::ffff:10.0.0.3/128"];
        for (class, net) in (1..).zip(nets) {
            desired.ranges.insert(net.parse().unwrap(), entry(class));
        }
        desired.addresses.insert("10.0.0.2".parse().unwrap(), entry(9));
        let flat = Flat::of(&desired, 2);
        let row = |address: &str| flat.wide.get(&address_key(address.parse().unwrap(), 2)).map(|row| *row as u32);
        let rows = [("10.0.0.1", Some(1)), ("10.0.0.2", Some(9)), ("fd00::1", Some(4)), ("10.0.0.3", None)];
        for (address, expected) in rows {
            assert_eq!(row(address), expected, "{address}");
        }
        let ranges: Vec<String> = flat.ranges.keys().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.0/24", "::ffff:10.0.0.3/128"], "the others are ranges");
    }
}
