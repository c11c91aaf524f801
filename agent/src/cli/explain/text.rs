//! An explanation in sentences.

use std::fmt::Write;

use super::super::words;
use super::json::is_worth_a_word;
use super::{Answer, Judged};
use crate::evaluate::{Explanation, PolicyReport, RuleReport};
use crate::model::{Cause, Direction, RuleOrigin, Tier, Verdict};

/// The whole answer. Families that are judged alike are told of once.
pub(super) fn report(from: &str, to: &str, answers: &[Answer<'_>]) -> String {
    let told: Vec<(String, &Answer<'_>)> = answers.iter().map(|answer| (sides(answer), answer)).collect();
    let mut text = String::new();
    let mut rest = told.as_slice();
    while let Some(((words, answer), others)) = rest.split_first() {
        let alike =
            others.iter().take_while(|(other, same)| other == words && same.verdict() == answer.verdict()).count();
        let families: Vec<String> = rest.iter().take(alike + 1).map(|(_, answer)| answer.family.to_string()).collect();
        let asked = words::traffic(answer.traffic);
        let verdict = match answer.verdict() {
            Verdict::Allow => "ALLOWED",
            Verdict::Deny => "DENIED",
        };
        let between = if text.is_empty() { "" } else { "\n" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{between}{verdict}: {asked} from {from} to {to} ({})\n{words}", families.join(" and "));
        rest = others.get(alike..).unwrap_or_default();
    }
    text
}

fn sides(answer: &Answer<'_>) -> String {
    [&answer.egress, &answer.ingress].map(side).concat()
}

fn side(judged: &Judged<'_>) -> String {
    let direction = match judged.direction {
        Direction::Egress => "Egress",
        Direction::Ingress => "Ingress",
    };
    let name = &judged.name;
    let mut text = format!("\n{direction} of {name}: {}\n", summary(judged));
    for note in &judged.notes {
        let _ = writeln!(text, "  Note: {note}");
    }
    let Some(explanation) = &judged.explanation else { return text };
    // A process of the node is let in before any policy is asked: what policies say then explains nothing.
    if explanation.decision.cause != Cause::NodeProcess {
        for policy in &explanation.policies {
            text.push_str(&policy_words(policy, judged));
        }
    }
    text
}

/// The decision of one side and its reason, in one sentence.
fn summary(judged: &Judged<'_>) -> String {
    let direction = judged.direction;
    let Some(explanation) = &judged.explanation else {
        return "not judged. It is no pod of the cluster.".to_owned();
    };
    let verdict = match explanation.decision.verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "DENIED",
    };
    let because = match &explanation.decision.cause {
        Cause::NoPolicy if judged.endpoint.is_some_and(|pod| pod.host_network) => {
            "The pod uses its node's network, which policies never select".to_owned()
        }
        Cause::NoPolicy if !explanation.policies.is_empty() => {
            "Every policy that applies leaves this to others, and no other denies it".to_owned()
        }
        Cause::NoPolicy => no_policy(explanation, direction),
        Cause::NodeProcess => {
            format!("{} is the pod's own node, whose processes no policy keeps out", judged.sides.peer_name)
        }
        Cause::Isolation { policy } => format!("{policy} isolates the pod for {direction}, and no rule allows this"),
        Cause::Rule { policy, origin } => format!("{policy}, {}", words::rule_name(*origin)),
    };
    format!("{verdict}. {because}.")
}

fn no_policy(explanation: &Explanation, direction: Direction) -> String {
    match explanation.silent.as_slice() {
        [] => "No policy selects the pod".to_owned(),
        silent => {
            let other = match direction {
                Direction::Ingress => Direction::Egress,
                Direction::Egress => Direction::Ingress,
            };
            let names: Vec<String> = silent.iter().map(ToString::to_string).collect();
            format!("No policy governs {direction} of the pod ({} selects it for {other} alone)", names.join(", "))
        }
    }
}

fn policy_words(policy: &PolicyReport, judged: &Judged<'_>) -> String {
    let direction = judged.direction;
    let tier = if *policy.tier == *Tier::DEFAULT { String::new() } else { format!(" (tier {})", policy.tier) };
    let mut text = format!("  {}{tier} selects the pod for {direction}:\n", policy.id);
    if !policy.rules.iter().any(|report| matches!(report.rule.origin, RuleOrigin::Spec(_))) {
        let _ = writeln!(text, "    It has no {direction} rules: it allows nothing.");
    }
    for report in policy.rules.iter().filter(|report| is_worth_a_word(report)) {
        text.push_str(&rule_words(report, judged));
    }
    text
}

fn rule_words(report: &RuleReport, judged: &Judged<'_>) -> String {
    let outcome = match (report.decided, report.matches()) {
        (true, _) => "decides",
        (false, true) => "matches too, after what decided",
        (false, false) => "does not match",
    };
    let mut text = format!("    {} {outcome}\n", words::rule_name(report.rule.origin));
    if matches!(report.rule.origin, RuleOrigin::Spec(_)) {
        for line in words::rule(&report.rule, judged.direction) {
            let _ = writeln!(text, "      {line}");
        }
    }
    for line in words::misses(report, &judged.sides) {
        let _ = writeln!(text, "      - {line}");
    }
    text
}
