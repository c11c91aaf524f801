//! Who else enforces policy on this node by programs on the pods' veths.

use std::path::Path;

/// Where Cilium pins its maps.
const CILIUM_PINS: &str = "/sys/fs/bpf/tc/globals";

/// Signs of Cilium, for people. Its programs hand packets from veth to veth (`bpf_redirect_peer`), past the hooks here.
pub(super) fn cilium() -> Option<String> {
    // Asked of the kernel, not of /sys/class/net, which shows the devices of whoever mounted it.
    for device in ["cilium_host", "cilium_net"] {
        if nix::net::if_::if_nametoindex(device).is_ok() {
            return Some(format!("there is a device {device}"));
        }
    }
    let pins = Path::new(CILIUM_PINS).read_dir().ok()?;
    let pin = pins.flatten().find(|pin| pin.file_name().to_string_lossy().starts_with("cilium_"))?;
    Some(format!("there is {}", pin.path().display()))
}
