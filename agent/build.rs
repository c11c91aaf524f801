//! Embeds the BPF object that `cargo xtask build-ebpf` leaves in the target directory.
//!
//! The object is copied to `OUT_DIR`, so that `concat!(env!("OUT_DIR"), "/portcullis-ebpf.o")` names it wherever the
//! target directory is. Where it has not been built, an empty file takes its place: checking, linting and every test
//! that loads no program work without a BPF toolchain, and the agent can say at run time what is missing.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const OBJECT: &str = "portcullis-ebpf.o";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let place = find_target_directory(&out)?.join(OBJECT);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", place.display());
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");

    ensure_present(&place).map_err(|error| format!("cannot write {}: {error}", place.display()))?;
    let object = fs::read(&place).map_err(|error| format!("cannot read {}: {error}", place.display()))?;
    if object.is_empty() {
        println!(
            "cargo::warning=the BPF programs are not built, so this agent enforces nothing: run `cargo xtask build-ebpf` first"
        );
    }
    fs::write(out.join(OBJECT), object)?;
    Ok(())
}

/// The target directory, of which `OUT_DIR` is a part whether it was set by flag, variable or configuration:
/// `target[/triple]/profile/build/package/out`. Where cargo's build directory is another, only the variable and the
/// default are left.
fn find_target_directory(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let triple = env::var_os("TARGET").ok_or("TARGET is not set")?;
    let around = out
        .ancestors()
        .nth(4)
        .and_then(|folder| if folder.ends_with(&triple) { folder.parent() } else { Some(folder) });
    let marked = around.filter(|folder| folder.join("CACHEDIR.TAG").exists());
    // `--target-dir` for the agent alone leaves the object where `cargo xtask build-ebpf` has put it.
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let workspace = package.parent().ok_or("the agent has no workspace around it")?;
    let named = env::var_os("CARGO_TARGET_DIR").map(|named| workspace.join(named));
    let candidates: Vec<PathBuf> =
        [marked.map(Path::to_owned), named, Some(workspace.join("target"))].into_iter().flatten().collect();
    let built = candidates.iter().find(|folder| fs::metadata(folder.join(OBJECT)).is_ok_and(|data| data.len() > 0));
    built.or(candidates.first()).cloned().ok_or_else(|| "there is no target directory".into())
}

/// Puts an empty object where there is none. Without a file to watch, cargo would build the agent anew each time; and
/// watching an old one, it does so once the real object arrives.
fn ensure_present(place: &Path) -> std::io::Result<()> {
    match File::create_new(place) {
        Ok(file) => file.set_modified(SystemTime::UNIX_EPOCH),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
