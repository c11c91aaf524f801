//! `cargo xtask cluster`: a real Kubernetes on this machine.
//!
//! The API server, kubelets, container runtimes and kube-proxies are Kubernetes' and Debian's own. What is missing for
//! a cluster is the machines: each is a set of namespaces ([`machine`]), joined by a bridge ([`network`]).

pub(crate) mod binaries;
mod cgroups;
mod cni;
mod control;
mod down;
mod images;
mod inside;
mod kubectl;
mod machine;
mod network;
mod node;
mod plan;
mod portcullis;
mod state;
mod status;
mod supervise;
mod trials;
mod tutorial;
mod up;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::apt::Privilege;
use crate::image::Profile;
use crate::process;
use crate::stages::Outcome;
use plan::{Cni, Machine, Plan, Proxy};
use state::State;

/// What to do with a cluster.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where Kubernetes' programs are kept, each version in a folder of its own; ~/.cache/portcullis otherwise
    #[arg(long, global = true, value_name = "FOLDER", env = binaries::CACHE_VARIABLE)]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
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
}

/// What the cluster is to be.
#[derive(clap::Args)]
struct Up {
    /// How many nodes it has
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(plan::MOST_NODES)))]
    nodes: u8,
    /// How pods are connected to their node
    #[arg(long, value_enum, default_value_t)]
    cni: Cni,
    /// How kube-proxy writes its rules
    #[arg(long, value_enum, default_value_t)]
    proxy: Proxy,
    /// Build Portcullis and install it
    #[arg(long)]
    portcullis: bool,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

/// What to try.
#[derive(clap::Args)]
struct Test {
    /// Only these trials
    #[arg(value_name = "TRIAL")]
    trials: Vec<String>,
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Leave the cluster up
    #[arg(long)]
    keep: bool,
}

/// How to run the demo.
#[derive(clap::Args)]
struct Demo {
    /// Install Portcullis as this archive has it, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Run Dgraph and its client from the images in this archive, instead of making them
    #[arg(long, value_name = "FILE")]
    images: Option<PathBuf>,
    /// How Portcullis is built
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Leave the cluster up
    #[arg(long)]
    keep: bool,
}

/// Carries it out. What is built is built as the caller; clusters are made as root.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cache = arguments.cache.as_deref();
    match &arguments.task {
        Task::Binaries { api_server } => {
            let folder = binaries::ensure(cache, *api_server)?;
            if !api_server {
                up::ensure_packages()?;
                images::ensure(&folder)?;
            }
            say(&folder.display().to_string());
            Ok(())
        }
        Task::Up(wanted) => bring_up(cache, wanted),
        Task::Down => as_root(cache, &["down".into()], down::remove),
        Task::Status => as_root(cache, &["status".into()], status::show),
        Task::Test(wanted) => try_out(cache, wanted),
        Task::Demo(wanted) => demonstrate(cache, wanted),
        Task::Shell { machine, command } => {
            let words = [&["shell".into(), machine.clone()], command.as_slice()].concat();
            as_root(cache, &words, || shell(machine, command))
        }
        Task::Enter { machine } => machine::enter(machine),
        Task::Init { machine } => machine::init(machine),
        Task::Cni => cni::run(),
    }
}

/// The stage of `cargo xtask test`: every trial, on a cluster of its own.
pub(crate) fn stage(limit: Duration) -> Result<Outcome> {
    if let Err(error) = binaries::ensure(None, false) {
        // A machine without Go may do all else; a CI that skipped this would prove nothing.
        if std::env::var("CI").as_deref() == Ok("true") {
            return Err(error);
        }
        let reason = format!("cluster skipped: {error:#}");
        eprintln!("  {reason}");
        return Ok(Outcome::PassedExcept(reason));
    }
    if State::read()?.is_some_and(|state| state.is_up()) {
        bail!("a cluster is up, and trials would change it: `cargo xtask cluster down` removes it");
    }
    let own = std::env::current_exe().context("cannot find the own program")?;
    let outcome = process::run_within(Command::new(&own).args(["cluster", "test", "--profile=dev"]), limit);
    if outcome.is_err() {
        // What was ended for being late could not remove its cluster.
        process::run(Command::new(&own).args(["cluster", "down"]))?;
    }
    outcome.map(|()| Outcome::Passed)
}

fn bring_up(cache: Option<&Path>, wanted: &Up) -> Result<()> {
    let Some(privilege) = Privilege::find() else { bail!(NEEDS_ROOT) };
    up::ensure_packages()?;
    let binaries = binaries::ensure(cache, false)?;
    let mut images = vec![images::ensure(&binaries)?];
    let image = match &wanted.image {
        Some(image) => Some(std::path::absolute(image)?),
        None if wanted.portcullis => Some(portcullis::build_image(wanted.profile)?),
        None => None,
    };
    if privilege == Privilege::Sudo {
        let mut words = vec!["up".to_owned(), format!("--nodes={}", wanted.nodes)];
        words.extend([format!("--cni={}", word_of(wanted.cni)), format!("--proxy={}", wanted.proxy.mode())]);
        words.extend(image.map(|image| format!("--image={}", image.display())));
        return by_sudo(cache, &words);
    }
    images.extend(image.clone());
    let plan = Plan { nodes: wanted.nodes, cni: wanted.cni, proxy: wanted.proxy };
    let parts = up::Parts { binaries: &binaries, images };
    let (_, kubectl) = up::up(plan, &parts)?;
    if image.is_some() {
        portcullis::install(&kubectl)?;
    }
    eprintln!("{}; kubectl is {}", up::describe(&plan), binaries.join("kubectl").display());
    say(&format!("export KUBECONFIG={}", state::kubeconfig().display()));
    Ok(())
}

fn try_out(cache: Option<&Path>, wanted: &Test) -> Result<()> {
    let image = image_of(wanted.image.as_deref(), wanted.profile)?;
    if privilege()? == Privilege::Sudo {
        let mut words = vec!["test".to_owned(), format!("--image={}", image.display())];
        words.extend(wanted.keep.then(|| "--keep".to_owned()));
        words.extend(wanted.trials.iter().cloned());
        return by_sudo(cache, &words);
    }
    with_portcullis(cache, vec![image], wanted.keep, |stand| trials::run(stand, &wanted.trials))
}

fn demonstrate(cache: Option<&Path>, wanted: &Demo) -> Result<()> {
    let image = image_of(wanted.image.as_deref(), wanted.profile)?;
    let images = match &wanted.images {
        Some(images) => std::path::absolute(images)?,
        None => {
            up::ensure_packages()?;
            let (dgraph, python) = tutorial::ensure_programs()?;
            tutorial::ensure_images(&dgraph, &python)?
        }
    };
    if privilege()? == Privilege::Sudo {
        let mut words = vec!["demo".to_owned(), format!("--image={}", image.display())];
        words.push(format!("--images={}", images.display()));
        words.extend(wanted.keep.then(|| "--keep".to_owned()));
        return by_sudo(cache, &words);
    }
    with_portcullis(cache, vec![image, images], wanted.keep, |stand| tutorial::run(&stand.kubectl))
}

fn privilege() -> Result<Privilege> {
    Privilege::find().context(NEEDS_ROOT)
}

/// The archive that was named, or one that is built.
fn image_of(named: Option<&Path>, profile: Profile) -> Result<PathBuf> {
    match named {
        Some(image) => Ok(std::path::absolute(image)?),
        None => portcullis::build_image(profile),
    }
}

/// Does something on the cluster that is up, or on one that goes afterwards, with Portcullis in it.
fn with_portcullis(
    cache: Option<&Path>,
    mut images: Vec<PathBuf>,
    keep: bool,
    work: impl FnOnce(&trials::Stand) -> Result<()>,
) -> Result<()> {
    up::ensure_packages()?;
    let binaries = binaries::ensure(cache, false)?;
    images.push(images::ensure(&binaries)?);
    let there = State::read()?.filter(State::is_up);
    if there.as_ref().is_some_and(|state| state.plan.nodes < NEEDED_NODES) {
        bail!(
            "this needs a cluster of {NEEDED_NODES} nodes, and one of fewer is up: `cargo xtask cluster down` removes it"
        );
    }
    let plan =
        there.as_ref().map_or(Plan { nodes: 2, cni: Cni::default(), proxy: Proxy::default() }, |state| state.plan);
    let outcome = up::up(plan, &up::Parts { binaries: &binaries, images }).and_then(|(state, kubectl)| {
        portcullis::install(&kubectl)?;
        work(&trials::Stand { state, kubectl })
    });
    if there.is_none() && !keep {
        down::remove()?;
    }
    outcome
}

fn word_of(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Between pods of two nodes, packets take other ways than on one.
const NEEDED_NODES: u8 = 2;

const NEEDS_ROOT: &str = "a cluster is made of namespaces and mounts: run it as root or with sudo";

/// Does it here as root, or has sudo do it.
fn as_root(cache: Option<&Path>, words: &[String], work: impl FnOnce() -> Result<()>) -> Result<()> {
    match Privilege::find() {
        Some(Privilege::Root) => work(),
        Some(Privilege::Sudo) => by_sudo(cache, words),
        None => bail!(NEEDS_ROOT),
    }
}

/// Runs this program again as root. It is told where the programs are, since sudo changes what they are found by.
fn by_sudo(cache: Option<&Path>, words: &[String]) -> Result<()> {
    let own = std::env::current_exe().context("cannot find the own program")?;
    let mut command = Command::new("sudo");
    command.arg("--").arg(own).args(["cluster", "--cache"]).arg(binaries::cache_folder(cache)?).args(words);
    let status = command.status().context("cannot start sudo")?;
    if !status.success() {
        bail!("the command, run by sudo, has failed ({status})");
    }
    Ok(())
}

fn shell(machine: &str, words: &[String]) -> Result<()> {
    let machine = Machine::named(machine).with_context(|| format!("there is no machine `{machine}`"))?;
    let state = State::read()?.context("no cluster is up")?;
    let mut command = inside::command(&state, machine)?;
    if words.is_empty() {
        command.arg("bash");
    }
    let status = command.args(words).status().context("cannot start nsenter")?;
    if !status.success() {
        bail!("the command has ended with {status}");
    }
    Ok(())
}

/// Prints a command's answer. A reader that has gone has what it wanted.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_cluster_of_two_routed_nodes_is_what_comes_unasked() {
        let asked = CommandLine::try_parse_from(["cluster", "up"]).expect("it is understood").arguments.task;
        let Task::Up(up) = asked else { panic!("another task") };
        assert_eq!((up.nodes, up.cni, up.proxy, up.portcullis), (2, Cni::Azv, Proxy::Iptables, false));
        for nodes in ["0", "51", "many"] {
            assert!(CommandLine::try_parse_from(["cluster", "up", "--nodes", nodes]).is_err(), "{nodes} nodes");
        }
    }

    #[test]
    fn words_for_sudo_are_understood_again() {
        for cni in [Cni::Azv, Cni::Ptp, Cni::Bridge] {
            let word = format!("--cni={}", word_of(cni));
            let asked = CommandLine::try_parse_from(["cluster", "--cache", "/c", "up", &word]).expect("understood");
            let Task::Up(up) = asked.arguments.task else { panic!("another task") };
            assert_eq!((up.cni, asked.arguments.cache), (cni, Some("/c".into())), "{word}");
        }
    }
}
