use jiff::{SignedDuration, Timestamp};

use super::{write_cluster, write_json, write_text};
use crate::status::{
    AgentStatus, ClusterStatus, DirectionStatus, EndpointState, EndpointStatus, ExitStatus, LastUpdate, NodeStatus,
    SourceStatus, Status, TableFill, UpdateResult,
};

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn before(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        started: before(3 * 3600 + 12 * 60 + 5),
        revision: 42,
        source: String::new(),
        synced: true,
        not_synced_because: None,
        sources: Vec::new(),
        last_update: Some(LastUpdate { at: before(12), took_ms: 3.25, result: UpdateResult::Applied }),
        endpoints: vec![
            EndpointStatus {
                pod: Some("shop/db-0".to_owned()),
                uid: Some("6f1c".to_owned()),
                veth: "azv0123456789a".to_owned(),
                ifindex: 7,
                state: EndpointState::Enforced,
                addresses: vec!["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()],
                ingress: DirectionStatus {
                    policy_set: Some(3),
                    policies: vec!["shop/from-web".to_owned(), "shop/from-ops".to_owned()],
                },
                egress: DirectionStatus::default(),
                revision: 41,
            },
            EndpointStatus {
                pod: None,
                uid: None,
                veth: "veth1".to_owned(),
                ifindex: 9,
                state: EndpointState::Pending,
                addresses: Vec::new(),
                ingress: DirectionStatus::default(),
                egress: DirectionStatus::default(),
                revision: 0,
            },
        ],
        exits: vec![ExitStatus { name: "eth0".to_owned(), hooks: vec!["to_uplink".into(), "from_uplink".into()] }],
        tables: vec![
            TableFill { name: "peers".to_owned(), used: 999, capacity: 1000 },
            TableFill { name: "ranges".to_owned(), used: 0, capacity: 0 },
        ],
        problems: vec!["shop.yaml, document 2: spec.ingress[0].ports[0].endPort is below port".to_owned()],
    }
}

fn text(status: &Status) -> String {
    let mut out = Vec::new();
    write_text(status, now(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn text_is_for_people() {
    let expected = "\
portcullis 0.1.0, started 3h12m ago
in sync; revision 42
last update 12s ago: applied in 3.2 ms
endpoints: 1 enforced, 1 pending

Endpoints:
 POD        STATE     VETH            IFINDEX  ADDRESSES          INGRESS POLICIES                      EGRESS POLICIES  REVISION
 shop/db-0  enforced  azv0123456789a  7        10.1.0.4, fd00::4  shop/from-web, shop/from-ops (set 3)  not isolated     41
 -          pending   veth1           9        -                  not isolated                          not isolated     0

Exits:
 DEVICE  HOOKS
 eth0    to_uplink, from_uplink

Tables:
 TABLE   USED  CAPACITY  FULL
 peers   999   1000      99%
 ranges  0     0         -

Problems (1):
  - shop.yaml, document 2: spec.ingress[0].ports[0].endPort is below port
";
    assert_eq!(text(&status()), expected);
}

#[test]
fn a_cluster_is_told_kind_by_kind() {
    let kind = |kind: &str, heard: Option<i64>, lost: Option<i64>, because: Option<&str>| SourceStatus {
        kind: kind.to_owned(),
        in_sync: because.is_none(),
        listed: heard.is_some(),
        lost_since: lost.map(before),
        because: because.map(str::to_owned),
        heard: heard.map(before),
        objects: 12,
        lists: 1,
        failures: 0,
    };
    let sources = vec![
        kind("Pod", Some(2), None, None),
        kind("Namespace", Some(301), Some(301), Some("connection refused\u{1b}[2J")),
        kind("NetworkPolicy", None, None, Some("timeout")),
    ];
    let source = "cluster https://10.0.0.1".to_owned();
    let text = text(&Status { source, sources, ..status() });
    let expected = "\
source: cluster https://10.0.0.1
last update 12s ago: applied in 3.2 ms
endpoints: 1 enforced, 1 pending

Watched:
 KIND           STATE          OBJECTS  LAST HEARD OF  BECAUSE
 Pod            in sync        12       2s ago         -
 Namespace      lost 5m1s ago  12       5m1s ago       connection refused\\u{1b}[2J
 NetworkPolicy  not read yet   12       never          timeout
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn the_agents_of_a_cluster() {
    let agent = |pod: &str, because: Option<&str>| AgentStatus {
        pod: format!("portcullis/{pod}"),
        ready: because.is_none(),
        since: Some(before(301)),
        because: because.map(str::to_owned),
        image: "portcullis:dev".to_owned(),
    };
    let node = |name: &str, held, agent| NodeStatus { name: name.to_owned(), held, agent };
    let nodes = vec![
        node("a", false, Some(agent("x", None))),
        node("b", true, Some(agent("y", Some("not in\nsync")))),
        node("virtual", false, None),
    ];
    let status = ClusterStatus { server: "https://10.0.0.1".to_owned(), nodes };
    let mut out = Vec::new();
    write_cluster(&status, now(), &mut out).unwrap();
    let expected = "\
cluster https://10.0.0.1
nodes: 3, with an agent: 2, of which ready: 1

Nodes:
 NODE     AGENT         STATE                    SINCE     IMAGE           PODS MAY COME
 a        portcullis/x  ready                    5m1s ago  portcullis:dev  yes
 b        portcullis/y  NOT ready: not in\\nsync  5m1s ago  portcullis:dev  no: tainted
 virtual  -             no agent                 -         -               yes
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn what_is_not_there_takes_no_room() {
    let empty = Status {
        synced: false,
        not_synced_because: Some("the manifests have not been read yet".to_owned()),
        last_update: None,
        endpoints: Vec::new(),
        exits: Vec::new(),
        tables: Vec::new(),
        problems: Vec::new(),
        started: now(),
        ..status()
    };
    let expected = "\
portcullis 0.1.0, started just now
NOT in sync: the manifests have not been read yet; revision 42
no update yet
endpoints: none
";
    assert_eq!(text(&empty), expected);
}

#[test]
fn ages_in_two_units() {
    let rows = [
        (-5, "just now", "a clock that was set back"),
        (0, "just now", "no time"),
        (59, "59s ago", "seconds alone"),
        (60, "1m0s ago", "a minute"),
        (3599, "59m59s ago", "the end of an hour"),
        (86_399, "23h59m ago", "the end of a day"),
        (3 * 86_400 + 7200, "3d2h ago", "days"),
    ];
    for (seconds, expected, message) in rows {
        let text = text(&Status { started: before(seconds), ..status() });
        assert_eq!(text.lines().next(), Some(&*format!("portcullis 0.1.0, started {expected}")), "{message}");
    }
}

#[test]
fn what_others_wrote_cannot_move_the_cursor() {
    let hostile = "x\u{1b}[2Jy\nz\u{9b}é";
    let mut status = status();
    status.problems = vec![hostile.to_owned()];
    status.endpoints[0].pod = Some(hostile.to_owned());
    status.endpoints[0].ingress.policies = vec![hostile.to_owned()];
    status.exits[0].name = hostile.to_owned();
    status.not_synced_because = Some(hostile.to_owned());
    status.synced = false;
    let text = text(&status);
    let controls: String = text.chars().filter(|character| character.is_control() && *character != '\n').collect();
    assert_eq!(controls, "", "no control character is left");
    assert_eq!(
        text.matches("x\\u{1b}[2Jy\\nz\\u{9b}é").count(),
        5,
        "each is escaped, and what is printable stays:\n{text}"
    );
}

#[test]
fn json_is_what_scripts_rely_on() {
    let mut out = Vec::new();
    write_json(&status(), &mut out).unwrap();
    assert!(out.ends_with(b"}\n"), "a whole line");
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["started"], "2026-03-01T08:47:55Z", "times are RFC 3339");
    assert_eq!(json["last_update"]["result"], "applied");
    assert_eq!(json["endpoints"][0]["state"], "enforced");
    assert_eq!(json["endpoints"][0]["ingress"]["policy_set"], 3);
    assert_eq!(json["endpoints"][1]["pod"], serde_json::Value::Null);
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status(), "nothing is lost on the way");
}
