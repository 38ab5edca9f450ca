//! The command line: one file per command.
//!
//! Exit codes: 0 done, also when whoever reads the results wanted no more; 1 failed, 2 wrong arguments, 64 faults in the
//! configuration.

mod audit;
mod demo;
mod dumps;
mod export;
mod find;
mod grant;
mod keys;
mod ledger;
mod lifecycle;
mod output;
mod policy;
mod recordings;
mod repair;
mod requests;
mod retention;
mod serve;
mod store;
mod sweep;
mod target;
mod tenant;
mod ticket;
mod token;
mod top;
mod unpacked;
mod webhooks;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Faults, process_environment};
use crate::locked;

/// Exit code of a configuration that cannot be used (`EX_USAGE` of sysexits.h).
const EXIT_CONFIG: u8 = 64;

/// Encrypted call-media ingest proxy: seals phone-call audio on arrival, stores only ciphertext, plays it back through
/// signed, expiring links.
#[derive(Debug, Parser)]
#[command(name = "callseal", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Begin with:    callseal demo
Then:          callseal keys init --config config/dev.toml && callseal serve --config config/dev.toml
Exit codes:    0 done, 1 failed, 2 wrong arguments, 64 faults in the configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Place a real call against a real server on this machine, and prove what becomes of it
    Demo(demo::DemoArgs),
    /// Take calls until SIGTERM (drain) or SIGINT (stop now)
    Serve(ConfigArg),
    /// Show what a running node does, in the terminal, from its metrics alone
    Top(top::TopArgs),
    /// Read the configuration, report every fault at once, start nothing
    CheckConfig(ConfigArg),
    /// Key-encryption keys of the tenants
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Make a signed, expiring link to a recording
    Grant(grant::GrantArgs),
    /// Make a URL for one call: sealed, expiring, for single use
    Ticket(ticket::TicketArgs),
    /// Tokens of the admin API
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Tenants that are kept in the store, for all nodes
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// For how many days a tenant's recordings are kept: shorten, propose, approve, and who did
    #[command(subcommand)]
    Retention(policy::RetentionCommand),
    /// Recordings in the store
    #[command(subcommand)]
    Recordings(recordings::RecordingsCommand),
    /// Decrypt and verify a recording and write it as a WAV file; works without a running server
    Open(recordings::OpenArgs),
    /// Write recordings into one tar archive, as WAV files or sealed, with a manifest and digests
    Export(export::ExportArgs),
    /// Verify a recording and say how much that proves; works without a running server
    Verify(recordings::VerifyArgs),
    /// Delete the recordings whose time is over; `serve` does it by itself
    Sweep(sweep::SweepArgs),
    /// Finish recordings whose node never came back, from the store alone; works without a running server
    Repair(repair::RepairArgs),
    /// Audit records of a tenant
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The deletion ledger of a tenant: what was deleted, by whose order, why and when
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// What people ask for about their own recordings: access, delete, port, restrict
    #[command(subcommand)]
    Requests(requests::RequestsCommand),
    /// The store itself
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Rules of the bucket that delete what no sweep deleted: a late safety net
    #[command(subcommand)]
    Lifecycle(lifecycle::LifecycleCommand),
    /// Notices to a tenant's own server
    #[command(subcommand)]
    Webhooks(webhooks::WebhooksCommand),
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArg {
    /// Configuration of the node; see config/callseal.toml for every option
    #[arg(long, value_name = "FILE", default_value = "config/callseal.toml")]
    config: PathBuf,
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The configuration has faults.
    Config(Faults),
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

type CommandResult = Result<(), Failure>;

impl ConfigArg {
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.config, process_environment()).map_err(Failure::Config)
    }
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let command = Cli::parse().command;
    // Any command may come to hold keys.
    if let Err(error) = dumps::prevent() {
        output::error(&format!("warning: keys may reach a core dump: {error}"));
    }
    let _where_keys_lie = locked::memory();
    let outcome = match command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Top(args) => top::run(&args),
        Command::CheckConfig(args) => serve::check(&args),
        Command::Keys(command) => keys::run(&command),
        Command::Grant(args) => grant::run(&args),
        Command::Ticket(args) => ticket::run(&args),
        Command::Token(command) => token::run(&command),
        Command::Tenant(command) => tenant::run(&command),
        Command::Retention(command) => policy::run(&command),
        Command::Recordings(command) => recordings::run(&command),
        Command::Open(args) => recordings::open(&args),
        Command::Export(args) => export::run(&args),
        Command::Verify(args) => recordings::verify(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Audit(command) => audit::run(&command),
        Command::Ledger(command) => ledger::run(&command),
        Command::Requests(command) => requests::run(&command),
        Command::Store(command) => store::run(&command),
        Command::Lifecycle(command) => lifecycle::run(&command),
        Command::Webhooks(command) => webhooks::run(&command),
    };
    match outcome {
        Ok(()) => match output::failure() {
            None => ExitCode::SUCCESS,
            Some(error) => {
                output::error(&format!("callseal: results cannot be written: {error}"));
                ExitCode::FAILURE
            }
        },
        Err(Failure::Config(faults)) => {
            output::error(&faults.to_string());
            ExitCode::from(EXIT_CONFIG)
        }
        Err(Failure::Other(error)) => {
            output::error(&format!("callseal: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A runtime for commands that talk to the store.
fn runtime() -> Result<tokio::runtime::Runtime, std::io::Error> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
