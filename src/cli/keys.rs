//! `callseal keys init`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use clap::Subcommand;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{Config, process_environment};
use crate::domain::ids::TenantId;
use crate::domain::sign::encode_hex;
use crate::keys::{Keyring, system_random};

use super::{CommandResult, ConfigArg, Failure, output};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make what is missing: a key-encryption key for every tenant, and random values for secret files
    ///
    /// What exists is never changed. Random secrets are for development: put the provider's own auth token into its file
    /// before real calls.
    Init(ConfigArg),
}

pub(super) fn run(command: &KeysCommand) -> CommandResult {
    let KeysCommand::Init(args) = command;
    init(&args.config)
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
    let tenants: Vec<TenantId> = config.tenants.iter().map(|tenant| tenant.id.clone()).collect();
    let created = clock::rfc3339(clock::wall());
    let made = Keyring::init(&places.keyring_file, &tenants, &created, system_random)?;
    output::line(&format!(
        "{}: made keys for {made} of {} tenants; keep a copy of this file apart from the store",
        places.keyring_file.display(),
        tenants.len()
    ));
    Ok(())
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
