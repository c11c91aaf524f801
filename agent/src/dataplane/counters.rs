//! Counters that programs write, one of each for every CPU.

use aya::Pod;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use portcullis_common::layout::Counter;

use super::DataplaneError;

/// A [`Counter`] that aya may copy as bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct RawCounter(Counter);

// SAFETY: two words.
unsafe impl Pod for RawCounter {}

/// An array of counters.
pub struct Counters {
    name: &'static str,
    array: PerCpuArray<MapData, RawCounter>,
}

impl Counters {
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, DataplaneError> {
        Ok(Self { name, array: PerCpuArray::try_from(map).map_err(DataplaneError::map(name))? })
    }

    /// The sum over all CPUs.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn read(&self, index: u32) -> Result<Counter, DataplaneError> {
        let values = self.array.get(&index, 0).map_err(DataplaneError::map(self.name))?;
        Ok(values.iter().fold(Counter::default(), |sum, RawCounter(value)| Counter {
            packets: sum.packets.wrapping_add(value.packets),
            bytes: sum.bytes.wrapping_add(value.bytes),
        }))
    }

    /// Back to 0.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn reset(&mut self, index: u32) -> Result<(), DataplaneError> {
        let cpus =
            aya::util::nr_cpus().map_err(|(_, source)| super::host::call("reading the number of CPUs", source))?;
        let zero = PerCpuValues::try_from(vec![RawCounter(Counter::default()); cpus])
            .map_err(|source| super::host::call("making per-CPU values", source))?;
        self.array.set(index, zero, 0).map_err(DataplaneError::map(self.name))
    }

    /// How many counters there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.array.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
