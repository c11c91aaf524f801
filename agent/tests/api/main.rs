//! The agent and its watches on a real API server: kube-apiserver and etcd, and no kubelet.
//!
//! The folder with both programs is told by `PORTCULLIS_API_SERVER`, else it is where `cargo xtask cluster binaries` keeps
//! them. Without them the tests pass with a line that says so. Needs root: servers, nodes and pods are in network namespaces
//! of their own, and everything goes at the end, also when a test fails.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy.toml allows them only inside the tests themselves"
)]

mod agent;
mod enforcing;
mod followed;
mod objects;
mod proxy;
mod removal;
mod rights;
mod server;
mod watching;
