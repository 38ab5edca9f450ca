//! See `callseal_fuzz::form`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callseal_fuzz::form(bytes));
