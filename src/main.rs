//! The `callseal` program: arguments, then one command.

use std::process::ExitCode;

use callseal::cli;
use tikv_jemallocator::Jemalloc;

/// Cuts large pieces from whole pages and joins them again when they are free, so that segments of all sizes leave no holes;
/// gives memory back to the system within ten seconds. `docs/decisions/0010-allocator.md` has the figures.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::run()
}
