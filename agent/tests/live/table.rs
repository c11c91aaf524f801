//! Who reaches whom: what is expected, and how the cells that are not so are shown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use portcullis_testbed::Protocol;

/// A destination port, as the pod serves it.
pub(crate) type Port = (Protocol, u16);

/// What is expected of every ordered pair of some pods, on some ports. A pod's way to itself is no part of it.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) pods: Vec<String>,
    pub(crate) ports: Vec<Port>,
    denied: BTreeSet<(String, String, Port)>,
}

impl Table {
    /// Everything allowed.
    pub(crate) fn all_allowed(pods: &[String], ports: &[Port]) -> Self {
        Self { pods: pods.to_vec(), ports: ports.to_vec(), denied: BTreeSet::new() }
    }

    /// Applies `deny FROM -> TO` or `allow FROM -> TO`, optionally with ` : PORT/PROTOCOL`.
    pub(crate) fn apply(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?} has no verb"));
        let (pair, port) = rest.split_once(" : ").map_or((rest, None), |(pair, port)| (pair, Some(parse_port(port))));
        let (from, to) = pair.split_once(" -> ").unwrap_or_else(|| panic!("{line:?} has no arrow"));
        assert!(matches!(verb, "allow" | "deny"), "{line:?}: {verb} is no verb");
        let mut touched = 0;
        for cell in self.cells() {
            let (cell_from, cell_to, cell_port) = &cell;
            if matches(from, cell_from) && matches(to, cell_to) && port.is_none_or(|port| port == *cell_port) {
                touched += 1;
                if verb == "deny" {
                    self.denied.insert(cell)
                } else {
                    self.denied.remove(&cell)
                };
            }
        }
        assert!(touched > 0, "{line:?} names no cell");
    }

    /// Every pair and port.
    pub(crate) fn cells(&self) -> Vec<(String, String, Port)> {
        let mut cells = Vec::new();
        for from in &self.pods {
            for to in self.pods.iter().filter(|to| *to != from) {
                cells.extend(self.ports.iter().map(|port| (from.clone(), to.clone(), *port)));
            }
        }
        cells
    }

    pub(crate) fn allows(&self, cell: &(String, String, Port)) -> bool {
        !self.denied.contains(cell)
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for port in &self.ports {
            writeln!(f, "expected on {} (rows send, columns receive; . allowed, X denied):", show_port(*port))?;
            let columns: String = self.pods.iter().fold(String::new(), |mut line, pod| {
                let _ = write!(line, " {pod:>5}");
                line
            });
            writeln!(f, "      {columns}")?;
            for from in &self.pods {
                let row: String = self.pods.iter().fold(String::new(), |mut line, to| {
                    let mark = match (from == to, self.allows(&(from.clone(), to.clone(), *port))) {
                        (true, _) => " ",
                        (false, true) => ".",
                        (false, false) => "X",
                    };
                    let _ = write!(line, " {mark:>5}");
                    line
                });
                writeln!(f, "{from:>6}{row}")?;
            }
        }
        Ok(())
    }
}

fn matches(pattern: &str, pod: &str) -> bool {
    pattern == "*" || pattern == pod || pattern.strip_suffix('*').is_some_and(|namespace| pod.starts_with(namespace))
}

/// Reads `80/TCP`.
pub(crate) fn parse_port(text: &str) -> Port {
    let (port, protocol) = text.split_once('/').unwrap_or_else(|| panic!("{text:?} is no port"));
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => panic!("{text:?} has no known protocol"),
    };
    (protocol, port.parse().unwrap())
}

pub(crate) fn show_port((protocol, port): Port) -> String {
    format!("{port}/{}", protocol.to_string().to_uppercase())
}

#[test]
fn lines_change_blocks_and_the_last_one_wins() {
    let pods: Vec<String> = ["x/a", "x/b", "y/a"].map(String::from).to_vec();
    let ports = [parse_port("80/TCP"), parse_port("81/UDP")];
    let mut table = Table::all_allowed(&pods, &ports);
    assert_eq!(table.cells().len(), 12);
    for line in ["deny * -> x/*", "allow x/b -> x/a", "deny x/b -> x/a : 81/UDP"] {
        table.apply(line);
    }
    let allowed: Vec<String> = table
        .cells()
        .iter()
        .filter(|cell| table.allows(cell))
        .map(|(from, to, port)| format!("{from} {to} {}", show_port(*port)))
        .collect();
    let expected = ["x/a y/a 80/TCP", "x/a y/a 81/UDP", "x/b x/a 80/TCP", "x/b y/a 80/TCP", "x/b y/a 81/UDP"];
    assert_eq!(allowed, expected);
}
