//! What is deleted and when, what is not, and what is left of it.

mod commands;
mod erase;
mod interrupted;
mod kept;
mod ledger;
mod many;
mod model;
mod rules;
mod shorten;
mod shred;
mod stores;
mod world;
