//! Where DEKs come from and how they are kept: wrapped under a tenant's KEK, in an envelope beside the recording.
//!
//! Knows KEK sources, versions, wrap and unwrap. Must not know audio or sockets. No ciphertext leaves the process
//! before the envelope of its DEK is durable in the store.

mod aws_kms;
mod calls;
mod envelope;
mod error;
mod index;
mod keyring;
mod local;
mod pkcs11;
mod pool;
mod providers;
mod recipient;
mod rewrap;
mod service;
mod vault;

use async_trait::async_trait;

use crate::domain::cmr::{Dek, Expected};
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;

pub use envelope::{
    Envelope, UNVERSIONED, UsedKek, Wrap, envelope_name, envelope_prefix, envelope_recording,
    envelopes_prefix,
};
pub use error::{KeyError, Said};
pub use keyring::{Keyring, KeyringError};
pub use local::{LocalKeys, system_random};
pub use providers::Providers;
pub use recipient::{
    Recipient, RecipientError, RecipientFile, Recipients, init_recipient, try_recipients, write_wrap_file,
};
pub use rewrap::{Rewrapped, needs_move};
pub use service::{KeyService, Minted, OpenedKey};

/// What holds the KEKs of all tenants. [`Providers`] does; a keyring alone is enough for tests.
#[async_trait]
pub trait KeyProvider: Send + Sync {
    /// Whether this node opens what it wraps; one that only records does not, whatever keys it may find.
    fn opens(&self) -> bool {
        true
    }

    /// Wraps a DEK under the newest version of the tenant's present KEK. There is never a fall-back to another one.
    ///
    /// # Errors
    /// [`KeyError`].
    async fn wrap(&self, tenant: &TenantId, ids: &Expected, dek: &Dek) -> Result<Wrap, KeyError>;

    /// Chooses among the wraps of an envelope by what they name, never by trying them.
    ///
    /// # Errors
    /// [`KeyError::ForeignKek`] when none is under a KEK of the tenant; [`KeyError::BadEnvelope`] without wraps.
    fn choose<'w>(&self, tenant: &TenantId, wraps: &'w [Wrap]) -> Result<&'w Wrap, KeyError>;

    /// Unwraps a DEK. The caller checks that it is the one that `ids` names.
    ///
    /// # Errors
    /// [`KeyError::ForeignKek`] for a KEK that is not the tenant's; [`KeyError::WriteOnly`] where [`KeyProvider::opens`] is
    /// false; see [`KeyError`].
    async fn unwrap(&self, tenant: &TenantId, ids: &Expected, wrap: &Wrap) -> Result<Dek, KeyError>;

    /// Returns what a new DEK of the tenant would be wrapped under.
    ///
    /// # Errors
    /// [`KeyError`].
    async fn newest(&self, tenant: &TenantId) -> Result<UsedKek, KeyError>;

    /// Returns when the newest version of the tenant's present KEK was made; `None` where its service does not tell.
    ///
    /// # Errors
    /// [`KeyError`].
    async fn newest_made(&self, tenant: &TenantId) -> Result<Option<UnixMillis>, KeyError>;

    /// Moves a DEK under the newest version of the tenant's present KEK.
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

/// A DEK as a key service wrapped it.
pub(crate) struct Wrapped {
    /// The wrapped key.
    pub(crate) blob: Vec<u8>,
    /// The version of the KEK, or [`UNVERSIONED`].
    pub(crate) version: String,
}

/// A key service outside this process. Each method is one attempt: bounds, repetition and counting are not its own.
///
/// What it answers is not trusted: the service that asks opens every wrap that it made, and holds every opened DEK against
/// its id.
#[async_trait]
pub(crate) trait KekService: Send + Sync {
    /// Wraps a DEK under a KEK, bound to its ids.
    async fn wrap(&self, kek: &str, ids: &Expected, dek: &Dek) -> Result<Wrapped, KeyError>;

    /// Unwraps a DEK that is under this KEK and bound to these ids.
    async fn unwrap(&self, kek: &str, ids: &Expected, blob: &[u8]) -> Result<Dek, KeyError>;

    /// Moves a wrapped DEK from one KEK to the newest version of another, or of the same, inside the service; `None` when
    /// the service cannot do that for these two.
    async fn rewrap(
        &self,
        from: &str,
        to: &str,
        ids: &Expected,
        blob: &[u8],
    ) -> Result<Option<Wrapped>, KeyError>;

    /// Returns the version that a new wrap under this KEK would have.
    async fn newest_version(&self, kek: &str) -> Result<String, KeyError>;

    /// Returns when that version was made; `None` where the service does not tell.
    async fn newest_made(&self, _kek: &str) -> Result<Option<UnixMillis>, KeyError> {
        Ok(None)
    }
}

/// Makes a DEK of the bytes that a key service unwrapped.
fn dek_of(bytes: &[u8]) -> Result<Dek, KeyError> {
    Dek::filled_by(|key| {
        if bytes.len() != key.len() {
            return Err(KeyError::BadEnvelope("length"));
        }
        key.copy_from_slice(bytes);
        Ok(())
    })
}

/// Fills `out` with random bytes of the operating system.
///
/// # Errors
/// [`KeyError::Entropy`].
pub fn fill_random(out: &mut [u8]) -> Result<(), KeyError> {
    getrandom::fill(out).map_err(|_| KeyError::Entropy)
}
