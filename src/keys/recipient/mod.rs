//! The `recipient` provider: DEKs are wrapped for the holder of a private key, so that a node can record without being able
//! to open anything that was recorded.
//!
//! A key pair is two files: with the *open file* DEKs are wrapped and opened, with the *wrap file* only wrapped. Both hold the
//! *sender key*, without which a wrap is not believed: else whoever knows the public key and can write the store could put
//! recordings of their own making there. Both have one name, the digest of public key and sender key, so that a node can see
//! that what it wraps opens elsewhere, though it cannot try.

mod file;
mod xwing;

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{KekName, KeyProviderKind, RECIPIENT_PREFIX};
use crate::domain::cmr::{Dek, Expected, KeyBox, SealedBox, WrapContext};
use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;

use self::xwing::{CIPHERTEXT_BYTES, PrivateKey, PublicKey};
use super::{KeyError, dek_of, fill_random};

pub use file::{RecipientError, RecipientFile, init_recipient, write_wrap_file};

/// The first byte of a wrap: X-Wing, HKDF-SHA-256, and a sealed box.
const WRAP_VERSION: u8 = 1;
const KEY_LABEL: &[u8] = b"cmr1 recipient key\0";
const NAME_LABEL: &[u8] = b"cmr1 recipient name\0";

/// In locked memory, as all keys of 32 bytes. The private key is not: it lies where the library keeps it.
type SenderKey = KeyBox;

/// A key pair, or the half of it that only wraps. `Debug` shows its name.
pub struct Recipient {
    name: [u8; 32],
    key: Half,
    sender: SenderKey,
    created: String,
}

enum Half {
    /// Of an open file.
    Private(Box<PrivateKey>),
    /// Of a wrap file.
    Public(Box<PublicKey>),
}

impl Recipient {
    /// Makes a key pair; answers also the bytes of its private key.
    fn generate(created: &str) -> Result<(Self, Zeroizing<Vec<u8>>), KeyError> {
        let sender = KeyBox::filled_by(|key| fill_random(key))?;
        let (private, bytes) = PrivateKey::generate().map_err(|_| KeyError::Entropy)?;
        Ok((Self::new(Half::Private(Box::new(private)), sender, created), bytes))
    }

    fn new(key: Half, sender: SenderKey, created: &str) -> Self {
        let public = match &key {
            Half::Private(private) => private.public(),
            Half::Public(public) => public,
        };
        let mut name = Sha256::new();
        for part in [NAME_LABEL, public.bytes(), sender.as_slice()] {
            name.update(part);
        }
        Self { name: name.finalize().into(), key, sender, created: created.to_owned() }
    }

    /// Returns the name of the key pair, as `keys.kek` and envelopes have it.
    pub fn kek(&self) -> KekName {
        let kek = format!("{RECIPIENT_PREFIX}{}", encode_hex(&self.name));
        KekName { provider: KeyProviderKind::Recipient, kek }
    }

    /// Whether it opens what was wrapped for it.
    pub fn opens(&self) -> bool {
        matches!(self.key, Half::Private(_))
    }

    /// Returns when the key pair was made, RFC 3339.
    pub fn created(&self) -> &str {
        &self.created
    }

    fn public(&self) -> &PublicKey {
        match &self.key {
            Half::Private(private) => private.public(),
            Half::Public(public) => public,
        }
    }

    /// Wraps a DEK, bound to its ids and this key pair.
    ///
    /// What can be checked without the private key is checked before it is handed out.
    fn wrap(&self, ids: &Expected, dek: &Dek) -> Result<Vec<u8>, KeyError> {
        let broken = |_| KeyError::BadEnvelope("key could not be wrapped");
        let (secret, ciphertext) = self.public().encapsulate().map_err(broken)?;
        let (key, context) = (self.box_key(&secret, &ciphertext), self.context(ids));
        let mut salt = [0; 32];
        fill_random(&mut salt)?;
        let sealed = SealedBox::RECIPIENT_DEK
            .seal(&key, &salt, &context, dek.expose())
            .map_err(|_| KeyError::BadEnvelope("key could not be wrapped"))?;
        let blob = [&[WRAP_VERSION], &ciphertext[..], &sealed].concat();
        let (_, sealed) = split(&blob)?;
        let again = SealedBox::RECIPIENT_DEK
            .open(&key, &context, sealed)
            .map_err(|_| KeyError::BadEnvelope("key could not be wrapped"))?;
        if bool::from(again.as_slice().ct_eq(dek.expose())) {
            Ok(blob)
        } else {
            Err(KeyError::BadEnvelope("key could not be wrapped"))
        }
    }

    /// Opens a wrap that is bound to these ids.
    fn unwrap(&self, ids: &Expected, blob: &[u8]) -> Result<Dek, KeyError> {
        let Half::Private(private) = &self.key else { return Err(KeyError::WriteOnly) };
        let wrong = || KeyError::BadEnvelope("wrong key or context");
        let (ciphertext, sealed) = split(blob)?;
        let secret = private.decapsulate(ciphertext).map_err(|_| wrong())?;
        let key = self.box_key(&secret, ciphertext);
        let opened = SealedBox::RECIPIENT_DEK.open(&key, &self.context(ids), sealed).map_err(|_| wrong())?;
        dek_of(&opened)
    }

    /// Derives the key of the box from both what only the recipient and what only a sender knows.
    fn box_key(&self, secret: &[u8; 32], ciphertext: &[u8]) -> KeyBox {
        let info = [KEY_LABEL, &self.name, &Sha256::digest(ciphertext)].concat();
        let mut key = KeyBox::default();
        Hkdf::<Sha256>::new(Some(self.sender.as_slice()), secret)
            .expand(&info, &mut *key)
            .expect("32 bytes are asked for, far below the 8,160 that SHA-256 allows");
        key
    }

    fn context(&self, ids: &Expected) -> Vec<u8> {
        let kek_name = &self.kek().kek;
        WrapContext { tenant: ids.tenant, recording: ids.recording, key: ids.key, kek_name }.canonical()
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipient({})", self.kek().kek)
    }
}

/// Wraps for a key pair that lives for this moment only, and opens that: whether this build, on this machine, can.
///
/// # Errors
/// [`RecipientError::Key`].
pub fn try_recipients() -> Result<(), RecipientError> {
    let (pair, _) = Recipient::generate("")?;
    let dek = Dek::filled_by(|key| fill_random(key))?;
    let (tenant, recording) = (TenantTag([0; 16]), RecordingId([0; 16]));
    let ids = Expected { tenant, recording, key: dek.key_id(tenant, recording) };
    let opened = pair.unwrap(&ids, &pair.wrap(&ids, &dek)?)?;
    if bool::from(opened.expose().ct_eq(dek.expose())) {
        Ok(())
    } else {
        Err(KeyError::BadEnvelope("opens to another key").into())
    }
}

/// Splits a wrap into what was encapsulated and the box.
fn split(blob: &[u8]) -> Result<(&[u8], &[u8]), KeyError> {
    match blob.split_first() {
        Some((&WRAP_VERSION, rest)) => {
            rest.split_at_checked(CIPHERTEXT_BYTES).ok_or(KeyError::BadEnvelope("length"))
        }
        Some(_) => Err(KeyError::BadEnvelope("version of the wrap")),
        None => Err(KeyError::BadEnvelope("length")),
    }
}

/// The key pairs that a node has files of.
#[derive(Debug, Default)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// Takes them.
    pub fn new(recipients: Vec<Recipient>) -> Self {
        Self(recipients)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is a file of this key pair.
    pub fn has(&self, kek: &KekName) -> bool {
        self.named(&kek.kek).is_ok()
    }

    /// As [`super::KekService::wrap`]; there is nobody to be asked.
    pub(super) fn wrap(&self, kek: &str, ids: &Expected, dek: &Dek) -> Result<Vec<u8>, KeyError> {
        self.named(kek)?.wrap(ids, dek)
    }

    /// As [`super::KekService::unwrap`].
    pub(super) fn unwrap(&self, kek: &str, ids: &Expected, blob: &[u8]) -> Result<Dek, KeyError> {
        self.named(kek)?.unwrap(ids, blob)
    }

    /// As [`super::KekService::newest_made`].
    pub(super) fn made(&self, kek: &str) -> Result<Option<UnixMillis>, KeyError> {
        Ok(clock::parse_rfc3339(self.named(kek)?.created()))
    }

    fn named(&self, kek: &str) -> Result<&Recipient, KeyError> {
        self.0.iter().find(|recipient| recipient.kek().kek == kek).ok_or(KeyError::NoKek)
    }
}

#[cfg(test)]
mod tests;
