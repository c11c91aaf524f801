//! Kubernetes' own types in, the words of policy out.
//!
//! Every function takes one `k8s_openapi` object, fills in what an API server would have filled in, refuses what it
//! would have refused, and says which field is at fault. So an object read from a file means what it would mean after
//! `kubectl apply`, and one read from an API server passes unchanged.

mod address;
mod endpoint_slice;
mod field;
mod meta;
mod names;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod port;
mod read;
mod selector;
mod service;

pub use endpoint_slice::endpoint_slice;
pub use field::{Converted, Invalid, Warning};
pub use namespace::namespace;
pub use network_policy::{network_policy, subject};
pub use node::node;
pub use pod::pod;
pub use read::{Refused, read_network_policy, typed};
pub use service::service;

#[cfg(test)]
mod tests;
