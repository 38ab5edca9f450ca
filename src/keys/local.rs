//! The `local` provider: KEKs from a keyring file.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;

use crate::clock;
use crate::config::KekName;
use crate::domain::cmr::{Dek, Expected, SealedBox, WrapContext};
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;

use super::envelope::{UsedKek, Wrap};
use super::keyring::Keyring;
use super::providers::choose;
use super::{KeyError, KeyProvider, dek_of, fill_random};

/// Wraps DEKs under the KEKs of a [`Keyring`].
#[derive(Debug)]
pub struct LocalKeys {
    ring: ArcSwap<Keyring>,
}

impl LocalKeys {
    /// Takes a keyring.
    pub fn new(ring: Keyring) -> Self {
        Self { ring: ArcSwap::from_pointee(ring) }
    }

    /// Puts another keyring in place; what is being wrapped goes on with the old one.
    pub fn replace(&self, ring: Keyring) {
        self.ring.store(Arc::new(ring));
    }

    /// Whether a tenant has a KEK.
    pub fn has(&self, tenant: &TenantId) -> bool {
        self.ring.load().has(tenant)
    }
}

#[async_trait]
impl KeyProvider for LocalKeys {
    async fn wrap(&self, tenant: &TenantId, ids: &Expected, dek: &Dek) -> Result<Wrap, KeyError> {
        let ring = self.ring.load_full();
        let kek = ring.newest(tenant).ok_or(KeyError::NoKek)?;
        let mut salt = [0; 32];
        fill_random(&mut salt)?;
        let (name, version) = (KekName::local(tenant), kek.version.to_string());
        let context = context(ids, &name.kek, &version);
        let blob = SealedBox::WRAPPED_DEK
            .seal(&kek.key, &salt, &context, dek.expose())
            .map_err(|_| KeyError::BadEnvelope("key could not be wrapped"))?;
        Ok(Wrap {
            provider: name.provider.name().to_owned(),
            kek: name.kek,
            kek_version: version,
            blob: base64_simd::STANDARD.encode_to_string(blob),
            wrapped_at: clock::rfc3339(clock::wall()),
        })
    }

    async fn unwrap(&self, tenant: &TenantId, ids: &Expected, wrap: &Wrap) -> Result<Dek, KeyError> {
        let version = wrap.kek_version.parse().map_err(|_| KeyError::BadEnvelope("KEK version"))?;
        if !wrap.is_under(&KekName::local(tenant)) {
            return Err(KeyError::ForeignKek);
        }
        let ring = self.ring.load_full();
        let kek = ring.version(tenant, version).ok_or(KeyError::NoKek)?;
        let blob = base64_simd::STANDARD
            .decode_to_vec(wrap.blob.as_bytes())
            .map_err(|_| KeyError::BadEnvelope("not base64"))?;
        let context = context(ids, &wrap.kek, &wrap.kek_version);
        let opened = SealedBox::WRAPPED_DEK
            .open(&kek.key, &context, &blob)
            .map_err(|_| KeyError::BadEnvelope("wrong key or context"))?;
        dek_of(&opened)
    }

    fn choose<'w>(&self, tenant: &TenantId, wraps: &'w [Wrap]) -> Result<&'w Wrap, KeyError> {
        choose(&[KekName::local(tenant)], wraps)
    }

    async fn newest(&self, tenant: &TenantId) -> Result<UsedKek, KeyError> {
        let ring = self.ring.load();
        let version = ring.newest(tenant).ok_or(KeyError::NoKek)?.version.to_string();
        let KekName { provider, kek } = KekName::local(tenant);
        Ok(UsedKek { provider: provider.name().to_owned(), kek, version })
    }

    async fn newest_made(&self, tenant: &TenantId) -> Result<Option<UnixMillis>, KeyError> {
        let ring = self.ring.load();
        let newest = ring.newest(tenant).ok_or(KeyError::NoKek)?;
        Ok(clock::parse_rfc3339(&newest.created))
    }
}

fn context(ids: &Expected, kek: &str, version: &str) -> Vec<u8> {
    let kek_name = format!("{kek}/v{version}");
    WrapContext { tenant: ids.tenant, recording: ids.recording, key: ids.key, kek_name: &kek_name }
        .canonical()
}

/// Random bytes for [`Keyring::init`].
///
/// # Errors
/// The system has none.
pub fn system_random(out: &mut [u8]) -> io::Result<()> {
    getrandom::fill(out).map_err(|error| io::Error::other(error.to_string()))
}
