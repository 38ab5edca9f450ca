//! The `callseal` program: arguments, then one command.

use std::process::ExitCode;

use callseal::cli;
use mimalloc::MiMalloc;

/// Gives memory back to the system soon after it was freed.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
