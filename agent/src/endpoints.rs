//! Which device of this node is which pod, and on which devices packets leave: a pure state machine.
//!
//! Two inputs come in any order, as often as they like: what the kernel says about the devices of this network
//! namespace ([`Snapshot`], made by the `netlink` door) and the pods that may run on this node ([`LocalPod`]). Out
//! comes a [`Role`] for each device and, for the pods' veths, a match that holds as long as the device does.
//!
//! **What a pod can write is only a hint for the first match.** A pod with NET_ADMIN can add a neighbour's address to
//! its own interface, flush its own, or move its interface to a namespace it made; all of this is seen from the host.
//! So once matched, a veth stays that endpoint until its *link* goes. Nothing done inside the namespace, and no
//! deletion of the Pod object, detaches or re-assigns it. See [`Matcher`] for the order of evidence.

mod exits;
mod links;
mod matcher;
mod pods;
mod report;

pub use links::{Link, LinkKind, LinkLayer, LocalAddress, Snapshot};
pub use matcher::{Config, Evidence, Matched, Matcher, Role};
pub use pods::{LocalPod, PodId, azure_veth_name};
pub use report::Report;

#[cfg(test)]
mod tests;
