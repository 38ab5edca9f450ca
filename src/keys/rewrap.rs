//! Moves DEKs to a newer version of their KEK. Audio is not touched: only the small envelope is written anew.
//!
//! An envelope is a series of revisions, each created once; the highest counts. The older ones go when the new one was read
//! back and opens to the same key, so that a rewrap may stop anywhere and be done again.

use bytes::Bytes;

use crate::clock;
use crate::domain::cmr::Expected;
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::time::UnixMillis;
use crate::store::{ObjectClass, ObjectInfo, PutOutcome, StoreError, Tags};

use super::envelope::{Envelope, MAX_BYTES, UsedKek, Wrap, envelope_name, envelope_prefix, revision_of};
use super::service::noted;
use super::{KeyError, KeyService};

/// Revisions of one envelope: more than one only while it moves.
const MAX_REVISIONS: usize = 1000;

/// What became of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrapped {
    /// It is under the newest version already.
    Current,
    /// It is now; older revisions are still there, see [`KeyService::drop_older`].
    Moved,
    /// There is none: the recording's key was destroyed.
    Gone,
}

/// The newest revision of an envelope.
pub(super) struct Newest {
    pub(super) revision: u32,
    pub(super) ids: Expected,
    pub(super) envelope: Envelope,
}

impl KeyService {
    /// Moves the DEK of a recording under `newest`, which [`KeyService::newest_kek`] has returned: when it is under another
    /// KEK or version, or was wrapped before `older_than`.
    ///
    /// # Errors
    /// [`KeyError`]; the envelope still opens then, and calling again is safe.
    pub async fn rewrap(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (newest_kek, older_than): (&UsedKek, Option<UnixMillis>),
    ) -> Result<Rewrapped, KeyError> {
        noted("rewrap", self.rewrap_unnoted(tenant, recording, (newest_kek, older_than)).await)
    }

    async fn rewrap_unnoted(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (newest_kek, older_than): (&UsedKek, Option<UnixMillis>),
    ) -> Result<Rewrapped, KeyError> {
        let Some(newest) = self.newest_envelope(tenant.tag(), recording).await? else {
            return Ok(Rewrapped::Gone);
        };
        let wrap = self.provider.choose(tenant, &newest.envelope.wraps)?;
        if !needs_move(wrap, newest_kek, older_than) {
            return Ok(Rewrapped::Current);
        }
        let wrap = self.provider.rewrap(tenant, &newest.ids, wrap).await?;
        let created = newest.envelope.created.clone();
        let envelope = Envelope { created, ..Envelope::new(&newest.ids, wrap) };
        let revision = newest.revision.checked_add(1).ok_or(KeyError::BadEnvelope("revision"))?;
        let name = envelope_name(tenant.tag(), recording, revision);
        let json = serde_json::to_vec(&envelope).map_err(|_| KeyError::BadEnvelope("not JSON"))?;
        let tags = Tags::of(tenant.tag(), ObjectClass::Envelope);
        // Whoever came first has done the same; what is there now is looked at below.
        let (PutOutcome::Created | PutOutcome::AlreadyExists) =
            self.store.put_new(&name, Bytes::from(json), &tags).await?;
        self.check_opens(tenant, &newest.ids).await?;
        Ok(Rewrapped::Moved)
    }

    /// Destroys every revision of an envelope but the newest, which must open.
    ///
    /// # Errors
    /// [`KeyError`]; calling again is safe.
    pub async fn drop_older(&self, tenant: &TenantId, recording: RecordingId) -> Result<(), KeyError> {
        let revisions = self.envelope_revisions(tenant.tag(), recording).await?;
        let Some((_newest, older @ [_, ..])) = revisions.split_last() else { return Ok(()) };
        let Some(ids) = self.newest_envelope(tenant.tag(), recording).await?.map(|newest| newest.ids) else {
            return Ok(());
        };
        self.check_opens(tenant, &ids).await?;
        for old in older {
            // The name of a revision is the prefix of nothing else, so that this takes its versions as well.
            self.store.purge(old.name.as_str()).await?;
        }
        Ok(())
    }

    /// Returns the wrap that a recording's DEK would be opened from; `None` without envelope.
    ///
    /// # Errors
    /// [`KeyError`]; nothing was opened.
    pub async fn wrap_of(&self, tenant: &TenantId, recording: RecordingId) -> Result<Option<Wrap>, KeyError> {
        let Some(newest) = self.newest_envelope(tenant.tag(), recording).await? else { return Ok(None) };
        self.provider.choose(tenant, &newest.envelope.wraps).cloned().map(Some)
    }

    /// Returns what new DEKs of a tenant are wrapped under.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn newest_kek(&self, tenant: &TenantId) -> Result<UsedKek, KeyError> {
        self.provider.newest(tenant).await
    }

    /// Returns when that KEK, in the version that is used now, was made; `None` where its service does not tell.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn newest_kek_made(&self, tenant: &TenantId) -> Result<Option<UnixMillis>, KeyError> {
        self.provider.newest_made(tenant).await
    }

    /// Reads the newest revision of an envelope; `None` where there is none.
    pub(super) async fn newest_envelope(
        &self,
        tenant: TenantTag,
        recording: RecordingId,
    ) -> Result<Option<Newest>, KeyError> {
        let revisions = self.envelope_revisions(tenant, recording).await?;
        let Some(newest) = revisions.last() else { return Ok(None) };
        if newest.size > MAX_BYTES as u64 {
            return Err(KeyError::BadEnvelope("too large"));
        }
        let fetched = match self.store.get(&newest.name, None).await {
            Err(StoreError::NotFound) => return Ok(None),
            fetched => fetched?,
        };
        let (envelope, key) = Envelope::parse(&fetched.bytes, tenant, recording)?;
        let revision = revision_of(&newest.name).ok_or(KeyError::BadEnvelope("revision"))?;
        Ok(Some(Newest { revision, ids: Expected { tenant, recording, key }, envelope }))
    }

    /// What is in the store now opens to the key that it is said to be.
    async fn check_opens(&self, tenant: &TenantId, ids: &Expected) -> Result<(), KeyError> {
        let newest = self.newest_envelope(ids.tenant, ids.recording).await?.ok_or(KeyError::NoEnvelope)?;
        if newest.ids != *ids {
            return Err(KeyError::BadEnvelope("of another key"));
        }
        let wrap = self.provider.choose(tenant, &newest.envelope.wraps)?;
        self.unwrap_checked(tenant, ids, wrap).await.map(drop)
    }

    /// Returns the newest revision of an envelope, whether it can be read or not.
    pub(super) async fn newest_envelope_revision(
        &self,
        tenant: TenantTag,
        recording: RecordingId,
    ) -> Result<Option<u32>, StoreError> {
        let revisions = self.envelope_revisions(tenant, recording).await?;
        Ok(revisions.last().and_then(|newest| revision_of(&newest.name)))
    }

    async fn envelope_revisions(
        &self,
        tenant: TenantTag,
        recording: RecordingId,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.store.list_after(&envelope_prefix(tenant, recording), None, MAX_REVISIONS).await
    }
}

/// Whether a wrap is to be made anew. One whose age cannot be read counts as old.
pub fn needs_move(wrap: &Wrap, newest: &UsedKek, older_than: Option<UnixMillis>) -> bool {
    let is_old = |limit| clock::parse_rfc3339(&wrap.wrapped_at).is_none_or(|made| made < limit);
    wrap.used() != *newest || older_than.is_some_and(is_old)
}
