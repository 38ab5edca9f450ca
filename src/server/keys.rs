//! Opens keyring and key services at start, and takes what has changed at SIGHUP.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::config::{Config, KekName, KeyProviderKind, KeysRole, Tenant, TenantKeks};
use crate::control::key_age::KeyAges;
use crate::domain::ids::TenantId;
use crate::jitter::jittered;
use crate::keys::{
    KeyProvider, KeyService, Keyring, KeyringError, Providers, Recipient, RecipientError, RecipientFile,
    Recipients, try_recipients,
};
use crate::locked::{self, Report};
use crate::node::Node;
use crate::store::Store;

use super::StartError;

/// How often the age of KEKs is looked at.
const AGE_INTERVAL: Duration = Duration::from_secs(3600);
/// How often a keyring that nodes change by themselves is looked at: one `stat`. So long a node may not open what another one has
/// sealed under a version that it has just made.
const RING_INTERVAL: Duration = Duration::from_secs(5);

/// Opens the keys that the configuration names. To be called within a runtime.
///
/// # Errors
/// [`StartError::Keyring`], [`StartError::NoKek`]; [`StartError::Recipient`], [`StartError::NoRecipient`],
/// [`StartError::KeyringOnIngest`]; [`StartError::System`] for certificates that cannot be used.
pub fn open_keys(config: &Config, store: &Arc<dyn Store>) -> Result<Arc<KeyService>, StartError> {
    let provider = Arc::new(open(config)?);
    Ok(Arc::new(KeyService::new(provider, Arc::clone(store))))
}

/// Opens the key services that tenants have KEKs in. To be called within a runtime.
pub(super) fn open(config: &Config) -> Result<Providers, StartError> {
    lock_memory(config)?;
    let mut providers = Providers::new(load_keyring(config)?, keks_of(&config.tenants))
        .with_recipients(load_recipients(config)?);
    if config.keys.role == KeysRole::Ingest {
        return Ok(providers.write_only());
    }
    let failed = |what: &str| {
        let what = what.to_owned();
        |source| StartError::System { what, source }
    };
    // Tenants of the store that come later may have their keys in any service that there is.
    let is_used = |kind| {
        config.stored_tenants.is_some() || config.tenants.iter().any(|tenant| tenant.keks.use_provider(kind))
    };
    if is_used(KeyProviderKind::AwsKms) {
        providers = providers
            .with_aws_kms(&config.key_services.aws_kms, &config.keys)
            .map_err(failed("use aws_kms.ca_file"))?;
    }
    if let Some(vault) = config.key_services.vault.as_ref().filter(|_| is_used(KeyProviderKind::VaultTransit))
    {
        providers = providers.with_vault(vault, &config.keys).map_err(failed("use vault.ca_file"))?;
    }
    if let Some(token) = config.key_services.pkcs11.as_ref().filter(|_| is_used(KeyProviderKind::Pkcs11)) {
        providers = providers.with_pkcs11(token, &config.keys).map_err(failed("use pkcs11.module"))?;
    }
    Ok(providers)
}

/// Locks the memory that keys will lie in, before there is any.
fn lock_memory(config: &Config) -> Result<(), StartError> {
    let memory = locked::memory();
    if config.keys.require_locked_memory {
        memory.require().map_err(StartError::NotLocked)?;
    }
    match memory.prepare() {
        Ok(Report { kind, keys }) => tracing::info!(by = kind.name(), keys, "keys lie in locked memory"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "no memory can be locked: keys lie in ordinary memory, which may reach swap; raise the limit (LimitMEMLOCK, \
                 ulimit -l)"
            );
        }
    }
    Ok(())
}

/// Takes the KEKs of other tenants, and another keyring. A kind of key service that the node has not begun with needs a
/// new start.
pub(super) fn replace(
    providers: &Providers,
    keys: &Arc<KeyService>,
    config: &Config,
) -> Result<(), StartError> {
    let is_used = |kind| config.tenants.iter().any(|tenant| tenant.keks.use_provider(kind));
    if providers.opens() != (config.keys.role == KeysRole::Full) {
        return Err(StartError::NewRole);
    }
    let is_new = |kind: &KeyProviderKind| !providers.has(*kind) && is_used(*kind);
    if let Some(kind) = KeyProviderKind::ALL.into_iter().find(is_new) {
        return Err(StartError::NewProvider(kind));
    }
    let moved = {
        let _only_one = RING.lock().unwrap_or_else(PoisonError::into_inner);
        providers.replace(load_keyring(config)?, load_recipients(config)?, keks_of(&config.tenants))
    };
    let keys = Arc::clone(keys);
    tokio::spawn(async move { keys.erase_pools_of(&moved).await });
    Ok(())
}

/// Held while a keyring is read and put in place, so that an older one never comes after a newer one.
static RING: Mutex<()> = Mutex::new(());

/// Looks at the age of KEKs for as long as the node runs. Where it makes new versions by itself, it takes the keyring whenever
/// that has changed: another node may have made one in the same file.
pub(super) async fn watch_ages(node: Arc<Node>, providers: Arc<Providers>) {
    let config = &node.config.keys;
    let rotates_in = config.rotate_by_itself.then(|| config.keyring_file.clone());
    let (keys, audit) = (Arc::clone(&node.keys), node.audit.clone());
    let mut ages = KeyAges::new(keys, audit, node.config.node.as_str().to_owned(), rotates_in.clone());
    // Read once more at the beginning: it may have changed while the node started.
    let (mut next_look, mut taken) = (clock::monotonic(), None);
    loop {
        if clock::monotonic() >= next_look {
            ages.look(&node.tenants.load()).await;
            next_look = clock::monotonic() + jittered(AGE_INTERVAL);
        }
        let now = changed_at(&config.keyring_file);
        if rotates_in.is_some() && now != taken {
            match take_keyring(&providers, &config.keyring_file) {
                Ok(()) => tracing::info!("keyring was read again"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "keyring cannot be used; the old one stays");
                }
            }
            taken = now;
        }
        let wait = next_look.saturating_duration_since(clock::monotonic());
        tokio::time::sleep(if rotates_in.is_some() { wait.min(RING_INTERVAL) } else { wait }).await;
    }
}

/// When a file was changed last, to the nanosecond, and which file it is: each change of a keyring makes a new one.
fn changed_at(file: &Path) -> Option<(u64, i64, i64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

pub(super) fn take_keyring(providers: &Providers, file: &Path) -> Result<(), KeyringError> {
    let _only_one = RING.lock().unwrap_or_else(PoisonError::into_inner);
    providers.replace_ring(Keyring::load(file)?);
    Ok(())
}

fn keks_of(tenants: &[Tenant]) -> impl Iterator<Item = (TenantId, TenantKeks)> {
    tenants.iter().map(|tenant| (tenant.id.clone(), tenant.keks.clone()))
}

/// Reads the files of key pairs; there must be one of each that a tenant's new keys are wrapped under and, where recordings are
/// opened, of each that older ones may be under.
fn load_recipients(config: &Config) -> Result<Recipients, StartError> {
    let files = &config.key_services.recipient;
    let load = |files: &[PathBuf], kind| {
        files.iter().map(|path| Recipient::load(path, kind)).collect::<Result<Vec<_>, RecipientError>>()
    };
    let mut recipients = load(&files.open, RecipientFile::Open)?;
    recipients.extend(load(&files.wrap, RecipientFile::Wrap)?);
    if !recipients.is_empty() {
        try_recipients()?;
    }
    let recipients = Recipients::new(recipients);
    for tenant in &config.tenants {
        let needed = match config.keys.role {
            KeysRole::Full => tenant.keks.former.len() + 1,
            KeysRole::Ingest => 1,
        };
        let of_pairs = |kek: &&KekName| kek.provider == KeyProviderKind::Recipient;
        if let Some(kek) = tenant.keks.all().take(needed).filter(of_pairs).find(|kek| !recipients.has(kek)) {
            let (tenant, kek) = (tenant.id.clone(), kek.kek.clone());
            let option = match config.keys.role {
                KeysRole::Full => "recipient.open_files",
                KeysRole::Ingest => "recipient.wrap_files",
            };
            return Err(StartError::NoRecipient { tenant, kek, option });
        }
    }
    Ok(recipients)
}

/// Reads the keyring, where a tenant has a key in it; whose new keys are wrapped there must have one.
fn load_keyring(config: &Config) -> Result<Option<Keyring>, StartError> {
    let (kind, keyring_file) = (KeyProviderKind::Local, &config.keys.keyring_file);
    if config.keys.role == KeysRole::Ingest && keyring_file.exists() {
        return Err(StartError::KeyringOnIngest(keyring_file.clone()));
    }
    let is_used = config.tenants.iter().any(|tenant| tenant.keks.use_provider(kind));
    let ring = match Keyring::load(keyring_file) {
        _ if !is_used && (config.stored_tenants.is_none() || config.keys.role == KeysRole::Ingest) => {
            return Ok(None);
        }
        // Tenants of the store may get keys in it later.
        Err(KeyringError::Missing(_)) if !is_used => Keyring::default(),
        ring => ring?,
    };
    let needs = |tenant: &&Tenant| tenant.keks.current.provider == kind && !ring.has(&tenant.id);
    match config.tenants.iter().find(needs) {
        Some(tenant) => Err(StartError::NoKek { tenant: tenant.id.clone(), keyring: keyring_file.clone() }),
        None => Ok(Some(ring)),
    }
}
