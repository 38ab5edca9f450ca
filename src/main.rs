//! callseal.
fn main() {}
