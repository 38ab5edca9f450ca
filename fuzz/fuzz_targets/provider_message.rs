//! See `callseal_fuzz::provider_message`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callseal_fuzz::provider_message(bytes));
