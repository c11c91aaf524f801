//! An explanation as JSON.

use serde::Serialize;

use super::super::side::{Side, policy_name, verdict};
use super::super::words;
use super::{Answer, Judged};
use crate::evaluate::{PolicyReport, RuleReport};
use crate::model::RuleOrigin;

/// The whole answer: one entry for each family that both sides have.
#[derive(Serialize)]
pub(super) struct Report {
    from: String,
    to: String,
    answers: Vec<FamilyAnswer>,
}

#[derive(Serialize)]
struct FamilyAnswer {
    family: String,
    protocol: String,
    /// `null` for protocols without ports.
    port: Option<u16>,
    verdict: &'static str,
    egress: SideAnswer,
    ingress: SideAnswer,
}

#[derive(Serialize)]
struct SideAnswer {
    #[serde(flatten)]
    side: Side,
    /// Policies that apply, in the order in which they are asked.
    policies: Vec<PolicyAnswer>,
    /// Policies that select the pod and do not govern the direction.
    other_policies: Vec<String>,
    /// What is decided of clients from outside that the node whose address the peer has, has masqueraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    masqueraded_clients: Option<Side>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct PolicyAnswer {
    kind: String,
    policy: String,
    tier: String,
    rules: Vec<RuleAnswer>,
}

#[derive(Serialize)]
struct RuleAnswer {
    /// `null` for an implied rule.
    rule: Option<u32>,
    /// `self` or `own-node` for an implied rule.
    implied: Option<&'static str>,
    /// `decides`, `matches` (and another rule comes first) or `misses`.
    outcome: &'static str,
    peers: Vec<String>,
    ports: String,
    /// Why it misses.
    because: Vec<String>,
}

pub(super) fn report(from: &str, to: &str, answers: &[Answer<'_>]) -> Report {
    Report { from: from.to_owned(), to: to.to_owned(), answers: answers.iter().map(answer).collect() }
}

fn answer(answer: &Answer<'_>) -> FamilyAnswer {
    let traffic = answer.traffic;
    FamilyAnswer {
        family: answer.family.to_string(),
        protocol: traffic.protocol.to_string(),
        port: traffic.protocol.has_ports().then_some(traffic.port),
        verdict: verdict(answer.verdict()),
        egress: side(&answer.egress),
        ingress: side(&answer.ingress),
    }
}

fn side(judged: &Judged<'_>) -> SideAnswer {
    let reports = judged.explanation.as_ref().map_or(&[][..], |explanation| &explanation.policies);
    let silent = judged.explanation.as_ref().map_or(&[][..], |explanation| &explanation.silent);
    SideAnswer {
        side: Side::of(judged.decision()),
        policies: reports.iter().map(|report| policy(report, judged)).collect(),
        other_policies: silent.iter().map(policy_name).collect(),
        masqueraded_clients: judged.masqueraded.as_ref().map(Side::of),
        notes: judged.notes.clone(),
    }
}

fn policy(report: &PolicyReport, judged: &Judged<'_>) -> PolicyAnswer {
    PolicyAnswer {
        kind: report.id.kind.to_string(),
        policy: policy_name(&report.id),
        tier: report.tier.to_string(),
        rules: report.rules.iter().filter(|rule| is_worth_a_word(rule)).map(|r| rule(r, judged)).collect(),
    }
}

/// Rules that a policy implies go without saying where they do not match.
pub(super) fn is_worth_a_word(report: &RuleReport) -> bool {
    matches!(report.rule.origin, RuleOrigin::Spec(_)) || report.matches()
}

fn rule(report: &RuleReport, judged: &Judged<'_>) -> RuleAnswer {
    let (rule, implied) = match report.rule.origin {
        RuleOrigin::Spec(index) => (Some(index), None),
        RuleOrigin::Itself => (None, Some("self")),
        RuleOrigin::OwnNode => (None, Some("own-node")),
    };
    let outcome = match (report.decided, report.matches()) {
        (true, _) => "decides",
        (false, true) => "matches",
        (false, false) => "misses",
    };
    RuleAnswer {
        rule,
        implied,
        outcome,
        peers: words::peers(&report.rule.peer),
        ports: words::ports(&report.rule.traffic),
        because: words::misses(report, &judged.sides),
    }
}
