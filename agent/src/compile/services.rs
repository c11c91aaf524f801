//! Services: which addresses and ports lead to which backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::numbers::Allocator;
use super::pods::{Group, Pods};
use super::tables::Tables;
use crate::index::Cluster;
use crate::model::{Backend, Family, Name, Protocol, Service, ServiceKey, ServicePort, TargetPort};
use crate::state::{ServiceKeyPort, ServiceNumber};

/// One port of one Service in one family: families have backends of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PortKey {
    service: Arc<ServiceKey>,
    protocol: Protocol,
    port: u16,
    name: Arc<str>,
    family: Family,
}

#[derive(Debug)]
struct Port {
    number: ServiceNumber,
    frontends: BTreeSet<ServiceKeyPort>,
    /// Sorted; `None`: not known.
    backends: Option<Vec<Backend>>,
}

/// What is known of one Service.
#[derive(Debug, Default)]
struct Known {
    ports: Vec<PortKey>,
    /// Its own addresses: all but those of nodes.
    addresses: Vec<IpAddr>,
    selecting: Option<Arc<Service>>,
    has_node_ports: bool,
}

/// All Services that have an address or a port on the nodes.
#[derive(Debug)]
pub(super) struct Services {
    known: FxHashMap<Arc<ServiceKey>, Known>,
    ports: FxHashMap<PortKey, Port>,
    by_number: FxHashMap<ServiceNumber, PortKey>,
    frontends: FxHashMap<ServiceKeyPort, BTreeSet<PortKey>>,
    by_backend: FxHashMap<IpAddr, FxHashSet<ServiceNumber>>,
    selecting: FxHashMap<Arc<str>, BTreeSet<Arc<ServiceKey>>>,
    slices: FxHashMap<ServiceKey, BTreeSet<Name>>,
    slice_of: FxHashMap<Name, ServiceKey>,
    /// Ports of which the backends changed.
    pub(super) changed: BTreeSet<ServiceNumber>,
    /// Ports that are new since the last compile.
    pub(super) fresh: FxHashSet<ServiceNumber>,
    /// Ports that are gone, but may still be in force.
    pub(super) retired: BTreeSet<ServiceNumber>,
    numbers: Allocator,
}

impl Services {
    pub(super) fn new(first: u32) -> Self {
        Self {
            known: FxHashMap::default(),
            ports: FxHashMap::default(),
            by_number: FxHashMap::default(),
            frontends: FxHashMap::default(),
            by_backend: FxHashMap::default(),
            selecting: FxHashMap::default(),
            slices: FxHashMap::default(),
            slice_of: FxHashMap::default(),
            changed: BTreeSet::new(),
            fresh: FxHashSet::default(),
            retired: BTreeSet::new(),
            numbers: Allocator::new(first.max(1), 1 << 28, 1 << 12),
        }
    }

    /// Takes in which Service a slice belongs to. Gives the Services to read again.
    pub(super) fn set_slice(&mut self, slice: &Name, service: Option<&ServiceKey>) -> Vec<ServiceKey> {
        let mut concerned = Vec::new();
        if let Some(before) = self.slice_of.remove(slice) {
            if let Some(slices) = self.slices.get_mut(&before) {
                slices.remove(slice);
                if slices.is_empty() {
                    self.slices.remove(&before);
                }
            }
            concerned.push(before);
        }
        if let Some(service) = service {
            self.slices.entry(service.clone()).or_default().insert(slice.clone());
            self.slice_of.insert(slice.clone(), service.clone());
            concerned.push(service.clone());
        }
        concerned
    }

    /// Reads a Service again. Gives its own addresses before and now.
    pub(super) fn set_service(
        &mut self,
        key: &ServiceKey,
        cluster: &Cluster,
        pods: &Pods,
        node: &BTreeSet<IpAddr>,
        tables: &mut Tables,
        now: u64,
    ) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let key = self.known.get_key_value(key).map_or_else(|| Arc::new(key.clone()), |(key, _)| Arc::clone(key));
        let before = self.known.remove(&key).unwrap_or_default();
        if before.selecting.is_some()
            && let Some(services) = self.selecting.get_mut(&key.namespace)
        {
            services.remove(&key);
        }
        let mut state = Known::default();
        if let Some(service) = cluster.services.get(&*key) {
            state.addresses = service.cluster_ips.iter().chain(&service.external_ips).copied().collect();
            state.addresses.sort_unstable();
            state.addresses.dedup();
            if service.selector.is_some() && !self.slices.contains_key(&*key) {
                state.selecting = Some(Arc::clone(service));
                self.selecting.entry(Arc::clone(&key.namespace)).or_default().insert(Arc::clone(&key));
            }
            for port in &service.ports {
                state.has_node_ports |= port.node_port.is_some();
                for family in [Family::V4, Family::V6] {
                    let frontends = frontends(port, &state.addresses, node, family);
                    if frontends.is_empty() {
                        continue;
                    }
                    let port_key = PortKey {
                        service: Arc::clone(&key),
                        protocol: port.protocol,
                        port: port.port,
                        name: Arc::clone(&port.name),
                        family,
                    };
                    let backends = self.backends(service, port, family, cluster, pods);
                    self.set_port(&port_key, frontends, backends, tables, now);
                    state.ports.push(port_key);
                }
            }
        }
        for port in before.ports.iter().filter(|port| !state.ports.contains(port)) {
            self.drop_port(port, tables);
        }
        let after = state.addresses.clone();
        if cluster.services.contains_key(&*key) {
            self.known.insert(key, state);
        }
        (before.addresses, after)
    }

    fn set_port(
        &mut self,
        key: &PortKey,
        frontends: BTreeSet<ServiceKeyPort>,
        backends: Option<Vec<Backend>>,
        tables: &mut Tables,
        now: u64,
    ) {
        let fresh = !self.ports.contains_key(key);
        let numbers = &mut self.numbers;
        let port = self.ports.entry(key.clone()).or_insert_with(|| Port {
            number: ServiceNumber(numbers.take(now)),
            frontends: BTreeSet::new(),
            backends: None,
        });
        let number = port.number;
        if fresh {
            self.by_number.insert(number, key.clone());
            self.fresh.insert(number);
        }
        let before = std::mem::replace(&mut port.frontends, frontends.clone());
        if fresh || port.backends != backends {
            let gone = std::mem::replace(&mut port.backends, backends.clone());
            for backend in gone.iter().flatten() {
                unlink(&mut self.by_backend, backend.address, number);
            }
            for backend in backends.iter().flatten() {
                self.by_backend.entry(backend.address).or_default().insert(number);
            }
            self.changed.insert(number);
        }
        for frontend in before.difference(&frontends) {
            self.drop_frontend(frontend, key, tables);
        }
        for frontend in frontends {
            self.frontends.entry(frontend).or_default().insert(key.clone());
            self.show(frontend, tables);
        }
    }

    fn drop_port(&mut self, key: &PortKey, tables: &mut Tables) {
        let Some(port) = self.ports.remove(key) else { return };
        for frontend in &port.frontends {
            self.drop_frontend(frontend, key, tables);
        }
        for backend in port.backends.iter().flatten() {
            unlink(&mut self.by_backend, backend.address, port.number);
        }
        self.by_number.remove(&port.number);
        self.changed.remove(&port.number);
        self.retired.insert(port.number);
    }

    fn drop_frontend(&mut self, frontend: &ServiceKeyPort, key: &PortKey, tables: &mut Tables) {
        if let Some(claims) = self.frontends.get_mut(frontend) {
            claims.remove(key);
            if claims.is_empty() {
                self.frontends.remove(frontend);
            }
        }
        self.show(*frontend, tables);
    }

    /// Where several Services claim one address and port, the first by name is shown.
    fn show(&self, frontend: ServiceKeyPort, tables: &mut Tables) {
        let first = self.frontends.get(&frontend).and_then(BTreeSet::first);
        tables.services(frontend, first.and_then(|key| self.ports.get(key)).map(|port| port.number));
    }

    /// Where a port leads to: as its slices say if it has any, else as its selector says.
    fn backends(
        &self,
        service: &Service,
        port: &ServicePort,
        family: Family,
        cluster: &Cluster,
        pods: &Pods,
    ) -> Option<Vec<Backend>> {
        let mut backends = BTreeSet::new();
        if let Some(slices) = self.slices.get(&service.key) {
            for slice in slices.iter().filter_map(|name| cluster.slices.get(name)) {
                let same =
                    |(name, protocol, _): &&(Arc<str>, Protocol, u16)| *name == port.name && *protocol == port.protocol;
                for (_, _, number) in slice.ports.iter().filter(same) {
                    let of_family = slice.addresses.iter().filter(|address| Family::of(address) == family);
                    backends.extend(of_family.map(|address| Backend { address: *address, port: *number }));
                }
            }
            return Some(backends.into_iter().collect());
        }
        let selector = service.selector.as_ref()?;
        let selected = |group: &&Group| selector.matches(group.labels());
        for group in pods.groups_in(&service.key.namespace).filter(selected) {
            let numbers: Vec<u16> = match &port.target {
                TargetPort::Number(number) => vec![*number],
                TargetPort::Named(name) => (group.ports().iter())
                    .filter(|declared| declared.name == *name && declared.protocol == port.protocol)
                    .map(|declared| declared.number)
                    .take(1)
                    .collect(),
            };
            for pod in group.pods() {
                for address in pod.addresses.iter().filter(|address| Family::of(address) == family) {
                    backends.extend(numbers.iter().map(|port| Backend { address: *address, port: *port }));
                }
            }
        }
        Some(backends.into_iter().collect())
    }

    /// Services whose selector matches a group of pods.
    pub(super) fn selecting(&self, group: &Group) -> Vec<ServiceKey> {
        let candidates = self.selecting.get(group.namespace()).into_iter().flatten();
        let selects = |key: &&Arc<ServiceKey>| {
            let service = self.known.get(*key).and_then(|known| known.selecting.as_ref());
            let selector = service.and_then(|service| service.selector.as_ref());
            selector.is_some_and(|selector| selector.matches(group.labels()))
        };
        candidates.filter(selects).map(|key| (**key).clone()).collect()
    }

    /// Services with ports on the nodes' own addresses.
    pub(super) fn with_node_ports(&self) -> Vec<ServiceKey> {
        self.known.iter().filter(|(_, known)| known.has_node_ports).map(|(key, _)| (**key).clone()).collect()
    }

    /// Ports that lead to an address.
    pub(super) fn leading_to(&self, address: IpAddr) -> impl Iterator<Item = ServiceNumber> {
        self.by_backend.get(&address).into_iter().flatten().copied()
    }

    /// All ports.
    pub(super) fn all(&self) -> impl Iterator<Item = ServiceNumber> {
        self.by_number.keys().copied()
    }

    /// The protocol and backends of a port; no backends: not known.
    pub(super) fn get(&self, number: ServiceNumber) -> Option<(Protocol, Option<&[Backend]>)> {
        let key = self.by_number.get(&number)?;
        Some((key.protocol, self.ports.get(key)?.backends.as_deref()))
    }

    /// The Service of a port, its protocol, and the port on the Service's own addresses.
    pub(super) fn name(&self, number: ServiceNumber) -> Option<(&ServiceKey, Protocol, u16)> {
        let key = self.by_number.get(&number)?;
        Some((&*key.service, key.protocol, key.port))
    }

    /// The names of all Services and slices that are known.
    pub(super) fn keys(&self) -> (Vec<ServiceKey>, Vec<Name>) {
        let services: BTreeMap<&ServiceKey, ()> = self.known.keys().map(|key| (&**key, ())).collect();
        (services.into_keys().cloned().collect(), self.slice_of.keys().cloned().collect())
    }

    /// Gives back the numbers of ports that are gone. Gives the numbers.
    pub(super) fn drop_retired(&mut self, now: u64) -> Vec<ServiceNumber> {
        let gone: Vec<ServiceNumber> = std::mem::take(&mut self.retired).into_iter().collect();
        for number in &gone {
            self.numbers.release(number.0, now);
        }
        gone
    }
}

fn frontends(
    port: &ServicePort,
    addresses: &[IpAddr],
    node: &BTreeSet<IpAddr>,
    family: Family,
) -> BTreeSet<ServiceKeyPort> {
    let at = |port_number: u16| {
        move |address: &IpAddr| ServiceKeyPort { address: *address, protocol: port.protocol, port: port_number }
    };
    let of_family = |address: &&IpAddr| Family::of(address) == family;
    let mut frontends: BTreeSet<ServiceKeyPort> = addresses.iter().filter(of_family).map(at(port.port)).collect();
    if let Some(node_port) = port.node_port {
        frontends.extend(node.iter().filter(of_family).map(at(node_port)));
    }
    frontends
}

fn unlink(index: &mut FxHashMap<IpAddr, FxHashSet<ServiceNumber>>, address: IpAddr, number: ServiceNumber) {
    if let Some(numbers) = index.get_mut(&address) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(&address);
        }
    }
}
