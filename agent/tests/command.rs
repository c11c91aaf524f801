//! The `portcullis` command as it is called: names, exit codes and what goes where.

use std::path::Path;
use std::process::{Command, Output};

fn run(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PORTCULLIS_")) {
        command.env_remove(name);
    }
    // No kubeconfig, and no service account.
    command.args(arguments).env_remove("KUBECONFIG").env_remove("RUST_LOG").env("HOME", "/nonexistent");
    command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap()
}

fn portcullis(arguments: &[&str]) -> Output {
    run(Path::new(env!("CARGO_BIN_EXE_portcullis")), arguments)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn settings_are_printed_and_refused_before_anything_is_done() {
    let printed = portcullis(&["run", "--print-config", "--manifests", "d", "--config", "/dev/null"]);
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    assert!(text(&printed.stdout).contains("manifests: d # flag --manifests\n"), "{}", text(&printed.stdout));
    assert_eq!(text(&printed.stderr), "", "stdout alone");

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "max-rule: 10\n").unwrap();
    let refused = portcullis(&["run", "--print-config", "--config", config.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "an unknown key");
    let expected =
        format!("error: {}, line 1: \"max-rule\" is no setting; the nearest is \"max-rules\"", config.display());
    assert!(text(&refused.stderr).starts_with(&expected), "{}", text(&refused.stderr));
    assert_eq!(text(&refused.stdout), "", "and nothing is printed");
}

#[test]
fn a_question_without_anybody_to_ask_says_what_to_do() {
    let question = ["explain", "--from", "x/a", "--to", "x/b", "--port", "80"];
    let nobody = portcullis(&[&question[..], &["--socket", "/nonexistent/portcullis.sock"]].concat());
    assert_eq!(nobody.status.code(), Some(1), "no answer");
    let told = text(&nobody.stderr);
    assert!(told.contains("--manifests DIR") && told.contains("--kubeconfig FILE"), "{told}");

    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-portcullis");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portcullis"), &plugin).unwrap();
    let told = text(&run(&plugin, &question).stderr);
    assert!(
        told.contains("kubeconfig") && !told.contains("portcullis.sock"),
        "kubectl's plugin asks a cluster: {told}"
    );
    let told = text(&run(&plugin, &["status"]).stderr);
    assert!(told.contains("kubeconfig"), "also for the status: {told}");
    let help = text(&run(&plugin, &["explain", "--help"]).stdout);
    assert!(help.contains("Usage: kubectl portcullis explain"), "{help}");
}

#[test]
fn completions_and_manual_go_to_stdout() {
    for (arguments, expected) in [
        (&["completions", "bash"][..], "_portcullis()"),
        (&["completions", "zsh"], "#compdef portcullis"),
        (&["completions", "fish"], "complete -c portcullis"),
        (&["man"], ".TH portcullis 1"),
    ] {
        let output = portcullis(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains(expected), "{arguments:?}");
    }
    assert_eq!(portcullis(&["completions", "tcsh"]).status.code(), Some(1), "a shell that nobody has heard of");
    assert_eq!(portcullis(&["--help"]).status.code(), Some(0), "help is an answer");
}
