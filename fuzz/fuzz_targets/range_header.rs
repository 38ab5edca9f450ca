//! See `callseal_fuzz::range_header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callseal_fuzz::range_header(bytes));
