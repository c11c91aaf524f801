//! Programs on devices: TCX links where the kernel has them, clsact filters otherwise.

use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc};

use super::load::program;
use super::{Dataplane, DataplaneError};

/// What runs on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// A pod's host veth: `from_pod` and `to_pod`.
    Endpoint,
    /// Any other exit: `from_uplink` and `to_uplink`.
    Exit {
        /// Whether packets have Ethernet headers there.
        ethernet: bool,
    },
}

impl Hooks {
    /// The programs for packets that come in and go out at the device.
    const fn programs(self) -> [(&'static str, TcAttachType); 2] {
        let (ingress, egress) = match self {
            Self::Endpoint => ("from_pod", "to_pod"),
            Self::Exit { ethernet: true } => ("from_uplink", "to_uplink"),
            Self::Exit { ethernet: false } => ("from_uplink_l3", "to_uplink_l3"),
        };
        [(ingress, TcAttachType::Ingress), (egress, TcAttachType::Egress)]
    }
}

/// The filter's place under clsact: priority 1, since a filter before ours could hide packets from it, and a handle that
/// nobody else uses (others take 1:1).
const PRIORITY: u16 = 1;
const HANDLE: u16 = 0x5043;

const fn handle() -> TcHandle {
    TcHandle::new(0, HANDLE)
}

impl Dataplane {
    /// Puts programs on a device, in place of what is there of ours. Idempotent.
    ///
    /// # Errors
    /// The device is gone, or the kernel refuses.
    pub fn attach(&mut self, ifindex: u32, device: &str, hooks: Hooks) -> Result<(), DataplaneError> {
        let is_it = || nix::net::if_::if_nametoindex(device).is_ok_and(|index| index == ifindex);
        for (name, direction) in hooks.programs() {
            // The kernel attaches by name here, and names move.
            if !is_it() {
                return Err(DataplaneError::Attach {
                    device: device.to_owned(),
                    hook: name,
                    reason: format!("it is no longer the device with index {ifindex}"),
                });
            }
            let pin = self.link_pin(ifindex, direction);
            let tcx = self.tcx;
            let program = program(&mut self.ebpf, name)?;
            let outcome = if tcx {
                attach_tcx(program, device, direction, &pin)
            } else {
                attach_clsact(program, device, direction)
            };
            let failed = |reason| DataplaneError::Attach { device: device.to_owned(), hook: name, reason };
            outcome.map_err(failed)?;
        }
        if !is_it() {
            self.detach(ifindex, Some(device));
            let reason = format!("it has become another device than that with index {ifindex} meanwhile");
            return Err(DataplaneError::Attach { device: device.to_owned(), hook: "both", reason });
        }
        Ok(())
    }

    /// Takes our programs off a device, which may be gone.
    pub fn detach(&self, ifindex: u32, device: Option<&str>) {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            // A link ends with its last reference, and its pin is that.
            drop(std::fs::remove_file(self.link_pin(ifindex, direction)));
            if let (false, Some(device)) = (self.tcx, device) {
                detach_clsact(device, direction);
            }
        }
    }

    /// Whether programs are attached by links, which are pinned; filters belong to their devices.
    #[must_use]
    pub const fn pins_links(&self) -> bool {
        self.tcx
    }

    /// Devices that links are pinned for.
    #[must_use]
    pub fn pinned_devices(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("links")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut devices: Vec<u32> = names.filter_map(|name| name.split('-').next()?.parse().ok()).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    pub(super) fn link_pin(&self, ifindex: u32, direction: TcAttachType) -> PathBuf {
        let hook = if direction == TcAttachType::Ingress { "ingress" } else { "egress" };
        self.dir.join("links").join(format!("{ifindex}-{hook}"))
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
    pin: &PathBuf,
) -> Result<(), String> {
    if let Ok(pinned) = PinnedLink::from_pin(pin) {
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(|error| error.to_string())?;
        // An update of a link whose device is gone fails: then the pin is a leftover.
        if let Ok(id) = program.attach_to_link(link) {
            return keep(program, id).map(drop);
        }
        std::fs::remove_file(pin).map_err(|error| error.to_string())?;
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(device, direction, options).map_err(explain)?;
    let link = keep(program, id)?;
    let link = FdLink::try_from(link).map_err(|error| error.to_string())?;
    link.pin(pin).map_err(|error| error.to_string())?;
    Ok(())
}

fn keep(program: &mut SchedClassifier, id: tc::SchedClassifierLinkId) -> Result<SchedClassifierLink, String> {
    program.take_link(id).map_err(|error| error.to_string())
}

fn attach_clsact(program: &mut SchedClassifier, device: &str, direction: TcAttachType) -> Result<(), String> {
    // It may be there already, ours or another's; the kernel says that in several ways. If it is not, attaching fails.
    let qdisc = tc::qdisc_add_clsact(device);
    let handle = handle();
    let id = match SchedClassifierLink::attached(device, direction, PRIORITY, handle, None) {
        Ok(link) => program.attach_to_link(link),
        Err(_) => program.attach_with_options(device, direction, options()),
    };
    let id = match id {
        Ok(id) => id,
        // There was no such filter to replace.
        Err(_) => program.attach_with_options(device, direction, options()).map_err(|error| match qdisc {
            Ok(()) => explain(error),
            Err(qdisc) => format!("{} (clsact: {qdisc})", explain(error)),
        })?,
    };
    // The filter belongs to the device; dropping the link would remove it.
    std::mem::forget(keep(program, id)?);
    Ok(())
}

fn options() -> TcAttachOptions {
    TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: handle(), ..NlOptions::default() })
}

/// Removes the filter in our place, if there is one; tells whether.
fn detach_clsact(device: &str, direction: TcAttachType) -> bool {
    let link = SchedClassifierLink::attached(device, direction, PRIORITY, handle(), None);
    link.is_ok_and(|link| aya::programs::links::Link::detach(link).is_ok())
}

/// Removes our filters from every device of this network namespace.
pub(super) fn remove_filters() -> usize {
    let Ok(devices) = nix::net::if_::if_nameindex() else { return 0 };
    let names = devices.iter().filter_map(|device| device.name().to_str().ok().map(str::to_owned));
    let hooks =
        names.flat_map(|name| [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| (name.clone(), direction)));
    hooks.filter(|(name, direction)| detach_clsact(name, *direction)).count()
}

fn explain(error: aya::programs::ProgramError) -> String {
    let mut text = error.to_string();
    let mut source: &dyn std::error::Error = &error;
    while let Some(next) = source.source() {
        text = format!("{text}: {next}");
        source = next;
    }
    text
}
