//! The agents, asked as a monitoring system does.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::plan::Node;
use super::super::portcullis;
use super::Stand;
use super::space::eventually;
use crate::demo::counters;

/// Where agents serve metrics, on their node's address.
const PORT: u16 = 9470;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at counters that should stand still.
const STILL: Duration = Duration::from_millis(1_500);

/// The packets of one policy, by rule, of all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(BTreeMap<String, u64>);

impl Sum {
    pub(super) fn of(&self, rule: &str) -> u64 {
        self.0.get(rule).copied().unwrap_or(0)
    }
}

/// Sums a policy's counters once they stand still.
pub(super) fn settled(stand: &Stand, policy: &str) -> Result<Sum> {
    let mut last = sum(stand, policy)?;
    eventually("a pause in the traffic", || {
        sleep(STILL);
        let now = sum(stand, policy)?;
        if std::mem::replace(&mut last, now.clone()) != now {
            bail!("{policy} still counts");
        }
        Ok(())
    })?;
    Ok(last)
}

fn sum(stand: &Stand, policy: &str) -> Result<Sum> {
    let mut sum = Sum::default();
    for node in stand.state.plan.nodes() {
        for counter in counters::read(&metrics(node)?).into_iter().filter(|counter| counter.policy == policy) {
            *sum.0.entry(counter.rule).or_default() += counter.packets;
        }
    }
    Ok(sum)
}

fn metrics(node: Node) -> Result<String> {
    let address = SocketAddr::new(IpAddr::V4(node.v4()), PORT);
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("the agent on {} serves no metrics", node.name()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // HTTP 1.0 has no chunks to put together.
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => bail!("the agent on {} answers {:?}", node.name(), text.lines().next()),
    }
}

/// Waits until the agents of all nodes are ready, each as its DaemonSet wants it.
pub(super) fn await_ready(stand: &Stand) -> Result<()> {
    portcullis::await_ready(&stand.kubectl)
}
