//! What people do with notices: look at them, send them again, and try whether they arrive.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::clock;
use crate::config::Webhook;
use crate::domain::ids::{NoticeId, TenantId};
use crate::domain::notice::{Event, Facts, NoticeKind, Subject};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, fill_random};
use crate::store::layout::NoticePlace;
use crate::store::{Store, StoreError};

use super::Wake;
use super::outbox::{Outbox, OutboxError};
use super::post::{PostError, Poster};

/// Notices of a page that are read at the same time.
const LOOKS_AT_ONCE: usize = 8;

/// A notice and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// `waiting`, `sent` or `dead`.
    pub state: &'static str,
    /// How often it was tried.
    pub attempts: u32,
    /// When it came to this state, or was tried last; RFC 3339.
    pub at: Option<String>,
    /// What came of the last attempt that is noted.
    pub last: Option<String>,
    /// What is told.
    pub body: serde_json::Value,
}

/// Why a notice is not sent again.
#[derive(Debug, thiserror::Error)]
pub enum RedeliverError {
    /// There is none of that id for this tenant, or it was forgotten.
    #[error("no such notice")]
    NotFound,
    /// It waits for its next attempt already.
    #[error("notice waits for delivery already")]
    Waiting,
    /// The outbox; trying again is safe.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
}

/// Looks at one tenant's notices, and sends them again.
pub struct Desk {
    outbox: Arc<Outbox>,
    tenant: TenantId,
    /// The courier of this process.
    wakes: Option<mpsc::Sender<Wake>>,
}

impl Desk {
    /// Looks at the notices of `tenant` in `store`.
    pub fn new(keys: Arc<KeyService>, store: Arc<dyn Store>, node: &str, tenant: TenantId) -> Self {
        Self { outbox: Arc::new(Outbox::new(store, keys, node.to_owned())), tenant, wakes: None }
    }

    /// The desk of a node that delivers: what is sent again goes out at once.
    pub(super) fn of_node(outbox: Arc<Outbox>, wakes: mpsc::Sender<Wake>, tenant: TenantId) -> Self {
        Self { outbox, tenant, wakes: Some(wakes) }
    }

    /// Lists the notices in some places, at most `limit` for each. One that is settled meanwhile may be left out.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn list(&self, places: &[NoticePlace], limit: usize) -> Result<Vec<Shown>, OutboxError> {
        let tag = self.tenant.tag();
        let mut shown = Vec::new();
        for place in places {
            let notices: Vec<NoticeId> = match place {
                NoticePlace::Waiting => {
                    let (waiting, ..) = self.outbox.waiting(tag, limit).await?;
                    waiting.into_iter().map(|waiting| waiting.notice).collect()
                }
                NoticePlace::Sent | NoticePlace::Dead => {
                    let settled = self.outbox.list_settled(tag, *place, limit).await?;
                    settled.into_iter().map(|(notice, _)| notice).collect()
                }
            };
            for notice in notices {
                shown.extend(self.look(*place, notice).await?);
            }
        }
        Ok(shown)
    }

    /// Lists the notices in one place in the order of their ids, after `after`; answers as well whether there may be more.
    /// One that is settled meanwhile may be left out.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn page(
        &self,
        place: NoticePlace,
        after: Option<NoticeId>,
        limit: usize,
    ) -> Result<(Vec<Shown>, Option<NoticeId>), OutboxError> {
        let mut ids = self.outbox.ids_after(self.tenant.tag(), place, after, limit.saturating_add(1)).await?;
        let has_more = ids.len() > limit;
        ids.truncate(limit);
        let next = ids.last().copied().filter(|_| has_more);
        let mut looks = stream::iter(ids).map(|notice| self.look(place, notice)).buffered(LOOKS_AT_ONCE);
        let mut shown = Vec::new();
        while let Some(found) = looks.try_next().await? {
            shown.extend(found);
        }
        Ok((shown, next))
    }

    /// Counts what waits, and says since when the oldest does.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn waiting(&self) -> Result<(usize, Option<UnixMillis>), OutboxError> {
        let (_, count, oldest) = self.outbox.waiting(self.tenant.tag(), 0).await?;
        Ok((count, oldest))
    }

    /// Returns the ids of all dead notices.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn dead(&self) -> Result<Vec<NoticeId>, OutboxError> {
        let dead = self.outbox.list_settled(self.tenant.tag(), NoticePlace::Dead, usize::MAX).await?;
        Ok(dead.into_iter().map(|(notice, _)| notice).collect())
    }

    /// Shows one notice, wherever it is; `None` if it is nowhere.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn show(&self, notice: NoticeId) -> Result<Option<Shown>, OutboxError> {
        for place in [NoticePlace::Waiting, NoticePlace::Dead, NoticePlace::Sent] {
            if let Some(shown) = self.look(place, notice).await? {
                return Ok(Some(shown));
            }
        }
        Ok(None)
    }

    /// Puts a dead or delivered notice back into the queue, with the same id and body; a node sends it soon.
    ///
    /// # Errors
    /// [`RedeliverError`].
    pub async fn redeliver(&self, notice: NoticeId) -> Result<(), RedeliverError> {
        if self.look(NoticePlace::Waiting, notice).await?.is_some() {
            return Err(RedeliverError::Waiting);
        }
        let tag = self.tenant.tag();
        for place in [NoticePlace::Dead, NoticePlace::Sent] {
            let Some(settled) = self.outbox.settled(&self.tenant, place, notice).await? else { continue };
            // It must not look delivered, or it would be taken out of the queue at once.
            self.outbox.forget(tag, NoticePlace::Sent, notice).await?;
            self.outbox.put(&self.tenant, notice, settled.body.as_bytes()).await?;
            self.outbox.forget(tag, NoticePlace::Dead, notice).await?;
            let wake = Wake { tenant: self.tenant.clone(), notice };
            // Without room the next look at the store finds it.
            let _told = self.wakes.as_ref().is_some_and(|wakes| wakes.try_send(wake).is_ok());
            return Ok(());
        }
        Err(RedeliverError::NotFound)
    }

    async fn look(&self, place: NoticePlace, notice: NoticeId) -> Result<Option<Shown>, OutboxError> {
        let shown = |attempts, at, last, body: &[u8]| Shown {
            id: notice.to_string(),
            state: place.name(),
            attempts,
            at,
            last,
            body: serde_json::from_slice(body).unwrap_or_default(),
        };
        if place != NoticePlace::Waiting {
            let settled = self.outbox.settled(&self.tenant, place, notice).await?;
            return Ok(settled.map(|settled| {
                shown(settled.attempts, Some(settled.at), Some(settled.outcome), settled.body.as_bytes())
            }));
        }
        let body = match self.outbox.body(&self.tenant, notice).await {
            Err(OutboxError::Store(StoreError::NotFound)) => return Ok(None),
            body => body?,
        };
        let attempts = self.outbox.attempts(self.tenant.tag(), notice).await?;
        let (mut at, mut last) = (None, None);
        if attempts > 0 {
            match self.outbox.attempt(&self.tenant, notice, attempts).await {
                Ok(attempt) => (at, last) = (Some(attempt.at), attempt.last),
                Err(OutboxError::Store(StoreError::NotFound)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(shown(attempts, at, last, &body)))
    }
}

/// Why a trial did not come to a status of 2xx.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// No random bytes for its id.
    #[error("notice id")]
    Id(#[from] KeyError),
    /// What came of the attempt.
    #[error(transparent)]
    Post(#[from] PostError),
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// The notice's id.
    pub id: String,
    /// The receiver's status, 2xx.
    pub status: u16,
}

/// Posts a `webhook.test` notice once, from here and now, past the outbox: signed and checked as every notice is.
///
/// # Errors
/// [`TrialError`].
pub async fn try_out(poster: &Poster, tenant: &TenantId, webhook: &Webhook) -> Result<Trial, TrialError> {
    let mut random = [0; 16];
    fill_random(&mut random)?;
    let event = Event { kind: NoticeKind::Test, subject: Subject::Call(random), facts: Facts::default() };
    let (notice, now): (NoticeId, UnixMillis) = (event.id(tenant.tag()), clock::wall());
    let status = poster.post(webhook, notice, &event.body(tenant, &clock::rfc3339(now))).await?;
    Ok(Trial { id: notice.to_string(), status })
}
