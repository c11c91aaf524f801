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
mod adoption;
mod agent;
mod asking;
mod attacks;
mod audit;
mod capabilities;
mod cluster;
mod confine;
mod connections;
mod counters;
mod detours;
mod established;
mod flows;
mod foreign;
mod frames;
mod headers;
mod hooks;
mod hooks_devices;
mod input;
mod ipvs;
mod lasting;
mod layouts;
mod long_lived;
mod manifests;
mod moved;
mod node_flows;
mod pinned;
mod restart;
mod rewritten;
mod scenario;
mod sctp;
mod second;
mod segments;
mod sources;
mod stamp;
mod suite;
mod table;
mod together;
mod tunnels;
mod uninstall;
mod untracked;
mod uplinks;
