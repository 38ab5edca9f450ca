//! What is done about recordings beside recording and playing them: audit, recovery, listing, the blind index, retention,
//! rewrap of keys, export, kept answers.
//!
//! Knows tenants and object names. Must not know frame layouts or sockets.

pub mod answers;
pub mod audit;
pub mod closing;
mod deletion;
pub mod erase;
pub mod export;
pub mod index;
pub mod key_age;
pub mod ledger;
pub mod mint;
pub mod recordings;
pub mod recovery;
pub mod redate;
pub mod repair;
pub mod requests;
pub mod restriction;
pub mod retention;
pub mod rewrap;
pub mod sweep;
pub mod tar;
pub mod wav;
