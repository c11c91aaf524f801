use super::*;

fn objections(path: &str, text: &str) -> Vec<String> {
    let violations = check_file(Path::new(path), text).expect("the text parses");
    violations.iter().map(ToString::to_string).collect()
}

#[test]
fn each_wall_is_kept() {
    let rows = [
        // Runtime, files, sockets and clocks in pure rooms.
        ("model.rs", "use tokio::sync::mpsc;", "an import of a runtime"),
        ("convert/calico.rs", "fn f() { let _ = std::fs::read(\"x\"); }", "a file, by its whole path"),
        ("index.rs", "use std::{fs, collections::HashMap};", "a file, in a group"),
        ("index.rs", "use std::time::{self as clock}; fn f() { clock::Instant::now(); }", "a clock, renamed"),
        ("index.rs", "mod a { fn f() { time::SystemTime::now(); } } use std::time;", "a clock, imported elsewhere"),
        ("evaluate.rs", "use std::time::*;", "a clock, by glob"),
        ("compile.rs", "fn f(_: Vec<Option<std::net::TcpStream>>) {}", "a socket, deep in a type"),
        ("compile.rs", "use ::std::net::UdpSocket;", "a socket, with leading colons"),
        ("state.rs", "#[cfg(test)] mod tests { use std::fs::File; }", "a file in the room's own tests"),
        ("state.rs", "#[tokio::test] async fn f() {}", "a runtime, in an attribute"),
        ("state.rs", "fn f() { println!(\"{:?}\", std::fs::read_dir(\"/\")); }", "a file, in a macro's arguments"),
        ("state.rs", "fn f() { m! { { use std::fs; } } }", "a file, imported in a macro's arguments"),
        ("state.rs", "extern crate tokio as t;", "a runtime, as an extern crate"),
        // The doors' libraries, in pure rooms and in other doors.
        ("model.rs", "use kube::Client;", "kube in a pure room"),
        ("manifests.rs", "use kube_runtime::watcher;", "kube's sister in another door"),
        ("app.rs", "use aya::maps::Array;", "aya outside of dataplane"),
        ("metrics.rs", "use aya_obj::Object;", "aya's sister"),
        ("dataplane.rs", "use rtnetlink::Handle;", "rtnetlink outside of netlink"),
        ("dataplane/attach.rs", "use netlink_packet_route::link::LinkMessage;", "netlink's packets outside of it"),
        ("app.rs", "use inotify::Inotify;", "inotify outside of manifests"),
        ("convert.rs", "fn f() { serde_saphyr::from_str::<u8>(\"1\"); }", "YAML outside of manifests"),
        ("app.rs", "use walkdir::WalkDir;", "walkdir outside of manifests"),
        ("metrics.rs", "use axum::Router;", "axum outside of server"),
        ("server.rs", "use prometheus_client::registry::Registry;", "metrics' library in server"),
        ("app.rs", "#[derive(clap::Parser)] struct A;", "clap outside of cli"),
        ("lib.rs", "use aya::Ebpf;", "a door's library in the crate's root"),
        // The compiler and its judge.
        ("evaluate.rs", "use crate::compile::Tables;", "the judge imports the compiler"),
        ("evaluate/rules.rs", "fn f() { super::super::compile::run(); }", "the same by way of super"),
        ("evaluate.rs", "mod a { use super::super::compile; }", "the same from an inline module"),
        ("evaluate.rs", "use portcullis::compile;", "the same by the crate's name"),
        ("compile.rs", "#[cfg(test)] mod tests { fn f() { crate::evaluate::judge(); } }", "the other way, in tests"),
        // Pure rooms and the rooms around them.
        ("model.rs", "use crate::dataplane::Kernel;", "a pure room imports a door"),
        ("state.rs", "use crate::{app, model::Tier};", "a pure room imports what joins the doors"),
    ];
    for (file, text, message) in rows {
        let found = objections(&format!("agent/src/{file}"), text);
        assert_eq!(found.len(), 1, "{message}: {text}\n{found:#?}");
        assert!(found[0].starts_with(&format!("agent/src/{file}:1: ")), "{message}: {found:?}");
    }
}

#[test]
fn what_is_allowed_passes() {
    let rows = [
        ("model.rs", "use std::{net::IpAddr, time::Duration, collections::*}; use thiserror::Error;", "plain values"),
        ("model.rs", "/// Like `std::fs` and tokio::sync.\nfn f() {}", "words in a comment"),
        ("model.rs", "fn f(kube: u8, clap: u8) -> u8 { kube + clap }", "variables named like crates"),
        ("model.rs", "fn f() { let _ = \"std::fs\"; }", "a string"),
        ("convert.rs", "use crate::model::Tier; use k8s_openapi::api::core::v1::Pod;", "words of the API"),
        ("dataplane/maps.rs", "use aya::maps::HashMap; use aya_obj::Object; use std::fs;", "a door and its library"),
        ("netlink.rs", "use rtnetlink::Handle; use netlink_packet_route::AddressFamily;", "a door and its libraries"),
        ("app.rs", "use crate::netlink::Links; use tokio::time::Instant;", "a room named like a library"),
        ("cli/explain.rs", "use crate::{compile, evaluate}; use clap::Args;", "who may know both"),
        ("main.rs", "use clap::Parser; use portcullis::cli;", "the binary"),
        ("evaluate.rs", "fn compile() {} fn f() { compile() }", "a function named like a room"),
        ("evaluate.rs", "mod compile {} mod a { use super::compile; }", "an inner module, from another inner one"),
        ("state.rs", "mod compile { fn f() {} } fn g() { self::compile::f() }", "an inner module named like a room"),
    ];
    for (file, text, message) in rows {
        let found = objections(&format!("agent/src/{file}"), text);
        assert!(found.is_empty(), "{message}: {text}\n{found:#?}");
    }
}

#[test]
fn common_is_pure_and_needs_no_std() {
    let rows = [
        ("lib.rs", "pub mod decide;", 1, "no_std is missing"),
        ("lib.rs", "#![no_std]\npub mod decide;", 0, "no_std is there"),
        ("lib.rs", "#![cfg_attr(not(test), no_std)]", 0, "no_std but in tests"),
        ("lib.rs", "#![cfg_attr(feature = \"std\", no_std)]", 1, "no_std on another condition"),
        ("decide.rs", "use aya_ebpf::maps::Array;", 1, "the BPF side's library belongs to the programs"),
        ("decide.rs", "use std::time::Instant;", 1, "a clock"),
        ("decide/tests.rs", "use std::vec::Vec; use proptest::prelude::*;", 0, "tests have a standard library"),
    ];
    for (file, text, expected, message) in rows {
        let found = objections(&format!("common/src/{file}"), text);
        assert_eq!(found.len(), expected, "{message}: {found:#?}");
    }
}

#[test]
fn a_violation_names_file_line_room_and_rule() {
    let text = "//! Judge.\n\nuse std::net::IpAddr;\nuse crate::compile::Tables;\n";
    let found = objections("agent/src/evaluate/judge.rs", text);
    let expected = "agent/src/evaluate/judge.rs:4: `evaluate` mentions `crate::compile::Tables`: the compiler and its \
                    judge share no code";
    assert_eq!(found, [expected]);
}

#[test]
fn this_repository_is_read() {
    let (files, _) = check(workspace::root()).expect("the repository can be read");
    assert!(files >= 3, "only {files} files");
}
