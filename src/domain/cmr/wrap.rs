//! Small secrets sealed under a long-lived key: wrapped DEKs and audit records (`docs/FORMAT.md` section 11).
//!
//! Layout: `01 || salt(32) || commitment(32) || AES-256-GCM(text)`. Key, nonce and commitment come from the long-lived
//! key, the salt and the context by HKDF, so that one key can seal any number of boxes.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::domain::ids::{KeyId, RecordingId, TenantTag};

use super::cipher::{CipherSuite, DefaultSuite};
use super::error::{ReadError, SealError};
use super::keys::{KEY_BYTES, ObjectKeys, Salt, derive_object_keys};

const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const FIXED_BYTES: usize = 1 + 32 + 32;

/// What a wrapped DEK is bound to.
#[derive(Debug, Clone, Copy)]
pub struct WrapContext<'a> {
    /// Whose recording.
    pub tenant: TenantTag,
    /// Which recording.
    pub recording: RecordingId,
    /// Which DEK.
    pub key: KeyId,
    /// The KEK's name with its version, such as `local/acme/v1`; at most 65,535 bytes.
    pub kek_name: &'a str,
}

impl WrapContext<'_> {
    /// Returns the canonical bytes: `"cmr1 wrap" || 00 || tenant || recording || key || u16 len || name`.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(60 + self.kek_name.len());
        out.extend_from_slice(b"cmr1 wrap\0");
        out.extend_from_slice(&self.tenant.0);
        out.extend_from_slice(&self.recording.0);
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&u16::try_from(self.kek_name.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(self.kek_name.as_bytes());
        out
    }
}

/// A kind of sealed box: the label keeps boxes of different use apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedBox {
    label: &'static [u8],
}

impl SealedBox {
    /// A DEK wrapped under a KEK.
    pub const WRAPPED_DEK: Self = Self { label: b"cmr1 wrap\0" };
    /// A DEK wrapped for the holder of a private key.
    pub const RECIPIENT_DEK: Self = Self { label: b"cmr1 recipient\0" };
    /// A ticket under one of the tenant's ticket secrets.
    pub const TICKET: Self = Self { label: b"callseal ticket\0" };
    /// An entry of the deletion ledger under a ledger key of its tenant.
    pub const LEDGER_ENTRY: Self = Self { label: b"callseal ledger\0" };
    /// A request of a person under a key of its own.
    pub const REQUEST: Self = Self { label: b"callseal request\0" };
    /// An audit record under the tenant's audit key.
    pub const AUDIT_RECORD: Self = Self { label: b"callseal audit\0" };
    /// A notice, or what became of it, under a key of the tenant's outbox.
    pub const NOTICE: Self = Self { label: b"callseal notice\0" };
    /// A revision of a tenant under the nodes' key for tenants.
    pub const TENANT: Self = Self { label: b"callseal tenant\0" };
    /// An answer of the admin API that is kept, under the tenant's index key.
    pub const ANSWER: Self = Self { label: b"callseal answer\0" };

    /// Seals `text` under `key`, bound to `context`. `salt` must be fresh random bytes.
    ///
    /// # Errors
    /// [`SealError::Cipher`].
    pub fn seal(
        self,
        key: &[u8; KEY_BYTES],
        salt: &Salt,
        context: &[u8],
        text: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let ObjectKeys { key, base_nonce, commitment } = derive_object_keys(key, salt, self.label, context);
        let mut sealed = Zeroizing::new(text.to_vec());
        let tag = DefaultSuite::seal(&mut DefaultSuite::seal_key(key), &base_nonce, context, &mut sealed)?;
        let mut out = Vec::with_capacity(FIXED_BYTES + sealed.len() + TAG_BYTES);
        out.push(VERSION);
        out.extend_from_slice(salt);
        out.extend_from_slice(&commitment);
        out.extend_from_slice(&sealed);
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Opens a box. The commitment is compared, in constant time, before anything is decrypted.
    ///
    /// # Errors
    /// [`ReadError::WrongWrap`], whatever the reason.
    pub fn open(
        self,
        key: &[u8; KEY_BYTES],
        context: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ReadError> {
        let (&[version], rest) = sealed.split_first_chunk().ok_or(ReadError::WrongWrap)?;
        let (salt, rest) = rest.split_first_chunk::<32>().ok_or(ReadError::WrongWrap)?;
        let (commitment, rest) = rest.split_first_chunk::<32>().ok_or(ReadError::WrongWrap)?;
        let (text, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(ReadError::WrongWrap)?;
        let ObjectKeys { key, base_nonce, commitment: expected } =
            derive_object_keys(key, salt, self.label, context);
        if version != VERSION || !bool::from(expected.ct_eq(commitment)) {
            return Err(ReadError::WrongWrap);
        }
        let mut text = Zeroizing::new(text.to_vec());
        DefaultSuite::open(&DefaultSuite::open_key(key), &base_nonce, context, &mut text, tag)
            .map_err(|_| ReadError::WrongWrap)?;
        Ok(text)
    }
}
