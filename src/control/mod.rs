//! What is done about recordings beside recording and playing them: audit, recovery, repair, listing.
//!
//! Knows tenants and object names. Must not know frame layouts or sockets.

pub mod audit;
pub mod recordings;
pub mod recovery;
pub mod repair;
