//! Where in an object something is wrong, and what.

use std::fmt;

/// Why an object was refused: one of its fields is not what the API allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// The path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong and what to do, for people.
    pub message: String,
}

/// Something that is accepted, but that its author may not have meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Warning {
    /// The path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What it is taken to mean, for people.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// An object that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted<T> {
    /// What it means.
    pub value: T,
    /// What its author may want to know.
    pub warnings: Vec<Warning>,
}

/// A field's path, built on the stack while descending so that an object without faults costs no allocation.
#[derive(Clone, Copy)]
pub(super) enum Field<'a> {
    /// A field of the object itself.
    Top(&'static str),
    /// A field of a struct.
    In(&'a Field<'a>, &'static str),
    /// An entry of a map, by its key.
    Key(&'a Field<'a>, &'a str),
    /// An element of a list, by its 0-based index.
    At(&'a Field<'a>, usize),
}

impl<'a> Field<'a> {
    pub(super) const fn field(&'a self, name: &'static str) -> Self {
        Self::In(self, name)
    }

    pub(super) const fn key(&'a self, key: &'a str) -> Self {
        Self::Key(self, key)
    }

    pub(super) const fn at(&'a self, index: usize) -> Self {
        Self::At(self, index)
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top(name) => f.write_str(name),
            Self::In(parent, name) => write!(f, "{parent}.{name}"),
            Self::Key(parent, key) => write!(f, "{parent}[{key}]"),
            Self::At(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// What was found while converting one object. All faults are collected, so that an author sees them at once.
#[derive(Default)]
pub(super) struct Findings {
    invalid: Vec<Invalid>,
    warnings: Vec<Warning>,
}

impl Findings {
    pub(super) fn refuse(&mut self, field: &Field<'_>, message: impl Into<String>) {
        self.invalid.push(Invalid { field: field.to_string(), message: message.into() });
    }

    pub(super) fn warn(&mut self, field: &Field<'_>, message: impl Into<String>) {
        self.warnings.push(Warning { field: field.to_string(), message: message.into() });
    }

    /// Hands on the verdict of a check that knows no field.
    pub(super) fn check(&mut self, field: &Field<'_>, checked: Result<(), String>) {
        if let Err(message) = checked {
            self.refuse(field, message);
        }
    }

    /// The value, unless something was refused. `None` stands for a value that could not be built, which always comes
    /// with a refusal.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<Converted<T>, Vec<Invalid>> {
        match value {
            Some(value) if self.invalid.is_empty() => Ok(Converted { value, warnings: self.warnings }),
            _ => {
                if self.invalid.is_empty() {
                    self.invalid.push(Invalid {
                        field: "metadata".to_owned(),
                        message: "the object could not be understood".to_owned(),
                    });
                }
                Err(self.invalid)
            }
        }
    }
}
