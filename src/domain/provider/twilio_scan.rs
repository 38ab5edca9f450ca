//! The strict one-pass scan of Twilio's media message in the exact form that Twilio sends.
//!
//! Anything unusual (escapes, another key order, spaces, extra fields, numbers without quotes) answers `None`, and the
//! full JSON parser decides. Both must agree on every message that the scan accepts.

/// A media message as scanned. All text borrows from the message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ScannedMedia<'a> {
    pub(super) sequence: u64,
    pub(super) outbound: bool,
    pub(super) timestamp_ms: u64,
    pub(super) payload: &'a str,
    pub(super) stream: &'a str,
}

/// More digits than this could pass 2^53; the full parser judges them.
const MAX_DIGITS: usize = 15;

/// Scans `{"event":"media","sequenceNumber":"4","media":{"track":"inbound","chunk":"3","timestamp":"202",`
/// `"payload":"…"},"streamSid":"MZ…"}` and nothing else.
pub(super) fn scan_media(message: &str) -> Option<ScannedMedia<'_>> {
    let rest = message.strip_prefix(r#"{"event":"media","sequenceNumber":""#)?;
    let (sequence, rest) = number(rest)?;
    let rest = rest.strip_prefix(r#"","media":{"track":""#)?;
    let (outbound, rest) = match rest.strip_prefix("inbound") {
        Some(rest) => (false, rest),
        None => (true, rest.strip_prefix("outbound")?),
    };
    let rest = rest.strip_prefix(r#"","chunk":""#)?;
    let (_chunk, rest) = number(rest)?;
    let rest = rest.strip_prefix(r#"","timestamp":""#)?;
    let (timestamp_ms, rest) = number(rest)?;
    let rest = rest.strip_prefix(r#"","payload":""#)?;
    let (payload, rest) = plain_text(rest)?;
    let rest = rest.strip_prefix(r#""},"streamSid":""#)?;
    let (stream, rest) = plain_text(rest)?;
    (rest == r#""}"#).then_some(ScannedMedia { sequence, outbound, timestamp_ms, payload, stream })
}

/// Reads a decimal number up to its closing quote.
fn number(text: &str) -> Option<(u64, &str)> {
    let (mut value, mut digits) = (0, 0);
    for byte in text.bytes().take_while(u8::is_ascii_digit) {
        digits += 1;
        if digits > MAX_DIGITS {
            return None;
        }
        value = value * 10 + u64::from(byte - b'0');
    }
    let rest = text.get(digits..)?;
    (digits > 0).then_some((value, rest))
}

/// Reads text without escapes up to its closing quote, which stays in the rest.
fn plain_text(text: &str) -> Option<(&str, &str)> {
    let end = memchr::memchr2(b'"', b'\\', text.as_bytes())?;
    let (text, rest) = text.split_at_checked(end)?;
    // A raw control character is not JSON; the full parser refuses it. Looking at every byte, found or not, lets the
    // compiler compare many at once.
    let has_control = text.bytes().fold(false, |found, byte| found | (byte < 0x20));
    (rest.starts_with('"') && !has_control).then_some((text, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"event":"media","sequenceNumber":"4","media":{"track":"inbound","chunk":"3","timestamp":"202","payload":"AAEC/+=="},"streamSid":"MZ4401e1a4c513dd3b87fed3ab17f29b2a"}"#;

    #[test]
    fn scans_the_exact_form() {
        assert_eq!(
            scan_media(MESSAGE),
            Some(ScannedMedia {
                sequence: 4,
                outbound: false,
                timestamp_ms: 202,
                payload: "AAEC/+==",
                stream: "MZ4401e1a4c513dd3b87fed3ab17f29b2a",
            })
        );
        assert!(scan_media(&MESSAGE.replace("inbound", "outbound")).unwrap().outbound);
    }

    #[test]
    fn leaves_everything_else_to_the_parser() {
        for end in 0..MESSAGE.len() {
            assert_eq!(scan_media(&MESSAGE[..end]), None, "cut at {end}");
        }
        for (from, to) in [
            ("AAEC", r"AA\u0045C"),
            ("AAEC", r"AA\/C"),
            ("AAEC", "AA\u{1}C"),
            (r#""4""#, "4"),
            (r#""202""#, r#""-202""#),
            (r#""202""#, r#""1234567890123456""#),
            ("inbound", "sideband"),
            (r#","chunk""#, r#", "chunk""#),
            (r#""}"#, r#"","x":1}"#),
        ] {
            assert_eq!(scan_media(&MESSAGE.replacen(from, to, 1)), None, "{from} → {to}");
        }
        assert_eq!(scan_media(&format!("{MESSAGE} ")), None);
    }
}
