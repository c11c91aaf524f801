//! The objects of a document.

use std::sync::Arc;

use k8s_openapi::api::{core, discovery};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::convert::{self, Converted, Invalid, Refused};
use crate::model::{Name, Object, ObjectKey, PolicyId, PolicyKind, Subject};

/// Something wrong with an object: severity is told by where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub field: Option<String>,
    pub message: String,
}

impl Fault {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        let field: String = field.into();
        Self { field: Some(field).filter(|field| !field.is_empty()), message: message.into() }
    }
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Self::new(invalid.field, invalid.message)
    }
}

/// One object of a document.
pub(super) enum Found {
    /// Not even its kind and name could be read, so nobody knows which object it is.
    Unknown(Fault),
    /// An object of a kind that matters here.
    Known {
        /// Which.
        key: ObjectKey,
        /// In a list: `items[2].`, to go before its fields.
        prefix: String,
        /// What it is, or why it was refused.
        outcome: Outcome,
    },
}

/// What became of an object.
pub(super) enum Outcome {
    /// Accepted. `None` for one that means nothing here (an EndpointSlice of no Service).
    Accepted(Option<Arc<Object>>, Vec<Fault>),
    /// Refused. Of a policy, the pods that it is about, where that can be told.
    Refused(Vec<Fault>, Option<Subject>),
}

/// All objects of a document; none for an empty one and for kinds that policy does not ask about.
pub(super) fn objects(document: Value) -> Vec<Found> {
    let mut found = Vec::new();
    collect(document, "", None, &mut found);
    found
}

/// `item_kind` is the kind that a typed list (`PodList`) gives to items that name none, as API servers write them.
fn collect(value: Value, prefix: &str, list: Option<(&str, &str)>, found: &mut Vec<Found>) {
    let mut value = match value {
        Value::Null => return,
        Value::Object(fields) => fields,
        _ => {
            return found.push(Found::Unknown(Fault::new(
                prefix.trim_end_matches('.'),
                "is no object: an object has apiVersion, kind and metadata",
            )));
        }
    };
    if let Some((api_version, kind)) = list {
        for (field, given) in [("apiVersion", api_version), ("kind", kind)] {
            if value.get(field).is_none_or(Value::is_null) {
                value.insert(field.to_owned(), Value::from(given));
            }
        }
    }
    let text =
        |field: &str| value.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let missing = if text("kind").is_none() { "kind" } else { "apiVersion" };
        let message = "missing: every object has apiVersion and kind, so this one was left out";
        return found.push(Found::Unknown(Fault::new(format!("{prefix}{missing}"), message)));
    };
    let item_kind = kind.strip_suffix("List");
    if let Some(item_kind) = item_kind
        && (Kind::of(&api_version, item_kind).is_some() || (item_kind.is_empty() && api_version == "v1"))
    {
        let given = (!item_kind.is_empty()).then_some((api_version.as_str(), item_kind));
        match value.remove("items") {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    collect(item, &format!("{prefix}items[{index}]."), given, found);
                }
            }
            Some(_) => found.push(Found::Unknown(Fault::new(format!("{prefix}items"), "is no list"))),
        }
    } else if let Some(kind) = Kind::of(&api_version, &kind) {
        found.push(kind.read(value.into(), prefix));
    } else if kind == "NetworkPolicy" && api_version.starts_with("networking.k8s.io/") {
        let message = format!("{api_version:?} is no version of NetworkPolicy: use networking.k8s.io/v1");
        found.push(Found::Unknown(Fault::new(format!("{prefix}apiVersion"), message)));
    }
}

/// The kinds that policy asks about.
#[derive(Clone, Copy)]
enum Kind {
    Pod,
    Namespace,
    Node,
    Service,
    EndpointSlice,
    NetworkPolicy,
}

impl Kind {
    fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "Namespace") => Some(Self::Namespace),
            ("v1", "Node") => Some(Self::Node),
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("networking.k8s.io/v1", "NetworkPolicy") => Some(Self::NetworkPolicy),
            _ => None,
        }
    }

    fn read(self, value: Value, prefix: &str) -> Found {
        let key = match self.key(&value) {
            Ok(key) => key,
            Err((field, message)) => return Found::Unknown(Fault::new(format!("{prefix}{field}"), message)),
        };
        let outcome = match self {
            Self::Pod => accept::<core::v1::Pod, _>(value, convert::pod, |pod| Some(Object::Pod(pod))),
            Self::Namespace => accept::<core::v1::Namespace, _>(value, convert::namespace, |namespace| {
                Some(Object::Namespace(namespace))
            }),
            Self::Node => accept::<core::v1::Node, _>(value, convert::node, |node| Some(Object::Node(node))),
            Self::Service => {
                accept::<core::v1::Service, _>(value, convert::service, |service| Some(Object::Service(service)))
            }
            Self::EndpointSlice => accept::<discovery::v1::EndpointSlice, _>(value, convert::endpoint_slice, |slice| {
                slice.map(Object::EndpointSlice)
            }),
            Self::NetworkPolicy => network_policy(value),
        };
        Found::Known { key, prefix: prefix.to_owned(), outcome }
    }

    /// The object's name, read before anything else, so that a bad object is known by name.
    fn key(self, value: &Value) -> Result<ObjectKey, (&'static str, &'static str)> {
        let text = |field: &str| value.pointer("/metadata").and_then(|metadata| metadata.get(field));
        let name = match text("name") {
            Some(Value::String(name)) if !name.is_empty() => name.as_str(),
            None | Some(Value::Null | Value::String(_)) => {
                return Err(("metadata.name", "missing: give the object a name"));
            }
            Some(_) => return Err(("metadata.name", "is no string: put it in quotes")),
        };
        let namespace = match text("namespace") {
            None | Some(Value::Null) => "default",
            Some(Value::String(namespace)) if namespace.is_empty() => "default",
            Some(Value::String(namespace)) => namespace,
            Some(_) => return Err(("metadata.namespace", "is no string: put it in quotes")),
        };
        let namespaced = || Name::new(namespace, name);
        Ok(match self {
            Self::Pod => ObjectKey::Pod(namespaced()),
            Self::Namespace => ObjectKey::Namespace(name.into()),
            Self::Node => ObjectKey::Node(name.into()),
            Self::Service => ObjectKey::Service(namespaced()),
            Self::EndpointSlice => ObjectKey::EndpointSlice(namespaced()),
            Self::NetworkPolicy => ObjectKey::Policy(PolicyId {
                kind: PolicyKind::NetworkPolicy,
                namespace: Some(namespace.into()),
                name: name.into(),
            }),
        })
    }
}

/// How people call an object.
pub(super) fn describe(key: &ObjectKey) -> String {
    key.to_string()
}

type Conversion<T, M> = fn(&T) -> Result<Converted<M>, Vec<Invalid>>;

fn accept<T: DeserializeOwned, M>(
    value: Value,
    conversion: Conversion<T, M>,
    wrap: fn(M) -> Option<Object>,
) -> Outcome {
    match convert::typed::<T>(value) {
        Ok((object, _)) => converted(conversion(&object), wrap),
        Err(invalid) => Outcome::Refused(vec![invalid.into()], None),
    }
}

fn converted<M>(result: Result<Converted<M>, Vec<Invalid>>, wrap: fn(M) -> Option<Object>) -> Outcome {
    match result {
        Ok(Converted { value, warnings }) => {
            let warnings = warnings.into_iter().map(|warning| Fault::new(warning.field, warning.message));
            Outcome::Accepted(wrap(value).map(Arc::new), warnings.collect())
        }
        Err(invalid) => Outcome::Refused(invalid.into_iter().map(Fault::from).collect(), None),
    }
}

fn network_policy(value: Value) -> Outcome {
    match convert::read_network_policy(value) {
        Ok(accepted) => converted(Ok(accepted), |policy| Some(Object::Policy(policy))),
        Err(Refused { invalid, subject }) => Outcome::Refused(invalid.into_iter().map(Fault::from).collect(), subject),
    }
}
