//! `cargo xtask bench`: what the programs cost per packet.

use anyhow::{Result, bail};

/// Runs the benchmarks.
pub(crate) fn run() -> Result<()> {
    bail!("the benchmarks are not built yet")
}
