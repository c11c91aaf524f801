//! What the agent's metrics say of policies.

const NAME: &str = "portcullis_policy_packets_total";

/// The packets on which one rule of one policy decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counter {
    pub(crate) direction: String,
    pub(crate) verdict: String,
    /// `namespace/name`.
    pub(crate) policy: String,
    /// The rule's index, from 0, or `isolation` for the implicit deny.
    pub(crate) rule: String,
    pub(crate) packets: u64,
}

/// Reads the counters out of an answer in Prometheus' text format.
pub(crate) fn read(text: &str) -> Vec<Counter> {
    let mut counters: Vec<Counter> = text.lines().filter_map(read_line).collect();
    counters.sort();
    counters
}

/// `name{label="value",...} number`. Labels of these series are names of Kubernetes and numbers: nothing is escaped.
fn read_line(line: &str) -> Option<Counter> {
    let (labels, number) = line.strip_prefix(NAME)?.strip_prefix('{')?.split_once('}')?;
    let label = |wanted: &str| {
        labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.trim_matches('"').to_owned())
    };
    Some(Counter {
        direction: label("direction")?,
        verdict: label("verdict")?,
        policy: format!("{}/{}", label("policy_namespace")?, label("policy_name")?),
        rule: label("rule")?,
        packets: number.split_whitespace().next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_text_format() {
        let text = "# TYPE portcullis_policy_packets counter\n\
            portcullis_policy_packets_total{direction=\"ingress\",verdict=\"deny\",policy_kind=\"NetworkPolicy\",\
            policy_namespace=\"dgraph\",policy_name=\"p\",rule=\"isolation\"} 6\n\
            portcullis_policy_bytes_total{direction=\"ingress\",verdict=\"deny\",policy_kind=\"NetworkPolicy\",\
            policy_namespace=\"dgraph\",policy_name=\"p\",rule=\"isolation\"} 360\n\
            portcullis_policy_packets_total{direction=\"ingress\",verdict=\"allow\",policy_kind=\"NetworkPolicy\",\
            policy_namespace=\"dgraph\",policy_name=\"p\",rule=\"0\"} 41\n\
            # EOF\n";
        let found = read(text);
        let counter = |verdict: &str, rule: &str, packets| Counter {
            direction: "ingress".into(),
            verdict: verdict.into(),
            policy: "dgraph/p".into(),
            rule: rule.into(),
            packets,
        };
        assert_eq!(found, [counter("allow", "0", 41), counter("deny", "isolation", 6)]);
    }
}
