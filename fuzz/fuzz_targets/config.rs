//! See `callseal_fuzz::config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callseal_fuzz::config(bytes));
