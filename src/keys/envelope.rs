//! The envelope of a recording: its wrapped DEK as a small JSON object (`docs/FORMAT.md` section 11).

use serde::{Deserialize, Serialize};

use crate::config::KekName;
use crate::domain::cmr::Expected;
use crate::domain::ids::{KeyId, RecordingId, TenantTag};
use crate::store::ObjectName;

use super::KeyError;

/// The largest envelope: far more than its wraps need, and no burden for whoever meets a hostile one.
pub(super) const MAX_BYTES: usize = 64 * 1024;
/// Wraps of one DEK: the tenant's, and a few for recovery.
const MAX_WRAPS: usize = 8;

/// A wrapped DEK with the ids it belongs to. Holds no secret in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Version of this record: 1.
    pub v: u8,
    /// Whose recording, 32 hexadecimal digits.
    pub tenant_tag: String,
    /// Which recording, 32 hexadecimal digits.
    pub recording_id: String,
    /// Which DEK, 32 hexadecimal digits.
    pub key_id: String,
    /// `active`.
    pub state: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The DEK under one or more KEKs, each independent.
    pub wraps: Vec<Wrap>,
}

/// One DEK under one KEK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrap {
    /// `local`, or the name of a key service.
    pub provider: String,
    /// The KEK's name.
    pub kek: String,
    /// The KEK's version; what a key service does not tell has [`UNVERSIONED`].
    pub kek_version: String,
    /// The wrapped key, standard base64.
    pub blob: String,
    /// When it was wrapped, RFC 3339.
    pub wrapped_at: String,
}

impl Envelope {
    /// Makes the envelope of a new DEK.
    pub fn new(ids: &Expected, wrap: Wrap) -> Self {
        Self {
            v: 1,
            tenant_tag: ids.tenant.to_string(),
            recording_id: ids.recording.to_string(),
            key_id: ids.key.to_string(),
            state: "active".to_owned(),
            created: wrap.wrapped_at.clone(),
            wraps: vec![wrap],
        }
    }

    /// Reads an envelope and checks that it belongs to this tenant's recording.
    ///
    /// # Errors
    /// [`KeyError::BadEnvelope`].
    pub fn parse(json: &[u8], tenant: TenantTag, recording: RecordingId) -> Result<(Self, KeyId), KeyError> {
        if json.len() > MAX_BYTES {
            return Err(KeyError::BadEnvelope("too large"));
        }
        let envelope: Self = serde_json::from_slice(json).map_err(|_| KeyError::BadEnvelope("not JSON"))?;
        if envelope.v != 1 || envelope.state != "active" {
            return Err(KeyError::BadEnvelope("version or state"));
        }
        if envelope.wraps.len() > MAX_WRAPS {
            return Err(KeyError::BadEnvelope("too many wraps"));
        }
        if envelope.tenant_tag != tenant.to_string() || envelope.recording_id != recording.to_string() {
            return Err(KeyError::BadEnvelope("of another recording"));
        }
        let key = envelope.key_id.parse().map_err(|_| KeyError::BadEnvelope("key id"))?;
        Ok((envelope, key))
    }
}

/// The version of a KEK whose service does not tell which of its versions it used.
pub const UNVERSIONED: &str = "unversioned";

/// A KEK in one version, as wraps name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsedKek {
    /// As [`Wrap::provider`].
    pub provider: String,
    /// As [`Wrap::kek`].
    pub kek: String,
    /// As [`Wrap::kek_version`].
    pub version: String,
}

impl Wrap {
    /// Returns what it is under.
    pub fn used(&self) -> UsedKek {
        UsedKek { provider: self.provider.clone(), kek: self.kek.clone(), version: self.kek_version.clone() }
    }

    /// Whether it is under this KEK, in any version.
    pub(super) fn is_under(&self, kek: &KekName) -> bool {
        self.provider == kek.provider.name() && self.kek == kek.kek
    }
}

/// The prefix of all revisions of a recording's envelope.
pub fn envelope_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("k/{tenant}/{recording}/")
}

/// The prefix of all envelopes of a tenant.
pub fn envelopes_prefix(tenant: TenantTag) -> String {
    format!("k/{tenant}/")
}

/// Reads the recording out of the name of an envelope.
pub fn envelope_recording(name: &ObjectName) -> Option<RecordingId> {
    name.as_str().split('/').nth(2)?.parse().ok()
}

/// Reads the revision out of the name of an envelope.
pub(super) fn revision_of(name: &ObjectName) -> Option<u32> {
    name.as_str().rsplit_once('/')?.1.strip_suffix(".json")?.parse().ok()
}

/// The object name of one revision of a recording's envelope.
///
/// # Panics
/// Never: hexadecimal digits and slashes are always a valid name.
pub fn envelope_name(tenant: TenantTag, recording: RecordingId, revision: u32) -> ObjectName {
    ObjectName::new(format!("{}{revision:04}.json", envelope_prefix(tenant, recording)))
        .expect("hexadecimal digits and slashes are a valid name")
}
