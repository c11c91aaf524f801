//! While the tables change, no packet sees half a change.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test, whose modules are shared with others that use other parts of them"
)]

#[path = "judges/compare.rs"]
mod compare;
#[path = "judges/documents.rs"]
mod documents;
#[path = "judges/hooks.rs"]
mod hooks;
#[path = "judges/journey.rs"]
mod journey;
#[path = "judges/oracle.rs"]
mod oracle;
#[path = "judges/packets.rs"]
mod packets;
#[path = "judges/updating.rs"]
mod updating;
#[path = "judges/world.rs"]
mod world;

use hooks::Memory;
use updating::follow_random_streams;

#[test]
fn at_every_step_a_packet_has_the_old_verdict_or_the_new() {
    let judged = follow_random_streams(Memory::default(), 256, 5, 16);
    println!("{judged} packets were judged between steps");
    assert!(judged > 50_000, "only {judged} packets were judged between steps");
}
