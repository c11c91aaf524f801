//! Desired tables in the form that memory holds: keys and values as numbers.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;
use portcullis_common::Address;
use portcullis_common::layout::{VALID, VerdictWord, narrow, narrow_key, peer, reach, wide, wide_key};

use super::desired::{Desired, PeerEntry, ServiceReach, TableVerdict};
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
        for ((set, class, itself), profile) in &desired.profiles {
            let kind = if *itself { narrow::PROFILE_ITSELF } else { narrow::PROFILE };
            flat.narrow.insert(narrow_key(kind, set.0, class.0), VALID | u64::from(profile.0));
        }
        for (set, profile) in &desired.set_defaults {
            flat.narrow.insert(narrow_key(narrow::SET_DEFAULT, set.0, 0), VALID | u64::from(profile.0));
        }
        for ((profile, class), verdict) in &desired.verdicts {
            flat.narrow.insert(narrow_key(narrow::VERDICT, profile.0, u32::from(class.0)), verdict_word(*verdict));
        }
        for (profile, verdict) in &desired.profile_defaults {
            flat.narrow.insert(narrow_key(narrow::PROFILE_DEFAULT, profile.0, 0), verdict_word(*verdict));
        }
        for ((set, service), reached) in &desired.reaches {
            flat.narrow.insert(narrow_key(narrow::REACH, set.0, service.0), reach_word(*reached));
        }
        for (set, reached) in &desired.reach_defaults {
            flat.narrow.insert(narrow_key(narrow::REACH_DEFAULT, set.0, 0), reach_word(*reached));
        }
        for (address, entry) in &desired.addresses {
            let [first, second] = Address::from(*address).words;
            flat.wide.insert([first, second, wide_key(wide::PEER, bank, 0, 0)], peer_word(*entry));
        }
        for (port, service) in &desired.services {
            let [first, second] = Address::from(port.address).words;
            let key = wide_key(wide::SERVICE, bank, port.protocol.0, port.port);
            flat.wide.insert([first, second, key], peer::VALID | u64::from(service.0));
        }
        flat.ranges = desired.ranges.iter().map(|(net, entry)| (*net, peer_word(*entry))).collect();
        flat.ports = desired.ports.iter().map(|(at, (last, class))| (*at, (*last, class.0))).collect();
        flat
    }
}

fn verdict_word(verdict: TableVerdict) -> u64 {
    VerdictWord::new(verdict.verdict == Verdict::Allow, verdict.rule.0).0
}

fn reach_word(reached: ServiceReach) -> u64 {
    match reached {
        ServiceReach::All => reach::ALL,
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
