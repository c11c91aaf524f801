//! Port numbers and protocols.

use super::field::{Field, Findings};
use crate::model::Protocol;

/// A port number, 1 to 65535.
pub(super) fn number(port: i32, field: &Field<'_>, findings: &mut Findings) -> Option<u16> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            findings.refuse(field, format!("{port} is no port number: use 1 to 65535"));
            None
        }
    }
}

/// A protocol of the API; absent means TCP. In capitals, as the API server has it.
pub(super) fn protocol(protocol: Option<&str>, field: &Field<'_>, findings: &mut Findings) -> Option<Protocol> {
    match protocol {
        None | Some("TCP") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(other) => {
            findings.refuse(field, format!("{other:?} is no protocol here: use TCP, UDP or SCTP, in capitals"));
            None
        }
    }
}

/// The same where the API's field is a plain string, in which empty is absent.
pub(super) fn protocol_or_empty(text: Option<&str>, field: &Field<'_>, findings: &mut Findings) -> Option<Protocol> {
    protocol(text.filter(|text| !text.is_empty()), field, findings)
}
