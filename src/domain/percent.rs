//! Percent-encoding (RFC 3986 section 2), strict: `%` is followed by two hexadecimal digits, and the result is UTF-8.

/// Decodes `text`.
///
/// `literal` says what a byte outside an escape stands for, `None` where it is not allowed. The result of the whole is
/// `None` for such a byte, a broken escape, and bytes that are not UTF-8.
pub fn decode(text: &[u8], literal: impl Fn(u8) -> Option<u8>) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        let value = match byte {
            b'%' => hex_digit(*rest.next()?)? << 4 | hex_digit(*rest.next()?)?,
            _ => literal(byte)?,
        };
        decoded.push(value);
    }
    String::from_utf8(decoded).ok()
}

/// Appends `text` to `out`, everything escaped in upper case but the unreserved characters of RFC 3986 section 2.3.
pub fn encode_into(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if is_unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(upper_hex_digit(byte >> 4));
            out.push(upper_hex_digit(byte & 0x0f));
        }
    }
}

/// Whether a character never needs an escape: `A-Z`, `a-z`, `0-9`, `-`, `.`, `_` and `~`.
pub fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn upper_hex_digit(nibble: u8) -> char {
    char::from(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_are_upper_case_and_few() {
        let mut out = String::new();
        encode_into("aZ0-._~ /+%é", &mut out);
        assert_eq!(out, "aZ0-._~%20%2F%2B%25%C3%A9");
    }

    #[test]
    fn broken_escapes_are_refused() {
        for bad in ["%", "%2", "%2g", "%g2", "%%", "%+1", "%ff", "%c3", "a%"] {
            assert_eq!(decode(bad.as_bytes(), Some), None, "{bad:?}");
        }
        assert_eq!(decode(b"%2f%2F", Some).as_deref(), Some("//"));
        assert_eq!(decode(b"a+b", |byte| (byte != b'+').then_some(byte)), None);
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in any::<String>()) {
            let mut encoded = String::new();
            encode_into(&text, &mut encoded);
            let decoded = decode(encoded.as_bytes(), |byte| is_unreserved(byte).then_some(byte));
            prop_assert_eq!(decoded, Some(text));
        }
    }
}
