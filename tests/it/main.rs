//! The tests that need more than one module: one binary, so that it links once.

#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected fails at once; helpers are part of the tests"
)]

mod architecture;
