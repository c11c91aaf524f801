//! `cargo xtask demo`: network policy at work on real packets.

use anyhow::{Result, bail};

/// Runs the demo.
pub(crate) fn run() -> Result<()> {
    bail!("the demo is not built yet")
}
