//! See `callseal_fuzz::vapi_webhook`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callseal_fuzz::vapi_webhook(bytes));
