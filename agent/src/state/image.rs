//! The tables' memory, and how one writer changes it under readers that never wait.
//!
//! The same code writes the kernel's maps, which the agent maps into its memory, and the ordinary memory of tests. Every
//! store is one aligned word. A cell whose row is removed is not used for another key until a grace period has passed:
//! a reader may still hold on to it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use portcullis_common::layout::{
    BANKS, CHUNK, CHUNKS, EndpointRow, INTERFACE_BUCKETS, NodeConfig, WAYS, interface_word, port_place,
};
use portcullis_common::stamp::SLOTS;
use portcullis_common::tables::{narrow_buckets, narrow_hash, wide_buckets, wide_hash, wide_tag};

use crate::model::Protocol;

/// Memory that packet programs read.
pub trait Memory: Send + Sync {
    /// It, as words.
    fn words(&self) -> &[AtomicU64];
}

impl Memory for Box<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// Ordinary memory, zeroed.
#[must_use]
pub fn ordinary(words: usize) -> Arc<dyn Memory> {
    Arc::new((0..words).map(|_| AtomicU64::new(0)).collect::<Box<[AtomicU64]>>())
}

/// A table that has no room for a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {table} table is full ({used} of {capacity} entries): raise its size in the agent's settings")]
pub struct Full {
    /// Its name.
    pub table: &'static str,
    /// Rows in it.
    pub used: usize,
    /// Cells.
    pub capacity: usize,
}

/// Words of each structure.
const NARROW: usize = 2 * WAYS;
const WIDE: usize = 4 * WAYS;
const ROW: usize = size_of::<EndpointRow>() / 8;
const CHUNK_WORDS: usize = CHUNK / 4;

/// How many entries the tables have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Buckets of the narrow table; a power of two.
    pub narrow_buckets: u32,
    /// Buckets of the wide table; a power of two, at most 2^24.
    pub wide_buckets: u32,
    /// Ranges.
    pub ranges: u32,
    /// Rules with counters.
    pub rules: u32,
    /// Endpoints whose flows have room.
    pub endpoints: u32,
    /// Logarithm of the flow buckets (of seven) of one endpoint.
    pub share_bits: u32,
    /// Buckets of the table of confirmed flows; a power of two.
    pub confirmed_buckets: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            narrow_buckets: 1 << 16,
            wide_buckets: 1 << 16,
            ranges: 1 << 16,
            rules: 1 << 14,
            endpoints: 256,
            share_bits: 9,
            confirmed_buckets: 1 << 13,
        }
    }
}

impl Sizes {
    /// Sizes for tests, where memory is made for every case.
    #[must_use]
    pub const fn small() -> Self {
        Self {
            narrow_buckets: 1 << 10,
            wide_buckets: 1 << 8,
            ranges: 1 << 8,
            rules: 1 << 12,
            endpoints: 64,
            share_bits: 3,
            confirmed_buckets: 1 << 6,
        }
    }
}

/// The memory of each table.
#[derive(Clone)]
pub struct Regions {
    /// [`portcullis_common::layout::NodeConfig`].
    pub node: Arc<dyn Memory>,
    /// Interface buckets.
    pub interfaces: Arc<dyn Memory>,
    /// Endpoint words.
    pub endpoints: Arc<dyn Memory>,
    /// Endpoint rows.
    pub rows: Arc<dyn Memory>,
    /// Narrow buckets.
    pub narrow: Arc<dyn Memory>,
    /// Wide buckets.
    pub wide: Arc<dyn Memory>,
    /// Port classes.
    pub ports: Arc<dyn Memory>,
}

impl Regions {
    /// Ordinary memory of these sizes.
    #[must_use]
    pub fn ordinary(sizes: &Sizes) -> Self {
        Self {
            node: ordinary(size_of::<NodeConfig>() / 8),
            interfaces: ordinary(INTERFACE_BUCKETS as usize * WAYS),
            endpoints: ordinary(SLOTS as usize),
            rows: ordinary(4 * SLOTS as usize * ROW),
            narrow: ordinary(sizes.narrow_buckets as usize * NARROW),
            wide: ordinary(sizes.wide_buckets as usize * WIDE),
            ports: ordinary((BANKS * CHUNKS) as usize * CHUNK_WORDS),
        }
    }
}

/// The writer of the tables. There is one in the world for each set of maps.
pub struct Image {
    regions: Regions,
    sizes: Sizes,
    narrow_used: usize,
    wide_used: usize,
    /// Cells given up since the last grace period, by word index.
    narrow_waiting: HashSet<usize>,
    wide_waiting: HashSet<usize>,
}

impl Image {
    /// Takes over memory, whatever is in it.
    #[must_use]
    pub fn new(regions: Regions, sizes: Sizes) -> Self {
        let mut image = Self {
            regions,
            sizes,
            narrow_used: 0,
            wide_used: 0,
            narrow_waiting: HashSet::new(),
            wide_waiting: HashSet::new(),
        };
        image.narrow_used = image.narrow_rows().count();
        image.wide_used = image.wide_rows().count();
        image
    }

    /// The sizes.
    #[must_use]
    pub const fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The memory.
    #[must_use]
    pub const fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Rows in use and cells, by table.
    #[must_use]
    pub fn fill(&self) -> [(&'static str, usize, usize); 2] {
        [
            ("rows", self.narrow_used, self.sizes.narrow_buckets as usize * WAYS),
            ("addresses", self.wide_used, self.sizes.wide_buckets as usize * WAYS),
        ]
    }

    /// Says that a grace period has passed since every removal so far: no program that ran before is running now.
    pub fn grace_passed(&mut self) {
        self.narrow_waiting.clear();
        self.wide_waiting.clear();
    }

    /// The seed of the node's hashes.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.regions.node.words()[0].load(Ordering::Relaxed)
    }

    /// Sets the seed; only before anything is in the tables.
    pub fn set_seed(&self, seed: u64) {
        self.regions.node.words()[0].store(seed, Ordering::Release);
    }

    /// Sets the node's flags.
    pub fn set_flags(&self, flags: u64) {
        self.regions.node.words()[1].store(flags, Ordering::Release);
    }

    /// The node's flags.
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.regions.node.words()[1].load(Ordering::Relaxed)
    }

    /// Sets the lifetimes of flows, in jiffies.
    pub fn set_lifetimes(&self, lifetimes: &[u32; 16]) {
        for (word, pair) in self.regions.node.words()[2..10].iter().zip(lifetimes.chunks_exact(2)) {
            word.store(u64::from(pair[0]) | u64::from(pair[1]) << 32, Ordering::Release);
        }
    }

    /// The UDP ports of the node's tunnel devices; 0 stands for none.
    #[must_use]
    pub fn tunnels(&self) -> [u16; 4] {
        let word = self.regions.node.words()[10].load(Ordering::Acquire);
        [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16]
    }

    /// Sets them.
    pub fn set_tunnels(&self, ports: [u16; 4]) {
        let word = ports.iter().rev().fold(0, |word, port| word << 16 | u64::from(*port));
        self.regions.node.words()[10].store(word, Ordering::Release);
    }

    /// The lifetimes of flows, in jiffies.
    #[must_use]
    pub fn lifetimes(&self) -> [u32; 16] {
        let words = &self.regions.node.words()[2..10];
        std::array::from_fn(|i| (words[i / 2].load(Ordering::Relaxed) >> (32 * (i % 2))) as u32)
    }

    fn narrow_cells(&self, key: u64) -> impl Iterator<Item = (usize, usize)> + use<> {
        let mask = self.sizes.narrow_buckets - 1;
        narrow_buckets(narrow_hash(self.seed(), key)).into_iter().flat_map(move |bucket| {
            let start = (bucket & mask) as usize * NARROW;
            (start..start + WAYS).map(|cell| (cell, cell + WAYS))
        })
    }

    /// The value of a narrow row.
    #[must_use]
    pub fn narrow(&self, key: u64) -> Option<u64> {
        let words = self.regions.narrow.words();
        let (_, value) = self.narrow_cells(key).find(|(cell, _)| words[*cell].load(Ordering::Relaxed) == key)?;
        Some(words[value].load(Ordering::Relaxed))
    }

    /// Writes a narrow row: in place by one store, or into a free cell, value first.
    ///
    /// # Errors
    /// Both buckets of the key are full; nothing is changed.
    pub fn put_narrow(&mut self, key: u64, value: u64) -> Result<(), Full> {
        let words = self.regions.narrow.words();
        let known = self.narrow_cells(key).find(|(cell, _)| words[*cell].load(Ordering::Relaxed) == key);
        if let Some((_, place)) = known {
            words[place].store(value, Ordering::Release);
            return Ok(());
        }
        let cells: Vec<_> = self.narrow_cells(key).collect();
        let free =
            free_cell(&cells, |cell| words[cell].load(Ordering::Relaxed) == 0 && !self.narrow_waiting.contains(&cell));
        let Some((cell, place)) = free else {
            let capacity = self.sizes.narrow_buckets as usize * WAYS;
            return Err(Full { table: "rows", used: self.narrow_used, capacity });
        };
        words[place].store(value, Ordering::Release);
        words[cell].store(key, Ordering::Release);
        self.narrow_used += 1;
        Ok(())
    }

    /// Removes a narrow row.
    pub fn remove_narrow(&mut self, key: u64) {
        let words = self.regions.narrow.words();
        let known = self.narrow_cells(key).find(|(cell, _)| words[*cell].load(Ordering::Relaxed) == key);
        if let Some((cell, _)) = known {
            words[cell].store(0, Ordering::Release);
            self.narrow_waiting.insert(cell);
            self.narrow_used -= 1;
        }
    }

    /// Every narrow row: key and value.
    pub fn narrow_rows(&self) -> impl Iterator<Item = (u64, u64)> {
        self.regions.narrow.words().chunks_exact(NARROW).flat_map(|bucket| {
            (0..WAYS)
                .map(|way| (bucket[way].load(Ordering::Relaxed), bucket[way + WAYS].load(Ordering::Relaxed)))
                .filter(|(key, _)| *key != 0)
        })
    }

    /// Cells that may hold a wide key: the value's index, the key's first index, and the tag.
    fn wide_cells(&self, key: &[u64; 3]) -> (u64, impl Iterator<Item = (usize, usize)> + use<>) {
        let mask = self.sizes.wide_buckets - 1;
        let hash = wide_hash(self.seed(), key);
        let cells = wide_buckets(hash).into_iter().flat_map(move |bucket| {
            let start = (bucket & mask) as usize * WIDE;
            (0..WAYS).map(move |way| (start + way, start + WAYS + 3 * way))
        });
        (wide_tag(hash), cells)
    }

    fn wide_place(&self, key: &[u64; 3]) -> Option<usize> {
        let words = self.regions.wide.words();
        let (tag, mut cells) = self.wide_cells(key);
        let found = cells.find(|(value, place)| {
            words[*value].load(Ordering::Relaxed) & TAG == tag
                && (0..3).all(|i| words[place + i].load(Ordering::Relaxed) == key[i])
        })?;
        Some(found.0)
    }

    /// The value of a wide row, without its tag.
    #[must_use]
    pub fn wide(&self, key: &[u64; 3]) -> Option<u64> {
        let place = self.wide_place(key)?;
        Some(self.regions.wide.words()[place].load(Ordering::Relaxed) & !TAG)
    }

    /// Writes a wide row: in place by one store, or into a free cell, key first.
    ///
    /// # Errors
    /// Both buckets of the key are full; nothing is changed.
    pub fn put_wide(&mut self, key: &[u64; 3], value: u64) -> Result<(), Full> {
        let words = self.regions.wide.words();
        let (tag, cells) = self.wide_cells(key);
        if let Some(place) = self.wide_place(key) {
            words[place].store(value & !TAG | tag, Ordering::Release);
            return Ok(());
        }
        let cells: Vec<_> = cells.collect();
        let free =
            free_cell(&cells, |value| words[value].load(Ordering::Relaxed) == 0 && !self.wide_waiting.contains(&value));
        let Some((cell, place)) = free else {
            let capacity = self.sizes.wide_buckets as usize * WAYS;
            return Err(Full { table: "addresses", used: self.wide_used, capacity });
        };
        for (i, word) in key.iter().enumerate() {
            words[place + i].store(*word, Ordering::Release);
        }
        words[cell].store(value & !TAG | tag, Ordering::Release);
        self.wide_used += 1;
        Ok(())
    }

    /// Removes a wide row.
    pub fn remove_wide(&mut self, key: &[u64; 3]) {
        if let Some(cell) = self.wide_place(key) {
            self.regions.wide.words()[cell].store(0, Ordering::Release);
            self.wide_waiting.insert(cell);
            self.wide_used -= 1;
        }
    }

    /// Every wide row: key and value without its tag.
    pub fn wide_rows(&self) -> impl Iterator<Item = ([u64; 3], u64)> {
        self.regions.wide.words().chunks_exact(WIDE).flat_map(|bucket| {
            (0..WAYS)
                .map(|way| {
                    let key = [0, 1, 2].map(|i| bucket[WAYS + 3 * way + i].load(Ordering::Relaxed));
                    (key, bucket[way].load(Ordering::Relaxed))
                })
                .filter(|(_, value)| *value != 0)
                .map(|(key, value)| (key, value & !TAG))
        })
    }

    /// Empties cells where no look-up finds what is in them: somebody else has written there. Gives how many of the narrow
    /// and of the wide table.
    pub fn drop_misplaced(&mut self) -> (usize, usize) {
        let words = self.regions.narrow.words();
        let cells = (0..words.len() / NARROW).flat_map(|bucket| bucket * NARROW..bucket * NARROW + WAYS);
        let used =
            cells.filter_map(|cell| Some((cell, words[cell].load(Ordering::Relaxed))).filter(|(_, key)| *key != 0));
        let found = |key: u64| {
            self.narrow_cells(key).map(|(cell, _)| cell).find(|cell| words[*cell].load(Ordering::Relaxed) == key)
        };
        let narrow: Vec<usize> = used.filter(|(cell, key)| found(*key) != Some(*cell)).map(|(cell, _)| cell).collect();
        narrow.iter().for_each(|cell| words[*cell].store(0, Ordering::Release));

        let words = self.regions.wide.words();
        let cells = (0..words.len() / WIDE).flat_map(|bucket| (0..WAYS).map(move |way| (bucket * WIDE, way)));
        let used = cells.filter(|(start, way)| words[start + way].load(Ordering::Relaxed) != 0);
        let key =
            |(start, way): (usize, usize)| [0, 1, 2].map(|i| words[start + WAYS + 3 * way + i].load(Ordering::Relaxed));
        let wide: Vec<usize> = used
            .filter(|(start, way)| self.wide_place(&key((*start, *way))) != Some(start + way))
            .map(|(start, way)| start + way)
            .collect();
        wide.iter().for_each(|cell| words[*cell].store(0, Ordering::Release));

        self.narrow_waiting.extend(&narrow);
        self.wide_waiting.extend(&wide);
        if !narrow.is_empty() || !wide.is_empty() {
            self.narrow_used = self.narrow_rows().count();
            self.wide_used = self.wide_rows().count();
        }
        (narrow.len(), wide.len())
    }

    /// Gives every port of a bank the class that these runs say: (protocol, first) to (last, class). Gives how many had
    /// another.
    pub fn repair_ports(&self, bank: u32, runs: &BTreeMap<(Protocol, u16), (u16, u16)>) -> usize {
        let mut right = vec![0_u16; CHUNKS as usize * CHUNK];
        for ((protocol, first), (last, class)) in runs {
            for port in *first..=*last {
                let (element, place) = port_place(0, protocol.0, port);
                right[element as usize * CHUNK + place] = *class;
            }
        }
        let start = bank as usize * CHUNKS as usize * CHUNK_WORDS;
        let mut repaired = 0;
        for (word, classes) in self.regions.ports.words()[start..].iter().zip(right.chunks_exact(4)) {
            let wanted = (0..4).fold(0, |wanted, i| wanted | u64::from(classes[i]) << (16 * i));
            let found = word.load(Ordering::Relaxed);
            if found != wanted {
                word.store(wanted, Ordering::Release);
                repaired += (0..4).filter(|i| (found ^ wanted) >> (16 * i) & 0xffff != 0).count();
            }
        }
        repaired
    }

    /// The class of a port.
    #[must_use]
    pub fn port(&self, bank: u32, protocol: u8, port: u16) -> u16 {
        let (element, place) = port_place(bank, protocol, port);
        let word = self.regions.ports.words()[element as usize * CHUNK_WORDS + place / 4].load(Ordering::Relaxed);
        (word >> (16 * (place % 4))) as u16
    }

    /// Writes the class of one port; its neighbours in the word keep theirs.
    pub fn put_port(&self, bank: u32, protocol: u8, port: u16, class: u16) {
        let (element, place) = port_place(bank, protocol, port);
        let cell = &self.regions.ports.words()[element as usize * CHUNK_WORDS + place / 4];
        let shift = 16 * (place % 4);
        let word = cell.load(Ordering::Relaxed) & !(0xffff << shift) | u64::from(class) << shift;
        cell.store(word, Ordering::Release);
    }

    /// Gives every port of a bank class 0.
    pub fn clear_ports(&self, bank: u32) {
        let words = (CHUNKS as usize) * CHUNK_WORDS;
        let start = bank as usize * words;
        self.regions.ports.words()[start..start + words].iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// The word of the endpoint in a slot.
    #[must_use]
    pub fn endpoint(&self, slot: u32) -> u64 {
        self.regions.endpoints.words()[slot as usize].load(Ordering::Relaxed)
    }

    /// Sets the word of the endpoint in a slot.
    pub fn put_endpoint(&self, slot: u32, word: u64) {
        self.regions.endpoints.words()[slot as usize].store(word, Ordering::Release);
    }

    /// The endpoint row at an index.
    #[must_use]
    pub fn row(&self, index: u32) -> EndpointRow {
        let start = index as usize * ROW;
        let mut words = [0; ROW];
        for (word, cell) in words.iter_mut().zip(&self.regions.rows.words()[start..start + ROW]) {
            *word = cell.load(Ordering::Relaxed);
        }
        // SAFETY: eight words of integers, the size and alignment of the row, which has no padding.
        unsafe { std::mem::transmute::<[u64; ROW], EndpointRow>(words) }
    }

    /// Writes an endpoint row that no word points to, nor has for a grace period.
    pub fn put_row(&self, index: u32, row: &EndpointRow) {
        let start = index as usize * ROW;
        // SAFETY: as in `row`.
        let words = unsafe { std::mem::transmute::<EndpointRow, [u64; ROW]>(*row) };
        for (word, cell) in words.iter().zip(&self.regions.rows.words()[start..start + ROW]) {
            cell.store(*word, Ordering::Release);
        }
    }

    fn interface_cells(&self, ifindex: u32) -> &[AtomicU64] {
        let start = (ifindex & (INTERFACE_BUCKETS - 1)) as usize * WAYS;
        &self.regions.interfaces.words()[start..start + WAYS]
    }

    /// Says what a device is.
    ///
    /// # Errors
    /// Eight devices whose index has the same low bits are there already; nothing is changed.
    pub fn put_interface(&self, ifindex: u32, kind: u32, slot: u32) -> Result<(), Full> {
        let cells = self.interface_cells(ifindex);
        let word = interface_word(ifindex, kind, slot);
        let known = cells.iter().find(|cell| is_of(cell, ifindex));
        let place = known.or_else(|| cells.iter().find(|cell| cell.load(Ordering::Relaxed) == 0));
        let place = place.ok_or(Full { table: "interfaces", used: WAYS, capacity: WAYS })?;
        place.store(word, Ordering::Release);
        Ok(())
    }

    /// Forgets a device.
    pub fn remove_interface(&self, ifindex: u32) {
        for cell in self.interface_cells(ifindex).iter().filter(|cell| is_of(cell, ifindex)) {
            cell.store(0, Ordering::Release);
        }
    }

    /// Every interface word.
    pub fn interfaces(&self) -> impl Iterator<Item = u64> {
        self.regions.interfaces.words().iter().map(|cell| cell.load(Ordering::Relaxed)).filter(|word| *word != 0)
    }
}

/// Where a wide value has its tag.
const TAG: u64 = 0xffff << 48;

/// A free cell of the two buckets, in the emptier one. If the first with room took it, buckets would be full, both of some
/// key, when half of the table is free; so they are not until it is nearly full.
fn free_cell(cells: &[(usize, usize)], is_free: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
    let free = |bucket: &[(usize, usize)]| {
        let mut free = bucket.iter().copied().filter(|(cell, _)| is_free(*cell));
        free.next().map(|first| (free.count(), first))
    };
    let (one, other) = cells.split_at(WAYS.min(cells.len()));
    let (one, other) = (free(one), free(other));
    let more = |bucket: Option<(usize, (usize, usize))>| bucket.map(|(more, _)| more);
    if more(other) > more(one) { other } else { one }.map(|(_, cell)| cell)
}

fn is_of(cell: &AtomicU64, ifindex: u32) -> bool {
    let word = cell.load(Ordering::Relaxed);
    word != 0 && word as u32 == ifindex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_take_rows_until_they_are_nearly_full() {
        for seed in 1..=8_u64 {
            let sizes = Sizes::small();
            let mut image = Image::new(Regions::ordinary(&sizes), sizes);
            image.set_seed(seed);
            let narrow = sizes.narrow_buckets as u64 * WAYS as u64 * 7 / 10;
            for row in 1..=narrow {
                image.put_narrow(row << 32 | 7, row).unwrap_or_else(|full| panic!("seed {seed}: {full}"));
            }
            let wide = sizes.wide_buckets as u64 * WAYS as u64 * 7 / 10;
            for row in 0..wide {
                image.put_wide(&[0, row << 32, 1 << 56], 1).unwrap_or_else(|full| panic!("seed {seed}: {full}"));
            }
            assert!(
                (1..=narrow).all(|row| image.narrow(row << 32 | 7) == Some(row)),
                "seed {seed}: every row is found"
            );
        }
    }
}
