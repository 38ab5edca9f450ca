//! Opens keyring and key services at start, and takes what has changed at SIGHUP.

use std::sync::Arc;

use crate::config::{Config, KeyProviderKind, Tenant, TenantKeks};
use crate::domain::ids::TenantId;
use crate::keys::{KeyService, Keyring, Providers};
use crate::locked::{self, Report};
use crate::store::Store;

use super::StartError;

/// Opens the keys that the configuration names. To be called within a runtime.
///
/// # Errors
/// [`StartError::Keyring`], [`StartError::NoKek`]; [`StartError::System`] for certificates that cannot be used.
pub fn open_keys(config: &Config, store: &Arc<dyn Store>) -> Result<Arc<KeyService>, StartError> {
    let provider = Arc::new(open(config)?);
    Ok(Arc::new(KeyService::new(provider, Arc::clone(store))))
}

/// Opens the key services that tenants have KEKs in. To be called within a runtime.
pub(super) fn open(config: &Config) -> Result<Providers, StartError> {
    lock_memory(config)?;
    let mut providers = Providers::new(load_keyring(config)?, keks_of(&config.tenants));
    let failed = |what: &str| {
        let what = what.to_owned();
        |source| StartError::System { what, source }
    };
    let is_used = |kind| config.tenants.iter().any(|tenant| tenant.keks.use_provider(kind));
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
    let is_new = |kind: &KeyProviderKind| !providers.has(*kind) && is_used(*kind);
    if let Some(kind) = KeyProviderKind::ALL.into_iter().find(is_new) {
        return Err(StartError::NewProvider(kind));
    }
    let moved = providers.replace(load_keyring(config)?, keks_of(&config.tenants));
    let keys = Arc::clone(keys);
    tokio::spawn(async move { keys.erase_pools_of(&moved).await });
    Ok(())
}

fn keks_of(tenants: &[Tenant]) -> impl Iterator<Item = (TenantId, TenantKeks)> {
    tenants.iter().map(|tenant| (tenant.id.clone(), tenant.keks.clone()))
}

/// Reads the keyring, where a tenant has a key in it; whose new keys are wrapped there must have one.
fn load_keyring(config: &Config) -> Result<Option<Keyring>, StartError> {
    let (kind, keyring_file) = (KeyProviderKind::Local, &config.keys.keyring_file);
    if !config.tenants.iter().any(|tenant| tenant.keks.use_provider(kind)) {
        return Ok(None);
    }
    let ring = Keyring::load(keyring_file)?;
    let needs = |tenant: &&Tenant| tenant.keks.current.provider == kind && !ring.has(&tenant.id);
    match config.tenants.iter().find(needs) {
        Some(tenant) => Err(StartError::NoKek { tenant: tenant.id.clone(), keyring: keyring_file.clone() }),
        None => Ok(Some(ring)),
    }
}
