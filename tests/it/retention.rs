//! What is deleted and when, what is not, and what is left of it.

mod commands;
mod interrupted;
mod model;
mod rules;
mod stores;
mod world;
