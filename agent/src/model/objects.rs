//! The cluster's objects, reduced to what policy asks of them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::labels::{Labels, Selector};
use super::policy::{Policy, PolicyId, Tier};
use super::traffic::{NamedPort, Protocol};

/// A namespace and a name within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Name {
    /// From its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Names a pod.
pub type PodKey = Name;
/// Names a Service.
pub type ServiceKey = Name;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub key: PodKey,
    /// Tells two pods of one name apart; empty where the source has none.
    pub uid: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// `status.podIPs`: at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// Uses its node's network: neither an endpoint nor a peer by selector.
    pub host_network: bool,
    /// Succeeded or Failed: its address may already be another's. Neither an endpoint nor a peer.
    pub finished: bool,
    /// Ports that its containers (restartable init containers too) declare, named or not (`name` empty).
    pub ports: Vec<NamedPort>,
}

impl Pod {
    /// Whether the pod counts in policy, as an endpoint and as a peer by selector.
    #[must_use]
    pub const fn is_member(&self) -> bool {
        !self.host_network && !self.finished
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels, `kubernetes.io/metadata.name` always among them.
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its InternalIP and ExternalIP addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub key: ServiceKey,
    /// `spec.clusterIPs`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and `status.loadBalancer.ingress[].ip`, but for those that kube-proxy leaves to the load balancer.
    pub external_ips: Vec<IpAddr>,
    /// Pods of its namespace that are its backends; `None` where only EndpointSlices tell.
    pub selector: Option<Selector>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where it has no name.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port on the Service's addresses.
    pub port: u16,
    /// The port on every node's addresses.
    pub node_port: Option<u16>,
    /// The port on the backends.
    pub target: TargetPort,
}

/// Where a Service's port leads to on a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// The number that each backend pod declares under this name.
    Named(Arc<str>),
}

/// A slice of a Service's backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its own name.
    pub key: Name,
    /// The Service (label `kubernetes.io/service-name`).
    pub service: ServiceKey,
    /// Addresses that may receive traffic (ready, or serving while terminating).
    pub addresses: Vec<IpAddr>,
    /// Ports, by the Service port's name.
    pub ports: Vec<(Arc<str>, Protocol, u16)>,
}

/// Where one connection to a Service may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Any object that a source can deliver.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A Service.
    Service(Service),
    /// Backends of a Service.
    EndpointSlice(EndpointSlice),
    /// A policy.
    Policy(Policy),
    /// A tier.
    Tier(Tier),
}

/// Names any object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// A pod.
    Pod(PodKey),
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(Arc<str>),
    /// A Service.
    Service(ServiceKey),
    /// An EndpointSlice.
    EndpointSlice(Name),
    /// A policy.
    Policy(PolicyId),
    /// A tier.
    Tier(Arc<str>),
}

/// How people call an object: its kind and its name.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::Policy(id) => id.fmt(f),
            Self::Tier(name) => write!(f, "Tier {name}"),
        }
    }
}

impl Object {
    /// The object's name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Pod(pod) => ObjectKey::Pod(pod.key.clone()),
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::Service(service) => ObjectKey::Service(service.key.clone()),
            Self::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.key.clone()),
            Self::Policy(policy) => ObjectKey::Policy(policy.id.clone()),
            Self::Tier(tier) => ObjectKey::Tier(tier.name.clone()),
        }
    }
}

/// What a source tells the index.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new, or is now this.
    Set(Object),
    /// The object is gone.
    Gone(ObjectKey),
}
