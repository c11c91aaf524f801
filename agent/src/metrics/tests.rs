use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use portcullis_common::packet::Drop;
use portcullis_common::tables::Event;

use super::{Bounded, EVENTS, Figures, RuleFigures, SeriesBound, UpdateDurations, render};
use crate::model::{Direction, PolicyId, PolicyKind, RuleOrigin, Verdict};
use crate::state::{RuleCause, RuleIdentity};
use crate::status::{EndpointState, Repair, SourceStatus, TableFill, UpdateResult};

mod document;

fn rule(name: &str, direction: Direction, verdict: Verdict, cause: RuleCause) -> RuleIdentity {
    let policy =
        PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("dgraph".into()), name: name.to_owned().into() };
    RuleIdentity { direction, verdict, policy, cause }
}

fn allowed(name: &str, origin: RuleOrigin, packets: u64, bytes: u64) -> RuleFigures {
    RuleFigures { rule: rule(name, Direction::Ingress, Verdict::Allow, RuleCause::Rule(origin)), packets, bytes }
}

fn bounded(rules: Vec<RuleFigures>) -> Bounded {
    SeriesBound::new(1000).apply(rules)
}

fn small() -> Figures {
    let update_durations = UpdateDurations::default();
    update_durations.observe(Duration::from_micros(500));
    update_durations.observe(Duration::from_millis(3));
    update_durations.observe(Duration::from_secs(20));
    Figures {
        rules: bounded(vec![
            allowed("from-clients", RuleOrigin::Spec(0), 9_007_199_254_740_993, u64::MAX - 1),
            RuleFigures {
                rule: rule("from-clients", Direction::Ingress, Verdict::Deny, RuleCause::Isolation),
                packets: 3,
                bytes: 222,
            },
            allowed("from-clients", RuleOrigin::Itself, 1, 60),
            RuleFigures {
                rule: rule("to-dns", Direction::Egress, Verdict::Allow, RuleCause::Rule(RuleOrigin::OwnNode)),
                packets: 2,
                bytes: 120,
            },
        ]),
        notes: [(Drop::POLICY.0, 3), (Drop::SOURCE.0, 7), (Event::Rejudged as u32, 5)].into(),
        endpoints: [(EndpointState::Enforced, 4), (EndpointState::PodGone, 1)].into(),
        tables: vec![TableFill { name: "peers".to_owned(), used: 12, capacity: 65_536 }],
        table_repairs: BTreeMap::from([("ports", 2)]),
        updates: [(UpdateResult::Applied, 8), (UpdateResult::TableFull, 1)].into(),
        update_durations,
        repairs: [(Repair::Displaced, 6)].into(),
        unenforced_devices: 1,
        foreign_filters: 2,
        manifest_errors: 2,
        manifest_warnings: 1,
        sources: vec![SourceStatus {
            kind: "Pod".to_owned(),
            in_sync: true,
            listed: true,
            lost_since: None,
            because: None,
            heard: Some("2026-03-01T12:00:00Z".parse().unwrap()),
            objects: 12,
            lists: 1,
            failures: 3,
        }],
        synced: true,
        last_sync: Some(UNIX_EPOCH + Duration::from_millis(1_772_366_400_500)),
    }
}

#[test]
fn the_whole_text_of_a_small_node() {
    let text = render(small()).unwrap();
    let expected = include_str!("tests/small.txt").replace("{version}", env!("CARGO_PKG_VERSION"));
    assert_eq!(text, expected, "the text as it is now:\n{text}");
}

#[test]
fn a_series_goes_with_its_policy() {
    let mut figures = small();
    assert_eq!(render(figures.clone()).unwrap().matches("policy_name=\"to-dns\"").count(), 2, "packets and bytes");
    figures.rules.rules.retain(|figures| figures.rule.policy.name.as_ref() != "to-dns");
    let text = render(figures.clone()).unwrap();
    assert!(!text.contains("to-dns"), "a policy that is gone leaves nothing");
    assert!(text.contains("from-clients"), "others stay");
    figures.rules.rules.clear();
    assert!(!render(figures).unwrap().contains("portcullis_policy_bytes"), "without a policy there is no family");
}

#[test]
fn a_policy_that_comes_again_counts_from_nothing() {
    let mut figures = small();
    figures.rules = bounded(vec![allowed("again", RuleOrigin::Spec(0), 100, 6000)]);
    render(figures.clone()).unwrap();
    figures.rules.rules[0].packets = 1;
    let text = render(figures).unwrap();
    assert!(text.lines().any(|line| line.starts_with("portcullis_policy_packets_total{") && line.ends_with("} 1")));
}

#[test]
fn what_a_user_named_cannot_forge_a_line() {
    let hostile = "x\"} 1\nforged_total{a=\"\\";
    let figures = Figures {
        rules: bounded(vec![allowed(hostile, RuleOrigin::Spec(7), 1, 1)]),
        tables: vec![TableFill { name: hostile.to_owned(), used: 1, capacity: 2 }],
        ..Figures::default()
    };
    let text = render(figures).unwrap();
    assert!(!text.lines().any(|line| line.starts_with("forged")), "no line of its own:\n{text}");
    let escaped = r#"x\"} 1\nforged_total{a=\"\\"#;
    assert!(text.contains(&format!("policy_name=\"{escaped}\",rule=\"7\"}} 1")), "escaped in a policy's name:\n{text}");
    assert!(text.contains(&format!("{{table=\"{escaped}\"}} 2")), "escaped in a table's name:\n{text}");
}

#[test]
fn no_series_is_named_twice() {
    let mut figures = small();
    // While tables of before and after stand side by side, several rule numbers may have one identity.
    figures.rules = bounded(vec![
        allowed("from-clients", RuleOrigin::Spec(3), 5, 500),
        allowed("from-clients", RuleOrigin::Spec(3), 6, 600),
    ]);
    let text = render(figures).unwrap();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.rsplit_once(' ').map_or(line, |(name, _)| name);
        assert!(seen.insert(name.to_owned()), "{name} stands twice");
    }
    let of_third = |line: &&str| line.contains("rule=\"3\"");
    let values: Vec<&str> = text.lines().filter(of_third).filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(values, ["11", "1100"], "two rule numbers of one rule are added up");
}

#[test]
fn each_family_is_declared_once_and_stands_together() {
    let text = render(small()).unwrap();
    let mut families: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name)) => {
                assert!(!families.contains_key(name), "{name} is declared twice");
                families.insert(name, vec!["HELP"]);
                current = name;
            }
            (Some("#"), Some("EOF"), None) => {}
            (Some("#"), Some(what), Some(name)) => {
                assert_eq!(name, current, "{what} belongs to the family before it");
                families.get_mut(name).unwrap().push(what);
            }
            _ => assert!(line.starts_with(current), "{line} is in the family {current}"),
        }
    }
    for (name, declared) in families {
        assert_eq!(declared[..2], ["HELP", "TYPE"], "{name}");
        // OpenMetrics 1.0.0, "Unit": the unit is the suffix of the family's name.
        assert_eq!(declared.contains(&"UNIT"), name.ends_with("_bytes") || name.ends_with("_seconds"), "{name}");
    }
    assert!(text.ends_with("\n# EOF\n"), "OpenMetrics 1.0.0: the exposition ends with EOF");
}

#[test]
fn a_node_that_was_never_in_sync() {
    let text = render(Figures::default()).unwrap();
    assert!(text.contains("\nportcullis_synced 0\n"), "it says so");
    assert!(!text.contains("portcullis_last_sync"), "and names no time");
    assert!(
        text.contains("\nportcullis_endpoints{state=\"closed\"} 0\n"),
        "states without endpoints are 0, for alerts"
    );
}

#[test]
fn every_event_of_the_programs_has_a_name() {
    // An event without a name here does not compile; one without a row in EVENTS is found below.
    let name = |event: Event| match event {
        Event::FlowEvicted => "evicted",
        Event::Rejudged => "rejudged",
        Event::RowMissing => "row_missing",
        Event::Unstamped => "unstamped",
        Event::TakenUp => "taken_up",
        Event::NotTakenUp => "not_taken_up",
        Event::EstablishedEvicted => "established_evicted",
    };
    for (event, shown) in EVENTS {
        assert_eq!(name(event), shown);
    }
    let numbers: BTreeSet<u32> = EVENTS.iter().map(|(event, _)| *event as u32).collect();
    let first = Event::FlowEvicted as u32;
    assert_eq!(numbers, (first..=Event::EstablishedEvicted as u32).collect(), "each number once, without a gap");
}
