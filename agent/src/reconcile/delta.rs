//! The part of the tables that a compile touched, before and after: a change costs what it touches.

use portcullis_common::layout::{narrow, narrow_key};

use crate::compile::{Touched, TouchedKeys};
use crate::state::Desired;
use crate::state::flat::{Flat, address_key, alone_in, profile_key, service_key};

/// Two parts of the tables with the same scope.
pub(super) struct Delta {
    /// What is known to be in the tables.
    pub(super) known: Flat,
    /// What should be.
    pub(super) wanted: Flat,
}

impl Delta {
    /// What differs between what the tables hold and what they should; everything, where it is not known what was touched.
    pub(super) fn of(known: &Flat, desired: &Desired, touched: &Touched, bank: u32, everything: bool) -> Self {
        match touched {
            Touched::Keys(keys) if !everything => Self::of_keys(known, desired, keys, bank),
            _ => Self { known: known.clone(), wanted: Flat::of(desired, bank) },
        }
    }

    fn of_keys(known: &Flat, desired: &Desired, keys: &TouchedKeys, bank: u32) -> Self {
        let (mut before, mut wanted) = (Flat::default(), Flat::default());
        let mut narrow_keys = Vec::new();
        for key in &keys.profiles {
            wanted.put_profile(desired, *key);
            narrow_keys.push(profile_key(*key));
        }
        for set in &keys.set_defaults {
            wanted.put_set_default(desired, *set);
            narrow_keys.push(narrow_key(narrow::SET_DEFAULT, set.0, 0));
        }
        for key in &keys.verdicts {
            wanted.put_verdict(desired, *key);
            narrow_keys.push(narrow_key(narrow::VERDICT, key.0.0, u32::from(key.1.0)));
        }
        for profile in &keys.profile_defaults {
            wanted.put_profile_default(desired, *profile);
            narrow_keys.push(narrow_key(narrow::PROFILE_DEFAULT, profile.0, 0));
        }
        for key in &keys.reaches {
            wanted.put_reach(desired, *key);
            narrow_keys.push(narrow_key(narrow::REACH, key.0.0, key.1.0));
        }
        for set in &keys.reach_defaults {
            wanted.put_reach_default(desired, *set);
            narrow_keys.push(narrow_key(narrow::REACH_DEFAULT, set.0, 0));
        }
        before.narrow.extend(narrow_keys.into_iter().filter_map(|key| Some((key, *known.narrow.get(&key)?))));
        let mut wide_keys = Vec::new();
        for address in &keys.addresses {
            wanted.put_address(desired, *address, bank);
            wide_keys.push(address_key(*address, bank));
        }
        for port in &keys.services {
            wanted.put_service(desired, *port, bank);
            wide_keys.push(service_key(*port, bank));
        }
        for net in &keys.ranges {
            wanted.put_range(desired, *net, bank);
            if let Some(address) = alone_in(*net) {
                wide_keys.push(address_key(address, bank));
                continue;
            }
            before.ranges.extend(known.ranges.get(net).map(|value| (*net, *value)));
        }
        before.wide.extend(wide_keys.into_iter().filter_map(|key| Some((key, *known.wide.get(&key)?))));
        if !keys.ports.is_empty() {
            wanted.put_ports(desired);
            before.ports.clone_from(&known.ports);
        }
        Self { known: before, wanted }
    }
}
