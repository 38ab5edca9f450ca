//! See `callseal_fuzz::grant`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callseal_fuzz::grant(bytes));
