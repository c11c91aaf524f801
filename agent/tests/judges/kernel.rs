//! The loaded programs behind the hooks, under BPF_PROG_TEST_RUN.

use std::path::PathBuf;

use portcullis::dataplane::{Dataplane, Settings, TestInput};
use portcullis::state::image::{Full, Image, Sizes};
use portcullis::state::plan::{self, Step, StepError};
use portcullis_common::layout::{Counter, interface_kind};
use portcullis_common::packet::Drop as Reason;
use portcullis_common::stamp::Stamp;

use super::hooks::{Arrival, Departure, ENDPOINTS, FIRST_DEVICE, Hook, Judge};

/// Programs over maps of their own.
pub(crate) struct Programs {
    dataplane: Dataplane,
    image: Image,
    pins: PathBuf,
    /// What was counted until the last packet.
    counted: Vec<Counter>,
    dropped: Vec<u64>,
}

impl Programs {
    /// Loads them. Their pins are this process's own, and go when it is dropped.
    pub(crate) fn load() -> Self {
        let pins = PathBuf::from(format!("/sys/fs/bpf/portcullis-judges-{}", std::process::id()));
        let sizes = Sizes::small();
        let settings = Settings { pin_dir: pins.clone(), sizes, clsact: false, mark_shift: None, test: true };
        let opened = Dataplane::open(&settings);
        let (dataplane, image) =
            opened.unwrap_or_else(|error| panic!("{error}: these tests need root and the programs"));
        image.set_seed(0x0123_4567_89ab_cdef);
        image.set_lifetimes(&[1_000_000; 16]);
        for slot in 0..ENDPOINTS {
            image.put_interface(FIRST_DEVICE + slot, interface_kind::ENDPOINT, slot).unwrap();
        }
        let counted = vec![Counter::default(); sizes.rules as usize];
        let dropped = vec![0; dataplane.drops.len() as usize];
        Self { dataplane, image, pins, counted, dropped }
    }

    /// The reason whose counter rose.
    fn reason(&mut self) -> Reason {
        let mut risen = Vec::new();
        for (reason, _) in Reason::ALL {
            let now = self.dataplane.drops.read(reason.0).unwrap().packets;
            let before = std::mem::replace(&mut self.dropped[reason.0 as usize], now);
            risen.extend((before..now).map(|_| reason));
        }
        assert_eq!(risen.len(), 1, "one reason for one packet");
        risen[0]
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // The dataplane still holds the pins' lock, so `uninstall` would refuse; no link is among them.
        std::fs::remove_dir_all(&self.pins).unwrap();
    }
}

impl Judge for Programs {
    fn judge(&mut self, arrival: &Arrival, rules: u32) -> Departure {
        let program = match arrival.hook {
            Hook::FromPod => "from_pod",
            Hook::ToPod => "to_pod",
            Hook::FromUplink => "from_uplink",
            Hook::ToUplink => "to_uplink",
        };
        let input = TestInput {
            frame: &arrival.frame,
            ifindex: arrival.device,
            ingress_ifindex: arrival.last_device,
            stamp: arrival.stamp.0,
            repeat: 1,
        };
        let output = self.dataplane.test_run(program, &input).unwrap();
        let mut counted = Vec::new();
        for rule in 0..rules {
            let now = self.dataplane.counters.read(rule).unwrap();
            let before = std::mem::replace(&mut self.counted[rule as usize], now);
            let packets = now.packets - before.packets;
            assert_eq!(now.bytes - before.bytes, packets * arrival.frame.len() as u64, "bytes of rule {rule}");
            counted.extend((0..packets).map(|_| rule));
        }
        let fate = if output.passed { Ok(Stamp(output.stamp)) } else { Err(self.reason()) };
        Departure { fate, counted }
    }

    fn take(&mut self, step: &Step) -> Result<(), Full> {
        plan::take(&mut self.image, &mut self.dataplane.ranges, 0, step).map_err(|error| match error {
            StepError::Full(full) => full,
            StepError::Kernel(error) => panic!("{error}"),
        })
    }

    fn set_flags(&mut self, flags: u64) {
        self.image.set_flags(flags);
    }
}
