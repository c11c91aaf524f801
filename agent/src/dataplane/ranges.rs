//! The kernel's longest-prefix table of ranges.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use ipnet::IpNet;
use portcullis_common::Address;
use portcullis_common::layout::RangeKey;

use super::{DataplaneError, grace};
use crate::state::plan::Kernel;

/// A [`RangeKey`] that aya may copy as bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct RawKey(RangeKey);

// SAFETY: twenty bytes of integers without padding.
unsafe impl Pod for RawKey {}

/// The table of ranges.
pub struct RangeTable {
    trie: LpmTrie<MapData, RawKey, u64>,
    capacity: u32,
}

impl RangeTable {
    pub(super) fn new(map: aya::maps::Map) -> Result<Self, DataplaneError> {
        let capacity = match &map {
            aya::maps::Map::LpmTrie(data) => data.info().map_err(DataplaneError::map("RANGES"))?.max_entries(),
            _ => 0,
        };
        Ok(Self { trie: LpmTrie::try_from(map).map_err(DataplaneError::map("RANGES"))?, capacity })
    }

    fn key(bank: u32, net: IpNet) -> Key<RawKey> {
        let address: IpAddr = net.network();
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        Key::new(32 + mapped + u32::from(net.prefix_len()), RawKey(RangeKey::new(bank, &Address::from(address))))
    }

    /// Removes every range of a bank.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn clear(&mut self, bank: u32) -> Result<usize, DataplaneError> {
        // Iterating a trie starts again where its current key is gone: keys are collected before any is removed.
        let keys: Vec<Key<RawKey>> = self
            .trie
            .keys()
            .filter_map(Result::ok)
            .filter(|key| {
                let RawKey(range) = key.data();
                range.bank() == bank
            })
            .collect();
        for key in &keys {
            self.trie.remove(key).map_err(DataplaneError::map("RANGES"))?;
        }
        Ok(keys.len())
    }
}

impl RangeTable {
    /// Brings the ranges of a bank to these. Gives how many differed.
    ///
    /// # Errors
    /// The table is full, or the kernel refuses.
    pub fn repair(&mut self, bank: u32, wanted: &BTreeMap<IpNet, u64>) -> Result<usize, DataplaneError> {
        let name = |key: &Key<RawKey>| {
            let RawKey(range) = key.data();
            (key.prefix_len(), range.words())
        };
        let right: HashMap<(u32, [u32; 5]), (IpNet, u64)> =
            wanted.iter().map(|(net, value)| (name(&Self::key(bank, *net)), (*net, *value))).collect();
        let rows: Vec<(Key<RawKey>, u64)> = self.trie.iter().filter_map(Result::ok).collect();
        let mut missing: BTreeSet<IpNet> = wanted.keys().copied().collect();
        let mut repaired = 0;
        let ours = |key: &Key<RawKey>| {
            let RawKey(range) = key.data();
            // A shorter prefix would cover other banks and families: nobody of ours writes one.
            range.bank() == bank || key.prefix_len() < 32
        };
        for (key, value) in rows.into_iter().filter(|(key, _)| ours(key)) {
            match right.get(&name(&key)) {
                Some((net, wanted)) if *wanted == value => drop(missing.remove(net)),
                Some(_) => {}
                None => {
                    self.trie.remove(&key).map_err(DataplaneError::map("RANGES"))?;
                    repaired += 1;
                }
            }
        }
        repaired += missing.len();
        for net in missing {
            self.put_range(bank, net, wanted.get(&net).copied().unwrap_or_default())?;
        }
        Ok(repaired)
    }
}

impl Kernel for RangeTable {
    type Error = DataplaneError;

    fn put_range(&mut self, bank: u32, net: IpNet, value: u64) -> Result<(), DataplaneError> {
        let key = Self::key(bank, net);
        // Kernels before 6.13 allocate trie nodes without waiting and may fail for a moment: once more, then for good.
        let mut outcome = self.trie.insert(&key, value, 0);
        if outcome.is_err() {
            outcome = self.trie.insert(&key, value, 0);
        }
        outcome.map_err(|source| match source {
            MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOSPC) => {
                DataplaneError::RangesFull { capacity: self.capacity }
            }
            source => DataplaneError::Map { name: "RANGES", source },
        })
    }

    fn drop_range(&mut self, bank: u32, net: IpNet) -> Result<(), DataplaneError> {
        match self.trie.remove(&Self::key(bank, net)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(DataplaneError::Map { name: "RANGES", source }),
        }
    }

    fn wait(&mut self) -> Result<(), DataplaneError> {
        grace::grace_period()
    }
}
