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

/// The owners of the seeds that a table gives.
fn owners(connections: &[Connection], inherited: &Inherited) -> Vec<u32> {
    let local = |slot, incarnation, address| Local { slot, generation: 0, incarnation, addresses: vec![address] };
    let endpoints = [local(10, OLD, A), local(20, NEW, B)];
    let around = Surroundings {
        endpoints: &endpoints,
        flags: &|_| 0,
        lifetimes: [100; 16],
        jiffies: 1,
        first: false,
        inherited,
    };
    seeds(connections, &around).iter().map(|seed| seed.owner).collect()
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
    assert_eq!(owners(&old, &inherited), [20, 20, 10, CONFIRMED, 20], "as they are, they would be its own");
    let endpoints = [(OLD, vec![A]), (NEW, vec![B])];
    inherited.read(&old, &endpoints);
    assert!(!inherited.is_unread(NEW, &[B]) && inherited.is_unread(NEW, &[B, X]), "each address is read once");

    let own = [connection(B, X, 4), connection(X, B, 5), connection(A, X, 6), connection(A, B, 7)];
    for turn in 0..2 {
        let all = [&old[..], &own].concat();
        inherited.read(&all, &endpoints);
        let expected = [20, 20, 10, 10, 20];
        assert_eq!(owners(&all, &inherited), expected, "{turn}: the same addresses and ports, another number");
    }

    // Connections that are gone are forgotten, and so are endpoints.
    inherited.read(&own, &endpoints);
    assert_eq!(owners(&old[..1], &inherited), [20]);
    inherited.read(&own, &endpoints[..1]);
    assert!(!inherited.is_unread(NEW, &[X]), "who is gone waits for nothing");
}

#[test]
fn what_an_endpoint_has_that_is_as_old_as_the_agent_is_its_own() {
    let mut inherited = Inherited::default();
    let table = [connection(B, X, 1), connection(X, A, 2)];
    inherited.read(&table, &[(OLD, vec![A]), (NEW, vec![B])]);
    assert_eq!(owners(&table, &inherited), [20, 10]);
}
