//! The key services of a node, and which KEK is whose.
//!
//! What a tenant's new DEKs are wrapped under, and what its envelopes may be under, comes from the configuration alone.
//! An envelope that names anything else is refused before any key service is asked: whoever can write the store cannot
//! choose the key. A service that refuses is not gone around either, as a refusal is how a tenant withdraws its key.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;

use crate::clock;
use crate::config::{
    AwsKms as AwsKmsOptions, KekName, KeyProviderKind, KeysConfig, Pkcs11 as Pkcs11Options, TenantKeks,
    Vault as VaultOptions,
};
use crate::domain::cmr::{Dek, Expected};
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;

use super::aws_kms::AwsKms;
use super::calls::{Calls, counted, not_configured};
use super::envelope::{UNVERSIONED, UsedKek, Wrap};
use super::pkcs11::Token;
use super::vault::VaultTransit;
use super::{KekService, KeyError, KeyProvider, Keyring, LocalKeys, Recipient, Recipients, Wrapped};

/// The largest wrapped DEK: that of AWS KMS.
const MAX_BLOB_BYTES: usize = 6144;

/// All key services of a node.
pub struct Providers {
    opens: bool,
    local: Option<LocalKeys>,
    recipients: ArcSwap<Recipients>,
    services: Vec<Service>,
    keks: ArcSwap<HashMap<TenantId, TenantKeks>>,
}

struct Service {
    kind: KeyProviderKind,
    calls: Calls,
    service: Box<dyn KekService>,
}

impl Providers {
    /// Holds the KEKs of these tenants; a keyring is needed only where one of them has a KEK in it.
    pub fn new(ring: Option<Keyring>, tenants: impl IntoIterator<Item = (TenantId, TenantKeks)>) -> Self {
        Self {
            opens: true,
            local: ring.map(LocalKeys::new),
            recipients: ArcSwap::default(),
            services: Vec::new(),
            keks: ArcSwap::from_pointee(tenants.into_iter().collect()),
        }
    }

    /// Holds one key pair, for one tenant.
    pub fn of_recipient(tenant: &TenantId, recipient: Recipient) -> Self {
        let keks = TenantKeks { current: recipient.kek(), former: Vec::new(), rotate_after: None };
        Self::new(None, [(tenant.clone(), keks)]).with_recipients(Recipients::new(vec![recipient]))
    }

    /// Adds the key pairs that there are files of.
    #[must_use]
    pub fn with_recipients(self, recipients: Recipients) -> Self {
        Self { recipients: ArcSwap::from_pointee(recipients), ..self }
    }

    /// From now on wraps and never opens.
    #[must_use]
    pub fn write_only(self) -> Self {
        Self { opens: false, ..self }
    }

    /// Adds AWS KMS; it is not asked anything yet.
    ///
    /// # Errors
    /// The certificates of `aws_kms.ca_file` cannot be used.
    pub fn with_aws_kms(self, options: &AwsKmsOptions, keys: &KeysConfig) -> io::Result<Self> {
        Ok(self.with(KeyProviderKind::AwsKms, keys, Box::new(AwsKms::new(options)?)))
    }

    /// Adds Vault, and begins to log in to it. To be called within a runtime.
    ///
    /// # Errors
    /// The certificates of `vault.ca_file`, or those of the system, cannot be used.
    pub fn with_vault(self, options: &VaultOptions, keys: &KeysConfig) -> io::Result<Self> {
        Ok(self.with(KeyProviderKind::VaultTransit, keys, Box::new(VaultTransit::new(options)?)))
    }

    /// Adds a PKCS#11 token; its module is loaded, and the token is not asked anything yet.
    ///
    /// # Errors
    /// The module cannot be loaded or does not begin to work.
    pub fn with_pkcs11(self, options: &Pkcs11Options, keys: &KeysConfig) -> io::Result<Self> {
        let token = Token::new(options, keys.concurrency)?;
        Ok(self.with(KeyProviderKind::Pkcs11, keys, Box::new(token)))
    }

    fn with(mut self, kind: KeyProviderKind, keys: &KeysConfig, service: Box<dyn KekService>) -> Self {
        let calls = Calls::new(keys.attempt_timeout, keys.concurrency);
        self.services.push(Service { kind, calls, service });
        self
    }

    /// Takes other tenants, another keyring and other key pairs; what runs goes on with the old ones. Returns the tenants
    /// whose present KEK is another one now.
    pub fn replace(
        &self,
        ring: Option<Keyring>,
        recipients: Recipients,
        tenants: impl IntoIterator<Item = (TenantId, TenantKeks)>,
    ) -> Vec<TenantId> {
        if let (Some(local), Some(ring)) = (&self.local, ring) {
            local.replace(ring);
        }
        self.recipients.store(Arc::new(recipients));
        let new: HashMap<_, _> = tenants.into_iter().collect();
        let old = self.keks.load_full();
        let is_moved = |(tenant, keks): &(&TenantId, &TenantKeks)| {
            new.get(*tenant).is_none_or(|new| new.current != keks.current)
        };
        let moved = old.iter().filter(is_moved).map(|(tenant, _)| tenant.clone()).collect();
        self.keks.store(Arc::new(new));
        moved
    }

    /// Takes the KEKs of one tenant, beside those of the others.
    pub fn admit(&self, tenant: &TenantId, keks: &TenantKeks) {
        let mut all = HashMap::clone(&self.keks.load());
        all.insert(tenant.clone(), keks.clone());
        self.keks.store(Arc::new(all));
    }

    /// Takes another keyring; what runs goes on with the old one.
    pub fn replace_ring(&self, ring: Keyring) {
        if let Some(local) = &self.local {
            local.replace(ring);
        }
    }

    /// Whether this node, as it was started, has this kind of key service.
    pub fn has(&self, kind: KeyProviderKind) -> bool {
        match kind {
            KeyProviderKind::Local => self.local.is_some(),
            // Their files are read again whenever the configuration is.
            KeyProviderKind::Recipient => true,
            KeyProviderKind::AwsKms | KeyProviderKind::VaultTransit | KeyProviderKind::Pkcs11 => {
                self.service(kind).is_ok()
            }
        }
    }

    fn keks(&self, tenant: &TenantId) -> Result<TenantKeks, KeyError> {
        self.keks.load().get(tenant).cloned().ok_or(KeyError::NoKek)
    }

    fn local(&self) -> Result<&LocalKeys, KeyError> {
        self.local.as_ref().ok_or_else(|| not_configured(KeyProviderKind::Local.name()))
    }

    fn service(&self, kind: KeyProviderKind) -> Result<&Service, KeyError> {
        self.services.iter().find(|service| service.kind == kind).ok_or_else(|| not_configured(kind.name()))
    }

    /// Finds the tenant's KEK that a wrap names.
    fn named(&self, tenant: &TenantId, wrap: &Wrap) -> Result<KekName, KeyError> {
        let keks = self.keks(tenant)?;
        keks.all().find(|kek| wrap.is_under(kek)).cloned().ok_or(KeyError::ForeignKek)
    }

    async fn wrap_under(
        &self,
        kek: &KekName,
        tenant: &TenantId,
        ids: &Expected,
        dek: &Dek,
    ) -> Result<Wrap, KeyError> {
        match kek.provider {
            KeyProviderKind::Local => return self.local()?.wrap(tenant, ids, dek).await,
            KeyProviderKind::Recipient => {
                let blob = self.recipients.load().wrap(&kek.kek, ids, dek)?;
                return Ok(wrap_of(kek, Wrapped { blob, version: UNVERSIONED.to_owned() }));
            }
            KeyProviderKind::AwsKms | KeyProviderKind::VaultTransit | KeyProviderKind::Pkcs11 => {}
        }
        let Service { calls, service, .. } = self.service(kek.provider)?;
        let wrapped = calls.make(|| service.wrap(&kek.kek, ids, dek)).await?;
        Ok(wrap_of(kek, wrapped))
    }

    async fn unwrap_from(
        &self,
        kek: &KekName,
        tenant: &TenantId,
        ids: &Expected,
        wrap: &Wrap,
    ) -> Result<Dek, KeyError> {
        if kek.provider == KeyProviderKind::Local {
            return self.local()?.unwrap(tenant, ids, wrap).await;
        }
        let blob = blob_of(wrap)?;
        if kek.provider == KeyProviderKind::Recipient {
            return self.recipients.load().unwrap(&kek.kek, ids, &blob);
        }
        let Service { calls, service, .. } = self.service(kek.provider)?;
        calls.make(|| service.unwrap(&kek.kek, ids, &blob)).await
    }

    /// Moves a DEK inside its key service; `None` when it has to come out for that.
    async fn move_inside(
        &self,
        (from, to): (&KekName, &KekName),
        ids: &Expected,
        wrap: &Wrap,
    ) -> Result<Option<Wrap>, KeyError> {
        let is_inside_us = matches!(from.provider, KeyProviderKind::Local | KeyProviderKind::Recipient);
        if from.provider != to.provider || is_inside_us {
            return Ok(None);
        }
        let Service { calls, service, .. } = self.service(to.provider)?;
        let blob = blob_of(wrap)?;
        let moving = calls.make(|| service.rewrap(&from.kek, &to.kek, ids, &blob));
        let moved = counted(to.provider.name(), "rewrap", moving).await?;
        Ok(moved.map(|wrapped| wrap_of(to, wrapped)))
    }
}

#[async_trait]
impl KeyProvider for Providers {
    fn opens(&self) -> bool {
        self.opens
    }

    async fn wrap(&self, tenant: &TenantId, ids: &Expected, dek: &Dek) -> Result<Wrap, KeyError> {
        let kek = self.keks(tenant)?.current;
        counted(kek.provider.name(), "wrap", self.wrap_under(&kek, tenant, ids, dek)).await
    }

    fn choose<'w>(&self, tenant: &TenantId, wraps: &'w [Wrap]) -> Result<&'w Wrap, KeyError> {
        let keks: Vec<_> = self.keks(tenant)?.all().cloned().collect();
        choose(&keks, wraps)
    }

    async fn unwrap(&self, tenant: &TenantId, ids: &Expected, wrap: &Wrap) -> Result<Dek, KeyError> {
        if !self.opens {
            return Err(KeyError::WriteOnly);
        }
        let kek = self.named(tenant, wrap)?;
        counted(kek.provider.name(), "unwrap", self.unwrap_from(&kek, tenant, ids, wrap)).await
    }

    async fn newest(&self, tenant: &TenantId) -> Result<UsedKek, KeyError> {
        let kek = self.keks(tenant)?.current;
        if kek.provider == KeyProviderKind::Local {
            return self.local()?.newest(tenant).await;
        }
        let version = if kek.provider == KeyProviderKind::Recipient {
            UNVERSIONED.to_owned()
        } else {
            let Service { calls, service, .. } = self.service(kek.provider)?;
            let asking = calls.make(|| service.newest_version(&kek.kek));
            counted(kek.provider.name(), "version", asking).await?
        };
        Ok(UsedKek { provider: kek.provider.name().to_owned(), kek: kek.kek, version })
    }

    async fn newest_made(&self, tenant: &TenantId) -> Result<Option<UnixMillis>, KeyError> {
        let kek = self.keks(tenant)?.current;
        if kek.provider == KeyProviderKind::Local {
            return self.local()?.newest_made(tenant).await;
        }
        if kek.provider == KeyProviderKind::Recipient {
            return self.recipients.load().made(&kek.kek);
        }
        let Service { calls, service, .. } = self.service(kek.provider)?;
        let asking = calls.make(|| service.newest_made(&kek.kek));
        counted(kek.provider.name(), "version", asking).await
    }

    async fn rewrap(&self, tenant: &TenantId, ids: &Expected, wrap: &Wrap) -> Result<Wrap, KeyError> {
        if !self.opens {
            return Err(KeyError::WriteOnly);
        }
        let (from, to) = (self.named(tenant, wrap)?, self.keks(tenant)?.current);
        if let Some(moved) = self.move_inside((&from, &to), ids, wrap).await? {
            return Ok(moved);
        }
        let dek = self.unwrap(tenant, ids, wrap).await?;
        if dek.key_id(ids.tenant, ids.recording) != ids.key {
            return Err(KeyError::BadEnvelope("opens to another key"));
        }
        self.wrap(tenant, ids, &dek).await
    }
}

/// Finds the wrap under the first of `keks` that has one.
pub(super) fn choose<'w>(keks: &[KekName], wraps: &'w [Wrap]) -> Result<&'w Wrap, KeyError> {
    if wraps.is_empty() {
        return Err(KeyError::BadEnvelope("no wrap"));
    }
    let under = |kek: &KekName| wraps.iter().find(|wrap| wrap.is_under(kek));
    keks.iter().find_map(under).ok_or(KeyError::ForeignKek)
}

fn wrap_of(kek: &KekName, wrapped: Wrapped) -> Wrap {
    Wrap {
        provider: kek.provider.name().to_owned(),
        kek: kek.kek.clone(),
        kek_version: wrapped.version,
        blob: base64_simd::STANDARD.encode_to_string(wrapped.blob),
        wrapped_at: clock::rfc3339(clock::wall()),
    }
}

fn blob_of(wrap: &Wrap) -> Result<Vec<u8>, KeyError> {
    if wrap.blob.len() > MAX_BLOB_BYTES.div_ceil(3) * 4 {
        return Err(KeyError::BadEnvelope("wrapped key is too long"));
    }
    let blob = base64_simd::STANDARD.decode_to_vec(wrap.blob.as_bytes());
    let blob = blob.map_err(|_| KeyError::BadEnvelope("not base64"))?;
    if blob.is_empty() { Err(KeyError::BadEnvelope("wrapped key is empty")) } else { Ok(blob) }
}
