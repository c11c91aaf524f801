//! The walls: what each room may not mention.

use syn::{File, Meta};

use super::Place;
use super::mentions::Mention;

/// Rooms that compute: values in, values out.
const PURE: [&str; 7] = ["model", "convert", "index", "evaluate", "flows", "compile", "state"];

/// Rooms that reach the world or join others; a pure room knows none of them.
const OUTER: [&str; 9] = ["k8s", "manifests", "netlink", "dataplane", "server", "metrics", "cli", "reconcile", "app"];

/// What pure rooms and `common` may not mention beside the doors' libraries: files, sockets, clocks, processes.
const IMPURE: [&[&str]; 19] = [
    &["tokio"],
    &["futures"],
    &["libc"],
    &["nix"],
    &["std", "fs"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "io", "stdin"],
    &["std", "io", "stdout"],
    &["std", "io", "stderr"],
    &["std", "os", "unix", "net"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
    &["std", "net", "ToSocketAddrs"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["std", "time", "UNIX_EPOCH"],
];

/// Each library with a door of its own, by the start of its crate names, and the only rooms that may mention it.
const DOORS: [(&str, &[&str]); 14] = [
    ("aya", &["dataplane"]),
    ("rtnetlink", &["netlink"]),
    ("netlink_", &["netlink"]),
    ("kube", &["k8s"]),
    ("inotify", &["manifests"]),
    ("walkdir", &["manifests"]),
    ("serde_saphyr", &["manifests", "cli"]),
    ("axum", &["server"]),
    ("hyper", &["server"]),
    ("tower", &["server"]),
    ("prometheus_client", &["metrics"]),
    ("clap", &["cli", MAIN]),
    ("comfy_table", &["cli"]),
    ("tracing_subscriber", &["logging"]),
];

/// What the rules call `main.rs` and `lib.rs`, which are in no room.
const MAIN: &str = "the crate's root";

/// Two rooms that must not know each other: the evaluator judges what the compiler makes, so they share nothing.
const STRANGERS: [(&str, &str); 2] = [("evaluate", "compile"), ("compile", "evaluate")];

/// What is wrong with this mention at this place, if anything is.
pub(super) fn objection(place: &Place, mention: &Mention) -> Option<String> {
    let room = if place.in_common { "common" } else { place.room().unwrap_or(MAIN) };
    let is_pure = place.in_common || PURE.contains(&room);
    let shown = format!("{}{}", mention.path.join("::"), if mention.is_glob { "::*" } else { "" });
    if let Some(other) = mentioned_room(mention) {
        if STRANGERS.contains(&(room, other)) {
            return Some(format!("`{room}` mentions `{shown}`: the compiler and its judge share no code"));
        }
        if is_pure && !place.in_common && OUTER.contains(&other) {
            return Some(format!("`{room}` mentions `{shown}`: a pure room knows no door and nothing that joins them"));
        }
        return None;
    }
    if let Some((library, homes)) = door(mention) {
        if homes.contains(&room) {
            return None;
        }
        return Some(format!("`{room}` mentions `{shown}`: only {} may use {library}", homes.join(" and ")));
    }
    if is_pure && IMPURE.iter().any(|forbidden| concerns(mention, forbidden)) {
        return Some(format!("`{room}` mentions `{shown}`: a pure room has no files, sockets, clocks or runtime"));
    }
    None
}

/// Whether the crate is built without the standard library outside of its tests.
pub(super) fn declares_no_std(file: &File) -> bool {
    file.attrs.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("no_std"),
        Meta::List(list) if list.path.is_ident("cfg_attr") => {
            list.tokens.to_string().replace(' ', "") == "not(test),no_std"
        }
        _ => false,
    })
}

fn mentioned_room(mention: &Mention) -> Option<&str> {
    match mention.path.as_slice() {
        [root, room, ..] if root == "crate" => Some(room),
        _ => None,
    }
}

fn door(mention: &Mention) -> Option<(&'static str, &'static [&'static str])> {
    let krate = mention.path.first()?;
    let found = DOORS.iter().find(|(name, _)| match name.strip_suffix('_') {
        Some(_) => krate.starts_with(name),
        // `kube` has sister crates, as `kube_runtime`; `aya` has `aya_obj`.
        None => krate == name || krate.strip_prefix(name).is_some_and(|rest| rest.starts_with('_')),
    });
    found.copied()
}

/// Whether a mention is of the forbidden path, of something in it, or of everything in a part that holds it.
fn concerns(mention: &Mention, forbidden: &[&str]) -> bool {
    let covers = |long: usize| mention.path.iter().zip(forbidden).take(long).all(|(have, want)| have == want);
    if mention.path.len() >= forbidden.len() {
        return covers(forbidden.len());
    }
    mention.is_glob && covers(mention.path.len())
}
