//! A CNI plugin that connects pods as Azure CNI does in its transparent mode: a veth without addresses on the host's
//! side, named by the pod's name from the start, a route to each of the pod's addresses, and in the pod a default route
//! through an address that is nowhere, with a fixed neighbour entry.
//!
//! The name is what the agent recognises a pod by before its address can be seen. Azure's plugin removes an interface
//! of the same name, so a pod that returns under its name takes it from its predecessor, should that still be there.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

/// The next hops of pods.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1234:5678:9abc";
/// The code of errors that are the plugin's own.
const OWN_ERROR: u64 = 100;

/// Answers a request as the specification asks: by environment, stdin and stdout.
pub(super) fn run() -> Result<()> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let answer = serve(&input);
    let (text, failed) = match answer {
        Ok(answer) => (answer, None),
        Err(error) => {
            let text = json!({"cniVersion": "0.4.0", "code": OWN_ERROR, "msg": format!("{error:#}")}).to_string();
            (Some(text), Some(error))
        }
    };
    if let Some(text) = text {
        std::io::stdout().write_all(text.as_bytes())?;
    }
    failed.map_or(Ok(()), Err)
}

fn serve(input: &[u8]) -> Result<Option<String>> {
    match variable("CNI_COMMAND")?.as_str() {
        "ADD" => add(input).map(Some),
        "DEL" => delete(input).map(|()| None),
        "CHECK" => Ok(None),
        "VERSION" => {
            let answer = json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0"]});
            Ok(Some(answer.to_string()))
        }
        other => bail!("CNI_COMMAND is `{other}`"),
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

/// `azv` with the first 11 hexadecimal digits of SHA-1 of `namespace.pod`: as long as an interface's name may be.
pub(super) fn host_name(namespace: &str, pod: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{pod}"));
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("azv{}", &digits[..11])
}

/// The pod's namespace and name, which the runtime passes as arguments.
fn pod_of(arguments: &str) -> Result<(String, String)> {
    let named: BTreeMap<&str, &str> = arguments.split(';').filter_map(|pair| pair.split_once('=')).collect();
    let word =
        |name: &str| named.get(name).map(|word| (*word).to_owned()).with_context(|| format!("CNI_ARGS has no {name}"));
    Ok((word("K8S_POD_NAMESPACE")?, word("K8S_POD_NAME")?))
}

/// A hardware address of this container's own, marked as not assigned by a manufacturer.
fn hardware_address(container: &str, side: u8) -> String {
    let digest = Sha1::digest(format!("{container}/{side}"));
    format!("02:{}", digest[..5].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}

fn add(input: &[u8]) -> Result<String> {
    let (namespace, pod) = pod_of(&variable("CNI_ARGS")?)?;
    let (network, inner) = (variable("CNI_NETNS")?, variable("CNI_IFNAME")?);
    let assigned: Value = serde_json::from_str(&delegate(input)?).context("cannot read what host-local printed")?;
    let addresses = addresses(&assigned)?;
    let container = variable("CNI_CONTAINERID")?;
    let host = host_name(&namespace, &pod);
    let (outside, inside) = (hardware_address(&container, 0), hardware_address(&container, 1));
    if Path::new("/sys/class/net").join(&host).exists() {
        // It may go by itself in the same moment, with the pod whose it is.
        let _ = Command::new("ip").args(["link", "del", &host]).stderr(Stdio::null()).status();
    }
    let connected = ip(
        &mut Command::new("ip"),
        &format!(
            "link add {host} address {outside} type veth peer name {inner} address {inside} netns {network}\n\
             link set {host} up\n"
        ),
    )
    .and_then(|()| {
        let mut command = Command::new("nsenter");
        ip(command.arg(format!("--net={network}")).arg("ip"), &inside_script(&inner, &outside, &addresses))
    })
    .and_then(|()| ip(&mut Command::new("ip"), &routes_script(&host, &addresses)));
    if let Err(error) = connected {
        // Else the address would be given out as long as the node lives.
        let _ = delegate_as("DEL", input);
        return Err(error);
    }
    let ips: Vec<Value> = addresses
        .iter()
        .map(|address| {
            let (version, bits) = if address.is_ipv4() { ("4", 32) } else { ("6", 128) };
            json!({"version": version, "address": format!("{address}/{bits}"), "interface": 1})
        })
        .collect();
    Ok(json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": host, "mac": outside},
            {"name": inner, "mac": inside, "sandbox": network},
        ],
        "ips": ips,
        "routes": assigned.get("routes").cloned().unwrap_or_else(|| json!([])),
        "dns": {},
    })
    .to_string())
}

/// What is to be done in the pod's namespace.
fn inside_script(inner: &str, outside: &str, addresses: &[IpAddr]) -> String {
    let mut script = format!("link set lo up\nlink set {inner} up\n");
    for address in addresses {
        let (bits, gateway) = if address.is_ipv4() { ("32", GATEWAY_V4) } else { ("128 nodad", GATEWAY_V6) };
        script.push_str(&format!(
            "addr add {address}/{bits} dev {inner}\n\
             neigh replace {gateway} lladdr {outside} dev {inner} nud permanent\n\
             route add default via {gateway} dev {inner} onlink\n"
        ));
    }
    script
}

/// What is to be done in the node's.
fn routes_script(host: &str, addresses: &[IpAddr]) -> String {
    addresses.iter().map(|address| format!("route replace {address} dev {host}\n")).collect()
}

fn delete(input: &[u8]) -> Result<()> {
    // By the pod's end of the pair: the host's name may belong to the pod's successor by now.
    let network = std::env::var("CNI_NETNS").unwrap_or_default();
    if !network.is_empty() && Path::new(&network).exists() {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={network}")).args(["ip", "link", "del", &variable("CNI_IFNAME")?]);
        // Asked twice, it has nothing to do the second time.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    delegate_as("DEL", input).map(drop)
}

/// Has `ip` do all lines of a script.
fn ip(command: &mut Command, script: &str) -> Result<()> {
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip failed: {}", String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", "));
    }
    Ok(())
}

fn addresses(assigned: &Value) -> Result<Vec<IpAddr>> {
    let listed = assigned.get("ips").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let found: Option<Vec<IpAddr>> =
        listed.iter().map(|one| one.get("address")?.as_str()?.split_once('/')?.0.parse().ok()).collect();
    found.filter(|found| !found.is_empty()).context("host-local has assigned no addresses")
}

fn delegate(input: &[u8]) -> Result<String> {
    delegate_as("ADD", input)
}

/// Asks the plugin that hands out addresses.
fn delegate_as(order: &str, input: &[u8]) -> Result<String> {
    let mut child = Command::new(Path::new(&variable("CNI_PATH")?).join("host-local"))
        .env("CNI_COMMAND", order)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start host-local")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("host-local: {}{}", text.trim(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_named_as_azures_plugin_does() {
        // From `printf dgraph.alpha-0 | sha1sum`.
        assert_eq!(host_name("dgraph", "alpha-0"), "azvf7cbe664550");
        assert_eq!(host_name("a", "b").len(), 14, "an interface's name has at most 15 bytes");
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=dgraph;K8S_POD_NAME=alpha-0;K8S_POD_INFRA_CONTAINER_ID=1f";
        assert_eq!(pod_of(arguments).expect("a pod"), ("dgraph".to_owned(), "alpha-0".to_owned()));
        let error = pod_of("K8S_POD_NAMESPACE=dgraph").expect_err("no name");
        assert!(error.to_string().contains("K8S_POD_NAME"), "{error}");
    }

    #[test]
    fn addresses_of_both_families_are_read_and_used() {
        let assigned = json!({"ips": [{"address": "10.244.1.5/24"}, {"address": "fd00:10:244:1::5/64"}]});
        let found = addresses(&assigned).expect("addresses");
        let script = inside_script("eth0", "02:00:00:00:00:01", &found);
        for expected in ["addr add 10.244.1.5/32 dev eth0", "addr add fd00:10:244:1::5/128 nodad dev eth0"] {
            assert!(script.contains(expected), "{expected} is not in {script}");
        }
        assert_eq!(routes_script("azv1", &found).lines().count(), 2);
        assert!(addresses(&json!({"ips": []})).is_err(), "no address is no success");
        assert!(addresses(&json!({"ips": [{"address": "x"}]})).is_err(), "nor is an unreadable one");
    }
}
