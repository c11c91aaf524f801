//! Kubernetes objects as plain values.

use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object(pub(super) Value);

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Object {
    pub(super) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(super) fn key(&self) -> Key {
        let [kind, namespace, name] =
            ["/kind", "/metadata/namespace", "/metadata/name"].map(|pointer| self.text(pointer).to_owned());
        Key { kind, namespace, name }
    }
}

/// The objects of YAML documents; empty documents are none.
pub(super) fn parse(text: &str) -> Result<Vec<Object>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("not YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).map(Object).collect())
}
