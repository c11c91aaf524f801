//! The words of policy: what every API is converted to, and all that the other rooms know of a cluster.
//!
//! One ordered model serves every policy API: tiers in order, policies in them in order, rules in policies in order.
//! Values here are validated: a conversion either gives an object that means something, or an error that says why not.

pub mod decision;
pub mod labels;
pub mod objects;
pub mod policy;
pub mod traffic;

pub use decision::{Cause, Decision, Verdict};
pub use labels::{Labels, Selector};
pub use objects::{
    Backend, Change, EndpointSlice, Name, Namespace, Node, Object, ObjectKey, Pod, PodKey, Service, ServiceKey,
    ServicePort, TargetPort,
};
pub use policy::{
    Action, Direction, NamespaceScope, Order, PeerAtom, PeerMatch, Policy, PolicyId, PolicyKind, Rule, RuleOrigin,
    Subject, Tier, TierDefault,
};
pub use traffic::{Family, NamedPort, PortMatch, PortSpec, Protocol, Traffic, TrafficMatch};
