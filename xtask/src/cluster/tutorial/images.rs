//! Images of Dgraph and of its client, made of what the demo has built.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use walkdir::{DirEntry, WalkDir};

use super::super::images::base;
use super::PROGRAM;
use crate::image::archive::{self, Image, Tree};
use crate::image::{Architecture, copy_libraries};
use crate::{demo, process, workspace};

const DGRAPH: &str = "dgraph/dgraph:v25.0.0";
const CLIENT: &str = "pydgraph-client:dev";
/// Where the client's packages are in its image.
const PACKAGES: &str = "packages";
/// Parts of Python's library that no client needs, and packages that are not the client's.
const LEFT_OUT: [&str; 7] = ["__pycache__", "test", "idlelib", "tkinter", "ensurepip", "site-packages", "lib2to3"];

/// Asks an interpreter where it is.
const WHERE: &str = "import json, os, sys, sysconfig
print(json.dumps({'program': os.path.realpath(sys.executable), 'library': sysconfig.get_path('stdlib'),
                  'packages': sysconfig.get_path('purelib')}))";

/// Makes the archive unless it is there.
pub(in super::super) fn ensure(dgraph: &Path, python: &Path) -> Result<PathBuf> {
    let folder = workspace::Metadata::read()?.target_directory()?.join("demo");
    let place = folder.join("images.tar");
    if !place.exists() {
        let draft = folder.join(format!("images.tar.{}", std::process::id()));
        write(dgraph, python, &draft).context("cannot make the demo's images")?;
        fs::rename(&draft, &place)?;
    }
    Ok(place)
}

fn write(dgraph: &Path, python: &Path, to: &Path) -> Result<()> {
    let base = base()?.into_layer()?;
    let mut database = Tree::default();
    database.copy("usr/local/bin/dgraph", 0o755, dgraph)?.folder("dgraph", 0o755);
    let image = |tag: &str, layers| Image {
        tags: vec![tag.to_owned()],
        architecture: Architecture::own().name(),
        layers,
        entrypoint: Vec::new(),
        command: Vec::new(),
    };
    let images = [
        image(DGRAPH, vec![base.clone(), database.into_layer()?]),
        image(CLIENT, vec![base, client(python)?.into_layer()?]),
    ];
    archive::write(&images, &mut BufWriter::new(File::create(to)?))
}

/// The interpreter with its library and all that it is linked with, in the places where it looks for them; and the
/// packages.
fn client(python: &Path) -> Result<Tree> {
    let told = process::output_of(Command::new(python).args(["-c", WHERE]))?;
    let told: Value = serde_json::from_str(&told).context("Python does not say where it is")?;
    let path = |name: &str| told[name].as_str().map(PathBuf::from).with_context(|| format!("Python names no {name}"));
    let (program, library, packages) = (path("program")?, path("library")?, path("packages")?);
    let mut tree = Tree::default();
    let mut linked = vec![program.clone()];
    tree.copy(&program.to_string_lossy(), 0o755, &program)?;
    linked.extend(copy_folder(&mut tree, &library, &library.to_string_lossy(), &LEFT_OUT)?);
    linked.extend(copy_folder(&mut tree, &packages, PACKAGES, &LEFT_OUT[..1])?);
    for file in &linked {
        copy_libraries(&mut tree, file)?;
    }
    // A name in the PATH that also says where the packages are.
    let program = program.display();
    tree.file("usr/local/bin/python3", 0o755, format!("#!/bin/sh\nPYTHONPATH=/{PACKAGES} exec {program} -B \"$@\"\n"))
        .file(PROGRAM, 0o644, demo::pydgraph::PROGRAM);
    Ok(tree)
}

/// Copies a folder, and names those of its files that may be linked with libraries.
fn copy_folder(tree: &mut Tree, from: &Path, to: &str, left_out: &[&str]) -> Result<Vec<PathBuf>> {
    let wanted = |entry: &DirEntry| !left_out.iter().any(|name| entry.file_name() == *name);
    let mut linked = Vec::new();
    for entry in WalkDir::new(from).into_iter().filter_entry(wanted) {
        let entry = entry?;
        if !entry.path().is_file() {
            continue;
        }
        let path = entry.path().strip_prefix(from)?;
        tree.copy(&format!("{to}/{}", path.display()), 0o644, entry.path())?;
        if path.to_string_lossy().contains(".so") {
            linked.push(entry.path().to_owned());
        }
    }
    Ok(linked)
}
