//! The settings of `run`, `status` and `uninstall`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

/// Where pins are kept unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/portcullis";
/// Where the agent answers `status` unless told otherwise.
pub const SOCKET: &str = "/run/portcullis/portcullis.sock";
/// Where the agent serves metrics and health unless told otherwise.
pub const LISTEN: &str = "127.0.0.1:9470";

/// Enforce the policies of a folder of manifests on this node's pods, until told to stop; enforcement stays then.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The folder of manifests to follow.
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_MANIFESTS")]
    pub manifests: PathBuf,
    /// Only pods whose spec.nodeName is this (or that have none) are this node's.
    #[arg(long, value_name = "NAME", env = "PORTCULLIS_NODE_NAME")]
    pub node_name: Option<String>,
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
    #[arg(long, value_name = "ADDRESS:PORT", default_value = LISTEN)]
    pub listen: SocketAddr,
    /// Where `portcullis status` is answered.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Pods that have room in the tables of flows; each takes 256 KiB.
    #[arg(long, value_name = "NUMBER", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_endpoints: u32,
    /// How programs are attached.
    #[arg(long, value_enum, default_value_t)]
    pub attach: Attach,
    /// Where programs are filters (before 6.6): an `ingress` qdisc on a device gives way to clsact, with every filter on
    /// it, such as the bandwidth plugin's limit of what a pod sends. Without this such a device is not enforced.
    #[arg(long)]
    pub replace_ingress_qdisc: bool,
    /// Carry the stamp that packets get on their way through the node in sixteen bits of their mark, from this bit on, in
    /// place of tc_index. kube-proxy uses bits 14 and 15.
    #[arg(long, value_name = "BIT", value_parser = clap::value_parser!(u32).range(0..=16))]
    pub stamp_mark_shift: Option<u32>,
    /// Let pods send from addresses that are not theirs.
    #[arg(long)]
    pub allow_any_source: bool,
    /// What a veth may do whose pod is not known yet.
    #[arg(long, value_enum, default_value_t)]
    pub pending: Pending,
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

/// What a veth may do whose pod is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Pending {
    /// Talk with its own node only.
    #[default]
    Closed,
    /// Anything.
    Open,
}

/// Show what the agent of this node enforces.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
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
}
