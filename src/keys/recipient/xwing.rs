//! X-Wing (draft-connolly-cfrg-xwing-kem): X25519 and ML-KEM-768 as one key encapsulation. It holds while one of the two does.
//!
//! Public keys, ciphertexts and shared secrets are those of the draft. A private key is kept in the expanded form of
//! FIPS 203 with the X25519 secret behind it, as the library takes no seed: `docs/FORMAT.md` section 11.9.
//!
//! Secrets are wiped where they can be; the digest of the combiner passes over the stack once, in a type of the library
//! that wipes nothing.

use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::digest::{self, SHA3_256};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::keys::fill_random;

const LABEL: [u8; 6] = *br"\.//^\";
const X_BYTES: usize = 32;
const PUBLIC_M_BYTES: usize = 1184;
const PRIVATE_M_BYTES: usize = 2400;
const CIPHERTEXT_M_BYTES: usize = 1088;
/// Where the public key, and the digest of it, stand in the private key of ML-KEM-768.
const PUBLIC_IN_PRIVATE: std::ops::Range<usize> = 1152..1152 + PUBLIC_M_BYTES;
const DIGEST_IN_PRIVATE: std::ops::Range<usize> = 2336..2368;

/// Bytes of a public key: ML-KEM-768, then X25519.
pub(super) const PUBLIC_BYTES: usize = PUBLIC_M_BYTES + X_BYTES;
/// Bytes of a private key: ML-KEM-768, then X25519.
pub(super) const PRIVATE_BYTES: usize = PRIVATE_M_BYTES + X_BYTES;
/// Bytes of a ciphertext: ML-KEM-768, then X25519.
pub(super) const CIPHERTEXT_BYTES: usize = CIPHERTEXT_M_BYTES + X_BYTES;

/// What both sides come to.
pub(super) type SharedSecret = Zeroizing<[u8; 32]>;

/// A key or ciphertext that is none. Which part of it is wrong is nobody's business.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl From<aws_lc_rs::error::Unspecified> for Broken {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

impl From<aws_lc_rs::error::KeyRejected> for Broken {
    fn from(_: aws_lc_rs::error::KeyRejected) -> Self {
        Self
    }
}

/// Whom secrets are for.
pub(super) struct PublicKey {
    m: EncapsulationKey,
    bytes: Box<[u8; PUBLIC_BYTES]>,
}

impl PublicKey {
    /// Takes a public key that something can be encapsulated to.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Broken> {
        let bytes: Box<[u8; PUBLIC_BYTES]> = Box::new(bytes.try_into().map_err(|_| Broken)?);
        let (of_m, _) = bytes.split_at(PUBLIC_M_BYTES);
        let public = Self { m: EncapsulationKey::new(&ML_KEM_768, of_m)?, bytes };
        // ML-KEM checks its coefficients only now, and X25519 that its point is one.
        public.encapsulate()?;
        Ok(public)
    }

    pub(super) fn bytes(&self) -> &[u8; PUBLIC_BYTES] {
        &self.bytes
    }

    fn of_x(&self) -> &[u8] {
        self.bytes.split_at(PUBLIC_M_BYTES).1
    }

    /// Makes a secret that only the private key comes to again.
    pub(super) fn encapsulate(&self) -> Result<(SharedSecret, Vec<u8>), Broken> {
        let (ciphertext_m, secret_m) = self.m.encapsulate()?;
        let (ephemeral, shared_x) = (x25519_secret()?, UnparsedPublicKey::new(&X25519, self.of_x()));
        let ephemeral = agreement::PrivateKey::from_private_key(&X25519, &*ephemeral)?;
        let public_x = ephemeral.compute_public_key()?;
        let secret = agreement::agree(&ephemeral, shared_x, Broken, |secret_x| {
            Ok(combine(secret_m.as_ref(), secret_x, public_x.as_ref(), self.of_x()))
        })?;
        Ok((secret, [ciphertext_m.as_ref(), public_x.as_ref()].concat()))
    }
}

/// Who comes to the secrets again.
pub(super) struct PrivateKey {
    m: DecapsulationKey,
    x: agreement::PrivateKey,
    public: PublicKey,
}

impl PrivateKey {
    /// Makes a key pair; answers also the bytes to be kept.
    pub(super) fn generate() -> Result<(Self, Zeroizing<Vec<u8>>), Broken> {
        let of_m = DecapsulationKey::generate(&ML_KEM_768)?.key_bytes()?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(PRIVATE_BYTES));
        bytes.extend_from_slice(of_m.as_ref());
        bytes.extend_from_slice(&*x25519_secret()?);
        Ok((Self::parse(&bytes)?, bytes))
    }

    /// Takes a private key that opens what is encapsulated to its public key.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Broken> {
        let of_m = bytes.get(..PRIVATE_M_BYTES).ok_or(Broken)?;
        let of_x = bytes.get(PRIVATE_M_BYTES..).ok_or(Broken)?;
        let public_m = of_m.get(PUBLIC_IN_PRIVATE).ok_or(Broken)?;
        // FIPS 203 section 7.3: the check that the library leaves out.
        let digest = digest::digest(&SHA3_256, public_m);
        if !bool::from(digest.as_ref().ct_eq(of_m.get(DIGEST_IN_PRIVATE).ok_or(Broken)?)) {
            return Err(Broken);
        }
        let x = agreement::PrivateKey::from_private_key(&X25519, of_x)?;
        let public = PublicKey::parse(&[public_m, x.compute_public_key()?.as_ref()].concat())?;
        let private = Self { m: DecapsulationKey::new(&ML_KEM_768, of_m)?, x, public };
        let (secret, ciphertext) = private.public.encapsulate()?;
        let again = private.decapsulate(&ciphertext)?;
        if bool::from(secret.ct_eq(again.as_slice())) { Ok(private) } else { Err(Broken) }
    }

    pub(super) fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Comes to the secret again. A ciphertext that was changed gives another one, or none.
    pub(super) fn decapsulate(&self, ciphertext: &[u8]) -> Result<SharedSecret, Broken> {
        let (of_m, of_x) = ciphertext.split_at_checked(CIPHERTEXT_M_BYTES).ok_or(Broken)?;
        if of_x.len() != X_BYTES {
            return Err(Broken);
        }
        let secret_m = self.m.decapsulate(Ciphertext::from(of_m))?;
        agreement::agree(&self.x, UnparsedPublicKey::new(&X25519, of_x), Broken, |secret_x| {
            Ok(combine(secret_m.as_ref(), secret_x, of_x, self.public.of_x()))
        })
    }
}

fn x25519_secret() -> Result<Zeroizing<[u8; X_BYTES]>, Broken> {
    let mut secret = Zeroizing::new([0; X_BYTES]);
    fill_random(&mut *secret).map_err(|_| Broken)?;
    Ok(secret)
}

/// SHA3-256 over both secrets, what was sent for X25519, its public key, and the label of X-Wing.
fn combine(secret_m: &[u8], secret_x: &[u8], ciphertext_x: &[u8], public_x: &[u8]) -> SharedSecret {
    let mut hash = digest::Context::new(&SHA3_256);
    for part in [secret_m, secret_x, ciphertext_x, public_x, &LABEL] {
        hash.update(part);
    }
    let mut secret = Zeroizing::new([0; 32]);
    secret.copy_from_slice(hash.finish().as_ref());
    secret
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn unhex(value: &Value) -> Vec<u8> {
        let text = value.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The vectors of the draft; the other reader has expanded their seeds.
    fn published() -> Vec<Value> {
        let vectors = include_str!("../../../tests/vectors/cmr1/xwing.json");
        serde_json::from_str::<Value>(vectors).unwrap()["cases"].as_array().unwrap().clone()
    }

    #[test]
    fn the_vectors_of_the_draft_open() {
        let cases = published();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let private = PrivateKey::parse(&unhex(&case["private"])).unwrap();
            assert_eq!(private.public().bytes().as_slice(), unhex(&case["pk"]));
            assert_eq!(private.decapsulate(&unhex(&case["ct"])).unwrap().as_slice(), unhex(&case["ss"]));
            // What ML-KEM does with a ciphertext that is none: another secret, which depends on the private key.
            let changed = private.decapsulate(&unhex(&case["changed_ct"])).unwrap();
            assert_eq!(changed.as_slice(), unhex(&case["changed_ss"]));
        }
    }

    #[test]
    fn only_the_private_key_comes_to_the_secret() {
        let (ours, bytes) = PrivateKey::generate().unwrap();
        let (other, _) = PrivateKey::generate().unwrap();
        assert_eq!(bytes.len(), PRIVATE_BYTES);
        let again = PrivateKey::parse(&bytes).unwrap();
        let (secret, ciphertext) = ours.public().encapsulate().unwrap();
        assert_eq!(ciphertext.len(), CIPHERTEXT_BYTES);
        assert_eq!(again.decapsulate(&ciphertext).unwrap(), secret);
        assert!(other.decapsulate(&ciphertext).unwrap() != secret);
        let (second, other_ciphertext) = ours.public().encapsulate().unwrap();
        assert!(second != secret && other_ciphertext != ciphertext, "fresh each time");
        for byte in 0..CIPHERTEXT_BYTES {
            let mut changed = ciphertext.clone();
            changed[byte] ^= 1;
            assert!(ours.decapsulate(&changed).is_ok_and(|found| found != secret), "byte {byte}");
        }
        for length in [0, 1, CIPHERTEXT_M_BYTES, CIPHERTEXT_BYTES - 1] {
            assert_eq!(ours.decapsulate(&ciphertext[..length]), Err(Broken), "{length} bytes");
        }
        assert_eq!(ours.decapsulate(&[&ciphertext[..], &[0]].concat()), Err(Broken));
    }

    #[test]
    fn a_share_that_comes_to_nothing_is_refused() {
        let (ours, _) = PrivateKey::generate().unwrap();
        let (_, ciphertext) = ours.public().encapsulate().unwrap();
        let no_point = [&ciphertext[..CIPHERTEXT_M_BYTES], &[0; X_BYTES]].concat();
        assert_eq!(ours.decapsulate(&no_point), Err(Broken));
        let mut public = ours.public().bytes().to_vec();
        public[PUBLIC_M_BYTES..].fill(0);
        assert!(PublicKey::parse(&public).is_err());
    }

    #[test]
    fn broken_keys_are_refused() {
        let (ours, bytes) = PrivateKey::generate().unwrap();
        let public = ours.public().bytes().to_vec();
        for length in [0, 32, PUBLIC_BYTES - 1] {
            assert!(PublicKey::parse(&public[..length]).is_err(), "{length} bytes");
        }
        // A coefficient of 4095: FIPS 203 section 7.2 wants them below 3329.
        let mut too_large = public.clone();
        (too_large[0], too_large[1]) = (0xff, 0x0f | too_large[1] & 0xf0);
        assert!(PublicKey::parse(&too_large).is_err());
        for length in [0, PRIVATE_M_BYTES, PRIVATE_BYTES - 1] {
            assert!(PrivateKey::parse(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(PrivateKey::parse(&[&bytes[..], &[0]].concat()).is_err());
        // In the secret, in the public key within it, and in the digest of that.
        for byte in [0, 700, 1151, 1152, 2000, 2335, 2336, 2367] {
            let mut changed = bytes.to_vec();
            changed[byte] ^= 4;
            assert!(PrivateKey::parse(&changed).is_err(), "byte {byte}");
        }
    }
}
