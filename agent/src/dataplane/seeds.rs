//! Enters flows into the tables, by the program that does that under their locks.

use aya::programs::{TestRun, TestRunOptions};
use portcullis_common::seed::{SEEDS, SEEDS_AT, Seed};

use super::{Dataplane, DataplaneError};

impl Dataplane {
    /// Enters flows that no packet has entered yet; see [`portcullis_common::seed`]. Gives how many were.
    ///
    /// # Errors
    /// The kernel refuses to run the program.
    pub fn plant(&mut self, seeds: &[Seed]) -> Result<u32, DataplaneError> {
        let program = self.program("seed")?;
        let mut planted = 0;
        for chunk in seeds.chunks(SEEDS) {
            // The frame's first bytes must look like an Ethernet header; an ethertype for experiments (IEEE 802, 0x88b5)
            // keeps the kernel from looking further.
            let mut frame = vec![0; SEEDS_AT];
            frame[12..14].copy_from_slice(&[0x88, 0xb5]);
            frame.extend(chunk.iter().flat_map(bytes));
            let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
            let outcome =
                program.test_run(options).map_err(|source| DataplaneError::Program { name: "seed", source })?;
            planted += outcome.return_value;
        }
        Ok(planted)
    }
}

/// A seed as the program reads it.
fn bytes(seed: &Seed) -> [u8; size_of::<Seed>()] {
    // SAFETY: a structure of integers without padding (64 bytes of entry, two numbers of 4), and as many bytes.
    unsafe { std::mem::transmute::<Seed, [u8; size_of::<Seed>()]>(*seed) }
}
