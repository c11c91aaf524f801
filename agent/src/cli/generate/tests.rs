use clap_complete::Shell;

use super::{CompletionsArgs, ManArgs, write_completions, write_manual};

#[test]
fn completions_know_commands_options_and_values() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut out = Vec::new();
        write_completions(&CompletionsArgs { shell }, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for word in ["uninstall", "max-endpoints", "clsact", "explain"] {
            assert!(text.contains(word), "{shell}: {word} is not completed");
        }
    }
}

#[test]
fn completions_of_bash_are_understood_by_bash() {
    let mut script = Vec::new();
    write_completions(&CompletionsArgs { shell: Shell::Bash }, &mut script).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portcullis.bash");
    std::fs::write(&path, script).unwrap();
    // What bash offers after `portcullis expl`: the generated function fills COMPREPLY.
    let ask = format!(
        "source {} && COMP_WORDS=(portcullis expl) COMP_CWORD=1 && _portcullis portcullis expl portcullis && \
         echo \"${{COMPREPLY[@]}}\"",
        path.display()
    );
    let output = std::process::Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "explain\n", "{output:?}");
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let mut out = Vec::new();
    write_manual(&ManArgs { dir: None }, &mut out).unwrap();
    let page = String::from_utf8(out).unwrap();
    assert!(page.starts_with(".ie") && page.contains(".TH portcullis 1"), "{page}");

    let directory = tempfile::tempdir().unwrap();
    write_manual(&ManArgs { dir: Some(directory.path().to_owned()) }, &mut Vec::new()).unwrap();
    let page = std::fs::read_to_string(directory.path().join("portcullis-run.1")).unwrap();
    assert!(page.contains("max\\-endpoints") && page.contains("PORTCULLIS_MAX_ENDPOINTS"), "{page}");
    for command in ["status", "explain", "matrix", "uninstall", "completions", "man"] {
        assert!(directory.path().join(format!("portcullis-{command}.1")).exists(), "{command} has no page");
    }
    let missing = directory.path().join("missing");
    let error = write_manual(&ManArgs { dir: Some(missing) }, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}
