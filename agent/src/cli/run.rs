//! The settings of `run`, `status` and `uninstall`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use portcullis_common::flow::Lifetime;
use serde::{Deserialize, Serialize};

use crate::logging::Filter;

use crate::model::Name;

/// Where pins are kept unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/portcullis";
/// Where the agent answers `status` unless told otherwise.
pub const SOCKET: &str = "/run/portcullis/portcullis.sock";
/// Where the agent serves metrics and health unless told otherwise.
pub const LISTEN: &str = "127.0.0.1:9470";

/// Enforce the policies of a cluster, or of a folder of manifests, on this node's pods, until told to stop; enforcement
/// stays then.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Print the settings that hold, as YAML, with where each comes from, and end.
    #[arg(long)]
    pub print_config: bool,
    /// A folder of manifests to follow. Without it a cluster is watched.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// How to reach the cluster. Without it KUBECONFIG tells, then the service account of the pod that this runs in.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig. Default: its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// This node, as the cluster knows it: only pods whose spec.nodeName is this are its own (of manifests also those
    /// that have none). Without it NODE_NAME tells it to the agent of a cluster, as a DaemonSet sets that from
    /// spec.nodeName; of manifests all pods are its own then.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Whether the taint portcullis.io/agent-not-ready is taken from this node once everything that the cluster wants is
    /// enforced. Whoever creates nodes gives it to them, so that pods wait for the agent.
    #[arg(long, value_enum, default_value_t)]
    pub node_taint: NodeTaint,
    /// Whether a policy that cannot be enforced gets an Event in the cluster, one for all nodes.
    #[arg(long, value_enum, default_value_t)]
    pub policy_events: PolicyEvents,
    /// Start although Cilium runs on this node, whose programs stand on the same hooks and pass by what is judged here.
    #[arg(long)]
    pub beside_cilium: bool,
    /// The only devices, besides pods' veths, where packets leave this node. May be given several times. Default: every
    /// device that qualifies.
    #[arg(long = "uplink", value_name = "DEVICE")]
    pub uplinks: Vec<String>,
    /// A range that Services have their cluster addresses from. May be given several times.
    #[arg(long = "service-cidr", value_name = "CIDR", default_values = ["10.96.0.0/12", "10.0.0.0/16"])]
    pub service_cidrs: Vec<IpNet>,
    /// A range that this node's pods have their addresses from, beside spec.podCIDRs of its Node. May be given several
    /// times. A veth with such an address is closed until its pod is known.
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pub pod_cidrs: Vec<IpNet>,
    /// Where pins are kept; on a BPF file system, and of one network namespace.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Where metrics and health are served: /metrics, /healthz, /readyz.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = LISTEN, value_parser = super::listen::parse)]
    pub listen: SocketAddr,
    /// Where `portcullis status` is answered.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Pods that have room in the tables of flows; each takes 256 KiB.
    #[arg(long, value_name = "NUMBER", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_endpoints: u32,
    /// Sizes of the other tables.
    #[command(flatten)]
    pub sizes: TableSizes,
    /// Rules of policies that have metrics of their own on this node; what other rules decide is counted together, by
    /// direction and verdict.
    #[arg(long, value_name = "NUMBER", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub max_policy_series: u32,
    /// How often, in seconds, the tables are compared with what they should hold.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub audit_interval: u32,
    /// How programs are attached.
    #[arg(long, value_enum, default_value_t)]
    pub attach: Attach,
    /// Where packets carry what has been decided about them: `tc-index`, or `mark:16` for the upper half of the mark, where
    /// another filter on the same hooks overwrites tc_index.
    #[arg(long, value_name = "tc-index|mark:SHIFT", default_value = "tc-index")]
    pub stamp: StampPlace,
    /// What clients from outside may do whose address kube-proxy has replaced by this node's (node ports and load balancers
    /// with externalTrafficPolicy Cluster). Their own address cannot be had here, so policy judges the node's address, which
    /// it rarely names; externalTrafficPolicy Local keeps theirs. `allow` lets all of them pass that came by IPv4; by IPv6
    /// policy judges the node's address still, since there the kernel lets anybody send with that as source.
    #[arg(long, value_enum, default_value_t)]
    pub masqueraded_clients: MasqueradedClients,
    /// What becomes of established connections (TCP, SCTP) when policy changes: they are judged again, and end where it denies
    /// them now, or are kept as they were let through until they end by themselves. One that was open before Portcullis saw
    /// it is judged once either way, and so are all when an agent starts. Packets of kept ones are counted for no rule.
    #[arg(long, value_enum, default_value_t)]
    pub established: Established,
    /// What pods may send to the addresses of their own node. Kubernetes NetworkPolicy allows all of it; with `policy` it is
    /// judged by the rules that a policy has (an ipBlock with the node's address allows it), LocalDNS on the node included.
    /// What the node's own processes send to pods, such as probes, passes either way. A Service that leads to processes of the
    /// node is judged on these, and closed where some of its backends are denied of which some are on the node; a pod's
    /// hostPort is reached only by who may reach the node's address too.
    #[arg(long, value_enum, default_value_t)]
    pub own_node: OwnNode,
    /// Whether a pod may send only from its own addresses, speak in ARP and neighbour discovery only for them, and be sent
    /// only what is for them.
    #[arg(long, value_enum, default_value_t)]
    pub source_validation: SourceValidation,
    /// What a further interface of a pod is: a veth into the network namespace of a pod that has one already. With `pod` it is the pod's: its policies hold there too, and only the addresses of
    /// the Pod object pass. With `network` it leads to a network of its own with addresses that policy does not know: an exit
    /// like any other device, where the source address that the pod writes is believed, a neighbour's too. An interface that
    /// was a pod's stays one until it goes.
    #[arg(long, value_enum, default_value_t)]
    pub second_interfaces: SecondInterfaces,
    /// From which Ethernet address a pod may send. With `pinned` it is the one that its interface had when it got its first
    /// address: frames from another are dropped, and ARP that speaks for another, so that a pod on a bridge cannot draw its
    /// neighbours' traffic to itself. Not for pods that bridge virtual machines.
    #[arg(long, value_enum, default_value_t)]
    pub source_mac: SourceMac,
    /// Where programs are filters (before 6.6): an `ingress` qdisc on a device gives way to clsact, with every filter on
    /// it, such as the bandwidth plugin's limit of what a pod sends. Without this such a device is not enforced.
    #[arg(long)]
    pub replace_ingress_qdisc: bool,
    /// Let pods send what this node would unwrap behind the hooks: IP in IP, GRE, and UDP to the ports of its own tunnel
    /// devices (VXLAN, GENEVE, bare UDP).
    #[arg(long)]
    pub allow_tunnels: bool,
    /// What a veth may do whose pod is not known yet.
    #[arg(long, value_enum, default_value_t)]
    pub pending: Pending,
    /// How long flows in a state are remembered without a packet, such as tcp-established=5d (units: s, m, h, d). May be
    /// given several times. States and defaults are those of Linux' conntrack; do not set one longer than the kernel's own.
    #[arg(long = "flow-lifetime", value_name = "STATE=TIME", value_parser = parse_lifetime)]
    pub flow_lifetimes: Vec<(Lifetime, u32)>,
}

/// Why a lifetime is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifetimeError {
    /// No such state.
    #[error("{given:?} is no state of a flow; there are {}", names())]
    State {
        /// What was given.
        given: String,
    },
    /// No length of time.
    #[error("{given:?} is no length of time above 0; write a number and s, m, h or d, such as 90s or 5d")]
    Time {
        /// What was given.
        given: String,
    },
}

fn names() -> String {
    Lifetime::ALL.map(|(_, name, _)| name).join(", ")
}

/// `tcp-established=5d`.
fn parse_lifetime(text: &str) -> Result<(Lifetime, u32), LifetimeError> {
    let (name, time) = text.split_once('=').unwrap_or((text, ""));
    let state = Lifetime::ALL.into_iter().find(|(_, known, _)| *known == name);
    let (state, ..) = state.ok_or_else(|| LifetimeError::State { given: name.to_owned() })?;
    let unit = |letter| match letter {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let seconds = || {
        let unit = unit(time.chars().last()?)?;
        let number: u32 = time.get(..time.len() - 1)?.parse().ok()?;
        number.checked_mul(unit).filter(|seconds| *seconds > 0)
    };
    seconds().map(|seconds| (state, seconds)).ok_or_else(|| LifetimeError::Time { given: time.to_owned() })
}

/// Entries that the tables have room for. When one is full, the policy in force stays, which is reported. Tables that an
/// agent before has left keep their sizes until `uninstall`. Each table takes what is said twice and more, since an agent
/// that starts builds its tables beside those in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct TableSizes {
    /// Addresses of pods, nodes and Services that policy asks about, and Services' ports; 107 bytes each. Rounded up to a
    /// power of two.
    #[arg(long, value_name = "NUMBER", default_value_t = 150_000, value_parser = clap::value_parser!(u32).range(8..=1 << 24))]
    pub max_addresses: u32,
    /// Compiled rows: profiles, verdicts, reaches; 54 bytes each. Rounded up to a power of two.
    #[arg(long, value_name = "NUMBER", default_value_t = 150_000, value_parser = clap::value_parser!(u32).range(8..=1 << 24))]
    pub max_rows: u32,
    /// Ranges of addresses that policies name.
    #[arg(long, value_name = "NUMBER", default_value_t = 1 << 15, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_ranges: u32,
    /// Rules of policies that apply to pods of this node; a counter of 16 bytes for each CPU.
    #[arg(long, value_name = "NUMBER", default_value_t = 1 << 14, value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    pub max_rules: u32,
}

/// What becomes of the taint that keeps pods from a node without an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NodeTaint {
    /// The agent removes it once in sync.
    #[default]
    Remove,
    /// The agent leaves it to somebody else.
    Keep,
}

/// Whether policies that cannot be enforced get Events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PolicyEvents {
    /// They do.
    #[default]
    On,
    /// They do not.
    Off,
}

/// Whether addresses of packets at a pod's interface must be the pod's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SourceValidation {
    /// They must.
    #[default]
    On,
    /// Any will do: for nodes whose pods route for others.
    Off,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// By TCX where the kernel has it (6.6), by clsact otherwise.
    #[default]
    Auto,
    /// By clsact filters.
    Clsact,
}

/// Where packets carry their stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampPlace {
    /// In `skb->tc_index`.
    TcIndex,
    /// In the sixteen bits of `skb->mark` from this one on.
    Mark(u32),
}

/// Why packets cannot carry their stamp there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// Neither place.
    #[error("{0:?} is neither tc-index nor mark:SHIFT, such as mark:16")]
    Unknown(String),
    /// Sixteen bits from there on do not fit.
    #[error("a stamp has 16 bits, so that it fits into the mark's 32 up to a shift of 16 only")]
    TooHigh,
    /// kube-proxy writes some of these bits.
    #[error(
        "bits {0} to {last} of the mark hold those that kube-proxy marks packets with, 14 (0x4000, to be masqueraded) and 15 \
         (0x8000, to be dropped): what it sets would change who a packet is from. Use mark:16",
        last = .0 + 15
    )]
    KubeProxy(u32),
}

impl StampPlace {
    /// The lowest bit of the mark, if it is in the mark.
    #[must_use]
    pub const fn shift(self) -> Option<u32> {
        match self {
            Self::TcIndex => None,
            Self::Mark(shift) => Some(shift),
        }
    }
}

impl FromStr for StampPlace {
    type Err = StampError;

    fn from_str(text: &str) -> Result<Self, StampError> {
        let unknown = || StampError::Unknown(text.to_owned());
        if text == "tc-index" {
            return Ok(Self::TcIndex);
        }
        let shift: u32 = text.strip_prefix("mark:").and_then(|shift| shift.parse().ok()).ok_or_else(unknown)?;
        match shift {
            0..=15 => Err(StampError::KubeProxy(shift)),
            16 => Ok(Self::Mark(shift)),
            _ => Err(StampError::TooHigh),
        }
    }
}

/// What clients from outside may do whose address has become the node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MasqueradedClients {
    /// What policy says of the node's address.
    #[default]
    Deny,
    /// Anything.
    Allow,
}

/// What becomes of established flows when policy changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Established {
    /// They are judged again.
    #[default]
    Rejudge,
    /// They stay.
    Keep,
}

/// From which Ethernet address a pod may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SourceMac {
    /// Any.
    #[default]
    Any,
    /// The one that its interface had at first.
    Pinned,
}

/// What a pod's further interfaces are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SecondInterfaces {
    /// The pod's.
    #[default]
    Pod,
    /// Networks of their own.
    Network,
}

/// What pods may send to their own node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum OwnNode {
    /// Everything, as Kubernetes NetworkPolicy implies.
    #[default]
    Allow,
    /// What rules allow.
    Policy,
}

/// What a veth may do whose pod is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Pending {
    /// Talk with its own node only.
    #[default]
    Closed,
    /// Anything.
    Open,
}

/// Show what the agent of this node enforces; with a kubeconfig, and called as `kubectl portcullis`, which nodes of a
/// cluster have an agent and whether each is ready.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Show the agents of this kubeconfig's cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig (KUBECONFIG, or ~/.kube/config, if none is given), if not the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Called as a plugin of kubectl.
    #[arg(skip)]
    pub plugin: bool,
    /// Where the agent answers.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// The agent's pin directory; if it is another network namespace's, nothing is shown.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: StatusOutput,
}

/// Show by which filter the agent of this node logs, or make it log by another from now on.
#[derive(Clone, Debug, Args)]
pub struct LogLevelArgs {
    /// The filter, as --log-level takes it: debug, or info,portcullis::netlink=trace. It holds until the agent ends.
    #[arg(value_name = "FILTER")]
    pub filter: Option<Filter>,
    /// Where the agent answers.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// The agent's pin directory; if it is another network namespace's, nothing is asked.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// The form of a status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatusOutput {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Remove every program, link and table of Portcullis from this node, and nothing else.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Where pins are kept.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// When everything is removed, do nothing until told to end: for a DaemonSet that has taken the agents' place.
    #[arg(long)]
    pub stay: bool,
    /// Do it on every node instead: make the agents' DaemonSet of this name uninstall in the agents' place, and wait until
    /// every node is clean. The cluster is that of KUBECONFIG, else that of the pod which this runs in.
    #[arg(long = "daemonset", value_name = "NAMESPACE/NAME", value_parser = parse_name, conflicts_with = "stay")]
    pub daemon_set: Option<Name>,
    /// How long to wait for every node, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "daemon_set",
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
    /// What becomes of nodes that are not Ready once all others are clean: they are waited for, or left as they are. Those go on
    /// enforcing what they last knew, also when they come back, until they are rebooted.
    #[arg(long, value_enum, default_value_t, requires = "daemon_set")]
    pub unready_nodes: UnreadyNodes,
}

/// What becomes of nodes that cannot be cleaned now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UnreadyNodes {
    /// They are waited for.
    #[default]
    Wait,
    /// They are left.
    Leave,
}

/// `namespace/name`.
fn parse_name(text: &str) -> Result<Name, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Name::new(namespace, name))
        }
        _ => Err("a namespace and a name, such as portcullis/portcullis".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_go_where_nobody_else_writes() {
        let rows = [
            ("tc-index", Ok(StampPlace::TcIndex)),
            ("mark:16", Ok(StampPlace::Mark(16))),
            ("mark:0", Err(StampError::KubeProxy(0))),
            ("mark:15", Err(StampError::KubeProxy(15))),
            ("mark:17", Err(StampError::TooHigh)),
            ("mark", Err(StampError::Unknown("mark".into()))),
            ("mark:x", Err(StampError::Unknown("mark:x".into()))),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn lifetimes() {
        let state = |given: &str| Err(LifetimeError::State { given: given.into() });
        let time = |given: &str| Err(LifetimeError::Time { given: given.into() });
        let rows = [
            ("tcp-established=5d", Ok((Lifetime::TcpEstablished, 432_000))),
            ("udp=30s", Ok((Lifetime::Udp, 30))),
            ("tcp-closed=2m", Ok((Lifetime::TcpClosed, 120))),
            ("other=1h", Ok((Lifetime::Other, 3600))),
            ("tcp=5d", state("tcp")),
            ("", state("")),
            ("udp", time("")),
            ("udp=30", time("30")),
            ("udp=0s", time("0s")),
            ("udp=-1s", time("-1s")),
            ("udp=1\u{e9}", time("1\u{e9}")),
            ("udp=99999999d", time("99999999d")),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_lifetime(text), expected, "{text}");
        }
    }
}
