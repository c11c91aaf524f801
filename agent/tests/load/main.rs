//! The agent under load: floods, a million flows, a thousand changes of policy, pods that come and go, full tables. No
//! crash, no leak, no wrong verdict; what overflows is counted and told, and is over when the load is.
//!
//! Needs root. Everything happens in network namespaces that the tests make. `PORTCULLIS_LOAD=10` makes every load ten
//! times as long.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests; clippy.toml allows them only inside the tests themselves"
)]

#[path = "../live/agent.rs"]
#[expect(dead_code, reason = "these tests use a part of what the live tests share")]
mod agent;
mod capacity;
mod changes;
mod churn;
#[path = "../live/cluster.rs"]
#[expect(dead_code, reason = "likewise")]
mod cluster;
#[path = "../live/confine.rs"]
mod confine;
mod flood;
mod footprint;
#[path = "../live/manifests.rs"]
#[expect(dead_code, reason = "likewise")]
mod manifests;
mod packets;
#[path = "../live/table.rs"]
mod table;

/// How many times longer than in CI.
fn factor() -> u64 {
    let text = std::env::var("PORTCULLIS_LOAD").unwrap_or_else(|_| "1".into());
    text.parse().unwrap_or_else(|_| panic!("PORTCULLIS_LOAD={text} is no number"))
}
