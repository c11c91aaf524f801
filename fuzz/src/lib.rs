//! What the fuzz targets assert. Targets and tests call the same functions: a fuzzer with bytes that it steers by coverage,
//! tests with the saved corpus and with random bytes.

mod history;
mod node;
mod play;
mod world;

pub use node::Breakage;

/// The parser over a frame: it never panics, its short way says what the long one says, and an independent parser agrees.
/// The first byte tells whether the others are a frame, or a recipe for one.
#[expect(clippy::panic, reason = "the fuzzer's way of being told")]
pub fn parse(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let frame = match kind % 4 {
        0 => rest.to_vec(),
        odd => portcullis_packets::Recipe::random(rest).frame(&world::parties(odd % 2 == 1)),
    };
    if let Err(disagreement) = portcullis_packets::agree(&frame) {
        panic!("{disagreement}");
    }
}

/// The decision at all hooks over small tables, for a sequence of packets, changes and pauses; what it asserts is said in
/// `node`'s checks.
#[expect(clippy::panic, reason = "the fuzzer's way of being told")]
pub fn decide(data: &[u8]) {
    if let Err(broken) = try_decide(data, Breakage::None) {
        panic!("{broken}");
    }
}

/// [`decide`], with something broken on purpose.
///
/// # Errors
/// What does not hold.
pub fn try_decide(data: &[u8], breakage: Breakage) -> Result<(), String> {
    thread_local! {
        static NODE: std::cell::RefCell<node::Node> = std::cell::RefCell::new(node::Node::new());
    }
    NODE.with_borrow_mut(|node| play::play(node, data, breakage))
}
