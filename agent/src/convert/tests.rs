//! Tables of what is accepted, what it means, and what is refused.

mod names;
mod objects;
mod policy_meaning;
mod policy_refusals;
mod ports_and_peers;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Converted, Invalid};

/// The object that a test writes as JSON.
fn parse<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("the test's own object has the right types")
}

fn fields(invalid: &[Invalid]) -> Vec<&str> {
    invalid.iter().map(|invalid| invalid.field.as_str()).collect()
}

fn warned<T>(converted: &Converted<T>) -> Vec<&str> {
    converted.warnings.iter().map(|warning| warning.field.as_str()).collect()
}
