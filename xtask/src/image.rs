//! `cargo xtask image`: the agent as a container image, made without a container engine.
//!
//! The image is the agent's program and nothing else: for release it is linked statically, and in a cluster it
//! finds the API server by address and trusts it by the service account's own certificate.

pub(crate) mod archive;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::workspace::{self, Metadata};
use crate::{build_ebpf, process};
use archive::{Image, Tree};

/// What an image is called unless its name is given.
pub(crate) const TAG: &str = "portcullis:dev";

/// What to build.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the archive goes: what `ctr images import` and `docker load` take
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What the image is called
    #[arg(long, default_value = TAG)]
    tag: String,
    /// The machines that it is for
    #[arg(long, visible_alias = "arch", value_enum, default_value_t = Architecture::own())]
    architecture: Architecture,
    /// How the agent is built
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
}

/// A processor architecture of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// That of this machine.
    pub(crate) const fn own() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }

    /// As OCI names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As ELF files number it (EM_X86_64, EM_AARCH64).
    const fn machine(self) -> usize {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// Debian's name of the compiler driver that links for it on another architecture.
    const fn cross_linker(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

/// How the agent is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Quickly, for trying it out on this machine: as `cargo build` does, with the libraries that it is linked with
    Dev,
    /// As it is given away
    #[default]
    Release,
}

/// Builds the agent and writes the image.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let program = build_agent(arguments.architecture, arguments.profile)?;
    write(&program, &arguments.tag, arguments.architecture, &arguments.output)?;
    let size = fs::metadata(&arguments.output)?.len();
    eprintln!(
        "{}: {} for linux/{}, {size} bytes",
        arguments.output.display(),
        arguments.tag,
        arguments.architecture.name()
    );
    Ok(())
}

/// Writes an image of a program with the libraries that it needs, if any.
pub(crate) fn write(program: &Path, tag: &str, architecture: Architecture, output: &Path) -> Result<()> {
    let mut tree = Tree::default();
    tree.copy("portcullis", 0o755, program)?;
    copy_libraries(&mut tree, program)?;
    let image = Image {
        tags: vec![tag.to_owned()],
        architecture: architecture.name(),
        layers: vec![tree.into_layer()?],
        entrypoint: vec!["/portcullis".into()],
        command: vec!["run".into()],
    };
    let file = File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    archive::write(&[image], &mut BufWriter::new(file)).with_context(|| format!("cannot write {}", output.display()))
}

/// Puts what a program is linked with into the places where it looks for it. A static program has nothing of the kind.
pub(crate) fn copy_libraries(tree: &mut Tree, program: &Path) -> Result<()> {
    // It fails for static programs, and for what is none.
    let Ok(listed) = process::output_of(Command::new("ldd").arg(program)) else { return Ok(()) };
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        tree.copy(library, 0o755, Path::new(library))?;
    }
    Ok(())
}

/// Builds the agent and returns where it is. For release it needs no libraries.
pub(crate) fn build_agent(architecture: Architecture, profile: Profile) -> Result<PathBuf> {
    ensure_target(architecture)?;
    build_ebpf::run()?;
    let folder = Metadata::read()?.target_directory()?;
    if profile == Profile::Dev && architecture == Architecture::own() {
        return build_dev(&[]);
    }
    let target = architecture.target();
    // With the target named, even if it is this machine's, the flags concern neither build scripts nor macros, which
    // could not be loaded as static programs.
    let mut command = workspace::cargo();
    command.args(["build", "--package", "portcullis", "--bin", "portcullis", "--target", target]);
    let built = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            command.arg("--release");
            "release"
        }
    };
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Cstrip=debuginfo".to_owned()];
    flags.extend(workspace::placeless()?);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if architecture != Architecture::own() {
        let variable = target.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{variable}_LINKER"), architecture.cross_linker());
        // What crates written in C are compiled by.
        command.env(format!("CC_{}", target.replace('-', "_")), architecture.cross_linker());
    }
    process::run(&mut command).context("cannot build the agent")?;
    let program = folder.join(target).join(built).join("portcullis");
    check_program(&program, architecture)?;
    Ok(program)
}

/// Builds the agent as `cargo build` does, which most other commands need as well, with further arguments.
pub(crate) fn build_dev(arguments: &[&str]) -> Result<PathBuf> {
    build_ebpf::run()?;
    process::run(workspace::cargo().args(["build", "--package", "portcullis", "--bin", "portcullis"]).args(arguments))
        .context("cannot build the agent")?;
    Ok(Metadata::read()?.target_directory()?.join("debug/portcullis"))
}

/// Fails with one line unless the toolchain can build for the architecture.
fn ensure_target(architecture: Architecture) -> Result<()> {
    if architecture == Architecture::own() {
        return Ok(());
    }
    let (name, target, linker) = (architecture.name(), architecture.target(), architecture.cross_linker());
    let installed = process::output_of(Command::new("rustc").args(["--print", "target-libdir", "--target", target]));
    let has_target = installed.is_ok_and(|folder| Path::new(&folder).exists());
    if !has_target || !process::succeeds(Command::new(linker).arg("--version")) {
        bail!(
            "this toolchain cannot build for {name}: it needs `rustup target add {target}` and {linker} (Debian's \
             package gcc-{})",
            linker.trim_end_matches("-gcc").replace('_', "-")
        );
    }
    Ok(())
}

/// A program of another architecture would not start, nor one that asks for an interpreter from an image without libraries.
fn check_program(program: &Path, architecture: Architecture) -> Result<()> {
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // e_machine of the ELF header.
    if number(&content, 18, 2) != Some(architecture.machine()) {
        bail!("{} is not for {}", program.display(), architecture.name());
    }
    if has_interpreter(&content) {
        bail!("{} is linked with libraries, which the image does not have", program.display());
    }
    Ok(())
}

/// Whether a little-endian ELF file of 64 bits has a program header PT_INTERP. A static program that can be loaded
/// anywhere (static-pie) has none, though it is a shared object by its type.
fn has_interpreter(content: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    let number = |at, bytes| number(content, at, bytes);
    // e_phoff, e_phentsize and e_phnum of the ELF header.
    let (Some(offset), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    (0..count).any(|index| number(offset + index * size, 4) == Some(PT_INTERP))
}

/// A little-endian number at a place of a file.
fn number(content: &[u8], at: usize, bytes: usize) -> Option<usize> {
    let field = content.get(at..at + bytes)?;
    Some(field.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_told_from_a_static_one() {
        let own = fs::read("/proc/self/exe").expect("this test's own program");
        assert!(has_interpreter(&own), "tests are linked with the C library");
        assert!(!has_interpreter(b"\x7fELF"), "a file that ends early");
        assert!(!has_interpreter(b""), "an empty file");
    }

    #[test]
    fn a_program_for_another_machine_is_refused() {
        let own = Path::new("/proc/self/exe");
        let other = if Architecture::own() == Architecture::Amd64 { Architecture::Arm64 } else { Architecture::Amd64 };
        let error = check_program(own, other).expect_err("another machine's").to_string();
        assert!(error.contains(&format!("is not for {}", other.name())), "{error}");
        let error = check_program(own, Architecture::own()).expect_err("a program with libraries").to_string();
        assert!(error.contains("linked with libraries"), "{error}");
    }

    #[test]
    fn an_image_can_be_written_for_either_architecture() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let program = folder.path().join("portcullis");
        fs::write(&program, "not much of a program").expect("a file");
        let mut sizes = Vec::new();
        for architecture in [Architecture::Amd64, Architecture::Arm64] {
            let output = folder.path().join(architecture.name());
            write(&program, TAG, architecture, &output).expect("an image");
            let text = String::from_utf8_lossy(&fs::read(&output).expect("the archive")).into_owned();
            assert!(text.contains(&format!("\"architecture\":\"{}\"", architecture.name())), "{architecture:?}");
            sizes.push(text.len());
        }
        assert_eq!(sizes[0], sizes[1], "nothing else differs");
    }
}
