//! Where DEKs come from and how they are kept: wrapped under a tenant's KEK, in an envelope beside the recording.
//!
//! Knows KEK sources, versions, wrap and unwrap. Must not know audio or sockets. No ciphertext leaves the process
//! before the envelope of its DEK is durable in the store.

mod envelope;
mod keyring;
mod local;
mod rewrap;
mod service;

use async_trait::async_trait;

use crate::domain::cmr::{Dek, Expected};
use crate::domain::ids::TenantId;
use crate::store::StoreError;

pub use envelope::{Envelope, Wrap, envelope_name, envelope_prefix, envelope_recording, envelopes_prefix};
pub use keyring::{Keyring, KeyringError};
pub use local::{LocalKeys, system_random};
pub use rewrap::Rewrapped;
pub use service::{KeyService, Minted, OpenedKey};

/// Why a key is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The tenant has no KEK of that name and version.
    #[error("no key-encryption key for this tenant")]
    NoKek,
    /// The recording has no envelope: unknown, or its key was destroyed.
    #[error("recording has no key envelope")]
    NoEnvelope,
    /// An envelope that is not one, or that does not open to the key it names.
    #[error("key envelope does not open: {0}")]
    BadEnvelope(&'static str),
    /// The system has no random bytes.
    #[error("no random bytes")]
    Entropy,
    /// The store does not take or give the envelope.
    #[error("store of key envelopes")]
    Store(#[from] StoreError),
    /// It took too long.
    #[error("key service did not answer in time")]
    TimedOut,
}

/// A holder of KEKs: a local keyring, a cloud KMS, an HSM.
#[async_trait]
pub trait KeyProvider: Send + Sync {
    /// Wraps a DEK under the tenant's newest KEK.
    ///
    /// # Errors
    /// [`KeyError::NoKek`], [`KeyError::Entropy`].
    async fn wrap(&self, tenant: &TenantId, ids: &Expected, dek: &Dek) -> Result<Wrap, KeyError>;

    /// Unwraps a DEK. The caller checks that it is the one that `ids` names.
    ///
    /// # Errors
    /// [`KeyError::NoKek`], [`KeyError::BadEnvelope`].
    async fn unwrap(&self, tenant: &TenantId, ids: &Expected, wrap: &Wrap) -> Result<Dek, KeyError>;

    /// Returns the version of the KEK that a new DEK of the tenant would be wrapped under.
    ///
    /// # Errors
    /// [`KeyError::NoKek`].
    async fn newest_version(&self, tenant: &TenantId) -> Result<String, KeyError>;

    /// Moves a DEK under the tenant's newest KEK.
    ///
    /// # Errors
    /// As [`KeyProvider::wrap`] and [`KeyProvider::unwrap`].
    async fn rewrap(&self, tenant: &TenantId, ids: &Expected, wrap: &Wrap) -> Result<Wrap, KeyError> {
        let dek = self.unwrap(tenant, ids, wrap).await?;
        if dek.key_id(ids.tenant, ids.recording) != ids.key {
            return Err(KeyError::BadEnvelope("opens to another key"));
        }
        self.wrap(tenant, ids, &dek).await
    }
}

/// Fills `out` with random bytes of the operating system.
///
/// # Errors
/// [`KeyError::Entropy`].
pub fn fill_random(out: &mut [u8]) -> Result<(), KeyError> {
    getrandom::fill(out).map_err(|_| KeyError::Entropy)
}
