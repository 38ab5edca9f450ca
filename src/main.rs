//! The `callseal` program: arguments, then one command.

use std::process::ExitCode;

use callseal::cli;

fn main() -> ExitCode {
    cli::run()
}
