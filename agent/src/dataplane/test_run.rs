//! Runs a loaded program on a frame that nobody sent (BPF_PROG_TEST_RUN).

use std::time::Duration;

use aya::programs::{TestRun, TestRunOptions};

use super::{Dataplane, DataplaneError};

/// The programs' verdict on a packet that goes on: TCX_NEXT, which is TC_ACT_UNSPEC.
const NEXT: u32 = u32::MAX;
/// Where `cb` begins in `struct __sk_buff` (include/uapi/linux/bpf.h).
const CB: usize = 48;
/// No less than `struct __sk_buff` of any kernel; what is beyond its own must be zero, and is.
const CONTEXT: usize = 256;

/// What a program is run on. Device and stamp count only for programs that were loaded with
/// [`super::Settings::test`]: kernels take some of the real fields from no caller.
#[derive(Clone, Copy, Debug)]
pub struct TestInput<'a> {
    /// The packet, from its Ethernet header on.
    pub frame: &'a [u8],
    /// The device that the program runs on.
    pub ifindex: u32,
    /// The last device that received the packet.
    pub ingress_ifindex: u32,
    /// The stamp that the packet comes with.
    pub stamp: u16,
    /// How often it is run, at least once; the packet is made anew for none of them.
    pub repeat: u32,
}

/// What a program made of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestOutput {
    /// Whether the packet goes on.
    pub passed: bool,
    /// The stamp that it goes on with; means nothing of a packet that does not.
    pub stamp: u16,
    /// How long one run took, averaged over all of them.
    pub duration: Duration,
}

impl Dataplane {
    /// Runs a program on a frame.
    ///
    /// # Errors
    /// There is no such program, or the kernel refuses the frame (too short for a link-layer header, too long for a page).
    pub fn test_run(&mut self, name: &'static str, input: &TestInput<'_>) -> Result<TestOutput, DataplaneError> {
        let program = self.program(name)?;
        let mut context_in = [0_u8; CONTEXT];
        let words = [input.ifindex, input.ingress_ifindex, u32::from(input.stamp)];
        for (place, word) in context_in[CB..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let mut context_out = [0_u8; CONTEXT];
        let options = TestRunOptions {
            data_in: Some(input.frame),
            ctx_in: Some(&context_in),
            ctx_out: Some(&mut context_out),
            repeat: input.repeat.max(1),
            ..TestRunOptions::default()
        };
        let outcome = program.test_run(options).map_err(|source| DataplaneError::Program { name, source })?;
        let [a, b, c, d] = [8, 9, 10, 11].map(|at| context_out[CB + at]);
        let stamp = u32::from_ne_bytes([a, b, c, d]) as u16;
        Ok(TestOutput { passed: outcome.return_value == NEXT, stamp, duration: outcome.duration })
    }
}
