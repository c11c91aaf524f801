use serde_json::{Value, json};

use super::super::document::split;

#[test]
fn files_hold_documents() {
    let rows: Vec<(&str, &str, Vec<Value>)> = vec![
        ("an empty file", "", vec![]),
        ("comments alone", "# nothing\n\n", vec![]),
        ("one document", "a: 1\n", vec![json!({"a": 1})]),
        ("no line break at the end", "a: 1", vec![json!({"a": 1})]),
        ("a marker in front", "---\na: 1\n", vec![json!({"a": 1})]),
        ("comments before the marker", "# licence\n\n---\na: 1\n", vec![json!({"a": 1})]),
        ("two", "a: 1\n---\nb: 2\n", vec![json!({"a": 1}), json!({"b": 2})]),
        ("text behind the marker", "--- {a: 1}\n--- # two\nb: 2\n", vec![json!({"a": 1}), json!({"b": 2})]),
        ("empty ones count", "---\n---\na: 1\n---\n", vec![json!(null), json!({"a": 1}), json!(null)]),
        ("line breaks of Windows", "a: 1\r\n---\r\nb: 2\r\n", vec![json!({"a": 1}), json!({"b": 2})]),
        (
            "end markers and directives",
            "%YAML 1.2\n---\na: 1\n...\n%YAML 1.2\n---\nb: 2\n...\n",
            vec![json!({"a": 1}), json!({"b": 2})],
        ),
        ("a marker inside a block scalar is indented", "a: |\n  x\n  ---\n  y\n", vec![json!({"a": "x\n---\ny\n"})]),
        ("a byte order mark", "\u{feff}a: 1\n", vec![json!({"a": 1})]),
        ("JSON with tabs", "{\"a\":\t1,\n\t\"b\": [1,\t2]\n}\n", vec![json!({"a": 1, "b": [1, 2]})]),
        ("JSON's escapes", r#"{"a": "\ud83d\ude00 \/ \u0041"}"#, vec![json!({"a": "😀 / A"})]),
        (
            "a stream of JSON",
            "{\"a\": 1}\n{\"b\": 2}{\"c\": 3}",
            vec![json!({"a": 1}), json!({"b": 2}), json!({"c": 3})],
        ),
        ("JSON with markers", "{\"a\": 1}\n---\n{\"b\": 2}\n", vec![json!({"a": 1}), json!({"b": 2})]),
        ("YAML that begins with a brace", "{a: 1, b: [x]}\n", vec![json!({"a": 1, "b": ["x"]})]),
        ("anchors", "a: &x {k: v}\nb: *x\n", vec![json!({"a": {"k": "v"}, "b": {"k": "v"}})]),
        (
            "names that YAML 1.1 takes for truth",
            "a: y\nb: no\nc: true\n",
            vec![json!({"a": "y", "b": "no", "c": true})],
        ),
        ("what is quoted is text", "a: \"1\"\nb: 'yes'\n", vec![json!({"a": "1", "b": "yes"})]),
    ];
    for (what, text, expected) in rows {
        let found: Result<Vec<Value>, String> = split(text).iter().map(|document| document.parse()).collect();
        assert_eq!(found.as_ref(), Ok(&expected), "{what}: {text:?}");
        let numbers: Vec<usize> = split(text).iter().map(|document| document.number).collect();
        assert_eq!(numbers, (1..=expected.len()).collect::<Vec<_>>(), "{what}: documents count from 1");
    }
}

#[test]
fn a_fault_in_one_document_leaves_the_others_readable() {
    let rows: &[(&str, &str, usize, &str)] = &[
        ("an open bracket", "a: 1\n---\nb: [1\n---\nc: 1\n", 2, "line 3"),
        ("an open quote", "a: 1\n---\nb: 'x\n---\nc: 1\n", 2, "line "),
        ("a tab as indentation", "a: 1\n---\nb:\n\tc: d\n---\nc: 1\n", 2, "line 4"),
        ("a key twice", "a: 1\n---\nb: 1\nb: 2\n---\nc: 1\n", 2, "line 4"),
        ("a key twice in JSON", "{\"a\": 1}\n{\"b\": 1, \"b\": 2}\n{\"c\": 1}", 2, "line 2"),
        ("a template", "{{ .Values.x }}\n---\nb: 1\n---\nc: 1\n", 1, "line 1"),
        ("an alias of nothing", "a: *x\n---\nb: 1\n---\nc: 1\n", 1, "line 1"),
        ("text after the end", "a: 1\n...\nb: 1\n---\nc: 1\n---\nd: 1\n", 1, "line 3"),
    ];
    for (what, text, bad, line) in rows {
        let documents = split(text);
        assert_eq!(documents.len(), 3, "{what}: {text:?}");
        for document in documents {
            match document.parse() {
                Ok(_) => assert_ne!(document.number, *bad, "{what}: {text:?} must not parse"),
                Err(message) => {
                    assert_eq!(document.number, *bad, "{what}: {message}");
                    assert!(message.contains(line), "{what}: {message:?} names the line of the file");
                }
            }
        }
    }
}

#[test]
fn what_anchors_expand_to_is_limited_and_plain_size_is_not() {
    let level = |level: usize| format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", "));
    let bomb: String = std::iter::once("a0: &a0 [x]\n".to_owned()).chain((1..12).map(level)).collect();
    assert!(split(&bomb)[0].parse().is_err(), "ten to the eleventh elements");
    let large = format!("[{}]", vec!["x"; 260_000].join(",\n"));
    let parsed = split(&large)[0].parse().expect("a large list is no attack");
    assert_eq!(parsed.as_array().map(Vec::len), Some(260_000));
}
