//! The S3 store against real servers: Ceph over plain HTTP and over TLS, and Garage, which lacks tags and create-once.
//!
//! `scripts/storage-servers` starts them; `TEST_S3_CEPH` and `TEST_S3_GARAGE` name the file `env` that it wrote.
//! `scripts/test` does both. Without a server the tests say so and check nothing, but with `CI=true` a missing Ceph is a
//! failure. Answers that no real server can be made to give come from an invented one. Each test has a bucket of its own.

mod answers;
mod conformance;
mod deletion;
mod lifecycle;
mod lock;
mod lossy;
mod nodes;
mod probe;
pub(crate) mod servers;
mod trouble;
