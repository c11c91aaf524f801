//! What `cargo xtask cluster` may be asked.

use std::path::PathBuf;

use clap::Subcommand;

use super::binaries;
use super::plan::{self, Cni, Proxy};
use crate::image::Profile;

/// What to do with a cluster.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where Kubernetes' programs are kept, each version in a folder of its own; ~/.cache/portcullis otherwise
    #[arg(long, global = true, value_name = "FOLDER", env = binaries::CACHE_VARIABLE)]
    pub(super) cache: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) task: Task,
}

#[derive(Subcommand)]
pub(super) enum Task {
    /// Build Kubernetes' programs unless they are there, and print their folder
    Binaries {
        /// Only what an API server needs: kube-apiserver, etcd and kubectl
        #[arg(long)]
        api_server: bool,
    },
    /// Bring a cluster up; the last line that it prints is the setting by which kubectl finds it
    Up(Up),
    /// Remove the cluster with all that belongs to it, in whatever state it is
    Down,
    /// Say what is up
    Status,
    /// Try Portcullis out on a cluster: on the one that is up, or on one that goes afterwards
    Test(Test),
    /// Measure how long pods take to start without Portcullis and with it, and how long a rebooted node is open
    Bench(Bench),
    /// Show network policy between a real Dgraph and its client, on the cluster that is up or on one that goes afterwards
    Demo(Demo),
    /// Run a command on a machine: control, node1, node2 and so on
    Shell {
        machine: String,
        /// The command; a shell otherwise
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Start a machine (run by `up`)
    #[command(hide = true)]
    Enter { machine: String },
    /// Be the first process of a machine (run by `enter`)
    #[command(hide = true)]
    Init { machine: String },
    /// Connect a pod (run by container runtimes)
    #[command(hide = true)]
    Cni,
    /// Try addresses again and again (run in the trials' pods)
    #[command(hide = true)]
    Probe(super::inside_pods::probe::Arguments),
    /// Pass a pod's traffic on, as a mesh's sidecar does (run in the trials' pods)
    #[command(hide = true)]
    Proxy,
}

/// What the cluster is to be.
#[derive(clap::Args)]
pub(super) struct Up {
    /// How many nodes it has
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(plan::MOST_NODES)))]
    pub(super) nodes: u8,
    /// How pods are connected to their node
    #[arg(long, value_enum, default_value_t)]
    pub(super) cni: Cni,
    /// How kube-proxy writes its rules
    #[arg(long, value_enum, default_value_t)]
    pub(super) proxy: Proxy,
    /// Build Portcullis and install it
    #[arg(long)]
    pub(super) portcullis: bool,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    pub(super) profile: Profile,
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
}

/// What to try.
#[derive(clap::Args)]
pub(super) struct Test {
    /// Only these trials
    #[arg(value_name = "TRIAL")]
    pub(super) trials: Vec<String>,
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// The agent of another layout that the trial of upgrades installs, instead of building one
    #[arg(long, value_name = "FILE")]
    pub(super) other_image: Option<PathBuf>,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    pub(super) profile: Profile,
    /// Leave the cluster up
    #[arg(long)]
    pub(super) keep: bool,
}

/// What to measure.
#[derive(clap::Args)]
pub(super) struct Bench {
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    pub(super) profile: Profile,
    /// How many pods are started, without Portcullis and with it
    #[arg(long, default_value_t = 96)]
    pub(super) pods: usize,
    /// How many times a node loses power
    #[arg(long, default_value_t = 5)]
    pub(super) reboots: usize,
}

/// How to run the demo.
#[derive(clap::Args)]
pub(super) struct Demo {
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// Run Dgraph and its client from the images in this archive, instead of making them
    #[arg(long, value_name = "FILE")]
    pub(super) images: Option<PathBuf>,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    pub(super) profile: Profile,
    /// Leave the cluster up
    #[arg(long)]
    pub(super) keep: bool,
}
