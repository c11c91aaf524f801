//! `docs/settings.md`, made from the settings.

use super::Setting;
use crate::cli::generate::described;

/// The document.
pub(in crate::cli) fn markdown() -> String {
    let mut text = String::from(HEAD);
    for setting in Setting::all(&described()) {
        text.push_str(&section(&setting));
    }
    text
}

const HEAD: &str = "\
# Settings

The settings of `portcullis run`. Each can be given in four places, the first that names it holds:

1. on the command line: `--max-endpoints 512`; a switch is `--allow-tunnels`, or `--allow-tunnels=false`,
2. in the environment: `PORTCULLIS_MAX_ENDPOINTS=512`; lists with commas; an empty variable is one that is not set,
3. in a file in YAML, `--config FILE` or `PORTCULLIS_CONFIG`, by default `/etc/portcullis/config.yaml` if it exists:
   `max-endpoints: 512`; lists as lists, and what is written `STATE=TIME` on the command line also as `STATE: TIME`,
4. the default.

A list is taken whole from the first place that names it. A value that is not allowed and a key that does not exist end
the command with an error that says where they stand. `portcullis run --print-config` prints what holds and where each
value comes from, in a form that can be used as a file. Other commands have `--socket`, `--pin-dir`, the log's settings
and what else they share with `run` from the same places, but not where objects come from.

This page is made from the program: `PORTCULLIS_WRITE_DOCS=1 cargo test -p portcullis --lib documents` writes it anew.

";

fn section(setting: &Setting) -> String {
    let help = setting.0.get_long_help().or_else(|| setting.0.get_help()).map(ToString::to_string).unwrap_or_default();
    let default = match defaults(setting) {
        values if values.is_empty() => "none".to_owned(),
        values => values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "),
    };
    let allowed = match (setting.allowed(), setting.form()) {
        (allowed, form) if allowed == form || setting.range().is_none() => allowed,
        (allowed, form) => format!("{allowed} ({form})"),
    };
    let list = if setting.is_list() { "; a list" } else { "" };
    format!(
        "## `{key}`\n\n{help}\n\n- default: {default}\n- allowed: {allowed}{list}\n- environment: `{variable}`\n\n",
        key = setting.key(),
        help = wrapped(&format!("{}.", help.replace('\n', " ").trim_end_matches('.'))),
        variable = setting.variable(),
    )
}

pub(super) fn defaults(setting: &Setting) -> Vec<String> {
    setting.0.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect()
}

/// Lines of at most 120 columns.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= 120 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
