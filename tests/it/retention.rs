//! What is deleted and when, what is not, and what is left of it.

mod interrupted;
mod model;
mod rules;
mod world;
