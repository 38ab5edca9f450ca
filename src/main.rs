//! The `callseal` program: arguments, then one command.

use std::process::ExitCode;

use callseal::cli;
use tikv_jemallocator::Jemalloc;
use zeroizing_alloc::ZeroAlloc;

/// Wipes all memory when it is freed: audio passes through the buffers of sockets, TLS and parsers, which are not ours to wipe.
/// Below, jemalloc cuts large pieces from whole pages and joins them again, so that segments of all sizes leave no holes, and
/// gives memory back to the system within ten seconds; `docs/decisions/0010-allocator.md` has the figures.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<Jemalloc> = ZeroAlloc(Jemalloc);

fn main() -> ExitCode {
    cli::run()
}
