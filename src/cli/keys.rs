//! `callseal keys init`, `rotate`, `rewrap`, `status`, `retire`, `shred` and `recipient`.

mod recipient;
mod rotation;
mod shred;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use clap::Subcommand;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{Config, KeyProviderKind, Tenant, process_environment};
use crate::domain::ids::TenantId;
use crate::domain::sign::encode_hex;
use crate::keys::{Keyring, system_random};
use crate::server::open_store;
use crate::tenants::{Book, View, together};

use super::{CommandResult, ConfigArg, Failure, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make what is missing: a key-encryption key for every tenant, and random values for secret files
    ///
    /// What exists is never changed. Random secrets are for development: put the provider's own auth token into its file
    /// before real calls.
    Init(ConfigArg),
    /// Make a new version of key-encryption keys; new recordings use it
    ///
    /// Running nodes take it with SIGHUP. What is older stays under its version until it is moved with: callseal keys rewrap
    Rotate(rotation::RotateArgs),
    /// Move data keys under the newest version of their key-encryption key; audio is not touched
    ///
    /// May be stopped and repeated at any time, and run while calls are recorded and played.
    Rewrap(rotation::RewrapArgs),
    /// Tell the versions of key-encryption keys, their age, and how many recordings need each
    Status(rotation::StatusArgs),
    /// Destroy an older version of a key-encryption key that no recording needs
    Retire(rotation::RetireArgs),
    /// Destroy recordings at once, key first: one, those of a call or a party, or all of a tenant; held ones stay
    Shred(shred::ShredArgs),
    /// Key pairs of which a node may have only the half that wraps
    #[command(subcommand)]
    Recipient(recipient::RecipientCommand),
}

pub(super) use shred::print as print_erased;

pub(super) fn run(command: &KeysCommand) -> CommandResult {
    match command {
        KeysCommand::Init(args) => init(&args.config),
        KeysCommand::Rotate(args) => rotation::rotate(args),
        KeysCommand::Rewrap(args) => rotation::rewrap(args),
        KeysCommand::Status(args) => rotation::status(args),
        KeysCommand::Retire(args) => rotation::retire(args),
        KeysCommand::Shred(args) => shred::shred(args),
        KeysCommand::Recipient(command) => recipient::run(command),
    }
}

/// Makes missing secrets and KEKs for a configuration.
pub(super) fn init(config_file: &Path) -> CommandResult {
    let places = Config::secret_places(config_file, process_environment()).map_err(Failure::Config)?;
    for file in &places.secret_files {
        if !file.exists() {
            make_secret(file).with_context(|| format!("secret file {}", file.display()))?;
            output::line(&format!("made {} with a random value", file.display()));
        }
    }
    let config = Config::load(config_file, process_environment()).map_err(Failure::Config)?;
    let config = match &config.stored_tenants {
        Some(_) => runtime()?.block_on(with_all_stored(config))?,
        None => config,
    };
    let in_keyring = |tenant: &&Tenant| tenant.keks.current.provider == KeyProviderKind::Local;
    let tenants: Vec<TenantId> =
        config.tenants.iter().filter(in_keyring).map(|tenant| tenant.id.clone()).collect();
    if tenants.len() < config.tenants.len() {
        output::line(&format!(
            "{} tenants have their key elsewhere; it is made there",
            config.tenants.len() - tenants.len()
        ));
    }
    if tenants.is_empty() && !config.tenants.is_empty() {
        return Ok(());
    }
    let created = clock::rfc3339(clock::wall());
    let made = Keyring::init(&places.keyring_file, &tenants, &created, system_random)?;
    output::line(&format!(
        "{}: made keys for {made} of {}; keep a copy of this file apart from the store",
        places.keyring_file.display(),
        output::counted(tenants.len(), "tenant")
    ));
    Ok(())
}

/// Adds the tenants of the store, also those that have no key yet.
async fn with_all_stored(mut config: Config) -> anyhow::Result<Config> {
    let Some(rules) = &config.stored_tenants else { return Ok(config) };
    let store = open_store(&config).await?;
    let mut view = View::default();
    view.look(&Book::new(store, rules), &config).await.context("tenants of the store")?;
    for problem in view.trouble() {
        output::error(&format!("warning: {problem}"));
    }
    config.tenants = together(&config.tenants, view.tenants());
    Ok(config)
}

/// Writes 64 hexadecimal digits of random, mode 0600.
fn make_secret(file: &Path) -> std::io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut random = Zeroizing::new([0; 32]);
    system_random(&mut *random)?;
    let digits: Zeroizing<String> = Zeroizing::new(encode_hex(&*random));
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(digits.as_bytes())?;
    out.sync_all()
}
