//! Pods that try addresses all the while a trial runs, whose every try is written down where the trial reads it: beside the
//! node's other files, so that it matters to nobody which of the cluster's parts is away.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::inside_pods::image::{PROGRAM, TAG};
use super::super::inside_pods::probe::{Outcome, Try};
use super::super::state::FOLDER;
use super::space::{Space, Target, eventually};

/// Where pods find the folder.
const INSIDE: &str = "/tries";

/// All askers of a trial.
pub(super) struct Askers<'a> {
    space: &'a Space<'a>,
    folder: PathBuf,
}

impl<'a> Askers<'a> {
    pub(super) fn new(space: &'a Space<'a>) -> Result<Self> {
        let folder = Path::new(FOLDER).join("tries").join(&space.name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { space, folder })
    }

    /// Says which addresses the askers of a group try from now on.
    pub(super) fn aim<'t>(&self, group: &str, targets: impl IntoIterator<Item = &'t Target>) -> Result<()> {
        let lines: String = targets.into_iter().map(|target| format!("{target}\n")).collect();
        let (draft, place) = (self.folder.join(format!("{group}.draft")), self.targets_of(group));
        fs::write(&draft, lines)?;
        fs::rename(&draft, &place).with_context(|| format!("cannot write {}", place.display()))
    }

    fn targets_of(&self, group: &str) -> PathBuf {
        self.folder.join(format!("{group}.targets"))
    }

    /// What the `spec` of an asker says, with what the program is told beside.
    pub(super) fn spec(&self, node: Option<&str>, group: &str, options: &[&str]) -> Value {
        let targets = format!("--targets={INSIDE}/{group}.targets");
        let log = format!("--log={INSIDE}/$(NAME).log");
        let mut command = vec![PROGRAM, "cluster", "probe", &targets, &log];
        command.extend(options);
        let mut spec = json!({
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main",
                "image": TAG,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "volumeMounts": [{"name": "tries", "mountPath": INSIDE}],
            }],
            "volumes": [{"name": "tries", "hostPath": {"path": self.folder, "type": "Directory"}}],
        });
        if let Some(node) = node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        spec
    }

    /// A pod that tries what its group does.
    pub(super) fn add(&self, pod: &str, node: &str, labels: &[(&str, &str)], group: &str) -> Result<()> {
        self.space.apply(pod_of(pod, labels, &self.spec(Some(node), group, &[])))
    }

    /// Every try of a pod so far.
    pub(super) fn tries(&self, pod: &str) -> Result<Vec<Try>> {
        let text = fs::read_to_string(self.folder.join(format!("{pod}.log"))).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::parse).collect()
    }

    /// The names of all pods that have tried anything.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder)?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| Some(name.strip_suffix(".log")?.to_owned())).collect())
    }

    /// Waits until what a pod begins after this time comes out as policy says, at every one of these addresses.
    pub(super) fn expect(&self, pod: &str, targets: &[Target], is_allowed: bool, since: u64) -> Result<()> {
        eventually("what policy says", || {
            let tries = self.tries(pod)?;
            for target in targets {
                let last = tries.iter().rfind(|one| one.begun >= since && one.target == target.socket());
                match last.map(|one| one.outcome) {
                    None => bail!("{pod} has not tried {target}"),
                    Some(Outcome::Answered) if !is_allowed => bail!("{pod} reaches {target}, which policy denies"),
                    Some(outcome) if is_allowed && outcome != Outcome::Answered => {
                        bail!("{pod} does not reach {target}: {outcome:?}")
                    }
                    Some(_) => {}
                }
            }
            Ok(())
        })
    }
}

/// A pod with a `spec`.
pub(super) fn pod_of(name: &str, labels: &[(&str, &str)], spec: &Value) -> Value {
    let labels: Value = labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

/// The tries of one address that began at a time or later.
pub(super) fn of(tries: &[Try], target: SocketAddr, since: u64) -> impl Iterator<Item = &Try> {
    tries.iter().filter(move |one| one.target == target && one.begun >= since)
}

/// Whether a packet has come there and another back.
pub(super) fn has_passed(one: &Try) -> bool {
    matches!(one.outcome, Outcome::Answered | Outcome::Connected)
}
