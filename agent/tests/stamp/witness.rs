//! Two small BPF programs, written by hand, since no tool of the kernel's shows what these tests ask about: one stamps
//! packets as the agent's programs do, one records the stamp and the index that packets leave with.

use std::io;
use std::path::{Path, PathBuf};

use portcullis_testbed::Namespace;

/// Packets that a witness remembers.
const REMEMBERED: u32 = 512;

/// A packet as it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// With its link-layer header.
    pub(crate) length: u32,
    pub(crate) tc_index: u32,
    pub(crate) ingress_ifindex: u32,
    pub(crate) ifindex: u32,
}

/// Programs and the map that they write to; all of it goes when this is dropped.
pub(crate) struct Witness {
    map: i32,
    pins: PathBuf,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// Offsets in `struct __sk_buff` (include/uapi/linux/bpf.h).
const LENGTH: i16 = 0;
const INGRESS_IFINDEX: i16 = 36;
const IFINDEX: i16 = 40;
const TC_INDEX: i16 = 44;
const TC_CLASSID: i16 = 72;

/// Writes the stamp, and lets other programs run: TC_ACT_UNSPEC.
fn stamping(stamp: u16) -> Vec<Instruction> {
    vec![
        op(0xb7, 2, 0, 0, stamp.into()), // r2 = stamp
        op(0x63, 1, 2, TC_INDEX, 0),     // skb->tc_index = r2
        op(0xb7, 0, 0, 0, -1),
        op(0x95, 0, 0, 0, 0),
    ]
}

/// What other agents' filters do: give a class and say TC_ACT_OK.
fn classifying(class: u16) -> Vec<Instruction> {
    vec![
        op(0xb7, 2, 0, 0, class.into()),
        op(0x63, 1, 2, TC_CLASSID, 0), // skb->tc_classid = r2
        op(0xb7, 0, 0, 0, 0),
        op(0x95, 0, 0, 0, 0),
    ]
}

/// Element 0 of the map counts; the others are packets, in turn.
fn recording(map: i32) -> Vec<Instruction> {
    vec![
        op(0xbf, 6, 1, 0, 0),   // r6 = skb
        op(0x62, 10, 0, -4, 0), // key = 0
        op(0x18, 1, 1, 0, map), // r1 = map
        op(0, 0, 0, 0, 0),
        op(0xbf, 2, 10, 0, 0),
        op(0x07, 2, 0, 0, -4), // r2 = &key
        op(0x85, 0, 0, 0, 1),  // bpf_map_lookup_elem
        op(0x15, 0, 0, 22, 0), // none: to the end
        op(0x79, 7, 0, 0, 0),  // r7 = count
        op(0xbf, 1, 7, 0, 0),
        op(0x07, 1, 0, 0, 1),
        op(0x7b, 0, 1, 0, 0), // count + 1
        op(0x57, 7, 0, 0, REMEMBERED as i32 - 1),
        op(0x07, 7, 0, 0, 1),
        op(0x63, 10, 7, -4, 0), // key = 1 + count % REMEMBERED
        op(0x18, 1, 1, 0, map),
        op(0, 0, 0, 0, 0),
        op(0xbf, 2, 10, 0, 0),
        op(0x07, 2, 0, 0, -4),
        op(0x85, 0, 0, 0, 1),
        op(0x15, 0, 0, 9, 0),
        op(0x61, 1, 6, LENGTH, 0),
        op(0x63, 0, 1, 0, 0),
        op(0x61, 1, 6, TC_INDEX, 0),
        op(0x63, 0, 1, 4, 0),
        op(0x61, 1, 6, INGRESS_IFINDEX, 0),
        op(0x63, 0, 1, 8, 0),
        op(0x61, 1, 6, IFINDEX, 0),
        op(0x63, 0, 1, 12, 0),
        op(0x05, 0, 0, 0, 0),
        op(0xb7, 0, 0, 0, -1),
        op(0x95, 0, 0, 0, 0),
    ]
}

/// One of the three programs.
#[derive(Clone, Copy)]
pub(crate) enum Program {
    Stamping,
    Recording,
    Foreign,
}

impl Witness {
    /// Loads the programs.
    pub(crate) fn new(stamp: u16, class: u16) -> Self {
        let pins = PathBuf::from(format!("/sys/fs/bpf/portcullis-stamp-{}", std::process::id()));
        let none = None::<&str>;
        if nix::sys::statfs::statfs("/sys/fs/bpf").unwrap().filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC {
            nix::mount::mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), nix::mount::MsFlags::empty(), none).unwrap();
        }
        drop(std::fs::remove_dir_all(&pins));
        std::fs::create_dir(&pins).unwrap();
        // Before 5.11 maps count against it, together with those of everybody else of this user. Where raising it is refused
        // (it needs CAP_SYS_RESOURCE), making the map says so.
        let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a valid structure.
        // SAFETY: a valid structure.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
        // An array of 513 elements of 16 bytes.
        let map = bpf(0, &words(&[2, 4, 16, REMEMBERED + 1])).unwrap();
        let witness = Self { map, pins };
        for (program, code) in [
            (Program::Stamping, stamping(stamp)),
            (Program::Recording, recording(map)),
            (Program::Foreign, classifying(class)),
        ] {
            witness.load(&code, &witness.pin(program));
        }
        witness
    }

    fn pin(&self, program: Program) -> PathBuf {
        self.pins.join(match program {
            Program::Stamping => "stamping",
            Program::Recording => "recording",
            Program::Foreign => "foreign",
        })
    }

    fn load(&self, code: &[Instruction], pin: &Path) {
        let licence = c"GPL";
        // BPF_PROG_TYPE_SCHED_CLS, count, instructions, licence.
        let mut attributes = words(&[3, code.len() as u32]);
        attributes.extend((code.as_ptr() as u64).to_ne_bytes());
        attributes.extend((licence.as_ptr() as u64).to_ne_bytes());
        let program = bpf(5, &attributes).unwrap_or_else(|error| panic!("{}: {error}", pin.display()));
        let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
        let mut attributes = (path.as_ptr() as u64).to_ne_bytes().to_vec();
        attributes.extend(words(&[program as u32, 0]));
        bpf(6, &attributes).unwrap();
        nix::unistd::close(program).unwrap();
    }

    /// Puts a program on a device's hook, `ingress` or `egress`, as a legacy filter of this priority.
    pub(crate) fn attach(&self, program: Program, to: &Namespace, device: &str, hook: &str, priority: u32) {
        // It may be there already.
        drop(to.tool("tc", &["qdisc", "add", "dev", device, "clsact"]));
        let (pin, priority) = (self.pin(program), priority.to_string());
        let place = ["filter", "replace", "dev", device, hook, "prio", &priority, "handle", "1"];
        let what = ["bpf", "direct-action", "object-pinned", pin.to_str().unwrap()];
        to.tool("tc", &[&place[..], &what[..]].concat()).unwrap();
    }

    /// Every packet since the last call of [`Self::forget`].
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let count = u32::try_from(u64::from_ne_bytes(self.element(0)[..8].try_into().unwrap())).unwrap();
        let elements = (0..count.min(REMEMBERED)).map(|number| self.element(number + 1));
        let seen = elements.map(|bytes| {
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            Seen { length: word(0), tc_index: word(4), ingress_ifindex: word(8), ifindex: word(12) }
        });
        seen.collect()
    }

    /// Starts anew.
    pub(crate) fn forget(&self) {
        let (key, value) = (0_u32, [0_u8; 16]);
        bpf(2, &element_attributes(self.map, &key, value.as_ptr() as u64)).unwrap();
    }

    fn element(&self, key: u32) -> [u8; 16] {
        let mut value = [0_u8; 16];
        bpf(1, &element_attributes(self.map, &key, value.as_mut_ptr() as u64)).unwrap();
        value
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.pins));
        let _ = nix::unistd::close(self.map);
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn element_attributes(map: i32, key: &u32, value: u64) -> Vec<u8> {
    let mut attributes = words(&[map as u32, 0]);
    attributes.extend((std::ptr::from_ref(key) as u64).to_ne_bytes());
    attributes.extend(value.to_ne_bytes());
    attributes.extend(0_u64.to_ne_bytes());
    attributes
}

/// The system call, with `union bpf_attr` as bytes.
fn bpf(command: i64, attributes: &[u8]) -> io::Result<i32> {
    let mut padded = [0_u64; 16];
    for (place, chunk) in padded.iter_mut().zip(attributes.chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *place = u64::from_ne_bytes(bytes);
    }
    // SAFETY: what the attributes point to outlives the call: each caller borrows it until then.
    let status = unsafe { libc::syscall(libc::SYS_bpf, command, padded.as_mut_ptr(), 128_usize) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status as i32) }
}
