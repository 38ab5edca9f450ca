//! The tests that need more than one module: one binary, so that it links once.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that meets the unexpected fails at once; helpers are part of the tests"
)]

mod admin;
mod architecture;
mod audit;
mod cli;
mod faults;
mod fuzz_seeds;
mod handshake;
mod index;
mod ingest;
mod keys;
mod kill;
mod load;
#[cfg(target_os = "linux")]
mod memory;
mod metrics;
mod monitoring;
mod playback;
mod promises;
mod reader;
mod relay;
mod repair;
mod requests;
mod retention;
mod rotation;
mod s3;
mod secrets;
mod shutdown;
mod support;
mod tickets;
mod tls;
mod top;
mod traces;
mod vapi;
mod vectors;
mod webhooks;
