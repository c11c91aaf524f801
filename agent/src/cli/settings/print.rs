//! The settings that hold, as `run --print-config` prints them.

use std::io::{self, Write};

use super::Origin;

/// Every setting with its value and where that comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective(pub(super) Vec<Line>);

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) key: String,
    /// Empty where it is not set and has no default.
    pub(super) values: Vec<String>,
    pub(super) is_list: bool,
    pub(super) origin: Origin,
}

impl Effective {
    /// Writes them as YAML that can be used as a file of settings.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for Line { key, values, is_list, origin } in &self.0 {
            match (values.as_slice(), is_list) {
                ([], _) => writeln!(out, "# {key}: not set")?,
                ([value], false) => writeln!(out, "{key}: {} # {origin}", scalar(value)?)?,
                (values, _) => {
                    writeln!(out, "{key}: # {origin}")?;
                    for value in values {
                        writeln!(out, "  - {}", scalar(value)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A value in YAML: numbers and truths as they are, texts in quotes where they would be taken for something else.
fn scalar(text: &str) -> io::Result<String> {
    if text == "true" || text == "false" || text.parse::<u64>().is_ok_and(|number| number.to_string() == text) {
        return Ok(text.to_owned());
    }
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-=".contains(character);
    let is_word = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/');
    // Other readers of YAML take some words for truths.
    let is_truth = ["on", "off", "yes", "no", "y", "n", "null"].contains(&text.to_ascii_lowercase().as_str());
    if is_word && !is_truth && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    // A text in JSON is one in YAML.
    serde_json::to_string(text).map_err(io::Error::from)
}
