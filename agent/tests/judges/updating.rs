//! Random streams of changes, applied to the tables one element at a time: at every moment a packet has the verdict of the
//! state before or of the state after.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use portcullis::compile::{Compiler, Dirty, Numbers};
use portcullis::index::Cluster;
use portcullis::model::{Change, Name, Object, ObjectKey, PolicyId, PolicyKind};
use portcullis::state::plan::Step;
use portcullis::state::{Desired, LocalId};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;

use super::compare::{Court, repeatable, saved};
use super::documents::{self, OTHER_ADDRESSES, OUTSIDERS, OWN_ADDRESSES};
use super::hooks::{Arrival, Departure, FIRST_DEVICE, Hook, Judge, Memory, Node, UPLINK};
use super::journey::{What, packet};
use super::packets::{self, Load, load};
use super::world::{self, ClusterSpec, Document, TierSpec, TieredPolicy, World, cluster, object};

/// One change of the cluster.
#[derive(Clone)]
pub(crate) enum Edit {
    Documents(Vec<Document>),
    Tier(TierSpec),
    Tiered(TieredPolicy),
    Gone(ObjectKey),
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Documents(documents) => write!(f, "now {documents:?}"),
            Self::Tier(tier) => write!(f, "now {tier:?}"),
            Self::Tiered(policy) => write!(f, "now {policy:?}"),
            Self::Gone(key) => write!(f, "gone {key:?}"),
        }
    }
}

/// Changes that are compiled together, and whether the tables settle before.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) edits: Vec<Edit>,
    pub(crate) settle: bool,
}

/// A packet that is sent again and again.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) endpoint: usize,
    pub(crate) other: usize,
    pub(crate) load: Load,
    pub(crate) way: Way,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} of endpoint {} with {}", self.way, self.load, self.endpoint, self.other)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Out of the endpoint.
    Out,
    /// Deferred, at the uplink.
    Exit,
    /// Into the endpoint from outside.
    In,
    /// Into it from another endpoint.
    Across,
    /// Into it from a process of the node.
    FromNode,
}

#[derive(Clone)]
pub(crate) struct Stream {
    pub(crate) start: ClusterSpec,
    pub(crate) updates: Vec<Update>,
    pub(crate) probes: Vec<Probe>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "start {:?}", self.start)?;
        for update in &self.updates {
            writeln!(f, "{update:?}")?;
        }
        write!(f, "{:?}", self.probes)
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let one = |document| Edit::Documents(vec![Document(document)]);
    let policy = (0..5_usize).prop_flat_map(|number| documents::policy(format!("n{number}")));
    let namespace = documents::namespace_name().prop_flat_map(documents::namespace);
    let service = (0..2_usize).prop_flat_map(documents::service);
    let name = |prefix: &'static str, count: usize| {
        (documents::namespace_name(), 0..count).prop_map(move |(ns, number)| Name::new(ns, format!("{prefix}{number}")))
    };
    let id =
        |name: Name| PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(name.namespace), name: name.name };
    let gone = prop_oneof![
        3 => name("p", 6).prop_map(ObjectKey::Pod),
        3 => name("n", 5).prop_map(move |name| ObjectKey::Policy(id(name))),
        2 => name("t", 3).prop_map(move |name| ObjectKey::Policy(id(name))),
        1 => documents::namespace_name().prop_map(|name| ObjectKey::Namespace(name.into())),
        1 => name("s", 2).prop_map(ObjectKey::Service),
        1 => select(vec!["t1", "t2"]).prop_map(|name| ObjectKey::Tier(name.into())),
    ];
    prop_oneof![
        5 => (0..6_usize).prop_flat_map(documents::pod).prop_map(one),
        5 => policy.prop_map(one),
        2 => namespace.prop_map(one),
        2 => service.prop_map(|documents| Edit::Documents(documents.into_iter().map(Document).collect())),
        1 => world::tier().prop_map(Edit::Tier),
        2 => (0..3_usize).prop_flat_map(world::tiered).prop_map(Edit::Tiered),
        3 => gone.prop_map(Edit::Gone),
    ]
}

pub(crate) fn stream(updates: usize, probes: usize) -> impl Strategy<Value = Stream> {
    let way = select(vec![Way::Out, Way::Out, Way::Exit, Way::In, Way::Across, Way::FromNode]);
    let portless = |load: &Load| !matches!(load, Load::OtherIcmp | Load::Other(_));
    let load = load().prop_filter("tuples are told apart by the client's port", portless);
    let probe = (0..6_usize, 0..40_usize, load, way).prop_map(|(endpoint, other, load, way)| Probe {
        endpoint,
        other,
        load,
        way,
    });
    let update = (vec(edit(), 1..=3), any::<bool>()).prop_map(|(edits, settle)| Update { edits, settle });
    (cluster(), vec(update, 1..=updates), vec(probe, 1..=probes)).prop_map(|(start, updates, probes)| Stream {
        start,
        updates,
        probes,
    })
}

impl Edit {
    fn changes(&self, cluster: &Cluster) -> Vec<Change> {
        match self {
            Self::Documents(documents) => {
                let objects: Vec<Object> = documents.iter().filter_map(|document| object(&document.0)).collect();
                // A pod keeps its name and addresses when it moves to another namespace here: the one before is gone.
                let moved = objects.iter().filter_map(|object| match object {
                    Object::Pod(pod) => {
                        let mut twins = cluster.pods.keys();
                        twins.find(|key| key.name == pod.key.name && **key != pod.key).cloned().map(ObjectKey::Pod)
                    }
                    Object::Service(service) => {
                        let mut twins = cluster.services.keys();
                        let twin = twins.find(|key| key.name == service.key.name && **key != service.key);
                        twin.cloned().map(ObjectKey::Service)
                    }
                    _ => None,
                });
                let gone: Vec<Change> = moved.map(Change::Gone).collect();
                gone.into_iter().chain(objects.into_iter().map(Change::Set)).collect()
            }
            Self::Tier(tier) => vec![Change::Set(Object::Tier(tier.tier()))],
            Self::Tiered(policy) => vec![Change::Set(Object::Policy(policy.policy()))],
            Self::Gone(key) => vec![Change::Gone(key.clone())],
        }
    }
}

/// Every address that a packet may be from or to.
fn addresses(v4: bool) -> Vec<IpAddr> {
    let hosts = (10..16).flat_map(|host| [format!("10.1.0.{host}"), format!("fd00:1::{host:x}")]);
    let services = (1..3).flat_map(|host| [format!("10.96.0.{host}"), format!("fd00:96::{host}")]);
    let known = [OUTSIDERS.as_slice(), &OWN_ADDRESSES, &OTHER_ADDRESSES].concat();
    let all = hosts.chain(services).chain(known.into_iter().map(str::to_owned));
    all.map(|text| text.parse().unwrap()).filter(|address: &IpAddr| address.is_ipv4() == v4).collect()
}

/// A probe as a packet of the endpoints that are there before and after.
struct Packet {
    hook: Hook,
    device: u32,
    last_device: u32,
    stamp: Stamp,
    from: IpAddr,
    to: IpAddr,
    load: Load,
}

impl Packet {
    fn asks(&self, port: u16) -> bool {
        self.load.traffic(self.from.is_ipv4()).port == port
    }

    fn arrival(&self, client: u16, load: Load) -> Arrival {
        let frame = packets::frame(self.from, self.to, client, load);
        let Self { hook, device, last_device, stamp, .. } = *self;
        Arrival { hook, device, last_device, stamp, frame }
    }
}

/// What became of a packet, in words that mean the same before and after.
type Outcome = (Result<Stamp, Drop>, Vec<What>);

/// A cluster whose changes are followed.
pub(crate) struct Follower<'n, J> {
    pub(crate) node: &'n mut Node<J>,
    pub(crate) world: World,
    compiler: Compiler,
    client: u16,
}

impl<'n, J: Judge> Follower<'n, J> {
    /// Starts with empty tables.
    pub(crate) fn new(node: &'n mut Node<J>, start: &ClusterSpec) -> Self {
        node.own_node = start.own_node;
        node.hold(Desired::default());
        let world = World::of(start);
        let mut compiler = Compiler::new(Numbers::default(), BTreeMap::new());
        let desired = compiler.compile(&world.input(), &Dirty::all()).clone();
        node.hold(desired);
        Self { node, world, compiler, client: 1023 }
    }

    /// Takes in changes and compiles them.
    pub(crate) fn compile(&mut self, update: &Update) -> Desired {
        if update.settle {
            self.compiler.settle();
        }
        let mut dirty = Dirty::default();
        let mut cluster = self.world.cluster.clone();
        for edit in &update.edits {
            for change in edit.changes(&cluster) {
                let change = match (edit, change) {
                    (Edit::Documents(_), Change::Set(object)) => Change::Set(world::seen(object, self.world.own_node)),
                    (_, change) => change,
                };
                let key = match &change {
                    Change::Set(object) => object.key(),
                    Change::Gone(key) => key.clone(),
                };
                if cluster.apply(change) {
                    dirty.objects.insert(key);
                }
            }
        }
        let ranges = self.world.node.service_ranges.clone();
        let own_node = self.world.own_node;
        let now = World { own_node, ..World::seen(cluster, ranges) };
        let before = std::mem::replace(&mut self.world, now);
        dirty.local = before.local.iter().chain(&self.world.local).map(|local| local.id.clone()).collect();
        self.compiler.compile(&self.world.input(), &dirty).clone()
    }

    /// A client port that no packet has had for long.
    fn next_client(&mut self) -> u16 {
        self.client = if self.client == 29_000 { 1024 } else { self.client + 1 };
        self.client
    }

    fn packets(&self, probes: &[Probe], before: &Desired, after: &Desired) -> Vec<Packet> {
        let seats = self.node.planner.seats();
        let lasting = |(id, policy): (&LocalId, &portcullis::state::EndpointPolicy)| {
            let same = before.endpoints.get(id).is_some_and(|known| known.addresses == policy.addresses);
            (same && !policy.addresses.is_empty()).then(|| (seats[id], policy.addresses.clone()))
        };
        let endpoints: Vec<_> = after.endpoints.iter().filter_map(lasting).collect();
        let packet = |probe: &Probe| {
            let (seat, own) = endpoints.get(probe.endpoint % endpoints.len().max(1))?;
            let own = own[probe.other % own.len()];
            let device = FIRST_DEVICE + seat.slot;
            let known = addresses(own.is_ipv4());
            let other = known[probe.other % known.len()];
            let load = probe.load;
            let outgoing = |hook, device, stamp| {
                let last_device = FIRST_DEVICE + seat.slot;
                Packet { hook, device, last_device, stamp, from: own, to: other, load }
            };
            let incoming = |last_device, stamp, from| Packet {
                hook: Hook::ToPod,
                device,
                last_device,
                stamp,
                from,
                to: own,
                load,
            };
            Some(match probe.way {
                Way::Out => outgoing(Hook::FromPod, device, Stamp::NONE),
                Way::Exit => outgoing(Hook::ToUplink, UPLINK, Stamp::deferred(seat.slot, seat.content.generation)),
                Way::In => incoming(UPLINK, Stamp::OUTSIDE, other),
                Way::FromNode => {
                    let node = OWN_ADDRESSES.map(|text| text.parse::<IpAddr>().unwrap());
                    incoming(0, Stamp::NONE, node[usize::from(own.is_ipv6())])
                }
                Way::Across => {
                    let (seat, theirs) = endpoints.get(probe.other % endpoints.len())?;
                    let from = theirs.iter().find(|address| address.is_ipv4() == own.is_ipv4())?;
                    let stamp = Stamp::judged(seat.slot, seat.content.generation);
                    incoming(FIRST_DEVICE + seat.slot, stamp, *from)
                }
            })
        };
        probes.iter().filter_map(packet).collect()
    }

    fn outcome(&mut self, packet: &Packet, client: u16, load: Load, names: &Desired) -> Outcome {
        let Departure { fate, counted } = self.node.judge(&packet.arrival(client, load));
        let mut counted: Vec<What> = counted.into_iter().map(|rule| What::of(rule, names)).collect();
        counted.sort();
        (fate, counted)
    }

    /// Applies what was compiled, step by step, and looks at every probe after each. `established`: as a packet in the middle
    /// of a connection that began before; else as one of a new connection.
    pub(crate) fn apply(&mut self, after: &Desired, probes: &[Probe], established: bool) -> Result<usize, String> {
        let before = self.node.desired.clone();
        // Numbers mean the same in both, so one list of names serves.
        let mut names = after.clone();
        names.rules.extend(before.rules.clone());
        let steps = self.node.planner.steps(after).unwrap();
        self.node.desired = names.clone();
        let packets = self.packets(probes, &before, after);
        let middle = |load| match load {
            Load::Syn(port) => Load::Data(port),
            Load::Init(port) => Load::Chunk(port),
            load => load,
        };
        let mut olds = Vec::new();
        for packet in &packets {
            let client = self.next_client();
            let opened = self.outcome(packet, client, packet.load, &names);
            let old = if established { self.outcome(packet, client, middle(packet.load), &names) } else { opened };
            olds.push((client, old));
        }
        let mut judged = 0;
        let mut seen: Vec<Vec<(usize, Outcome)>> = packets.iter().map(|_| Vec::new()).collect();
        for (number, step) in steps.iter().enumerate() {
            self.node.judge.take(step).unwrap();
            // Most steps are ports of wide ranges, which no probe is about.
            if matches!(step, Step::PutPort(_, port, _) if packets.iter().all(|packet| !packet.asks(*port))) {
                continue;
            }
            for (index, packet) in packets.iter().enumerate() {
                let (client, load) =
                    if established { (olds[index].0, middle(packet.load)) } else { (self.next_client(), packet.load) };
                let outcome = self.outcome(packet, client, load, &names);
                seen[index].push((number, outcome));
                judged += 1;
            }
        }
        self.node.desired = after.clone();
        for ((packet, (client, old)), seen) in packets.iter().zip(olds).zip(seen) {
            let fresh = self.next_client();
            let load = if established { middle(packet.load) } else { packet.load };
            let new = self.outcome(packet, fresh, load, &names);
            let what = format!(
                "{:?} of {:?} from {} to {} (stamp {:?}, client port {client})",
                packet.hook, load, packet.from, packet.to, packet.stamp
            );
            for (number, mid) in &seen {
                // To leave the verdict to the packet's exit is none.
                let deferred = packet.hook == Hook::FromPod && mid.0.is_ok_and(Stamp::is_deferred);
                if *mid != old && *mid != new && !deferred {
                    let step = &steps[*number];
                    return Err(format!(
                        "{what}: before {old:?}\nafter {new:?}\nafter step {number} of {} ({step:?}) {mid:?}",
                        steps.len()
                    ));
                }
            }
            if established {
                let last = self.outcome(packet, client, load, &names);
                if last != new {
                    return Err(format!("{what}: an established flow has {last:?}, a new one {new:?}, before {old:?}"));
                }
            }
        }
        self.node.flags(after);
        Ok(judged)
    }
}

/// Follows random streams of changes. Gives how many packets were judged between two steps.
pub(crate) fn follow_random_streams<J: Judge>(judge: J, streams: u32, updates: usize, probes: usize) -> usize {
    let judged = Cell::new(0);
    let runner = saved(streams, "proptest-regressions/updates.txt");
    if let Err(error) = follow(judge, runner, (updates, probes), |_, _| {}, &judged) {
        panic!("{error}");
    }
    judged.get()
}

/// Whether tables that were changed after they were compiled (given those before) are found out in so many streams.
pub(crate) fn find_broken_update(change: fn(&Desired, &mut Desired), streams: u32) -> bool {
    follow(Memory::default(), repeatable(streams), (5, 16), change, &Cell::new(0)).is_err()
}

fn follow<J: Judge>(
    judge: J,
    mut runner: TestRunner,
    (updates, probes): (usize, usize),
    change: fn(&Desired, &mut Desired),
    judged: &Cell<usize>,
) -> Result<(), String> {
    let court = RefCell::new(Court::new(None::<Memory>));
    let node = RefCell::new(Node::new(judge));
    let packets = vec(packet(), 1..=10);
    let outcome = runner.run(&(stream(updates, probes), packets), |(stream, packets)| {
        let mut node = node.borrow_mut();
        let mut follower = Follower::new(&mut node, &stream.start);
        for (number, update) in stream.updates.iter().enumerate() {
            let mut desired = follower.compile(update);
            change(&follower.node.desired, &mut desired);
            let outcome = follower.apply(&desired, &stream.probes, number % 2 == 0);
            let fail = |what| TestCaseError::fail(format!("update {number}: {what}\n{stream:?}"));
            judged.set(judged.get() + outcome.map_err(fail)?);
            // The tables that grew are as right as those made from nothing.
            let mut court = court.borrow_mut();
            court.memory.own_node = stream.start.own_node;
            court.memory.hold(desired);
            court.hear(&follower.world, &packets, false).map_err(fail)?;
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())
}
