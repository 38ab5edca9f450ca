//! Faults of everything below a node: the store, the disk of the journal, the configuration, the clock.

mod calls;
mod compaction;
mod lane;
mod node;
mod sealed;
mod start;
