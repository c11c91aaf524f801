//! The documents of a file.
//!
//! A file is split before it is parsed, so that a fault in one document leaves the others readable: a line that begins
//! with `---` always begins a document (YAML 1.2.2, 9.1.2), whatever stands before it.

use serde_json::Value;

/// A document as text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Its place in the file, counted from 1.
    pub number: usize,
    /// Lines of the file before it.
    lines_before: u64,
    text: &'a str,
}

/// The documents of a file, in order. Empty ones count as documents.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // A stream of JSON objects, as kubectl takes it; in YAML two could not follow each other without a marker.
    if text.trim_start().starts_with('{')
        && !has_marker(text)
        && let Some(documents) = split_json(text)
    {
        return documents;
    }
    split_yaml(text)
}

fn has_marker(text: &str) -> bool {
    text.lines().any(|line| is_marker(line, "---"))
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// `None` where it is no stream of JSON values: it may be YAML that begins with a brace.
fn split_json(text: &str) -> Option<Vec<Document<'_>>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    let mut documents = Vec::new();
    let mut start = 0;
    let mut lines_before = 0;
    while let Some(value) = values.next() {
        value.ok()?;
        let part = text.get(start..values.byte_offset())?;
        documents.push(Document { number: documents.len() + 1, lines_before, text: part });
        lines_before += lines(part);
        start = values.byte_offset();
    }
    Some(documents)
}

fn split_yaml(text: &str) -> Vec<Document<'_>> {
    let mut starts = Vec::new();
    let mut offset = 0;
    let mut first_content = None;
    for line in text.split_inclusive('\n') {
        if is_marker(line, "---") {
            starts.push(offset);
        } else if first_content.is_none() && starts.is_empty() && !is_prologue(line) {
            first_content = Some(offset);
        }
        offset += line.len();
    }
    // What stands before the first marker is a document only if it says something.
    if first_content.is_some() {
        starts.insert(0, 0);
    }
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    let mut lines_before = starts.first().map_or(0, |&start| lines(&text[..start]));
    let mut documents = Vec::with_capacity(starts.len());
    for (start, end) in starts.iter().copied().zip(ends) {
        let whole = &text[start..end];
        documents.push(Document { number: documents.len() + 1, lines_before, text: until_end_marker(whole) });
        lines_before += lines(whole);
    }
    documents
}

/// Blank lines, comments and directives (`%YAML 1.2`) belong to the document that follows.
fn is_prologue(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%') || is_marker(line, "...")
}

/// A document ends at `...`. What follows it up to the next marker are directives and comments; anything else stays and
/// is refused by the parser.
fn until_end_marker(document: &str) -> &str {
    let mut offset = 0;
    for line in document.split_inclusive('\n') {
        if is_marker(line, "...") && document[offset..].lines().all(is_prologue) {
            return &document[..offset];
        }
        offset += line.len();
    }
    document
}

fn lines(text: &str) -> u64 {
    text.bytes().filter(|&byte| byte == b'\n').count() as u64
}

impl Document<'_> {
    /// What it says; `Null` for an empty one. The error names the line in the file.
    pub(super) fn parse(&self) -> Result<Value, String> {
        let defaults = serde_saphyr::Budget::default();
        // Limits on what anchors expand to stay; those on plain size would refuse a large list, so they grow with it.
        let size = self.text.len();
        let options = serde_saphyr::options! {
            emit_comments: false,
            // A namespace named `y` is a name, not a truth as in YAML 1.1.
            strict_booleans: true,
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
            budget: serde_saphyr::budget! {
                max_events: defaults.max_events.max(size.saturating_mul(2)),
                max_nodes: defaults.max_nodes.max(size),
                max_total_scalar_bytes: defaults.max_total_scalar_bytes.max(size.saturating_mul(2)),
            },
        };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            error.render_with_options(serde_saphyr::render_options! {
                formatter: &serde_saphyr::UserMessageFormatter,
                snippets: serde_saphyr::SnippetMode::Off,
                line_offset: self.lines_before,
            })
        })
    }
}
