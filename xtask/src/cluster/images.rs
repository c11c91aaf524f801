//! The images that tests use in pods, made of static programs alone: what upstream's own tests use, under its names.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::binaries;
use crate::image::Architecture;
use crate::image::archive::{self, Image, Tree};
use crate::process;

/// What keeps the namespaces of a pod.
pub(super) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// Upstream's test program: servers, clients and `pause`.
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// A shell with the usual tools.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";

const SHELL: &str = "/bin/busybox";

/// Makes the archive beside the programs unless it is there.
pub(super) fn ensure(folder: &Path) -> Result<PathBuf> {
    let place = folder.join("images.tar");
    if place.exists() {
        return Ok(place);
    }
    let pause = build_pause(folder)?;
    let draft = folder.join(format!("images.tar.{}", std::process::id()));
    let made = write(folder, &pause, &draft).and_then(|()| Ok(fs::rename(&draft, &place)?));
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    made.context("cannot make the test images")?;
    Ok(place)
}

fn write(programs: &Path, pause: &Path, to: &Path) -> Result<()> {
    let base = base()?.into_layer()?;
    let mut agnhost = Tree::default();
    agnhost.copy("agnhost", 0o755, &programs.join("agnhost"))?.folder("uploads", 0o755);
    let agnhost = agnhost.into_layer()?;
    let mut sandbox = Tree::default();
    sandbox.copy("pause", 0o755, pause)?;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let image = |tag: &str, layers, entrypoint: &[&str], command: &[&str]| Image {
        tags: vec![tag.to_owned()],
        architecture: Architecture::own().name(),
        layers,
        entrypoint: words(entrypoint),
        command: words(command),
    };
    let images = [
        image(PAUSE, vec![sandbox.into_layer()?], &["/pause"], &[]),
        image(AGNHOST, vec![base.clone(), agnhost], &["/agnhost"], &["pause"]),
        image(BUSYBOX, vec![base], &[], &["sh"]),
    ];
    archive::write(&images, &mut BufWriter::new(File::create(to)?))
}

/// A shell with its tools, and the files by which programs know users and hosts.
pub(crate) fn base() -> Result<Tree> {
    let mut tree = Tree::default();
    tree.copy("bin/busybox", 0o755, Path::new(SHELL))?;
    let applets = process::output_of(Command::new(SHELL).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        tree.link(&format!("bin/{applet}"), "busybox");
    }
    tree.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        .file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")
        .file("etc/nsswitch.conf", 0o644, "hosts: files dns\n")
        .folder("tmp", 0o1777)
        .folder("root", 0o700)
        .folder("var/run", 0o755);
    Ok(tree)
}

/// Kubernetes' own program, which is in C.
fn build_pause(folder: &Path) -> Result<PathBuf> {
    let place = folder.join("pause");
    if !place.exists() {
        let source = binaries::source("build/pause/linux/pause.c")?;
        process::run_silently(
            Command::new("cc").args(["-Os", "-static", "-s", "-DVERSION=3.10.2", "-o"]).arg(&place).arg(source),
        )?;
    }
    Ok(place)
}
