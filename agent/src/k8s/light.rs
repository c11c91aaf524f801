//! Kubernetes' objects, as far as policy asks about them: only these fields are taken out of what the server sends, since a
//! node reads every pod of the cluster. They become k8s-openapi's types, which `convert` knows.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1, discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// `null` is what is left out, as everywhere in the API.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What is needed of `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
}

impl Meta {
    fn take(&mut self) -> ObjectMeta {
        ObjectMeta {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            uid: self.uid.clone(),
            labels: self.labels.take(),
            ..ObjectMeta::default()
        }
    }
}

/// An object of the usual shape. (No `flatten`: that would copy what is left out, too.)
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "S: Deserialize<'de>, T: Deserialize<'de>"))]
pub(super) struct Light<S, T> {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) metadata: Meta,
    #[serde(default = "none")]
    spec: Option<S>,
    #[serde(default = "none")]
    status: Option<T>,
}

const fn none<T>() -> Option<T> {
    None
}

/// What has no part that is needed.
pub(super) type Nothing = serde::de::IgnoredAny;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<v1::ContainerPort>>,
}

impl From<Container> for v1::Container {
    fn from(container: Container) -> Self {
        Self { restart_policy: container.restart_policy, ports: container.ports, ..Self::default() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<v1::PodIP>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NodeStatus {
    addresses: Option<Vec<v1::NodeAddress>>,
}

/// What a type of k8s-openapi is read as.
pub(super) trait Reduced: Sized {
    /// What is read.
    type Light: for<'de> Deserialize<'de>;
    /// Makes of it what `convert` takes.
    fn of(light: Self::Light) -> (Meta, Self);
}

impl Reduced for v1::Pod {
    type Light = Light<PodSpec, PodStatus>;

    fn of(mut light: Self::Light) -> (Meta, Self) {
        let spec = light.spec.map(|spec| v1::PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.into_iter().map(Into::into).collect(),
            init_containers: Some(spec.init_containers.into_iter().map(Into::into).collect()),
            ..v1::PodSpec::default()
        });
        let status = light.status.map(|status| v1::PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..v1::PodStatus::default()
        });
        let metadata = light.metadata.take();
        (light.metadata, Self { metadata, spec, status })
    }
}

impl Reduced for v1::Namespace {
    type Light = Light<Nothing, Nothing>;

    fn of(mut light: Self::Light) -> (Meta, Self) {
        let metadata = light.metadata.take();
        (light.metadata, Self { metadata, ..Self::default() })
    }
}

impl Reduced for v1::Node {
    type Light = Light<NodeSpec, NodeStatus>;

    fn of(mut light: Self::Light) -> (Meta, Self) {
        let spec = light.spec.map(|spec| v1::NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..v1::NodeSpec::default()
        });
        let status =
            light.status.map(|status| v1::NodeStatus { addresses: status.addresses, ..v1::NodeStatus::default() });
        let metadata = light.metadata.take();
        (light.metadata, Self { metadata, spec, status })
    }
}

impl Reduced for v1::Service {
    type Light = Light<v1::ServiceSpec, v1::ServiceStatus>;

    fn of(mut light: Self::Light) -> (Meta, Self) {
        let metadata = light.metadata.take();
        (light.metadata, Self { metadata, spec: light.spec, status: light.status })
    }
}

/// A slice has its fields beside its metadata.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LightSlice {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Meta,
    #[serde(default, deserialize_with = "or_default")]
    address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    endpoints: Vec<LightEndpoint>,
    ports: Option<Vec<discovery::v1::EndpointPort>>,
}

#[derive(Debug, Deserialize)]
struct LightEndpoint {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<String>,
    conditions: Option<discovery::v1::EndpointConditions>,
}

impl Reduced for discovery::v1::EndpointSlice {
    type Light = LightSlice;

    fn of(mut light: Self::Light) -> (Meta, Self) {
        let endpoint = |endpoint: LightEndpoint| discovery::v1::Endpoint {
            addresses: endpoint.addresses,
            conditions: endpoint.conditions,
            ..discovery::v1::Endpoint::default()
        };
        let slice = Self {
            metadata: light.metadata.take(),
            address_type: light.address_type,
            endpoints: light.endpoints.into_iter().map(endpoint).collect(),
            ports: light.ports,
        };
        (light.metadata, slice)
    }
}
