//! `cargo xtask fuzz` runs it; [`portcullis_fuzz::parse`] says what it asserts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::parse(data));
