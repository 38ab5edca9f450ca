//! Keyed hashes, their comparison in constant time, and strict base64.
//!
//! One place for the primitives under provider signatures, playback grants and notices. It knows no URL and no header.
//! Every decoder here accepts exactly one text per byte string, so that a signature has one spelling.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;

/// Returns HMAC-SHA-256 (RFC 2104) of the concatenated `parts`; any key length is allowed.
pub fn hmac_sha256<'a>(key: &[u8], parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    mac_of::<Hmac<Sha256>>(key, parts).finalize().into_bytes().into()
}

/// Returns HMAC-SHA-512 (RFC 2104) of the concatenated `parts`; any key length is allowed.
pub fn hmac_sha512<'a>(key: &[u8], parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 64] {
    mac_of::<Hmac<Sha512>>(key, parts).finalize().into_bytes().into()
}

/// Returns HMAC-SHA-1 (RFC 2104) of the concatenated `parts`; any key length is allowed.
///
/// Only for peers that offer nothing newer (Twilio's auth token); callseal itself never signs with it.
pub fn hmac_sha1<'a>(key: &[u8], parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 20] {
    mac_of::<Hmac<Sha1>>(key, parts).finalize().into_bytes().into()
}

/// Compares in a time that depends on the lengths only, never on where the bytes differ.
pub fn equal(computed: &[u8], received: &[u8]) -> bool {
    computed.ct_eq(received).into()
}

/// Writes bytes as lower-case hexadecimal digits.
pub fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes standard base64 with padding (RFC 4648 section 4).
pub fn encode_base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

/// Reads standard base64 with padding.
///
/// `None` for missing or surplus padding, white space, another alphabet and non-zero trailing bits.
pub fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    base64_simd::STANDARD.decode_to_vec(text).ok()
}

/// Writes URL-safe base64 without padding (RFC 4648 section 5).
pub fn encode_base64url(bytes: &[u8]) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// Reads URL-safe base64 without padding.
///
/// `None` for padding, white space, another alphabet and non-zero trailing bits.
pub fn decode_base64url(text: &[u8]) -> Option<Vec<u8>> {
    base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).ok()
}

fn mac_of<'a, M: Mac + KeyInit>(key: &[u8], parts: impl IntoIterator<Item = &'a [u8]>) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        // RFC 4231 test case 2, RFC 2202 test case 2, and RFC 4231 test case 6 (a key longer than a block).
        let text: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
        assert_eq!(
            encode_hex(&hmac_sha256(b"Jefe", text)),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            encode_hex(&hmac_sha512(b"Jefe", text)),
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd\
             caeab1a34d4a6b4b636e070a38bce737"
        );
        assert_eq!(encode_hex(&hmac_sha1(b"Jefe", text)), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        let long: &[u8] = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(
            encode_hex(&hmac_sha256(&[0xaa; 131], [long])),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
        // An empty key is as good as any other for the hash; refusing it is the caller's business.
        assert_eq!(encode_hex(&hmac_sha1(b"", [])), "fbdb1d1b18aa6c08324b7d64b71fb76370690e1d");
    }

    #[test]
    fn comparison_sees_length_and_content() {
        assert!(equal(b"", b""));
        assert!(equal(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b"", b"ABC"] {
            assert!(!equal(b"abc", other));
        }
    }

    #[test]
    fn base64_has_one_spelling() {
        assert_eq!(decode_base64(b"AAE="), Some(vec![0, 1]));
        assert_eq!(decode_base64url(b"AAE"), Some(vec![0, 1]));
        let standard =
            ["AAE", "AAE==", "AAF=", "AAE= ", " AAE=", "AA\nE=", "AAE=AAE=", "A", "A===", "AA-_", "===="];
        for bad in standard {
            assert_eq!(decode_base64(bad.as_bytes()), None, "{bad:?}");
        }
        for bad in ["AAE=", "AAF", "A", "AA+/", "AAE\n", "AA E", "AB"] {
            assert_eq!(decode_base64url(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(decode_base64(b""), Some(vec![]));
    }

    proptest! {
        #[test]
        fn base64_agrees_with_another_implementation(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            text in "[A-Za-z0-9+/_=-]{0,12}",
        ) {
            prop_assert_eq!(encode_base64(&bytes), general_purpose::STANDARD.encode(&bytes));
            prop_assert_eq!(encode_base64url(&bytes), general_purpose::URL_SAFE_NO_PAD.encode(&bytes));
            prop_assert_eq!(decode_base64(text.as_bytes()), general_purpose::STANDARD.decode(&text).ok());
            prop_assert_eq!(decode_base64url(text.as_bytes()), general_purpose::URL_SAFE_NO_PAD.decode(&text).ok());
        }
    }
}
