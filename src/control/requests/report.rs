//! What is kept about somebody: the answer to a request for access, and the contents of a copy for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use crate::clock;
use crate::control::recordings::{Finished, RecordingError, StoredRecording};
use crate::control::restriction::is_restricted;
use crate::domain::ids::{RecordingId, RequestId, TenantId};
use crate::domain::request::Request;
use crate::domain::retention::Order;
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::store::layout;
use crate::upload::newest_order;

use super::{RequestError, Requests};

/// Recordings that are read at the same time.
const AT_ONCE: usize = 8;
/// Objects of a recording listed at a time.
const OBJECTS: usize = 1000;

/// What is kept about somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubjectReport {
    /// The request that it answers.
    pub request: String,
    /// Whose customer it is.
    pub tenant: String,
    /// When it was looked for: RFC 3339.
    pub made: String,
    /// Every recording of their calls, oldest first.
    pub recordings: Vec<Kept>,
}

/// What is kept of one call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The recording.
    pub recording: String,
    /// When it began: RFC 3339.
    pub begun: String,
    /// `receiving`, `complete`, `partial` or `recovered`; `unreadable` when it cannot be opened.
    pub state: &'static str,
    /// Whether nobody may play it.
    pub restricted: bool,
    /// Whether nothing may delete it.
    pub held: bool,
    /// When it is deleted unless it is held: RFC 3339; none while the call goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// How long it is, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
    /// What its sealed manifest says.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<KeptManifest>,
    /// Where it is, in the store of the node: names begin with this.
    pub place: String,
    /// How many objects it has there.
    pub objects: u64,
    /// Their bytes, sealed.
    pub bytes: u64,
}

/// What a manifest says of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptManifest {
    /// When it ended: RFC 3339.
    pub ended: String,
    /// Why.
    pub cause: &'static str,
    /// Days from its end to its expiry.
    pub retention_days: u32,
    /// The line it came in on.
    pub route: String,
    /// Who carried it.
    pub provider: String,
    /// The provider's id of it.
    pub call: String,
    /// How their consent is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consent: Option<String>,
    /// What the provider and the ticket said of it, and what was learned while it ran.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, String>,
    /// SHA-256 of the manifest.
    pub root: String,
}

impl KeptManifest {
    fn of(finished: &Finished) -> Self {
        let Finished { metadata, end, root, .. } = finished;
        let texts = [&metadata.parameters, &metadata.ticket, &end.notes].into_iter().flatten();
        Self {
            ended: clock::rfc3339(UnixMillis(end.ended_ms)),
            cause: end.cause.name(),
            retention_days: metadata.retention_days,
            route: metadata.route.clone(),
            provider: metadata.provider.clone(),
            call: metadata.call.clone(),
            consent: metadata.consent.clone(),
            texts: texts.map(|(name, text)| (name.clone(), text.clone())).collect(),
            root: encode_hex(root),
        }
    }
}

impl Requests {
    /// Looks for everything that is kept about whom a request is.
    pub(super) async fn survey(
        &self,
        tenant: &TenantId,
        id: RequestId,
        request: &Request,
    ) -> Result<SubjectReport, RequestError> {
        let party = request.party().map_err(|_| RequestError::Damaged)?;
        let made = clock::rfc3339(self.store.now().await?);
        let (mut recordings, mut after) = (Vec::new(), None);
        loop {
            let page = self.found(tenant, &party, after).await?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            let copies = stream::iter(page).map(|recording| self.copy(tenant, recording)).buffered(AT_ONCE);
            recordings.extend(copies.try_collect::<Vec<_>>().await?);
        }
        Ok(SubjectReport { request: id.to_string(), tenant: tenant.to_string(), made, recordings })
    }

    async fn copy(&self, tenant: &TenantId, recording: RecordingId) -> Result<Kept, RequestError> {
        let tag = tenant.tag();
        let stored = StoredRecording::open(Arc::clone(&self.store), &self.keys, tenant, recording).await;
        let stored = match stored {
            Ok(stored) => Some(stored),
            Err(error @ RecordingError::Unavailable(_)) => return Err(error.into()),
            // What is damaged is held about them all the same.
            Err(RecordingError::NotFound | RecordingError::Integrity(_)) => None,
        };
        let order = newest_order(&*self.store, tag, recording).await?.map_or(Order::NONE, |(_, order)| order);
        let place = layout::recording_prefix(tag, recording);
        let (mut objects, mut bytes, mut after) = (0, 0, None);
        loop {
            let page = self.store.list_after(&place, after.as_ref(), OBJECTS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            objects += page.len() as u64;
            bytes += page.iter().map(|object| object.size).sum::<u64>();
        }
        let finished = stored.as_ref().and_then(StoredRecording::manifest);
        let until = stored.as_ref().and_then(|stored| stored.kept_until(&order));
        let expires = until.map(|until| order.effective(until).0);
        Ok(Kept {
            recording: recording.to_string(),
            begun: clock::rfc3339(UnixMillis(recording.created_ms())),
            state: match (&stored, finished) {
                (None, _) => "unreadable",
                (Some(_), None) => "receiving",
                (Some(_), Some(finished)) => finished.end.life.name(),
            },
            restricted: is_restricted(&*self.store, tag, recording).await?,
            held: order.hold,
            expires: expires.or(order.expires_ms.map(UnixMillis)).map(clock::rfc3339),
            millis: stored.as_ref().map(|stored| {
                stored.timeline().samples().saturating_mul(1000) / u64::from(stored.format().rate())
            }),
            manifest: finished.map(KeptManifest::of),
            place,
            objects,
            bytes,
        })
    }
}
