//! The ports of this node's own tunnel devices.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::endpoints::Snapshot;

/// Ports that the programs compare with.
const ROOM: usize = 4;

/// The UDP ports where this node unwraps what comes, lowest first.
fn ports(snapshot: &Snapshot) -> BTreeSet<u16> {
    snapshot.links.values().filter_map(|link| link.tunnel_port).collect()
}

/// What the programs should compare with.
pub(super) fn wanted(snapshot: &Snapshot) -> [u16; ROOM] {
    let mut wanted = [0; ROOM];
    for (place, port) in wanted.iter_mut().zip(ports(snapshot)) {
        *place = port;
    }
    wanted
}

impl Reconciler {
    /// Tells the programs where this node unwraps packets. Flows to a port that becomes a tunnel's are judged again.
    pub(super) fn tell_tunnels(&mut self) {
        let ports = ports(&self.snapshot);
        let wanted = wanted(&self.snapshot);
        if wanted == self.image.tunnels() {
            return;
        }
        if ports.len() > ROOM {
            tracing::error!(
                ?ports,
                "this node has tunnel devices on more than {ROOM} UDP ports; pods may send to the last of them"
            );
        }
        tracing::info!(?ports, allowed = self.settings.allow_tunnels, "the ports of this node's tunnel devices");
        self.image.set_tunnels(wanted);
        self.rejudge.extend(self.slots.endpoints().cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::{Link, LinkKind, LinkLayer};

    #[test]
    fn each_port_counts_once() {
        let link = |ifindex: u32, tunnel_port: Option<u16>| Link {
            ifindex,
            incarnation: 1,
            name: format!("device{ifindex}"),
            kind: LinkKind::Vxlan,
            layer: LinkLayer::Ethernet,
            mac: None,
            up: true,
            master: None,
            peer_ifindex: None,
            netnsid: None,
            peer_addresses: None,
            peer_mac: None,
            tunnel_port,
        };
        let links = [link(1, Some(8472)), link(2, Some(4789)), link(3, Some(8472)), link(4, None)];
        let snapshot = Snapshot { links: links.map(|link| (link.ifindex, link)).into(), ..Snapshot::default() };
        assert_eq!(ports(&snapshot).into_iter().collect::<Vec<_>>(), [4789, 8472]);
    }
}
