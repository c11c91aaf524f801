//! Whose connections are entered.

use std::net::{IpAddr, Ipv4Addr};

use super::*;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const X: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
/// The incarnations of who has A and B.
const OLD: u32 = 1;
const NEW: u32 = 2;

fn connection(source: IpAddr, destination: IpAddr, id: u32) -> Connection {
    let original = Tuple { source, destination, source_port: 7946, destination_port: 7946 };
    let reply = Tuple { source: destination, destination: source, source_port: 7946, destination_port: 7946 };
    Connection { protocol: 6, original, reply, progress: Progress::Established, remaining: 1, id }
}

/// Reads a table: the owners of the seeds that it gives.
fn read(inherited: &mut Inherited, connections: &[Connection], endpoints: &[(u32, Vec<IpAddr>)]) -> Vec<u32> {
    let local = |slot, incarnation, address| Local { slot, generation: 0, incarnation, addresses: vec![address] };
    let locals = [local(10, OLD, A), local(20, NEW, B)];
    let around = Surroundings { endpoints: &locals, flags: &|_| 0, lifetimes: [100; 16], jiffies: 1, first: false };
    let mut reader = Reader::new(around, inherited.reading(endpoints));
    let owners = connections.iter().flat_map(|connection| reader.seeds(connection)).map(|seed| seed.owner).collect();
    *inherited = reader.finish();
    owners
}

#[test]
fn what_is_older_than_an_endpoint_with_its_address_is_never_its_own() {
    let mut inherited = Inherited::default();
    inherited.begin(NEW);
    assert!(inherited.is_unread(NEW, &[B]) && !inherited.is_unread(NEW, &[]) && !inherited.is_unread(OLD, &[A]));
    // Of a pod that had B: it opened one, was sent one, and one to a Service that led to it.
    let mut through = connection(A, X, 3);
    through.reply.source = B;
    let old = [connection(B, X, 1), connection(X, B, 2), through];
    let endpoints = [(OLD, vec![A]), (NEW, vec![B])];
    let nobody_new = &mut Inherited::default();
    assert_eq!(read(nobody_new, &old, &endpoints), [20, 20, 10, CONFIRMED, 20], "as they are, they would be its own");
    assert_eq!(read(&mut inherited, &old, &endpoints), [0; 0], "none is its own, and it is no end of theirs");
    assert!(!inherited.is_unread(NEW, &[B]) && inherited.is_unread(NEW, &[B, X]), "each address is read once");

    let own = [connection(B, X, 4), connection(X, B, 5), connection(A, X, 6), connection(A, B, 7)];
    for turn in 0..2 {
        let all = [&old[..], &own].concat();
        let owners = read(&mut inherited, &all, &endpoints);
        assert_eq!(owners, [20, 20, 10, 10, 20], "{turn}: the same addresses and ports, another number");
    }

    // A table that could not be read to its end tells nothing of what is gone.
    drop(inherited.reading(&endpoints));
    assert_eq!(read(&mut inherited, &old[..1], &endpoints), [0; 0], "what is known is kept");

    // Connections that are gone are forgotten, and so are endpoints.
    read(&mut inherited, &own, &endpoints);
    assert_eq!(read(&mut inherited, &old[..1], &endpoints), [20]);
    read(&mut inherited, &own, &endpoints[..1]);
    assert!(!inherited.is_unread(NEW, &[X]), "who is gone waits for nothing");
}

#[test]
fn what_an_endpoint_has_that_is_as_old_as_the_agent_is_its_own() {
    let table = [connection(B, X, 1), connection(X, A, 2)];
    let owners = read(&mut Inherited::default(), &table, &[(OLD, vec![A]), (NEW, vec![B])]);
    assert_eq!(owners, [20, 10]);
}
