//! Which devices packets leave the node by.

use std::collections::BTreeSet;

use super::links::{Link, LinkKind, Snapshot};

/// Whether packets that leave the node are judged on this device, apart from the pods' veths, which always are.
///
/// Every device is an exit except loopback, bridge masters (their ports are exits: a frame that a bridge floods or
/// forwards never passes the master), and what is enslaved to a bond, a team or a Hyper-V netvsc that is itself an
/// exit: there the master's hook has seen the packet, and attaching to a virtual function that accelerated networking
/// adds and removes at any time wins nothing. Bridge ports and the lower device of a VLAN, VXLAN or macvlan stay exits:
/// judging clears the stamp, so that two hooks in a row do no harm. An ifb is none: what is redirected to it (the
/// bandwidth plugin shapes a pod's egress so) comes back to where it was, on its way to its exit, and is not translated
/// yet.
pub(super) fn is_exit(link: &Link, snapshot: &Snapshot, only: Option<&BTreeSet<String>>) -> bool {
    let ifb = matches!(&link.kind, LinkKind::Other(kind) if kind == "ifb");
    if ifb || matches!(link.kind, LinkKind::Loopback | LinkKind::Bridge) {
        return false;
    }
    if !only.is_none_or(|names| names.contains(&link.name)) {
        return false;
    }
    let Some(master) = link.master.and_then(|index| snapshot.links.get(&index)) else {
        return true;
    };
    // A netvsc is a device of no kind that is the master of another; bridges, VRFs and Open vSwitch have a kind.
    let aggregates = matches!(master.kind, LinkKind::Bond | LinkKind::Team | LinkKind::Physical);
    !(aggregates && is_exit(master, snapshot, only))
}
