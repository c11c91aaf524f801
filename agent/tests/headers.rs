//! What the decision makes of fragments, extension headers, ICMP errors, discovery and tunnels, over tables in ordinary
//! memory: a row for each kind of packet.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests; clippy.toml allows them only inside the tests themselves"
)]

#[path = "headers/packets.rs"]
mod packets;
#[path = "headers/world.rs"]
mod world;

#[path = "headers/directions.rs"]
mod directions;
#[path = "headers/discovery.rs"]
mod discovery;
#[path = "headers/errors.rs"]
mod errors;
#[path = "headers/fragments.rs"]
mod fragments;
#[path = "headers/icmp.rs"]
mod icmp;
#[path = "headers/tunnels.rs"]
mod tunnels;
