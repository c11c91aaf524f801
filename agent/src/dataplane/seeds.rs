//! Enters flows into the tables, by the program that does that under their locks.

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use portcullis_common::seed::{SEEDS, SEEDS_AT, Seed};

use super::{Dataplane, DataplaneError};

/// The program that enters them.
const SEED: &str = "seed";

impl Dataplane {
    /// Begins to enter flows that no packet has entered yet; see [`portcullis_common::seed`].
    ///
    /// # Errors
    /// The program is not there.
    pub fn planter(&self) -> Result<Planter<'_>, DataplaneError> {
        let program = self.ebpf.program(SEED).ok_or(DataplaneError::NoPrograms)?;
        let program = program.try_into().map_err(|source| DataplaneError::Program { name: SEED, source })?;
        Ok(Planter { program, frame: frame(), flows: 0, planted: 0, failed: None })
    }
}

/// Enters flows, a run of the program for as many as it takes at once.
pub struct Planter<'a> {
    program: &'a SchedClassifier,
    frame: Vec<u8>,
    flows: u64,
    planted: u64,
    failed: Option<DataplaneError>,
}

impl Planter<'_> {
    /// Enters a flow, now or with others that follow.
    pub fn plant(&mut self, seed: Seed) {
        self.flows += 1;
        self.frame.extend(bytes(&seed));
        if self.frame.len() >= SEEDS_AT + SEEDS * size_of::<Seed>() {
            self.run();
        }
    }

    /// Enters what is left. Gives how many flows there were and how many were entered.
    ///
    /// # Errors
    /// The kernel refused to run the program; nothing was entered since.
    pub fn finish(mut self) -> Result<(u64, u64), DataplaneError> {
        if self.frame.len() > SEEDS_AT {
            self.run();
        }
        self.failed.map_or(Ok((self.flows, self.planted)), Err)
    }

    fn run(&mut self) {
        let frame = std::mem::replace(&mut self.frame, frame());
        if self.failed.is_some() {
            return;
        }
        match self.program.test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() }) {
            Ok(outcome) => self.planted += u64::from(outcome.return_value),
            Err(source) => self.failed = Some(DataplaneError::Program { name: SEED, source }),
        }
    }
}

/// A frame without seeds. Its first bytes must look like an Ethernet header; an ethertype for experiments (IEEE 802, 0x88b5)
/// keeps the kernel from looking further.
fn frame() -> Vec<u8> {
    let mut frame = Vec::with_capacity(SEEDS_AT + SEEDS * size_of::<Seed>());
    frame.resize(SEEDS_AT, 0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A seed as the program reads it.
fn bytes(seed: &Seed) -> [u8; size_of::<Seed>()] {
    // SAFETY: a structure of integers without padding (64 bytes of entry, two numbers of 4), and as many bytes.
    unsafe { std::mem::transmute::<Seed, [u8; size_of::<Seed>()]>(*seed) }
}
