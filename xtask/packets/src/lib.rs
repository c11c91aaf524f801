//! Frames for tests, fuzzing and attacks: valid, odd and malformed ones.
//!
//! A [`Recipe`] says what a frame is made of, whoever its [`Parties`] are; [`Recipe::frame`] writes it, with right
//! checksums and lengths but where the recipe lies. [`Recipe::random`] makes any of them out of random bytes, so that
//! property tests and fuzzers share one generator, and [`catalogue()`] has each kind by its name. [`reading`] is what an
//! independent parser, etherparse, says of a frame, and [`expected()`] what our own parser must therefore say.

mod agree;
mod catalogue;
pub mod expected;
mod random;
pub mod reading;
mod recipe;
mod write;

pub use agree::{agree, ours};
pub use catalogue::{Kind, catalogue};
pub use expected::{Said, expected};
pub use recipe::{
    Arp, Body, Extension, Fragment, Icmp, Ip, Link, Net, OVER_LONG_CHAIN, Parties, Quote, Recipe, Tag, Target,
    fragments,
};
