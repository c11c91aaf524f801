//! The agent on real packets: network policy from manifests, enforced by `portcullis run` on every node of a testbed.
//!
//! Needs root. Everything happens in network namespaces that the tests make; they, the agents and their pins go at the
//! end, also when a test fails.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests; clippy.toml allows them only inside the tests themselves"
)]

mod addresses;
mod agent;
mod attacks;
mod cluster;
mod connections;
mod counters;
mod detours;
mod frames;
mod input;
mod manifests;
mod restart;
mod scenario;
mod stamp;
mod suite;
mod table;
mod uninstall;
