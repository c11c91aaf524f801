//! `cargo xtask cluster`: a real Kubernetes on this machine.
//!
//! The API server, kubelets, container runtimes and kube-proxies are Kubernetes' and Debian's own. What is missing for
//! a cluster is the machines: each is a set of namespaces ([`machine`]), joined by a bridge ([`network`]).

mod arguments;
pub(crate) mod binaries;
mod cgroups;
mod cni;
mod control;
mod down;
mod images;
mod inside;
mod inside_pods;
mod kubectl;
mod machine;
mod network;
mod node;
mod plan;
mod portcullis;
mod reboot;
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

use crate::apt::Privilege;
use crate::image::Profile;
use crate::process;
use crate::stages::Outcome;
pub(crate) use arguments::Arguments;
use arguments::{Bench, Demo, Task, Test, Up};
use plan::{Cni, Machine, Plan, Proxy};
use state::State;

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
        Task::Bench(wanted) => measure(cache, wanted),
        Task::Demo(wanted) => demonstrate(cache, wanted),
        Task::Shell { machine, command } => {
            let words = [&["shell".into(), machine.clone()], command.as_slice()].concat();
            as_root(cache, &words, || shell(machine, command))
        }
        Task::Enter { machine } => machine::enter(machine),
        Task::Init { machine } => machine::init(machine),
        Task::Cni => cni::run(),
        Task::Probe(wanted) => inside_pods::probe::run(wanted),
        Task::Proxy => inside_pods::proxy::run(),
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
    trials::check(&wanted.trials)?;
    // The other first: what stays in the target directory is then what other commands build.
    let other = match &wanted.other_image {
        Some(image) => Some(std::path::absolute(image)?),
        None => trials::needs_other_layout(&wanted.trials).then(portcullis::build_other_image).transpose()?,
    };
    let image = image_of(wanted.image.as_deref(), wanted.profile)?;
    if privilege()? == Privilege::Sudo {
        let mut words = vec!["test".to_owned(), format!("--image={}", image.display())];
        words.extend(other.map(|image| format!("--other-image={}", image.display())));
        words.extend(wanted.keep.then(|| "--keep".to_owned()));
        words.extend(wanted.trials.iter().cloned());
        return by_sudo(cache, &words);
    }
    let images = std::iter::once(image).chain(other).collect();
    with_portcullis(cache, images, wanted.keep, |stand| trials::run(stand, &wanted.trials))
}

fn measure(cache: Option<&Path>, wanted: &Bench) -> Result<()> {
    let image = image_of(wanted.image.as_deref(), wanted.profile)?;
    if privilege()? == Privilege::Sudo {
        let mut words = vec!["bench".to_owned(), format!("--image={}", image.display())];
        words.extend([format!("--pods={}", wanted.pods), format!("--reboots={}", wanted.reboots)]);
        return by_sudo(cache, &words);
    }
    if State::read()?.is_some_and(|state| state.is_up()) {
        bail!("a cluster is up, with or without Portcullis in it: `cargo xtask cluster down` removes it");
    }
    with_cluster(cache, vec![image], false, |stand| trials::bench::run(stand, wanted.pods, wanted.reboots))
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
    images: Vec<PathBuf>,
    keep: bool,
    work: impl FnOnce(&trials::Stand) -> Result<()>,
) -> Result<()> {
    with_cluster(cache, images, keep, |stand| {
        portcullis::install(&stand.kubectl)?;
        work(stand)
    })
}

/// The same without.
fn with_cluster(
    cache: Option<&Path>,
    mut images: Vec<PathBuf>,
    keep: bool,
    work: impl FnOnce(&trials::Stand) -> Result<()>,
) -> Result<()> {
    up::ensure_packages()?;
    let binaries = binaries::ensure(cache, false)?;
    images.push(images::ensure(&binaries)?);
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    images.push(inside_pods::image::write(folder.path())?);
    let there = State::read()?.filter(State::is_up);
    if there.as_ref().is_some_and(|state| state.plan.nodes < NEEDED_NODES) {
        bail!(
            "this needs a cluster of {NEEDED_NODES} nodes, and one of fewer is up: `cargo xtask cluster down` removes it"
        );
    }
    let plan =
        there.as_ref().map_or(Plan { nodes: 2, cni: Cni::default(), proxy: Proxy::default() }, |state| state.plan);
    let outcome = up::up(plan, &up::Parts { binaries: &binaries, images })
        .and_then(|(state, kubectl)| work(&trials::Stand { state, kubectl }));
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
