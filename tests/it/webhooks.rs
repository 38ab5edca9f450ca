//! Notices: receivers over real TLS that answer, refuse, hang and lie, nodes that share a store and die, and the program.

mod api;
mod delivery;
mod examples;
mod program;
mod reach;
pub(crate) mod receiver;
pub(crate) mod world;
