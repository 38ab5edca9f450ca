//! One revision of a tenant, as it is sealed in the store (`docs/FORMAT.md`).
//!
//! An object is `01 || length of the kid || kid || sealed box`. The box is bound to tenant, revision and kid, so that nobody can
//! put one in the place of another.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{StoredTenants, TenantStatus};
use crate::domain::cmr::SealedBox;
use crate::domain::ids::{TenantId, TenantTag};
use crate::domain::policy::Policy;
use crate::domain::sign::hmac_sha256;
use crate::keys::fill_random;

use super::settings::Settings;

const VERSION: u8 = 1;
/// Far more than the settings of a tenant have.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// What made a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Made {
    /// The tenant is new.
    Created,
    /// Other settings.
    Updated,
    /// No calls, no playback.
    Suspended,
    /// As before.
    Resumed,
    /// The order to delete what it has, on a day.
    Closing,
    /// Nothing is left.
    Closed,
    /// Recordings are kept for fewer days.
    RetentionShortened,
    /// Somebody wants recordings to be kept for more days.
    RetentionProposed,
    /// Recordings are kept for more days.
    RetentionLengthened,
    /// Nobody wants more days any more.
    RetentionWithdrawn,
    /// Ended recordings have the date that fewer days give them.
    RetentionDone,
}

impl Made {
    /// Returns the action in the audit log.
    pub fn action(self) -> &'static str {
        match self {
            Self::Created => "tenant.created",
            Self::Updated => "tenant.updated",
            Self::Suspended => "tenant.suspended",
            Self::Resumed => "tenant.resumed",
            Self::Closing => "tenant.closing",
            Self::Closed => "tenant.closed",
            Self::RetentionShortened => "retention.shortened",
            Self::RetentionProposed => "retention.proposed",
            Self::RetentionLengthened => "retention.lengthened",
            Self::RetentionWithdrawn => "retention.withdrawn",
            Self::RetentionDone => "retention.done",
        }
    }
}

/// What holds for a tenant since a change, and who changed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revision {
    /// Version of this record: 1.
    pub v: u8,
    /// The tenant's id.
    pub tenant: String,
    /// From 1.
    pub revision: u32,
    /// RFC 3339, UTC.
    pub at: String,
    /// Who made it.
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What made it.
    pub made: Made,
    /// What may be done for the tenant.
    pub status: TenantStatus,
    /// When what it has is deleted, if it is being closed; Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_by_ms: Option<u64>,
    /// What was decided about the days for which recordings are kept; how many hold stands in the settings.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub retention: Policy,
    /// The rest.
    pub settings: Settings,
}

/// Why an object is no revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRevision {
    /// Not one, changed, or put where it does not belong.
    #[error("does not open")]
    Damaged,
    /// Sealed with a key that this node does not have.
    #[error("is sealed with the key {0:?}, which is not among tenants.keys of this node")]
    UnknownKey(String),
}

impl Revision {
    /// Seals it; `None` without random bytes.
    pub(super) fn seal(&self, keys: &StoredTenants) -> Option<Bytes> {
        let tenant: TenantId = self.tenant.parse().ok()?;
        let secret = keys.keys.get(&keys.kid)?;
        let mut salt = [0; 32];
        fill_random(&mut salt).ok()?;
        let text = Zeroizing::new(serde_json::to_vec(self).ok()?);
        let context = context(tenant.tag(), self.revision, &keys.kid);
        let sealed = SealedBox::TENANT.seal(&key(secret.expose()), &salt, &context, &text).ok()?;
        let length = u8::try_from(keys.kid.len()).ok()?;
        Some(Bytes::from([&[VERSION, length][..], keys.kid.as_bytes(), &sealed].concat()))
    }

    /// Opens what lies in the place of a tenant's revision.
    pub(super) fn open(
        object: &[u8],
        (tag, revision): (TenantTag, u32),
        keys: &StoredTenants,
    ) -> Result<Self, NoRevision> {
        let (&[version, length], rest) = object.split_first_chunk().ok_or(NoRevision::Damaged)?;
        let (kid, sealed) = rest.split_at_checked(usize::from(length)).ok_or(NoRevision::Damaged)?;
        let kid = std::str::from_utf8(kid).map_err(|_| NoRevision::Damaged)?;
        if version != VERSION {
            return Err(NoRevision::Damaged);
        }
        let secret =
            keys.keys.get(kid).ok_or_else(|| NoRevision::UnknownKey(kid.escape_debug().to_string()))?;
        let text = SealedBox::TENANT.open(&key(secret.expose()), &context(tag, revision, kid), sealed);
        let text = text.map_err(|_| NoRevision::Damaged)?;
        let opened: Self = serde_json::from_slice(&text).map_err(|_| NoRevision::Damaged)?;
        let is_own = opened.id().is_some_and(|id| id.tag() == tag) && opened.revision == revision;
        if opened.v == 1 && is_own { Ok(opened) } else { Err(NoRevision::Damaged) }
    }

    /// Returns the tenant's id; there is one in every revision that was opened.
    pub fn id(&self) -> Option<TenantId> {
        self.tenant.parse().ok()
    }
}

fn key(secret: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(hmac_sha256(secret, [b"callseal-tenant-v1".as_slice()]))
}

fn context(tag: TenantTag, revision: u32, kid: &str) -> Vec<u8> {
    [&tag.0[..], &revision.to_be_bytes(), kid.as_bytes()].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Secret;

    /// Keys of these names; the first one seals.
    pub(in super::super) fn keys(names: &[&str]) -> StoredTenants {
        let key = |name: &&str| ((*name).to_owned(), Secret::new(format!("{name:-<32}").into_bytes()));
        StoredTenants {
            keys: names.iter().map(key).collect(),
            kid: names[0].to_owned(),
            allow_private_hosts: false,
            close_after: Duration::from_secs(60 * 86_400),
        }
    }

    pub(in super::super) fn revision(tenant: &str, revision: u32) -> Revision {
        Revision {
            v: 1,
            tenant: tenant.to_owned(),
            revision,
            at: "2026-11-26T12:00:00Z".to_owned(),
            by: "token:1:ops".to_owned(),
            reason: None,
            made: Made::Created,
            status: TenantStatus::Active,
            close_by_ms: None,
            retention: Policy::default(),
            settings: Settings::given("a = { value = \"S3CRET\" }".parse().unwrap(), None, b"k").0,
        }
    }

    #[test]
    fn a_revision_opens_in_its_place_and_with_its_key_only() {
        let (tag, one) = (revision("acme", 1).id().unwrap().tag(), revision("acme", 1));
        let object = one.seal(&keys(&["s1"])).unwrap();
        assert!(!object.windows(6).any(|part| part == b"S3CRET"));
        assert_eq!(
            Revision::open(&object, (tag, 1), &keys(&["s2", "s1"])).unwrap(),
            one,
            "also when keys change"
        );
        assert_eq!(
            Revision::open(&object, (tag, 1), &keys(&["s2"])),
            Err(NoRevision::UnknownKey("s1".to_owned()))
        );
        let other = revision("other", 1).id().unwrap().tag();
        for place in [(tag, 2), (other, 1)] {
            assert_eq!(Revision::open(&object, place, &keys(&["s1"])), Err(NoRevision::Damaged));
        }
        for end in 0..object.len() {
            assert!(Revision::open(&object[..end], (tag, 1), &keys(&["s1"])).is_err(), "cut at {end}");
        }
        for at in 0..object.len() {
            let mut changed = object.to_vec();
            changed[at] ^= 1;
            assert!(Revision::open(&changed, (tag, 1), &keys(&["s1"])).is_err(), "changed at {at}");
        }
    }
}
