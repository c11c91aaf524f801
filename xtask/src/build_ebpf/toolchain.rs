//! What building the BPF programs needs beyond a stable toolchain: the source of `core`, and bpf-linker.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;
use crate::{apt, process};

/// The LLVM that bpf-linker is built against. It must not be older than rustc's own, or it cannot read its bitcode;
/// rustc 1.95 has LLVM 22.
const LLVM: u32 = 22;

/// The bpf-linker that the programs are tested with; an older one may not know this LLVM at all.
const LINKER: Version = (0, 13);

type Version = (u32, u32);

/// Finds out what is missing and installs it, or says what to install.
pub(crate) fn ensure() -> Result<()> {
    ensure_rust_src()?;
    ensure_linker()
}

fn ensure_rust_src() -> Result<()> {
    let sysroot = process::output_of(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
        return Ok(());
    }
    if !process::succeeds(Command::new("rustup").arg("--version")) {
        bail!("the source of Rust's `core` is missing in {sysroot}: install the rust-src of this toolchain");
    }
    // Never by rust-toolchain.toml: rustup's automatic installation is switched off on some machines. Under cargo,
    // rustup has set RUSTUP_TOOLCHAIN, so the component goes to the toolchain that runs us.
    eprintln!("The source of Rust's `core` is missing: adding the component rust-src");
    process::run(Command::new("rustup").args(["component", "add", "rust-src"]))
        .context("cannot add the component: try `rustup component add rust-src` by hand")
}

fn ensure_linker() -> Result<()> {
    let llvm = rustc_llvm()?;
    if linker_is_good()? {
        if llvm > LLVM {
            eprintln!(
                "note: this rustc has LLVM {llvm}; a bpf-linker built against an older one cannot read its bitcode"
            );
        }
        return Ok(());
    }
    if llvm > LLVM {
        bail!(
            "this rustc has LLVM {llvm}, newer than the LLVM {LLVM} that bpf-linker is built against here: use Rust 1.95 \
             (`rustup toolchain install 1.95`, then `cargo +1.95 xtask build-ebpf`), or install a newer bpf-linker"
        );
    }
    eprintln!("bpf-linker {}.{} is missing: building it takes a few minutes, once", LINKER.0, LINKER.1);
    let [dev, polly] = [format!("llvm-{LLVM}-dev"), format!("libpolly-{LLVM}-dev")];
    apt::ensure(&[&dev, &polly, "g++", "zlib1g-dev", "libzstd-dev", "libxml2-dev"], "building bpf-linker")?;
    // A linker kept from an earlier installation may only have missed LLVM's shared library.
    if linker_is_good()? {
        return Ok(());
    }
    let mut install = workspace::cargo();
    install
        .args(["install", "bpf-linker", "--locked", "--force", "--version"])
        .arg(format!("^{}.{}", LINKER.0, LINKER.1))
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{LLVM}"))
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
        // Its release profile keeps full debug information, which nobody here reads.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env_remove("CARGO_TARGET_DIR");
    process::run(&mut install).context("cannot install bpf-linker")?;
    if !linker_is_good()? {
        bail!("bpf-linker was installed but cannot be run by name: put cargo's bin folder (~/.cargo/bin) on PATH");
    }
    Ok(())
}

/// Whether a bpf-linker that is new enough starts. One that does not start is as good as none.
fn linker_is_good() -> Result<bool> {
    let Ok(answer) = process::output_of(Command::new("bpf-linker").arg("--version")) else {
        return Ok(false);
    };
    let version = version(&answer).with_context(|| format!("cannot read bpf-linker's version from `{answer}`"))?;
    if version < LINKER {
        eprintln!("{answer} is too old");
    }
    Ok(version >= LINKER)
}

fn rustc_llvm() -> Result<u32> {
    let about = process::output_of(Command::new("rustc").args(["--version", "--verbose"]))?;
    llvm_of(&about).context("this rustc names no LLVM version, so it cannot build for BPF")
}

fn llvm_of(about: &str) -> Option<u32> {
    let line = about.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// The first two numbers of `bpf-linker 0.13.0`.
fn version(answer: &str) -> Option<Version> {
    let mut numbers = answer.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let rows = [
            ("bpf-linker 0.13.0", Some((0, 13)), true, "as installed"),
            ("bpf-linker 0.9.15", Some((0, 9)), false, "older, though 9 > 1 as a letter"),
            ("bpf-linker 1.0.0-rc1", Some((1, 0)), true, "newer"),
            ("bpf-linker", None, false, "no version"),
        ];
        for (answer, expected, good, message) in rows {
            assert_eq!(version(answer), expected, "{message}");
            assert_eq!(version(answer) >= Some(LINKER), good, "{message}");
        }
    }

    #[test]
    fn the_compilers_llvm_is_read() {
        assert_eq!(llvm_of("rustc 1.95.0\nrelease: 1.95.0\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_of("rustc 1.95.0\n"), None);
    }
}
