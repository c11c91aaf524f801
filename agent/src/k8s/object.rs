//! One object as the server sends it: which it is, and what it means or why it was refused.

use k8s_openapi::api::{core, discovery};
use serde::Deserialize;
use serde_json::Value;

use super::kind::Kind;
use super::light::{Light, Meta, Nothing, Reduced};
use crate::convert::{self, Converted, Invalid, Warning};
use crate::model::{Name, Object, ObjectKey, PolicyId, PolicyKind};

/// An object that could at least be named.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: ObjectKey,
    pub(super) identity: Identity,
    /// Of a Node: it may bear the taint, which its text names.
    pub(super) tainted: bool,
    pub(super) outcome: Outcome,
}

/// What tells an object's versions apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    pub(super) uid: String,
    /// Rises with each change of the spec.
    pub(super) generation: i64,
}

/// What became of an object.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are accepted, and a box for each would be one more allocation"
)]
pub(super) enum Outcome {
    /// Accepted. `None` for one that means nothing here (an EndpointSlice of no Service).
    Accepted(Option<Object>, Vec<Warning>),
    /// Refused.
    Refused(Vec<Invalid>),
}

/// What was read of a text, and the version that the server gives the object.
pub(super) type Read = (Option<String>, Named);

/// An object, or why not even its name can be read.
pub(super) type Named = Result<Found, Invalid>;

/// Reads an object. The error: not even its name can be read.
pub(super) fn read(kind: Kind, text: &str) -> Read {
    match kind {
        Kind::Pod => accept::<core::v1::Pod, _>(kind, text, convert::pod, |pod| Some(Object::Pod(pod))),
        Kind::Namespace => accept::<core::v1::Namespace, _>(kind, text, convert::namespace, |namespace| {
            Some(Object::Namespace(namespace))
        }),
        Kind::Node => accept::<core::v1::Node, _>(kind, text, convert::node, |node| Some(Object::Node(node))),
        Kind::Service => {
            accept::<core::v1::Service, _>(kind, text, convert::service, |service| Some(Object::Service(service)))
        }
        Kind::EndpointSlice => {
            accept::<discovery::v1::EndpointSlice, _>(kind, text, convert::endpoint_slice, |slice| {
                slice.map(Object::EndpointSlice)
            })
        }
        Kind::NetworkPolicy => {
            let outcome = || match serde_json::from_str(text).map(convert::read_network_policy) {
                Ok(Ok(Converted { value, warnings })) => Outcome::Accepted(Some(Object::Policy(value)), warnings),
                Ok(Err(refused)) => Outcome::Refused(refused.invalid),
                Err(error) => Outcome::Refused(vec![Invalid { field: String::new(), message: error.to_string() }]),
            };
            name(kind, text, outcome)
        }
    }
}

/// Names an object, whatever else is in it.
pub(super) fn read_key(kind: Kind, text: &str) -> (Option<String>, Result<ObjectKey, Invalid>) {
    let (version, found) = name(kind, text, || Outcome::Refused(Vec::new()));
    (version, found.map(|found| found.key))
}

fn accept<T: Reduced, M>(
    kind: Kind,
    text: &str,
    conversion: fn(&T) -> Result<Converted<M>, Vec<Invalid>>,
    wrap: fn(M) -> Option<Object>,
) -> Read {
    let Ok(light) = serde_json::from_str::<T::Light>(text) else {
        // Once more, slowly, for the field's name.
        let invalid = serde_json::from_str::<Value>(text).map(convert::typed::<T::Light>);
        let invalid = match invalid {
            Ok(Err(invalid)) => invalid,
            Ok(Ok(_)) => Invalid { field: String::new(), message: "cannot be read".into() },
            Err(error) => Invalid { field: String::new(), message: error.to_string() },
        };
        return name(kind, text, || Outcome::Refused(vec![invalid]));
    };
    let (meta, object) = T::of(light);
    let (version, identity, key) = parts(kind, meta);
    let found = key.map(|key| {
        let outcome = match conversion(&object) {
            Ok(Converted { value, warnings }) => Outcome::Accepted(wrap(value), warnings),
            Err(invalid) => Outcome::Refused(invalid),
        };
        Found { key, identity, tainted: names_taint(kind, text), outcome }
    });
    (version, found)
}

fn name(kind: Kind, text: &str, outcome: impl FnOnce() -> Outcome) -> Read {
    let meta = match serde_json::from_str::<Light<Nothing, Nothing>>(text) {
        Ok(light) => light.metadata,
        Err(error) => return (None, Err(Invalid { field: "metadata".into(), message: error.to_string() })),
    };
    let (version, identity, key) = parts(kind, meta);
    (version, key.map(|key| Found { key, identity, tainted: names_taint(kind, text), outcome: outcome() }))
}

fn names_taint(kind: Kind, text: &str) -> bool {
    kind == Kind::Node && text.contains(super::taint::KEY)
}

fn parts(kind: Kind, meta: Meta) -> (Option<String>, Identity, Result<ObjectKey, Invalid>) {
    let identity = Identity { uid: meta.uid.unwrap_or_default(), generation: meta.generation.unwrap_or_default() };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let missing = |field: &str| Invalid { field: field.into(), message: "missing".into() };
    let namespace = given(meta.namespace).ok_or_else(|| missing("metadata.namespace"));
    let name = given(meta.name).ok_or_else(|| missing("metadata.name"));
    let namespaced = |name: String| Ok::<_, Invalid>(Name::new(namespace?, name));
    let key = name.and_then(|name| {
        Ok(match kind {
            Kind::Pod => ObjectKey::Pod(namespaced(name)?),
            Kind::Namespace => ObjectKey::Namespace(name.into()),
            Kind::Node => ObjectKey::Node(name.into()),
            Kind::Service => ObjectKey::Service(namespaced(name)?),
            Kind::EndpointSlice => ObjectKey::EndpointSlice(namespaced(name)?),
            Kind::NetworkPolicy => {
                let Name { namespace, name } = namespaced(name)?;
                ObjectKey::Policy(PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(namespace), name })
            }
        })
    });
    (given(meta.resource_version), identity, key)
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type")]
    pub(super) event: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a serde_json::value::RawValue,
}

/// What a bookmark or an error carries.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Marker {
    pub(super) metadata: MarkerMeta,
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) details: Option<MarkerDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MarkerMeta {
    pub(super) resource_version: String,
    pub(super) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MarkerDetails {
    pub(super) retry_after_seconds: u32,
}
