//! What is on the tc hooks of devices: the qdisc of `ffff:` and the filters there, asked for one device at a time.
//!
//! Attributes are read one by one and not by the crate's description of each classifier: a filter of a kind that it does
//! not know, or knows otherwise, must be seen all the same.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlaBuffer,
    NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcHeader, TcMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::Error;
use super::bell::messages;

/// include/uapi/linux/pkt_sched.h.
const TC_H_INGRESS: u32 = 0xffff_fff1;
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;
/// include/uapi/linux/rtnetlink.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
/// include/uapi/linux/pkt_cls.h.
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TCA_U32_DIVISOR: u16 = 4;
const TCA_ACT_OPTIONS: u16 = 2;
/// Of gact, mirred and most others: a structure that begins with `tc_gen`, whose third word says what follows.
const TCA_ACT_PARAMETERS: u16 = 2;
const TC_ACT_OK: i32 = 0;
const TC_ACT_RECLASSIFY: i32 = 1;
const TC_ACT_PIPE: i32 = 3;

const ANSWER: Duration = Duration::from_secs(10);

/// Attributes by number.
type Attributes = BTreeMap<u16, Vec<u8>>;

/// The qdisc of a device's `ffff:`, under which filters on ingress and egress hang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qdisc {
    /// It has both hooks.
    Clsact,
    /// It has one: what is added on egress runs on ingress.
    Ingress,
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The chain; packets begin with 0.
    pub chain: u32,
    /// Its priority: the smallest is asked first.
    pub priority: u16,
    /// Its handle within that.
    pub handle: u32,
    /// The classifier.
    pub kind: String,
    /// The name that its program was given, for people.
    pub name: Option<String>,
    /// The number of its BPF program.
    pub program: Option<u32>,
    /// It may end the asking with TC_ACT_OK, and the kernel then writes its class into `tc_index` (`tc_run` of
    /// net/core/dev.c).
    pub may_classify: bool,
}

/// A socket to ask with, in the network namespace of the thread that opened it.
pub struct Filters {
    socket: Socket,
    sequence: u32,
}

impl Filters {
    /// Opens it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        let failed = |what| move |source| Error::Socket { what, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        let patience = TimeVal::new(ANSWER.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(|error| failed("set up")(error.into()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The qdiscs of `ffff:` by device. The kernel tells of all devices at once.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn qdiscs(&mut self) -> Result<BTreeMap<u32, Qdisc>, Error> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(message(0, 0));
        let mut found = BTreeMap::new();
        for (header, attributes) in self.dump(request, "the qdiscs")? {
            if u32::from(header.parent) != TC_H_INGRESS {
                continue;
            }
            let qdisc = match attributes.get(&TCA_KIND).map(|kind| text(kind)).as_deref() {
                Some("clsact") => Qdisc::Clsact,
                _ => Qdisc::Ingress,
            };
            found.insert(header.index as u32, qdisc);
        }
        Ok(found)
    }

    /// The filters of a device's hook, in the order in which they are asked.
    ///
    /// # Errors
    /// The kernel does not answer, or the device is gone.
    pub fn on(&mut self, ifindex: u32, ingress: bool) -> Result<Vec<Filter>, Error> {
        let parent = if ingress { TC_H_MIN_INGRESS } else { TC_H_MIN_EGRESS };
        let request = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent));
        let answer = self.dump(request, "the filters of a device")?;
        Ok(answer.into_iter().filter_map(|(header, attributes)| filter(&header, &attributes)).collect())
    }

    /// Removes an `ingress` qdisc with every filter on it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_ingress_qdisc(&mut self, ifindex: u32) -> Result<(), Error> {
        let mut message = message(ifindex, TC_H_INGRESS);
        message.header.handle = TcHandle::from(0xffff_0000);
        let what = "to remove an ingress qdisc";
        self.send(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_REQUEST | NLM_F_ACK)?;
        self.receive(what).map(drop)
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| Error::Socket { what: "ask", source })?;
        Ok(())
    }

    fn dump(&mut self, request: RouteNetlinkMessage, what: &'static str) -> Result<Vec<(TcHeader, Attributes)>, Error> {
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let payloads = self.receive(what)?;
        Ok(payloads
            .iter()
            .filter_map(|payload| Some((TcHeader::parse(payload).ok()?, attributes(payload.get(20..)?))))
            .collect())
    }

    /// The payloads of an answer, to its end.
    fn receive(&mut self, what: &'static str) -> Result<Vec<Vec<u8>>, Error> {
        const ERROR: u16 = libc::NLMSG_ERROR as u16;
        const DONE: u16 = libc::NLMSG_DONE as u16;
        let mut payloads = Vec::new();
        loop {
            let (datagram, _) =
                self.socket.recv_from_full().map_err(|source| Error::Socket { what: "read an answer", source })?;
            for message in messages(&datagram).flatten() {
                let Ok(buffer) = NetlinkBuffer::new_checked(message) else { continue };
                // An answer to a question that was given up.
                if buffer.sequence_number() != self.sequence {
                    continue;
                }
                let payload = buffer.payload();
                match buffer.message_type() {
                    DONE => return Ok(payloads),
                    ERROR => {
                        let code = payload.first_chunk().map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                        if code == 0 {
                            return Ok(payloads);
                        }
                        let source = std::io::Error::from_raw_os_error(-code);
                        return Err(Error::Refused { what, source });
                    }
                    _ => payloads.push(payload.to_vec()),
                }
            }
        }
    }
}

fn message(ifindex: u32, parent: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.parent = parent.into();
    message
}

/// Attributes by number; a number that is there several times keeps the last.
fn attributes(bytes: &[u8]) -> Attributes {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|nla: NlaBuffer<&[u8]>| (nla.kind(), nla.value().to_vec()))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// `None` for what describes no filter: the classifier itself, and hash tables of u32.
fn filter(header: &TcHeader, outer: &Attributes) -> Option<Filter> {
    let options = attributes(outer.get(&TCA_OPTIONS)?);
    let kind = text(outer.get(&TCA_KIND)?);
    if kind == "u32" && options.contains_key(&TCA_U32_DIVISOR) {
        return None;
    }
    let is_bpf = kind == "bpf";
    let flags = options.get(&TCA_BPF_FLAGS).and_then(|flags| number(flags)).unwrap_or(0);
    let direct = is_bpf && flags & TCA_BPF_FLAG_ACT_DIRECT != 0;
    // Where each classifier keeps its actions (include/uapi/linux/pkt_cls.h).
    let actions = match kind.as_str() {
        "bpf" => Some(TCA_BPF_ACT),
        "u32" => Some(7),
        "matchall" => Some(2),
        "flower" | "basic" => Some(3),
        "fw" => Some(4),
        _ => None,
    };
    let actions = actions.and_then(|actions| options.get(&actions)).map(|bytes| attributes(bytes));
    Some(Filter {
        chain: outer.get(&TCA_CHAIN).and_then(|chain| number(chain)).unwrap_or(0),
        priority: (header.info >> 16) as u16,
        handle: header.handle.into(),
        name: options.get(&TCA_BPF_NAME).filter(|_| is_bpf).map(|name| text(name)),
        program: options.get(&TCA_BPF_ID).filter(|_| is_bpf).and_then(|id| number(id)),
        may_classify: direct || actions.is_none_or(|actions| actions_classify(&actions)),
        kind,
    })
}

/// Whether actions, in order, may end with TC_ACT_OK; what is not understood may.
fn actions_classify(actions: &Attributes) -> bool {
    let mut last = TC_ACT_OK;
    for action in actions.values() {
        let options = attributes(action).remove(&TCA_ACT_OPTIONS);
        let parameters = options.and_then(|options| attributes(&options).remove(&TCA_ACT_PARAMETERS));
        let Some(control) = parameters.as_deref().and_then(|bytes| number(bytes.get(8..)?)) else { return true };
        last = control as i32;
        if last != TC_ACT_PIPE {
            break;
        }
    }
    matches!(last, TC_ACT_OK | TC_ACT_RECLASSIFY | TC_ACT_PIPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn number_attribute(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_ne_bytes())
    }

    /// One action: its control, as `tc_gen` has it.
    fn action(order: u16, control: i32) -> Vec<u8> {
        let parameters = [1_i32, 0, control, 1, 1].map(i32::to_ne_bytes).concat();
        let options = attribute(TCA_ACT_OPTIONS, &attribute(TCA_ACT_PARAMETERS, &parameters));
        attribute(order, &[attribute(1, b"some\0"), options].concat())
    }

    fn read(kind: &str, options: &[Vec<u8>]) -> Option<Filter> {
        let header = TcHeader { info: 7 << 16 | 3, handle: TcHandle::from(9), ..TcHeader::default() };
        let kind = attribute(TCA_KIND, format!("{kind}\0").as_bytes());
        let options = attribute(TCA_OPTIONS, &options.concat());
        filter(&header, &attributes(&[kind, options, number_attribute(TCA_CHAIN, 2)].concat()))
    }

    #[test]
    fn filters_that_may_end_with_ok_are_told_from_those_that_do_not() {
        const STOLEN: i32 = 4;
        const SHOT: i32 = 2;
        const UNSPEC: i32 = -1;
        let acts = |kind: u16, controls: &[i32]| {
            let actions: Vec<Vec<u8>> = (1..).zip(controls).map(|(order, control)| action(order, *control)).collect();
            attribute(kind, &actions.concat())
        };
        let direct = number_attribute(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        let rows: [(&str, &str, Vec<Vec<u8>>, bool); 12] = [
            ("a direct program", "bpf", vec![direct], true),
            ("a program that only matches", "bpf", vec![number_attribute(TCA_BPF_ID, 5)], true),
            ("a program that drops what it matches", "bpf", vec![acts(1, &[SHOT])], false),
            ("a redirect", "u32", vec![acts(7, &[STOLEN])], false),
            ("a redirect after a mark", "u32", vec![acts(7, &[TC_ACT_PIPE, STOLEN])], false),
            ("a class", "u32", vec![number_attribute(1, 0x10001)], true),
            ("ok", "matchall", vec![acts(2, &[TC_ACT_OK])], true),
            ("ok before a redirect", "flower", vec![acts(3, &[TC_ACT_OK, STOLEN])], true),
            ("nothing more to do", "flower", vec![acts(3, &[TC_ACT_PIPE])], true),
            ("continue", "basic", vec![acts(3, &[UNSPEC])], false),
            ("an action that cannot be read", "fw", vec![attribute(4, &attribute(1, b"odd"))], true),
            ("a classifier that nobody knows", "novel", vec![acts(2, &[SHOT])], true),
        ];
        for (what, kind, options, expected) in rows {
            let read = read(kind, &options).unwrap_or_else(|| panic!("{what}"));
            assert_eq!(read.may_classify, expected, "{what}: {read:?}");
            assert_eq!((read.chain, read.priority, read.handle), (2, 7, 9), "{what}");
        }
    }

    #[test]
    fn what_is_no_filter_is_none() {
        assert_eq!(read("u32", &[number_attribute(TCA_U32_DIVISOR, 1)]), None, "a hash table of u32");
        let classifier = attributes(&attribute(TCA_KIND, b"u32\0"));
        assert_eq!(filter(&TcHeader::default(), &classifier), None, "a classifier without options");
    }

    #[test]
    fn a_program_is_known_by_number_and_name() {
        let options = [number_attribute(TCA_BPF_ID, 77), attribute(TCA_BPF_NAME, b"from_pod\0")];
        let read = read("bpf", &options).unwrap();
        assert_eq!((read.program, read.name.as_deref()), (Some(77), Some("from_pod")));
    }
}
