//! Programs on devices: TCX links where the kernel has them, clsact filters otherwise.
//!
//! Our programs are first on every hook: a program before ours could hide packets from it. Whether they are there, and
//! first, is asked of the kernel; nothing is believed because attaching has succeeded.

use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, ProgramId, SchedClassifier, TcAttachType, tc};

use super::load::program;
use super::{Dataplane, DataplaneError, bpf};

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

/// Which way packets go at a device, as tc sees it: the only place where that view counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the host.
    Ingress,
    /// Out of the host.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As tc calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

impl Hooks {
    /// The program for a direction.
    #[must_use]
    pub const fn program(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Self::Endpoint, Direction::Ingress) => "from_pod",
            (Self::Endpoint, Direction::Egress) => "to_pod",
            (Self::Exit { ethernet: true }, Direction::Ingress) => "from_uplink",
            (Self::Exit { ethernet: true }, Direction::Egress) => "to_uplink",
            (Self::Exit { ethernet: false }, Direction::Ingress) => "from_uplink_l3",
            (Self::Exit { ethernet: false }, Direction::Egress) => "to_uplink_l3",
        }
    }
}

/// The filter's priority under clsact: the first that there is.
pub const PRIORITY: u16 = 1;
/// The filter's handles under clsact, which nobody else uses (others take 1). Of the filters of one priority the newest
/// is asked first (`cls_bpf_change` adds at the list's head), so a filter that has fallen behind is added under the
/// other handle before it is removed.
pub const HANDLES: [u32; 2] = [0x5043, 0x5044];

impl Dataplane {
    /// Puts programs on a device, in place of what is there of ours. Idempotent.
    ///
    /// # Errors
    /// The device is gone, or the kernel refuses.
    pub fn attach(&mut self, ifindex: u32, device: &str, hooks: Hooks) -> Result<(), DataplaneError> {
        for direction in Direction::BOTH {
            self.attach_one(ifindex, device, hooks, direction)?;
        }
        if !is_it(ifindex, device) {
            self.detach(ifindex, Some(device));
            let reason = format!("it has become another device than that with index {ifindex} meanwhile");
            return Err(DataplaneError::Attach { device: device.to_owned(), hook: "both", reason });
        }
        Ok(())
    }

    /// The same for one direction.
    ///
    /// # Errors
    /// Likewise.
    pub fn attach_one(
        &mut self,
        ifindex: u32,
        device: &str,
        hooks: Hooks,
        direction: Direction,
    ) -> Result<(), DataplaneError> {
        let name = hooks.program(direction);
        let failed = |reason| DataplaneError::Attach { device: device.to_owned(), hook: name, reason };
        // The kernel attaches by name here, and names move.
        if !is_it(ifindex, device) {
            return Err(failed(format!("it is no longer the device with index {ifindex}")));
        }
        if self.tcx {
            self.attach_tcx(ifindex, device, name, direction).map_err(failed)
        } else {
            let program = program(&mut self.ebpf, name)?;
            attach_clsact(program, device, direction).map_err(failed)?;
            // What an agent before has attached as a link would judge a second time.
            self.pins.release(&link_name(ifindex, direction));
            Ok(())
        }
    }

    /// Puts our filter before those of its priority. `handle` is where ours is now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn move_filter(
        &mut self,
        device: &str,
        hooks: Hooks,
        direction: Direction,
        handle: u32,
    ) -> Result<(), DataplaneError> {
        let name = hooks.program(direction);
        let failed = |reason| DataplaneError::Attach { device: device.to_owned(), hook: name, reason };
        let other = if handle == HANDLES[0] { HANDLES[1] } else { HANDLES[0] };
        let program = program(&mut self.ebpf, name)?;
        let id = program
            .attach_with_options(device, direction.attach_type(), options(other))
            .map_err(|error| failed(explain(&error)))?;
        std::mem::forget(keep(program, id).map_err(failed)?);
        detach_clsact(device, direction, handle);
        Ok(())
    }

    /// The id of the program that is, or should be, on a hook.
    #[must_use]
    pub fn program_id(&self, hooks: Hooks, direction: Direction) -> Option<u32> {
        self.program_ids.get(hooks.program(direction)).copied()
    }

    /// The ids of the programs on a TCX hook, in the order in which they run; without those of other layouts' agents, which
    /// stay until this one's are everywhere.
    ///
    /// # Errors
    /// The device is gone.
    pub fn query(&self, ifindex: u32, direction: Direction) -> std::io::Result<Vec<u32>> {
        let mut ids = bpf::query(ifindex, direction == Direction::Ingress)?;
        ids.retain(|id| !self.others.contains(id));
        Ok(ids)
    }

    /// The place that is first on a hook. An agent of another layout may have a program there, which writes its own stamp:
    /// where packets are stamped ours comes behind it, so that our programs never judge by the numbers of its slots.
    fn first(&self, ifindex: u32, attach_type: TcAttachType) -> std::io::Result<LinkOrder> {
        if attach_type != TcAttachType::Ingress || self.others.is_empty() {
            return Ok(LinkOrder::first());
        }
        let other = bpf::query(ifindex, true)?.into_iter().find(|id| self.others.contains(id));
        // SAFETY: the kernel has just named it.
        Ok(other.map_or_else(LinkOrder::first, |id| LinkOrder::after_program_id(unsafe { ProgramId::new(id) })))
    }

    /// Takes our programs off a device, which may be gone.
    pub fn detach(&mut self, ifindex: u32, device: Option<&str>) {
        for direction in Direction::BOTH {
            self.pins.release(&link_name(ifindex, direction));
            if let (false, Some(device)) = (self.tcx, device.filter(|device| is_it(ifindex, device))) {
                detach_all_clsact(device, direction);
            }
        }
    }

    /// Takes one of our filters off a device.
    pub fn detach_filter(device: &str, direction: Direction, handle: u32) {
        detach_clsact(device, direction, handle);
    }

    /// Takes filters of an agent that attached by them off a device that has links now.
    pub fn detach_filters(device: &str, direction: Direction) {
        detach_all_clsact(device, direction);
    }

    /// Whether programs are attached by links, which are pinned; filters belong to their devices.
    #[must_use]
    pub const fn pins_links(&self) -> bool {
        self.tcx
    }

    /// Devices that links are pinned for.
    #[must_use]
    pub fn pinned_devices(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(self.dir.join(LINKS)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut devices: Vec<u32> = names.filter_map(|name| name.split('-').next()?.parse().ok()).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// Puts back pins that others have removed. Gives their number.
    ///
    /// # Errors
    /// There is no BPF file system any more, or it refuses; enforcement lasts as long as this process does.
    pub fn restore_pins(&mut self) -> Result<usize, DataplaneError> {
        self.pins.restore()
    }

    fn attach_tcx(
        &mut self,
        ifindex: u32,
        device: &str,
        name: &'static str,
        direction: Direction,
    ) -> Result<(), String> {
        let key = link_name(ifindex, direction);
        let pin = self.pins.path(&key);
        if self.pins.holds(&key) && !pin.exists() {
            self.pins.restore().map_err(|error| error.to_string())?;
        }
        let wanted = self.program_ids.get(name).copied();
        let attach_type = direction.attach_type();
        let first = || TcAttachOptions::TcxOrder(LinkOrder::first());
        if pin.exists() {
            let program = program(&mut self.ebpf, name).map_err(|error| error.to_string())?;
            let updated = update(program, &pin)?;
            let ids = self.query(ifindex, direction).map_err(|error| error.to_string())?;
            if updated && ids.first().copied() == wanted {
                return self.pins.hold(key).map_err(|error| error.to_string());
            }
            // It is at another place or another device's, and the kernel moves no link. Nothing may pass meanwhile.
            let closed = super::load::program(&mut self.ebpf, "closed").map_err(|error| error.to_string())?;
            let guard = closed.attach_with_options(device, attach_type, first()).map_err(|error| explain(&error))?;
            let guard = keep(closed, guard)?;
            self.pins.release(&key);
            let outcome = self.attach_first(ifindex, device, name, attach_type, &pin);
            drop(guard);
            outcome?;
        } else {
            self.attach_first(ifindex, device, name, attach_type, &pin)?;
        }
        self.pins.hold(key).map_err(|error| error.to_string())
    }

    fn attach_first(
        &mut self,
        ifindex: u32,
        device: &str,
        name: &'static str,
        attach_type: TcAttachType,
        pin: &PathBuf,
    ) -> Result<(), String> {
        let options = TcAttachOptions::TcxOrder(self.first(ifindex, attach_type).map_err(|error| error.to_string())?);
        let program = program(&mut self.ebpf, name).map_err(|error| error.to_string())?;
        let id = program.attach_with_options(device, attach_type, options).map_err(|error| explain(&error))?;
        let link = FdLink::try_from(keep(program, id)?).map_err(|error| error.to_string())?;
        link.pin(pin).map(drop).map_err(|error| error.to_string())
    }

    /// Where a link is pinned.
    pub(super) fn link_pin(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.pins.path(&link_name(ifindex, direction))
    }
}

/// The folder of links' pins.
pub(super) const LINKS: &str = "links";

fn link_name(ifindex: u32, direction: Direction) -> PathBuf {
    PathBuf::from(LINKS).join(format!("{ifindex}-{}", direction.name()))
}

fn is_it(ifindex: u32, device: &str) -> bool {
    nix::net::if_::if_nametoindex(device).is_ok_and(|index| index == ifindex)
}

/// Gives a pinned link this program; false if the link is of no device any more, or no link at all.
fn update(program: &mut SchedClassifier, pin: &PathBuf) -> Result<bool, String> {
    let pinned = PinnedLink::from_pin(pin).map_err(|error| format!("{}: {error}", pin.display()))?;
    let Ok(link) = SchedClassifierLink::try_from(FdLink::from(pinned)) else { return Ok(false) };
    match program.attach_to_link(link) {
        Ok(id) => keep(program, id).map(|_| true),
        // The device is gone, or somebody has detached the link.
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(explain(&error)),
    }
}

fn keep(program: &mut SchedClassifier, id: tc::SchedClassifierLinkId) -> Result<SchedClassifierLink, String> {
    program.take_link(id).map_err(|error| error.to_string())
}

fn attach_clsact(program: &mut SchedClassifier, device: &str, direction: Direction) -> Result<(), String> {
    // It may be there already, ours or another's; the kernel says that in several ways. If it is not, attaching fails.
    let qdisc = tc::qdisc_add_clsact(device);
    let attach_type = direction.attach_type();
    let replaced = HANDLES.into_iter().find_map(|handle| {
        let link = SchedClassifierLink::attached(device, attach_type, PRIORITY, handle.into(), None).ok()?;
        program.attach_to_link(link).ok()
    });
    let id = match replaced {
        Some(id) => id,
        // There was no such filter to replace.
        None => program.attach_with_options(device, attach_type, options(HANDLES[0])).map_err(|error| match qdisc {
            Ok(()) => explain(&error),
            Err(qdisc) => format!("{} (clsact: {qdisc})", explain(&error)),
        })?,
    };
    // The filter belongs to the device; dropping the link would remove it.
    std::mem::forget(keep(program, id)?);
    Ok(())
}

fn options(handle: u32) -> TcAttachOptions {
    let handle = TcHandle::from(handle);
    TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle, ..NlOptions::default() })
}

/// Removes the filter in a place of ours, if there is one; tells whether.
fn detach_clsact(device: &str, direction: Direction, handle: u32) -> bool {
    let link = SchedClassifierLink::attached(device, direction.attach_type(), PRIORITY, handle.into(), None);
    link.is_ok_and(|link| aya::programs::links::Link::detach(link).is_ok())
}

fn detach_all_clsact(device: &str, direction: Direction) -> bool {
    HANDLES.map(|handle| detach_clsact(device, direction, handle)).contains(&true)
}

/// Removes our filters from every device of this network namespace.
pub(super) fn remove_filters() -> usize {
    let Ok(devices) = nix::net::if_::if_nameindex() else { return 0 };
    let names: Vec<String> =
        devices.iter().filter_map(|device| device.name().to_str().ok().map(str::to_owned)).collect();
    // Egress first: those programs judge by the others' stamps.
    let directions = [Direction::Egress, Direction::Ingress];
    let of_direction = |direction| names.iter().filter(|name| detach_all_clsact(name, direction)).count();
    directions.map(of_direction).iter().sum()
}

fn explain(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        text = format!("{text}: {next}");
        source = next;
    }
    text
}
