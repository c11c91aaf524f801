//! Reads a verdict out of tables as the packet programs do.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis::compile::RULE_NO_POLICY;
use portcullis::model::{Direction, Protocol, Traffic, Verdict};
use portcullis::state::{Desired, LocalId, PeerEntry, PortClass, ServiceKeyPort, ServiceReach, SetId, TableVerdict};

/// Tables, with ports as single elements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) rows: Desired,
    pub(crate) ports: HashMap<(Protocol, u16), PortClass>,
}

pub(crate) fn port_class(tables: &Desired, protocol: Protocol, port: u16) -> PortClass {
    for ((_, first), (last, class)) in tables.ports.range((protocol, 0)..=(protocol, u16::MAX)) {
        if (*first..=*last).contains(&port) {
            return *class;
        }
    }
    PortClass(0)
}

impl Kernel {
    pub(crate) fn holding(desired: &Desired, probes: &[Traffic]) -> Self {
        let port = |traffic: &Traffic| {
            let class = port_class(desired, traffic.protocol, traffic.port);
            ((traffic.protocol, traffic.port), class)
        };
        Self { rows: desired.clone(), ports: probes.iter().map(port).collect() }
    }

    pub(crate) fn peer(&self, address: IpAddr) -> PeerEntry {
        if let Some(entry) = self.rows.addresses.get(&address) {
            return *entry;
        }
        let around = self.rows.ranges.iter().filter(|(net, _)| net.contains(&address));
        around.max_by_key(|(net, _)| IpNet::prefix_len(net)).map(|(_, entry)| *entry).unwrap_or_default()
    }

    fn set(&self, endpoint: &LocalId, direction: Direction) -> Option<SetId> {
        let policy = self.rows.endpoints.get(endpoint)?;
        match direction {
            Direction::Ingress => policy.ingress,
            Direction::Egress => policy.egress,
        }
    }

    pub(crate) fn judge(
        &self,
        endpoint: &LocalId,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> TableVerdict {
        let Some(set) = self.set(endpoint, direction) else {
            return TableVerdict { verdict: Verdict::Allow, rule: RULE_NO_POLICY };
        };
        let itself = self.rows.endpoints[endpoint].addresses.contains(&peer);
        let class = self.peer(peer).class;
        let profile = self.rows.profiles.get(&(set, class, itself)).or_else(|| self.rows.set_defaults.get(&set));
        let profile = *profile.unwrap_or_else(|| panic!("set {set:?} has no default"));
        let port = self.ports[&(traffic.protocol, traffic.port)];
        let verdict = self.rows.verdicts.get(&(profile, port)).or_else(|| self.rows.profile_defaults.get(&profile));
        *verdict.unwrap_or_else(|| panic!("profile {profile:?} has no default"))
    }

    pub(crate) fn reach(&self, endpoint: &LocalId, frontend: &ServiceKeyPort) -> Option<ServiceReach> {
        self.reach_between(self, self, endpoint, frontend)
    }

    /// What these tables say of the set that an endpoint has in some tables, and of the number that a frontend has in some.
    pub(crate) fn reach_between(
        &self,
        sets: &Self,
        numbers: &Self,
        endpoint: &LocalId,
        frontend: &ServiceKeyPort,
    ) -> Option<ServiceReach> {
        let set = sets.set(endpoint, Direction::Egress)?;
        let Some(number) = numbers.rows.services.get(frontend) else { return Some(ServiceReach::Part) };
        let reach = self.rows.reaches.get(&(set, *number)).or_else(|| self.rows.reach_defaults.get(&set));
        Some(*reach.unwrap_or_else(|| panic!("set {set:?} has no default reach")))
    }
}
