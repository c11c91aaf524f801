#![doc = include_str!("../README.md")]

mod capture;
mod datagram;
mod host;
mod leftovers;
mod namespace;
mod node;
mod options;
mod pod;
mod probe;
mod process;
mod run;
pub mod sctp;
mod server;
mod service;
mod stream;
mod testbed;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use capture::{Capture, Frame};
pub use host::Host;
pub use leftovers::{leftovers, leftovers_of};
pub use namespace::Namespace;
pub use node::{BRIDGE, Node, br_netfilter_available};
pub use options::{Families, Shape, TestbedOptions, VethNames};
pub use pod::{Pod, PodOptions, ROUTED_GATEWAY_V4, ROUTED_GATEWAY_V6, ROUTED_HOST_MAC, azure_veth_name};
pub use probe::{DEFAULT_TIMEOUT, Outcome, Probe, Protocol, probe, probe_all};
pub use process::Process;
pub use service::{ExternalTrafficPolicy, Masquerade, Proxy, Service, Split, pinned_source_ports};
pub use stream::{ContinuousStream, Stream, StreamReport, UdpReport, UdpStream};
pub use testbed::{
    OUTSIDE_RANGE_V4, OUTSIDE_RANGE_V6, POD_RANGE_V4, POD_RANGE_V6, SERVICE_RANGE_V4, SERVICE_RANGE_V6, Testbed,
    leftovers_after,
};

/// A poisoned lock guards data that is only ever replaced whole, and clean-up after a panic must go on.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
