//! What the packet programs and the agent share: addresses, table layouts, entries, verdicts, and the decision itself.
//!
//! `decide` is written once, generic over [`Tables`]: the BPF programs call it over maps, the agent's tests and its
//! `matrix --engine tables` over ordinary memory. Everything here is `no_std`, without allocation, without recursion and
//! without loops whose bound is not a constant, so that the verifiers of kernels since 5.10 can follow it.
#![no_std]

pub mod address;
pub mod classify;
pub mod decide;
pub mod exit;
pub mod flow;
pub mod fragment;
pub mod layout;
pub mod packet;
pub mod related;
pub mod seed;
pub mod stamp;
pub mod tables;
pub mod unusual;
pub mod verdict;

pub use address::Address;
pub use stamp::Stamp;
pub use tables::Tables;
