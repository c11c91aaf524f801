use std::ffi::{OsStr, OsString};

use super::{CommandLineError, Environment, LogFormat, is_plugin, parse};
use crate::logging::Form;

fn answer(line: &str) -> String {
    let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    match parse(&arguments, &Environment::new()) {
        Err(CommandLineError::Usage(error)) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn help_names_the_variables_and_defaults() {
    let help = answer("portcullis run --help");
    for expected in
        ["[env: PORTCULLIS_MAX_ENDPOINTS]", "[default: 256]", "--allow-tunnels[=<true|false>]", "--log-level"]
    {
        assert!(help.contains(expected), "{expected} is not in\n{help}");
    }
    assert!(help.contains("Usage: portcullis run"), "{help}");
}

#[test]
fn a_plugin_of_kubectl_calls_itself_so() {
    for (name, expected) in [
        ("kubectl-portcullis", true),
        ("kubectl-portcullis.exe", true),
        ("portcullis", false),
        ("kubectl", false),
        ("my-kubectl-portcullis", false),
    ] {
        assert_eq!(is_plugin(Some(OsStr::new(name))), expected, "{name}");
    }
    assert!(!is_plugin(None), "a program without a name");
    let help = answer("/usr/local/bin/kubectl-portcullis explain --help");
    assert!(help.contains("Usage: kubectl portcullis explain"), "{help}");
    let error = answer("kubectl-portcullis explian");
    assert!(error.contains("Usage: kubectl portcullis"), "{error}");
    assert!(answer("kubectl-portcullis --help").contains("Usage: kubectl portcullis"), "at the top");
}

#[test]
fn logs_are_json_where_nobody_watches_an_agent() {
    let rows = [
        (LogFormat::Auto, true, true, Form::Text, "an agent in a terminal"),
        (LogFormat::Auto, true, false, Form::Json, "an agent whose log is collected"),
        (LogFormat::Auto, false, false, Form::Text, "a command in a pipe"),
        (LogFormat::Text, true, false, Form::Text, "as asked"),
        (LogFormat::Json, false, true, Form::Json, "as asked"),
    ];
    for (format, serves, watched, expected, message) in rows {
        assert_eq!(format.form(serves, watched), expected, "{message}");
    }
}
