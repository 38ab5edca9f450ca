//! Faults of everything below a node: the store, the disk of the journal, the configuration, the clock.

mod abandoned;
mod backlog;
mod calls;
mod compaction;
mod index;
mod lane;
mod node;
mod power;
mod sealed;
mod settle;
mod start;
