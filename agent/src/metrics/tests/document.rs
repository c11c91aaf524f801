//! `docs/metrics.md`, made from what a node tells that has everything.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::small;
use crate::metrics::families::Families;
use crate::metrics::{Figures, render};

/// One family, as the text tells it.
#[derive(Default)]
struct Family {
    name: String,
    help: String,
    kind: String,
    unit: String,
    labels: Vec<String>,
}

/// Reads OpenMetrics text: each family is declared, then come its samples.
fn families(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(help)) => {
                families.push(Family { name: name.to_owned(), help: help.to_owned(), ..Family::default() });
            }
            (Some("#"), Some("TYPE"), _, Some(kind)) => families.last_mut().unwrap().kind = kind.to_owned(),
            (Some("#"), Some("UNIT"), _, Some(unit)) => families.last_mut().unwrap().unit = unit.to_owned(),
            (Some("#"), ..) => {}
            _ => {
                let family = families.last_mut().unwrap();
                let labels = line.split_once('{').map_or("", |(_, rest)| rest);
                // Values hold no quotes and no commas here; a name stands before each `="`.
                let names = labels.split("=\"").filter_map(|part| part.rsplit([',', '{', '"']).next());
                let names = names.take(labels.matches("=\"").count()).filter(|name| *name != "le");
                for name in names.map(str::to_owned) {
                    if !family.labels.contains(&name) {
                        family.labels.push(name);
                    }
                }
            }
        }
    }
    families
}

/// The name under which a series is asked for.
fn series(family: &Family) -> String {
    match family.kind.as_str() {
        "counter" => format!("{}_total", family.name),
        "info" => format!("{}_info", family.name),
        "histogram" => format!("{0}_bucket, {0}_sum, {0}_count", family.name),
        _ => family.name.clone(),
    }
}

fn markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\nWhat the agent serves at `/metrics` on the address of the setting `listen`, as OpenMetrics text. A \
         series exists as long as what\nit counts does. Counters of packets are the kernel's own: they are exact, and go on \
         while the agent is restarted.\n\nThis page is made from the program: `PORTCULLIS_WRITE_DOCS=1 cargo test -p \
         portcullis --lib documents` writes it anew.\n\n| series | type | labels | unit | meaning |\n|---|---|---|---|---|\n",
    );
    for family in families(&render(small()).unwrap()) {
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let labels = family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let names = series(&family).split(", ").map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let (labels, unit) = (or_none(labels), or_none(family.unit.clone()));
        text.push_str(&format!("| {names} | {} | {labels} | {unit} | {} |\n", family.kind, family.help));
    }
    text
}

/// Fails to be written where a family is left out.
#[derive(Debug)]
struct Complete(Figures);

impl Collector for Complete {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let absent = Families { encoder, absent: Vec::new() }.all(&self.0)?;
        assert_eq!(absent, Vec::<String>::new(), "the small node has a series of every family");
        Ok(())
    }
}

#[test]
fn documents_are_as_the_metrics_are() {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Complete(small())));
    encode(&mut String::new(), &registry).unwrap();
    crate::cli::documents::check("metrics.md", &markdown());
}
