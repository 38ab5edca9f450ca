//! The audit log against whoever writes to its store, and against stores and files that fail or hang.

mod attacks;
mod keeping;
mod places;
mod queries;
mod world;
