//! What `portcullis status` tells: the agent's own account of what it enforces, as plain values that travel as JSON.
//!
//! The agent fills a [`Status`] when it is asked, the command renders it. Both are the same binary, so the form may
//! change with it; names and meanings stay where they can, since people script against `-o json`.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The state of one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the agent that answers.
    pub version: String,
    /// When it started.
    pub started: Timestamp,
    /// The node-wide revision: rises with every change that reaches established flows.
    pub revision: u64,
    /// Where its objects come from, in words.
    #[serde(default)]
    pub source: String,
    /// Whether the tables in the kernel are what the sources ask for.
    pub synced: bool,
    /// Why it is not in sync, for people.
    pub not_synced_because: Option<String>,
    /// Of a cluster: what the agent knows of each kind of its objects.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// The last change that was carried out, or was to be.
    pub last_update: Option<LastUpdate>,
    /// The devices that are pods, or may be.
    pub endpoints: Vec<EndpointStatus>,
    /// The other devices by which packets leave the node.
    pub exits: Vec<ExitStatus>,
    /// How full each table in the kernel is.
    pub tables: Vec<TableFill>,
    /// What a person should know about and act on, one sentence each.
    pub problems: Vec<String>,
}

/// The agents of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The API server's URL.
    pub server: String,
    /// Every node.
    pub nodes: Vec<NodeStatus>,
}

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// It has the taint that keeps pods away until its agent is ready.
    pub held: bool,
    /// Its agent, if it has one.
    pub agent: Option<AgentStatus>,
}

/// An agent as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its pod, as `namespace/name`.
    pub pod: String,
    /// Whether it is in sync, by its readiness probe.
    pub ready: bool,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Why it is not ready, as the kubelet says.
    pub because: Option<String>,
    /// The image that it runs.
    pub image: String,
}

/// An answer about the cluster that an agent knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// To be printed.
    pub text: String,
    /// To be told beside.
    pub notes: Vec<String>,
    /// Objects that the agent could not understand, so that the answer leaves them out.
    pub refused: u64,
}

/// What the agent knows of one kind of a cluster's objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The kind, as the API writes it.
    pub kind: String,
    /// What is known is what the API server has.
    pub in_sync: bool,
    /// All of them have been read once.
    pub listed: bool,
    /// Since when contact is lost, if it is.
    pub lost_since: Option<Timestamp>,
    /// Why, for people.
    pub because: Option<String>,
    /// When the API server last told anything of it, be it that nothing has changed.
    pub heard: Option<Timestamp>,
    /// How many are known.
    pub objects: u64,
    /// How often all of them were read.
    pub lists: u64,
    /// How often asking failed.
    pub failures: u64,
}

/// A change that was carried out, or was to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastUpdate {
    /// When the last map write of it ended.
    pub at: Timestamp,
    /// From the first event that it answers to its last map write, in milliseconds.
    pub took_ms: f64,
    /// What came of it.
    pub result: UpdateResult,
}

/// What came of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateResult {
    /// The kernel holds what was asked for.
    Applied,
    /// A table has no room: what it held before stays in force.
    TableFull,
    /// The kernel refused; it is tried again.
    Failed,
}

impl UpdateResult {
    /// Every result.
    pub const ALL: [Self; 3] = [Self::Applied, Self::TableFull, Self::Failed];

    /// Its name in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::TableFull => "table-full",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for UpdateResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the agent put right after others had changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// A program was gone from its hook, or another was in its place.
    Missing,
    /// A program was no longer the first on its hook.
    Displaced,
    /// A pin was gone.
    Pin,
}

impl Repair {
    /// Every repair.
    pub const ALL: [Self; 3] = [Self::Missing, Self::Displaced, Self::Pin];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Displaced => "displaced",
            Self::Pin => "pin",
        }
    }

    /// What happened, for people.
    #[must_use]
    pub const fn explain(self) -> &'static str {
        match self {
            Self::Missing => "somebody has removed or replaced our program; it is back. Find out who",
            Self::Displaced => "somebody has put a program before ours; ours is first again, and theirs runs after it",
            Self::Pin => "somebody has removed pins; they are back. Find out who",
        }
    }
}

/// A veth that is a pod's, or surely a pod's though it is not known whose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// The pod, as `namespace/name`; `None` while the veth is pending or closed.
    pub pod: Option<String>,
    /// The pod's uid; `None` where the source has none.
    pub uid: Option<String>,
    /// The host's end of the veth.
    pub veth: String,
    /// Its index.
    pub ifindex: u32,
    /// How it is treated.
    pub state: EndpointState,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// What the pod may receive.
    pub ingress: DirectionStatus,
    /// What the pod may send.
    pub egress: DirectionStatus,
    /// The revision that its flows must carry to be established.
    pub revision: u64,
}

/// How a veth is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// It is a pod's, and policy holds.
    Enforced,
    /// It is surely a pod's, but it is not known whose, or of which address: the setting for undecided pods holds.
    Pending,
    /// It claims a pod that another veth already is: nothing passes.
    Closed,
    /// Its policy is what an agent before has left, since something that may be policy cannot be read.
    Kept,
    /// The Pod object is gone and the veth is still there: its last policy holds.
    PodGone,
    /// The programs cannot be put on it: nothing holds. The problems say why.
    Unenforced,
}

impl EndpointState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Enforced, Self::Pending, Self::Closed, Self::Kept, Self::PodGone, Self::Unenforced];

    /// Its name in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Pending => "pending",
            Self::Closed => "closed",
            Self::Kept => "kept",
            Self::PodGone => "pod-gone",
            Self::Unenforced => "unenforced",
        }
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One direction of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionStatus {
    /// The compiled policy set, shared by all endpoints with the same applicable rules; `None` where no policy selects
    /// the pod in this direction, so that everything may pass.
    pub policy_set: Option<u32>,
    /// The policies in it, as `namespace/name`.
    pub policies: Vec<String>,
}

/// A device that is no pod's, by which packets leave the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The device.
    pub name: String,
    /// The programs that are attached to it: `to_uplink`, `from_uplink`.
    pub hooks: Vec<String>,
}

/// How full a table in the kernel is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFill {
    /// The table.
    pub name: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that it has room for.
    pub capacity: u64,
}
