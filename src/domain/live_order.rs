//! Orders about a live recording: pause, resume, the caller agrees.
//!
//! A node that does not have the call leaves an order in the store for the node that has it. It is authenticated with a key
//! made of the recording's own, because whoever can write to a bucket must not be able to say that a caller has agreed.
//!
//! One line: `<order> <Unix milliseconds> <64 hexadecimal digits>`, the last being HMAC-SHA-256 of
//! `callseal-live-order-v1`, the tenant's tag, the recording, the order and the time, joined by newlines.

use std::fmt;

use super::ids::{RecordingId, TenantTag};
use super::sign::{encode_hex, equal, hmac_sha256};
use super::time::UnixMillis;

/// The longest text of an order.
pub const MAX_TEXT_BYTES: usize = 128;

/// What is wanted of a live recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveOrder {
    /// Seal neither audio nor keys pressed.
    Pause,
    /// Seal them again.
    Resume,
    /// The caller has agreed to be recorded.
    Consent,
}

impl LiveOrder {
    const ALL: [Self; 3] = [Self::Pause, Self::Resume, Self::Consent];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Consent => "consent",
        }
    }

    /// Writes it down for another node. `key` is [`Dek::live_order_key`](super::cmr::Dek::live_order_key).
    pub fn seal(self, key: &[u8; 32], tenant: TenantTag, recording: RecordingId, at: UnixMillis) -> String {
        let mac = encode_hex(&self.mac(key, tenant, recording, at));
        format!("{self} {} {mac}", at.0)
    }

    /// Reads what [`LiveOrder::seal`] has written; `None` for anything else.
    pub fn open(
        text: &[u8],
        key: &[u8; 32],
        tenant: TenantTag,
        recording: RecordingId,
    ) -> Option<(Self, UnixMillis)> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= MAX_TEXT_BYTES)?;
        let mut parts = text.split(' ');
        let (name, at, mac) = (parts.next()?, parts.next()?, parts.next()?);
        let order = Self::ALL.into_iter().find(|order| order.name() == name)?;
        let at = UnixMillis(at.parse().ok()?);
        let is_ours = equal(encode_hex(&order.mac(key, tenant, recording, at)).as_bytes(), mac.as_bytes());
        (is_ours && parts.next().is_none()).then_some((order, at))
    }

    fn mac(self, key: &[u8; 32], tenant: TenantTag, recording: RecordingId, at: UnixMillis) -> [u8; 32] {
        let said = format!("callseal-live-order-v1\n{tenant}\n{recording}\n{self}\n{}", at.0);
        hmac_sha256(key, [said.as_bytes()])
    }
}

impl fmt::Display for LiveOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_taken_for_its_own_recording_only_and_in_no_other_form() {
        let (key, tenant, recording) = ([7; 32], TenantTag([1; 16]), RecordingId([2; 16]));
        let at = UnixMillis(1_790_000_000_123);
        for order in LiveOrder::ALL {
            let text = order.seal(&key, tenant, recording, at);
            assert!(text.len() <= MAX_TEXT_BYTES);
            assert_eq!(LiveOrder::open(text.as_bytes(), &key, tenant, recording), Some((order, at)));
            let open =
                |text: &str, key, tenant, recording| LiveOrder::open(text.as_bytes(), key, tenant, recording);
            assert_eq!(open(&text, &[8; 32], tenant, recording), None, "another key");
            assert_eq!(open(&text, &key, TenantTag([9; 16]), recording), None, "another tenant");
            assert_eq!(open(&text, &key, tenant, RecordingId([9; 16])), None, "another recording");
            for (from, to) in [
                ("pause", "consent"),
                ("resume", "pause"),
                ("consent", "resume"),
                ("123", "124"),
                (" ", "  "),
            ] {
                let changed = text.replacen(from, to, 1);
                if changed != text {
                    assert_eq!(open(&changed, &key, tenant, recording), None, "{changed}");
                }
            }
            for hostile in [
                format!("{text} x"),
                format!("{text}\n"),
                text.to_uppercase(),
                String::new(),
                "x".repeat(1000),
            ] {
                assert_eq!(open(&hostile, &key, tenant, recording), None, "{hostile}");
            }
        }
        assert_eq!(LiveOrder::open(&[0xff; 20], &key, tenant, recording), None);
    }
}
