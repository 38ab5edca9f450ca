//! A date of a recording that is later than the one sealed in its manifest, as its retention order has it.
//!
//! Orders lie in the store in clear. This part is authenticated with a key made of the recording's own, because whoever can
//! write to a bucket must not be able to keep a recording for longer.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{RecordingId, TenantTag};
use super::ledger::decode_hex_32;
use super::sign::{encode_hex, equal, hmac_sha256};
use super::time::UnixMillis;

/// A later date with its proof (`docs/FORMAT.md` section 11.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptUntil {
    at_ms: u64,
    #[serde(serialize_with = "write_mac", deserialize_with = "read_mac")]
    mac: [u8; 32],
}

impl KeptUntil {
    /// Proves a date. `key` is [`Dek::kept_until_key`](super::cmr::Dek::kept_until_key).
    pub fn seal(key: &[u8; 32], tenant: TenantTag, recording: RecordingId, at: UnixMillis) -> Self {
        Self { at_ms: at.0, mac: mac(key, tenant, recording, at) }
    }

    /// Returns the date if it is proven for this recording.
    pub fn open(&self, key: &[u8; 32], tenant: TenantTag, recording: RecordingId) -> Option<UnixMillis> {
        let at = UnixMillis(self.at_ms);
        equal(&mac(key, tenant, recording, at), &self.mac).then_some(at)
    }

    /// Returns the date without asking for its proof: for tags, which decide nothing.
    pub fn unproven(&self) -> UnixMillis {
        UnixMillis(self.at_ms)
    }
}

fn mac(key: &[u8; 32], tenant: TenantTag, recording: RecordingId, at: UnixMillis) -> [u8; 32] {
    let said = format!("callseal-kept-until-v1\n{tenant}\n{recording}\n{}", at.0);
    hmac_sha256(key, [said.as_bytes()])
}

fn write_mac<S: Serializer>(mac: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode_hex(mac))
}

/// A text that is no code proves nothing, as a wrong code does; the hold beside it counts all the same.
fn read_mac<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(decode_hex_32(&text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a17_a_later_date_is_proven_for_its_own_recording_only() {
        let (key, tenant, recording) = ([7; 32], TenantTag([1; 16]), RecordingId([2; 16]));
        let at = UnixMillis(1_790_000_000_123);
        let kept = KeptUntil::seal(&key, tenant, recording, at);
        assert_eq!(kept.open(&key, tenant, recording), Some(at));
        assert_eq!(kept.open(&[8; 32], tenant, recording), None, "another key");
        assert_eq!(kept.open(&key, TenantTag([9; 16]), recording), None, "another tenant");
        assert_eq!(kept.open(&key, tenant, RecordingId([9; 16])), None, "another recording");
        let later = KeptUntil { at_ms: at.0 + 1, ..kept };
        assert_eq!(later.open(&key, tenant, recording), None, "another date");
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<KeptUntil>(&text).unwrap(), kept);
        for mac in [String::new(), "x".repeat(64), "0".repeat(64), encode_hex(&kept.mac).to_uppercase()] {
            let forged = serde_json::json!({"at_ms": at.0, "mac": mac});
            let forged: KeptUntil = serde_json::from_value(forged).unwrap();
            assert_eq!(forged.open(&key, tenant, recording), None, "{mac}");
        }
    }
}
