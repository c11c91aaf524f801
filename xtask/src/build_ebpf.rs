//! `cargo xtask build-ebpf`: the BPF programs, from source to `target/portcullis-ebpf.o`.
//!
//! Only a stable toolchain is asked for. `RUSTC_BOOTSTRAP` admits `-Zbuild-std`, which builds `core` for a target that
//! rustup has no binaries for; bpf-linker turns LLVM's bitcode into one BPF object with BTF.

mod toolchain;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::{self, Metadata};

const PACKAGE: &str = "portcullis-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// The object's name in the target directory; the agent's build script knows it too.
const OBJECT: &str = "portcullis-ebpf.o";

/// The name of the section with type information, as it stands in the table of section names.
const BTF: &[u8] = b".BTF\0";

/// Installs what is missing, builds, and puts the object in its place.
pub(crate) fn run() -> Result<()> {
    toolchain::ensure()?;
    let target = Metadata::read()?.target_directory()?;
    build(&target.join("bpf")).context("cannot build the BPF programs")?;

    let built = target.join("bpf").join(TARGET).join("release").join(PACKAGE);
    let object = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    check(&object).with_context(|| format!("{} is not what the agent can load", built.display()))?;
    let place = target.join(OBJECT);
    let written = write_if_changed(&place, &object).with_context(|| format!("cannot write {}", place.display()))?;
    let state = if written { "written" } else { "unchanged" };
    eprintln!("{}: {state}, {} bytes", place.display(), object.len());
    Ok(())
}

fn build(target_directory: &Path) -> Result<()> {
    let architecture = std::env::consts::ARCH;
    // Cargo's own target directory for these programs: another target, and flags that would make it rebuild all else.
    let mut flags = vec![
        // What aya-ebpf's bindings are chosen by; otherwise they guess it for every crate that uses them. They differ in the
        // registers that a kprobe sees, which nothing here asks for: the object serves machines of every architecture.
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    flags.extend(workspace::placeless()?);
    let mut command = workspace::cargo();
    command
        .args(["build", "--package", PACKAGE, "--bins", "--release", "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(target_directory)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    // clippy and other tools that run us set these to wrap the host's compiler.
    for wrapper in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env_remove(wrapper);
    }
    process::run(&mut command)
}

/// An ELF relocatable for little-endian BPF that carries BTF.
fn check(object: &[u8]) -> Result<()> {
    // e_ident's class and data, e_type and e_machine of the ELF header: 64 bits, little endian, ET_REL, EM_BPF.
    let header = (object.get(..6), object.get(16..20));
    if header != (Some(b"\x7fELF\x02\x01".as_slice()), Some([1, 0, 247, 0].as_slice())) {
        bail!("it is no ELF object for little-endian BPF");
    }
    // The section's name in the string table; a parser for one name would be more than it is worth.
    if !object.windows(BTF.len()).any(|name| name == BTF) {
        bail!("it has no BTF, which map definitions and programs on newer hooks need");
    }
    Ok(())
}

/// Writes by rename, so that no reader ever sees half an object; leaves an equal file, and its time, alone.
///
/// The time matters: cargo would build the agent anew for a file that is newer than its last build.
fn write_if_changed(place: &Path, content: &[u8]) -> Result<bool> {
    match fs::read(place) {
        Ok(present) if present == content => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let draft = place.with_extension(format!("o.{}", std::process::id()));
    fs::write(&draft, content)?;
    if let Err(error) = fs::rename(&draft, place) {
        let _ = fs::remove_file(&draft);
        return Err(error.into());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(machine: u8) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        header.extend([1, 0, machine, 0]);
        header
    }

    #[test]
    fn only_a_bpf_object_with_btf_is_taken() {
        let whole = [header(247), b"\0.text\0.BTF\0".to_vec()].concat();
        let without_btf = [header(247), b"\0.text\0.BTF.ext\0".to_vec()].concat();
        let host = [header(62), b"\0.BTF\0".to_vec()].concat();
        let rows = [(whole, true, "BPF and BTF"), (without_btf, false, "no BTF"), (host, false, "x86-64")];
        for (object, expected, message) in rows {
            assert_eq!(check(&object).is_ok(), expected, "{message}");
        }
        assert!(check(b"").is_err(), "an empty file");
    }

    #[test]
    fn an_equal_object_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("object.o");
        let modified = || fs::metadata(&place).and_then(|data| data.modified()).expect("its time");
        assert!(write_if_changed(&place, b"one").expect("first write"), "a new file is written");
        let first = modified();
        assert!(!write_if_changed(&place, b"one").expect("same content"), "an equal file is not written");
        assert_eq!(modified(), first, "an equal file keeps its time");
        assert!(write_if_changed(&place, b"two").expect("other content"), "another content is written");
        assert_eq!(fs::read(&place).expect("content"), b"two");
        assert_eq!(fs::read_dir(folder.path()).expect("listing").count(), 1, "no draft is left behind");
    }
}
