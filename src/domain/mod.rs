//! The rules, and nothing else: no async, socket, disk, environment, clock or hidden randomness.
//!
//! Time, random bytes and keys come in as arguments; effects go out as return values. A test reads the sources of this
//! folder and fails when one of them reaches outside (`tests/it/architecture.rs`).

pub mod access;
pub mod address;
pub mod audio;
pub mod cmr;
pub mod ids;
pub mod index;
pub mod jwt;
pub mod kept_until;
pub mod ledger;
pub mod live_order;
pub mod notice;
pub mod percent;
pub mod playback;
pub mod policy;
pub mod provider;
pub mod recording;
pub mod recovery;
pub mod relay_proof;
pub mod request;
pub mod retention;
pub mod session;
pub mod sign;
pub mod ticket;
pub mod time;
