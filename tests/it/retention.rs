//! What is deleted and when, what is not, and what is left of it.

mod commands;
mod erase;
mod interrupted;
mod ledger;
mod model;
mod rules;
mod shred;
mod stores;
mod world;
