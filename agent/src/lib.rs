//! Portcullis: network policy for Kubernetes pods, enforced by BPF programs on their host veths.
//!
//! Pure rooms (no I/O, no clock): [`model`], `convert`, `index`, `evaluate`, `compile`, `state`, `endpoints`. Doors, each
//! the only one to know its library: `k8s`, `manifests`, `netlink`, `dataplane`, `server`, `metrics`, `cli`; `reconcile` and
//! `app` join them. ARCHITECTURE.md draws the way of the data.

pub mod app;
pub mod cli;
pub mod compile;
pub mod convert;
pub mod dataplane;
pub mod endpoints;
pub mod evaluate;
pub mod flows;
pub mod index;
pub mod k8s;
pub mod logging;
pub mod manifests;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod reconcile;
pub mod server;
pub mod state;
pub mod status;
