use std::path::Path;

use super::super::problem::{Problem, Severity};
use super::{World, lines};

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n";

/// The errors, or if there are none the warnings, of a file.
fn problems(text: &str) -> Vec<String> {
    let mut world = World::default();
    world.put("f.yaml", text);
    let errors = world.errors();
    if errors.is_empty() { lines(world.store.problems(), Severity::Warning) } else { errors }
}

#[test]
fn every_problem_is_one_line_that_says_where() {
    let rows: &[(&str, String, &[&str])] = &[
        ("a fine policy", format!("{POLICY}spec: {{}}\n"), &[]),
        (
            "no YAML",
            "a: 1\nb: [\n".to_owned(),
            &["f.yaml: document 1: unclosed"],
        ),
        (
            "a field refused by the API, in the second document",
            format!("---\n---\n{POLICY}spec: {{ingress: [{{from: [{{}}]}}]}}\n"),
            &["f.yaml: document 2: NetworkPolicy shop/p: spec.ingress[0].from[0]: a peer must have"],
        ),
        (
            "an unknown field of the spec",
            format!("{POLICY}spec: {{ingress: [{{form: []}}]}}\n"),
            &["f.yaml: document 1: NetworkPolicy shop/p: spec.ingress[0].form: unknown field"],
        ),
        (
            "an unknown field of a selector",
            format!("{POLICY}spec: {{podSelector: {{matchLables: {{a: b}}}}}}\n"),
            &["f.yaml: document 1: NetworkPolicy shop/p: spec.podSelector.matchLables: unknown field"],
        ),
        ("an unknown field elsewhere", format!("{POLICY}spec: {{}}\nstate: {{}}\n").replace("name: p", "name: p, x: y"), &[]),
        ("an unknown field of another kind", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nspec: {x: y}\n".to_owned(), &[]),
        (
            "a wrong type",
            format!("{POLICY}spec: {{ingress: [{{ports: [{{port: 80}}, {{port: [80]}}]}}]}}\n"),
            &["f.yaml: document 1: NetworkPolicy shop/p: spec.ingress[0].ports[1].port: invalid type: sequence"],
        ),
        ("a rule that is null", format!("{POLICY}spec: {{ingress: [null], egress: [{{to: null, ports: [null]}}]}}\n"), &[]),
        (
            "a peer that is null",
            format!("{POLICY}spec: {{egress: [{{to: [null]}}]}}\n"),
            &["f.yaml: document 1: NetworkPolicy shop/p: spec.egress[0].to[0]: a peer must have"],
        ),
        (
            "a label that is no text",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {version: 1.0}}\nstatus: {podIP: 10.0.0.1}\n".to_owned(),
            &["f.yaml: document 1: Pod default/a: metadata.labels.version: invalid type: floating point"],
        ),
        (
            "an item of a list",
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: A}}\n".to_owned(),
            &["f.yaml: document 1: Namespace A: items[1].metadata.name: \"A\" is no RFC 1123 label"],
        ),
        (
            "an item of a typed list, which names no kind",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems: [{metadata: {name: p}, spec: {policyTypes: [x]}}]\n".to_owned(),
            &["f.yaml: document 1: NetworkPolicy default/p: items[0].spec.policyTypes[0]: \"x\" is no policy type"],
        ),
        ("no kind", "apiVersion: v1\nmetadata: {name: a}\n".to_owned(), &["f.yaml: document 1: kind: missing"]),
        ("no apiVersion", "kind: Pod\nmetadata: {name: a}\n".to_owned(), &["f.yaml: document 1: apiVersion: missing"]),
        ("no object", "- a\n".to_owned(), &["f.yaml: document 1: is no object"]),
        ("no name", "apiVersion: v1\nkind: Pod\n".to_owned(), &["f.yaml: document 1: metadata.name: missing"]),
        ("a number for a name", "apiVersion: v1\nkind: Pod\nmetadata: {name: 1}\n".to_owned(), &["f.yaml: document 1: metadata.name: is no string"]),
        ("another kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: 1}\n".to_owned(), &[]),
        ("another kind's list", "apiVersion: apps/v1\nkind: DeploymentList\nitems: 1\n".to_owned(), &[]),
        (
            "another version of NetworkPolicy",
            POLICY.replace("io/v1", "io/v1beta1"),
            &["f.yaml: document 1: apiVersion: \"networking.k8s.io/v1beta1\" is no version of NetworkPolicy"],
        ),
        (
            "host bits",
            format!("{POLICY}spec: {{ingress: [{{from: [{{ipBlock: {{cidr: 10.1.2.3/8}}}}]}}]}}\n"),
            &["f.yaml: document 1: NetworkPolicy shop/p: spec.ingress[0].from[0].ipBlock.cidr: \"10.1.2.3/8\" has bits set"],
        ),
        (
            "a pod without address",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n".to_owned(),
            &["f.yaml: document 1: Pod default/a: status.podIPs: the pod has no address"],
        ),
    ];
    for (what, text, expected) in rows {
        let found = problems(text);
        assert_eq!(found.len(), expected.len(), "{what}: {found:#?}");
        for (found, expected) in found.iter().zip(*expected) {
            assert!(found.starts_with(expected), "{what}: {found:?} begins with {expected:?}");
            assert_eq!(found.lines().count(), 1, "{what}: {found:?} is one line");
        }
    }
}

#[test]
fn line_breaks_that_authors_write_do_not_break_the_line() {
    let problem = Problem {
        file: Path::new("a\nb.yaml").to_owned(),
        document: Some(1),
        object: Some("Pod x\ry".to_owned()),
        field: None,
        severity: Severity::Error,
        message: "one\n\ntwo\u{2028}three\u{1b}[31m".to_owned(),
    };
    assert_eq!(problem.to_string(), "a b.yaml: document 1: Pod x y: one two three [31m");
}
