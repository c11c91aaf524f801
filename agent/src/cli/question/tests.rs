use super::{MOST_ENTRIES, Question, told};
use crate::cli::{CliError, ExplainArgs, ExplainOutput, MatrixArgs, MatrixOutput, SourceArgs};
use crate::index::Cluster;
use crate::model::{Change, Name, NamedPort, Object, Pod, Protocol, Traffic};

fn pods(namespace: &str, count: u32) -> Cluster {
    let mut cluster = Cluster::default();
    for i in 0..count {
        let [_, b, c, d] = i.to_be_bytes();
        let pod = Pod {
            key: Name::new(namespace, format!("pod-{i}")),
            uid: "".into(),
            labels: [("app", "web")].into_iter().collect(),
            addresses: vec![[10, b, c, d].into()],
            node: None,
            host_network: false,
            finished: false,
            ports: vec![NamedPort { name: "web".into(), protocol: Protocol::TCP, number: 80 }],
        };
        cluster.apply(Change::Set(Object::Pod(pod)));
    }
    cluster
}

fn explain(from: &str, to: &str) -> ExplainArgs {
    let [from, to] = [from, to].map(|party| party.parse().unwrap());
    let port = Some(Traffic { protocol: Protocol::TCP, port: 80 });
    ExplainArgs {
        source: SourceArgs::default(),
        from,
        to,
        port,
        protocol: None,
        output: ExplainOutput::Json,
        own_node: Default::default(),
    }
}

fn matrix(namespaces: &[&str]) -> MatrixArgs {
    MatrixArgs {
        source: SourceArgs::default(),
        namespaces: namespaces.iter().map(ToString::to_string).collect(),
        ports: Vec::new(),
        output: MatrixOutput::Table,
        engine: Default::default(),
        own_node: Default::default(),
    }
}

fn ask(question: &Question, cluster: &Cluster) -> Result<crate::status::Told, CliError> {
    told(&serde_json::to_string(question).unwrap(), cluster, 1)
}

#[test]
fn an_agent_says_what_the_command_itself_would() {
    let cluster = pods("x", 2);
    let args = explain("x/pod-0", "10.0.0.1");
    let mut direct = Vec::new();
    crate::cli::explain::write(&args, &cluster, &mut direct).unwrap();
    let told = ask(&Question::Explain(args), &cluster).unwrap();
    assert_eq!(told.text.as_bytes(), direct, "explain");
    assert_eq!(told.refused, 1, "and says that something is missing");

    let args = MatrixArgs { ports: vec![Traffic { protocol: Protocol::UDP, port: 53 }], ..matrix(&["x"]) };
    let mut direct = Vec::new();
    super::write_matrix(&args, &cluster, u64::MAX, &mut direct).unwrap();
    assert_eq!(ask(&Question::Matrix(args), &cluster).unwrap().text.as_bytes(), direct, "matrix");
}

#[test]
fn what_cannot_be_answered_is_told() {
    let cluster = pods("x", 2);
    let error = ask(&Question::Explain(explain("x/pod-7", "x/pod-0")), &cluster).unwrap_err().to_string();
    assert_eq!(error, "there is no pod x/pod-7 in the cluster; its namespace has x/pod-0, x/pod-1");
    let error = told("{\"flows\": {}}", &cluster, 0).unwrap_err().to_string();
    assert!(error.starts_with("the question is not understood: "), "of another version: {error}");
    let error = ask(&Question::Matrix(matrix(&["y"])), &cluster).unwrap_err().to_string();
    assert_eq!(error, "there is no pod in namespace y");
}

#[test]
fn a_matrix_is_as_large_as_an_agent_can_bear() {
    let mut cluster = pods("x", 400);
    let error = ask(&Question::Matrix(matrix(&[])), &cluster).unwrap_err();
    assert!(matches!(error, CliError::TooLarge { entries: 160_000, most: MOST_ENTRIES }), "{error}");
    for pod in pods("y", 2).pods.into_values() {
        cluster.apply(Change::Set(Object::Pod((*pod).clone())));
    }
    let told = ask(&Question::Matrix(matrix(&["y"])), &cluster).unwrap();
    assert_eq!(told.text.lines().count(), 1 + 2 * 402 + 2 * 400, "either side is in the namespace");
}
