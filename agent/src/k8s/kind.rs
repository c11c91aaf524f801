//! The kinds that are watched, and where they are.

use std::fmt;

/// A kind of objects that policy asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Pods.
    Pod,
    /// Namespaces.
    Namespace,
    /// Nodes.
    Node,
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
    /// NetworkPolicies.
    NetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Pod, Self::Namespace, Self::Node, Self::Service, Self::EndpointSlice, Self::NetworkPolicy];

    /// As the API writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// Several of them.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Pod => "Pods",
            Self::Namespace => "Namespaces",
            Self::Node => "Nodes",
            Self::Service => "Services",
            Self::EndpointSlice => "EndpointSlices",
            Self::NetworkPolicy => "NetworkPolicies",
        }
    }

    /// Where all of them are.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Pod => "/api/v1/pods",
            Self::Namespace => "/api/v1/namespaces",
            Self::Node => "/api/v1/nodes",
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
        }
    }

    /// Which of them are asked for, by their fields. A watch tells an object that no longer matches as deleted.
    ///
    /// Pods that have ended leave both sides of policy at once. A headless Service has no address that the host translates.
    /// Of nodes, the own one tells the ranges of its pods; others only matter to whoever asks about the whole cluster.
    pub(super) fn fields(self, node: Option<&str>) -> Option<String> {
        match self {
            Self::Pod => Some("status.phase!=Succeeded,status.phase!=Failed".into()),
            Self::Service => Some("spec.clusterIP!=None".into()),
            Self::Node => node.map(|name| format!("metadata.name={name}")),
            Self::Namespace | Self::EndpointSlice | Self::NetworkPolicy => None,
        }
    }

    /// Which of them are asked for, by their labels: slices of headless Services lead from no address, and those of no
    /// Service from nowhere.
    pub(super) fn labels(self) -> Option<String> {
        (self == Self::EndpointSlice).then(|| "kubernetes.io/service-name,!service.kubernetes.io/headless".into())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
