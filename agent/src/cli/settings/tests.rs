use std::ffi::OsString;
use std::path::Path;

use proptest::prelude::*;

use super::{Environment, Origin, QUESTIONS, Setting, document};
use crate::cli::command_line::{self, Command, CommandLineError, Invocation};
use crate::cli::generate::described;
use crate::cli::run::{RunArgs, SourceValidation};

/// Names and values of an environment.
type Variables<'a> = &'a [(&'a str, &'a str)];

/// Parses a line with a file of settings and an environment.
fn parse(line: &str, file: &str, environment: Variables<'_>) -> Result<Invocation, CommandLineError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    std::fs::write(&path, file).unwrap();
    let words = std::iter::once("portcullis").chain(line.split_whitespace()).map(OsString::from);
    let config = [OsString::from("--config"), path.into_os_string()];
    let arguments: Vec<OsString> = words.chain(config).collect();
    let environment: Environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    command_line::parse(&arguments, &environment)
}

fn run(line: &str, file: &str, environment: Variables<'_>) -> RunArgs {
    let line = format!("run --manifests d {line}");
    match parse(&line, file, environment).unwrap_or_else(|error| panic!("{line}: {error}")).cli.command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn refusal(line: &str, file: &str, environment: Variables<'_>) -> String {
    parse(&format!("run --manifests d {line}"), file, environment).expect_err("it must be refused").to_string()
}

#[test]
fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
    let variable = [("PORTCULLIS_MAX_ENDPOINTS", "20")];
    let rows: [(&str, &str, Variables<'_>, u32, &str); 7] = [
        ("--max-endpoints 10", "max-endpoints: 30", &variable, 10, "all say something"),
        ("", "max-endpoints: 30", &variable, 20, "the environment and the file"),
        ("", "max-endpoints: 30", &[], 30, "the file alone"),
        ("", "", &[], 256, "nobody"),
        ("--max-endpoints 256", "max-endpoints: 30", &[], 256, "the default, said by a flag, is no default"),
        ("", "max-endpoints: 30", &[("PORTCULLIS_MAX_ENDPOINTS", "")], 30, "an empty variable is not set"),
        ("", "# nothing\n", &variable, 20, "a file without a key"),
    ];
    for (line, file, environment, expected, message) in rows {
        assert_eq!(run(line, file, environment).max_endpoints, expected, "{message}");
    }
}

#[test]
fn every_form_of_value_may_stand_in_the_file_and_in_the_environment() {
    let file = "
        service-cidr: [10.1.0.0/16, 'fd00::/112']
        uplink: eth0
        flow-lifetime: {tcp-established: 5d, udp: 30s}
        source-validation: off
        allow-tunnels: true
        listen: 0.0.0.0:9470
        stamp: mark:16
    ";
    let args = run("", file, &[]);
    assert_eq!(args.service_cidrs.len(), 2, "a list");
    assert_eq!(args.uplinks, ["eth0"], "a list of one, without being one");
    assert_eq!(args.flow_lifetimes.len(), 2, "pairs");
    assert_eq!(args.source_validation, SourceValidation::Off, "a word that YAML 1.1 took for a truth");
    assert!(args.allow_tunnels, "a switch");
    assert_eq!(args.listen.to_string(), "0.0.0.0:9470", "what has a colon");
    let environment = [("PORTCULLIS_SERVICE_CIDR", "10.2.0.0/16, 10.3.0.0/16"), ("PORTCULLIS_ALLOW_TUNNELS", "false")];
    let args = run("", file, &environment);
    assert_eq!(args.service_cidrs, ["10.2.0.0/16".parse().unwrap(), "10.3.0.0/16".parse().unwrap()], "with commas");
    assert!(!args.allow_tunnels, "switched off again");
    assert!(!run("--allow-tunnels=false", file, &[]).allow_tunnels, "by a flag, too");
    assert!(run("--allow-tunnels", "", &[]).allow_tunnels, "a flag alone");
    assert_eq!(run("--service-cidr 10.4.0.0/16", file, &environment).service_cidrs.len(), 1, "a list is taken whole");
    assert_eq!(run("", "max-endpoints: 0x10", &[]).max_endpoints, 16, "a number as YAML writes it");
}

#[test]
fn a_bad_value_names_itself() {
    let rows: [(&str, Variables<'_>, &str); 13] = [
        (
            "\nmax-endpoints: 9999",
            &[],
            "line 2: max-endpoints cannot be \"9999\": 9999 is not in 1..=1024; allowed: 1 to 1024",
        ),
        (
            "",
            &[("PORTCULLIS_MAX_ENDPOINTS", "many")],
            "environment variable PORTCULLIS_MAX_ENDPOINTS: max-endpoints cannot be \"many\"",
        ),
        ("", &[("PORTCULLIS_MAX_ENDPOINTS", "many")], "allowed: 1 to 1024"),
        ("attach: tcx", &[], "line 1: attach cannot be \"tcx\": allowed: auto, clsact"),
        (
            "flow-lifetime: {udp: forever}",
            &[],
            "flow-lifetime cannot be \"udp=forever\": \"forever\" is no length of time",
        ),
        ("service-cidr:\n - 10.0.0.0/8\n - 10.0.0/8", &[], "service-cidr cannot be \"10.0.0/8\""),
        ("service-cidr: 10.0.0/8", &[], "allowed: CIDR"),
        ("listen: [127.0.0.1:1, 127.0.0.1:2]", &[], "line 1: listen has 2 values and takes one"),
        ("max-endpoint: 10", &[], "line 1: \"max-endpoint\" is no setting; the nearest is \"max-endpoints\""),
        ("maxEndpoints: 10", &[], "the nearest is \"max-endpoints\""),
        ("print-config: true", &[], "\"print-config\" is no setting"),
        ("log-level: debgu", &[], "log-level cannot be \"debgu\": \"debgu\" is neither a level"),
        ("", &[("RUST_LOG", "loud")], "environment variable RUST_LOG: log-level cannot be \"loud\""),
    ];
    for (file, environment, expected) in rows {
        let told = refusal("", file, environment);
        assert!(told.contains(expected), "{file:?} {environment:?}: {told}");
    }
    let told = refusal("--max-endpoints 9999", "", &[]);
    assert!(told.contains("--max-endpoints") && told.contains("1..=1024"), "a flag: {told}");
    let told = refusal("--max-endpoints many", "", &[]);
    assert!(told.contains("allowed: 1 to 1024"), "a flag that is no number at all: {told}");
    assert!(refusal("--switch", "", &[]).contains("unexpected argument '--switch'"), "no such flag");
}

#[test]
fn a_bad_file_names_itself() {
    let rows = [
        ("max-endpoints: 1\nmax-endpoints: 2", "line 2", "a key that stands twice"),
        ("max-endpoints:", "there is no value", "a key without a value"),
        ("uplink: []", "the list is empty", "an empty list"),
        ("uplink: [[eth0]]", "config.yaml", "a list in a list"),
        ("- max-endpoints", "config.yaml", "no mapping"),
        ("a: [", "config.yaml", "no YAML"),
    ];
    for (file, expected, message) in rows {
        let told = refusal("", file, &[]);
        assert!(told.contains(expected), "{message}: {told}");
    }
    let missing = ["portcullis", "run", "--manifests", "d", "--config", "/nonexistent/portcullis.yaml"];
    let told = command_line::parse(&missing.map(OsString::from), &Environment::new()).unwrap_err().to_string();
    assert!(told.starts_with("cannot read the settings in /nonexistent/portcullis.yaml: "), "{told}");
    let told = command_line::parse(
        &missing[..4].iter().map(OsString::from).collect::<Vec<_>>(),
        &[("PORTCULLIS_CONFIG".into(), "/nonexistent/other.yaml".into())].into(),
    );
    assert!(told.unwrap_err().to_string().contains("other.yaml"), "named by the environment");
}

#[test]
fn variables_that_are_no_settings_are_told() {
    let environment = [
        ("PORTCULLIS_LISTN", "x"),
        ("PORTCULLIS_METRICS_SERVICE_HOST", "10.0.0.1"),
        ("PORTCULLIS_METRICS_SERVICE_PORT", "9470"),
        ("PORTCULLIS_PORT_9470_TCP_ADDR", "10.0.0.1"),
    ];
    let warnings = parse("run --manifests d", "", &environment).unwrap().warnings;
    let expected = "environment variable PORTCULLIS_LISTN is no setting; the nearest is PORTCULLIS_LISTEN";
    assert_eq!(warnings, [expected], "and what the kubelet sets for a Service is no mistake");
}

#[test]
fn other_commands_share_what_is_not_about_sources() {
    let file = "socket: /run/other.sock\npin-dir: /sys/fs/bpf/other\nmanifests: /elsewhere\nmax-endpoints: 10";
    match parse("status --pin-dir /sys/fs/bpf/flag", file, &[("PORTCULLIS_SOCKET", "/run/env.sock")])
        .unwrap()
        .cli
        .command
    {
        Command::Status(args) => {
            assert_eq!(args.socket, Path::new("/run/env.sock"), "from the environment");
            assert_eq!(args.pin_dir, Path::new("/sys/fs/bpf/flag"), "from the command line");
        }
        other => panic!("{other:?}"),
    }
    match parse("matrix --manifests here", file, &[("PORTCULLIS_MANIFESTS", "elsewhere")]).unwrap().cli.command {
        Command::Matrix(args) => assert_eq!(args.source.manifests.as_deref(), Some(Path::new("here"))),
        other => panic!("{other:?}"),
    }
    match parse("matrix", file, &[("PORTCULLIS_MANIFESTS", "elsewhere")]).unwrap().cli.command {
        Command::Matrix(args) => assert_eq!(args.source.manifests, None, "an agent's source is not the command's"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_printed_is_what_holds_and_can_be_read_again() {
    let file = "max-rules: 100\npod-cidr: [10.1.0.0/24]\nsource-validation: 'off'";
    let environment = [("PORTCULLIS_LISTEN", "[::1]:9470"), ("RUST_LOG", "info,portcullis=debug")];
    let print = |line: &str, file: &str, environment| {
        let mut out = Vec::new();
        parse(&format!("run {line} --print-config"), file, environment).unwrap().effective.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let text = print("--manifests d --allow-tunnels", file, &environment);
    let lines = [
        "manifests: d # flag --manifests",
        "allow-tunnels: true # flag --allow-tunnels",
        "listen: \"[::1]:9470\" # environment variable PORTCULLIS_LISTEN",
        "log-level: \"info,portcullis=debug\" # environment variable RUST_LOG",
        "max-endpoints: 256 # default",
        "source-validation: \"off\" # ",
        "# node-name: not set",
        "# uplink: not set",
        "service-cidr: # default\n  - \"10.96.0.0/12\"\n  - \"10.0.0.0/16\"\n",
    ];
    for line in lines {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(text.contains("config.yaml, line 1\n"), "the file's line:\n{text}");
    assert!(!text.contains("print-config"), "which is no setting");
    let again = print("", &text, &[]);
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split(" # ").next().unwrap_or_default().trim_end_matches(" #").to_owned())
            .collect()
    };
    let without_origins = |text: &str| values(text).join("\n").replace(": # default", ":");
    assert_eq!(without_origins(&again).lines().count(), without_origins(&text).lines().count());
    for (first, second) in values(&text).iter().zip(values(&again)) {
        assert_eq!(first.split('#').next(), second.split('#').next(), "read again, it is the same");
    }
}

#[test]
fn every_setting_has_a_default_a_unit_and_a_meaning() {
    for setting in Setting::all(&described()) {
        let key = setting.key();
        let help =
            setting.0.get_long_help().or_else(|| setting.0.get_help()).map(ToString::to_string).unwrap_or_default();
        assert!(help.len() > 20, "{key} has no description");
        let says_default = ["Default", "Without", "By default", "beside", "instead", "if not", "Needed"]
            .iter()
            .any(|word| help.contains(word));
        let optional = setting.is_list() || setting.0.is_required_set() || says_default;
        assert!(
            !document::defaults(&setting).is_empty() || optional,
            "{key} has no default, and its help does not say what holds then"
        );
        let has_form = setting.form() != setting.id().to_ascii_uppercase();
        assert!(has_form || setting.allowed() != setting.form(), "{key} names neither a unit, a form nor its values");
        assert!(!setting.allowed().is_empty(), "{key} does not say what is allowed");
        assert!(
            !setting.variable().ends_with("_PORT") && !setting.variable().contains("_SERVICE_HOST"),
            "{key}: as the kubelet's"
        );
        assert!(!QUESTIONS.contains(&key), "{key} is asked of one call");
    }
}

#[test]
fn documents_are_as_the_program_is() {
    crate::cli::documents::check("settings.md", &document::markdown());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_file_makes_it_panic(text in "(([a-z-]{1,16}|max-endpoints|uplink|listen): ?[ -~]{0,20}\n){0,4}") {
        drop(parse("run --manifests d", &text, &[]));
    }

    #[test]
    fn what_a_flag_takes_the_file_takes(value in "[ -~]{1,20}") {
        let words = ["portcullis", "run", "--manifests", "d", "--config", "/dev/null"].map(OsString::from);
        let flag = format!("--node-name={value}");
        let by_flag = command_line::parse(&[&words[..], &[flag.into()]].concat(), &Environment::new()).unwrap();
        let file = format!("node-name: {}", serde_json::to_string(&value).unwrap());
        let by_file = parse("run --manifests d", &file, &[]).unwrap();
        let name = |invocation: Invocation| match invocation.cli.command {
            Command::Run(args) => args.node_name,
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(name(by_flag), name(by_file));
    }
}

#[test]
fn origins_in_words() {
    assert_eq!(Origin::Line("/c.yaml".into(), 3).to_string(), "/c.yaml, line 3");
}
