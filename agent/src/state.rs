//! The tables that the packet programs decide with: what they should hold, what they hold, and the ordered way from one
//! to the other.

pub mod desired;
pub mod flat;
pub mod image;
pub mod memory;
pub mod plan;
mod room;
pub mod simulate;

pub use desired::{
    ClassId, Desired, EndpointPolicy, LocalId, PeerEntry, PortClass, ProfileId, RuleCause, RuleIdentity, RuleNumber,
    ServiceKeyPort, ServiceNumber, ServiceReach, SetId, TableVerdict,
};
