//! Requests of people about what is kept of them: written down, found again, and dealt with.
//!
//! Each has its deadline, and each step is in the audit log before it has any effect, without the number: that stands in
//! the sealed request alone. An empty object for each open request says by when it must be dealt with, so that whoever counts
//! needs no key.

mod report;
mod sealed;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::erase::{EraseError, EraseReport, Eraser, Target};
use crate::control::index::{IndexError, find};
use crate::control::recordings::RecordingError;
use crate::control::restriction::{lift, restrict, restrictions};
use crate::control::retention::OrderedBy;
use crate::domain::ids::{RecordingId, RequestId, TenantId};
use crate::domain::index::Term;
use crate::domain::request::{Deed, Request, RequestKind, RequestState, Step, StepRefused};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, fill_random};
use crate::notices::Notices;
use crate::store::{ObjectClass, PutOutcome, Store, StoreError, Tags, layout};
use crate::upload::newest_order;

pub use report::{Kept, KeptManifest, SubjectReport};
use sealed::Place;

/// How often a step is taken again when somebody else took one at the same moment.
const TRIES: u32 = 8;
/// Revisions have four digits, so that they sort.
const MAX_REVISION: u32 = 9999;
/// Objects listed, and recordings found, at a time.
const PAGE: usize = 200;

/// Why a request cannot be written down, read or dealt with.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is none of that id for this tenant.
    #[error("no such request")]
    NotFound,
    /// It has come too far, or not far enough.
    #[error(transparent)]
    Refused(#[from] StepRefused),
    /// Others take steps at the same time, again and again.
    #[error("too many steps about this request at once")]
    Contended,
    /// What is stored is no request of this place.
    #[error("request does not open: it was changed, or belongs elsewhere")]
    Damaged,
    /// The keys.
    #[error("key of requests")]
    Key(#[from] KeyError),
    /// The store; trying again is safe.
    #[error("store of requests")]
    Store(#[from] StoreError),
    /// There is no audit record, so nothing is done.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// The index.
    #[error("index")]
    Index(#[from] IndexError),
    /// What is asked for cannot be deleted now.
    #[error("deletion")]
    Erase(#[from] EraseError),
    /// What is asked for cannot be read now.
    #[error("recordings")]
    Recordings(#[from] RecordingError),
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// What.
    pub kind: RequestKind,
    /// About whom.
    pub party: Term,
    /// When it came in; now unless given.
    pub received: Option<UnixMillis>,
    /// How long it may take.
    pub due_after: Duration,
    /// On whose behalf somebody else asks.
    pub on_behalf_of: Option<String>,
}

/// What became of an attempt to do what is asked for.
#[derive(Debug, Clone)]
pub struct Dealt {
    /// The request as it is now: fulfilled, or open because something is left to be done.
    pub request: Request,
    /// What is kept, for requests to access and to port.
    pub report: Option<SubjectReport>,
    /// What was deleted, for requests to delete.
    pub erased: Option<EraseReport>,
}

/// How many requests of a tenant are open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenRequests {
    /// All of them.
    pub open: u64,
    /// Those past their dates.
    pub overdue: Vec<RequestId>,
}

/// The requests of all tenants.
pub struct Requests {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    eraser: Eraser,
}

impl Requests {
    /// Keeps requests in `store`, whose backups and versions may live for `grace` longer.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog, grace: Duration) -> Self {
        let eraser = Eraser::new(Arc::clone(&store), Arc::clone(&keys), audit.clone(), grace);
        Self { store, keys, audit, eraser }
    }

    /// Tells tenants what is deleted.
    #[must_use]
    pub fn with_notices(mut self, notices: Notices) -> Self {
        self.eraser = self.eraser.with_notices(notices);
        self
    }

    /// Writes down a request.
    ///
    /// # Errors
    /// [`RequestError`]; it may be written down or not, and a second one does no harm.
    pub async fn open(
        &self,
        tenant: &TenantId,
        new: NewRequest,
        by: &OrderedBy,
    ) -> Result<(RequestId, Request), RequestError> {
        let now = self.store.now().await?;
        let mut random = [0; 10];
        fill_random(&mut random)?;
        let id = RequestId::new(now.0, &random);
        let received = new.received.unwrap_or(now);
        let due = received.plus(new.due_after);
        let detail = format!("kind={} due={}", new.kind.name(), clock::rfc3339(due));
        self.record(tenant, ("request-open", id), by, Some(detail)).await?;
        let step = self.step(Deed::Opened, by).await?;
        let request = Request::new(new.kind, &new.party, (received, due), new.on_behalf_of, step);
        let tag = tenant.tag();
        // Before the request: one that nothing counts would be forgotten.
        let tags = Tags::of(tag, ObjectClass::Request);
        self.store.put_new(&layout::open_request(tag, due, id), Bytes::new(), &tags).await?;
        let key = self.keys.mint(tenant).await?;
        let place = Place { tenant: tag, request: id, revision: 0 };
        let object = place.seal(key.ids.recording, &key.dek, &request)?;
        self.store.put_new(&layout::request(tag, id, 0), object, &tags).await?;
        Ok((id, request))
    }

    /// Lists requests, oldest first, up to `limit` after `after`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn list(
        &self,
        tenant: &TenantId,
        after: Option<RequestId>,
        limit: usize,
    ) -> Result<Vec<(RequestId, Request)>, RequestError> {
        let (tag, prefix) = (tenant.tag(), layout::requests_prefix(tenant.tag()));
        let mut after = after.map(|id| layout::request(tag, id, MAX_REVISION));
        let mut found = Vec::new();
        while found.len() < limit {
            let page = self.store.list_after(&prefix, after.as_ref(), 1).await?;
            let Some(id) = page.first().and_then(|object| layout::request_of(&object.name)) else { break };
            found.push((id, self.get(tenant, id).await?));
            after = Some(layout::request(tag, id, MAX_REVISION));
        }
        Ok(found)
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn get(&self, tenant: &TenantId, id: RequestId) -> Result<Request, RequestError> {
        self.newest(tenant, id).await.map(|newest| newest.request)
    }

    /// Tells what is kept about whom a request is.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn report(
        &self,
        tenant: &TenantId,
        id: RequestId,
        by: &OrderedBy,
    ) -> Result<SubjectReport, RequestError> {
        let request = self.get(tenant, id).await?;
        self.record(tenant, ("request-report", id), by, None).await?;
        self.survey(tenant, id, &request).await
    }

    /// Does what is asked for. Where something is left to be done, the request stays open, and asking again goes on.
    ///
    /// # Errors
    /// [`RequestError`]; calling again is safe.
    pub async fn fulfil(
        &self,
        tenant: &TenantId,
        id: RequestId,
        by: &OrderedBy,
    ) -> Result<Dealt, RequestError> {
        let request = self.get(tenant, id).await?;
        let mut step = self.step(Deed::Fulfilled, by).await?;
        request.after(step.clone())?;
        let detail = Some(format!("kind={}", request.kind.name()));
        self.record(tenant, ("request-fulfil", id), by, detail).await?;
        let party = request.party().map_err(|_| RequestError::Damaged)?;
        let (mut report, mut erased) = (None, None);
        match request.kind {
            RequestKind::Access | RequestKind::Port => {
                let survey = self.survey(tenant, id, &request).await?;
                step.detail = Some(format!("recordings={}", survey.recordings.len()));
                report = Some(survey);
            }
            RequestKind::Restrict => self.restrict(tenant, (&party, id)).await?,
            RequestKind::Delete => {
                let done = self.eraser.run(tenant, &Target::Term(party.clone()), by, |_| ()).await?;
                let EraseReport { found, deleted, held, waiting, gone, failed } = done;
                step.detail = Some(format!(
                    "found={found} deleted={deleted} held={held} waiting={waiting} gone={gone} failed={failed}"
                ));
                step.exceptions = self.held(tenant, &party).await?;
                if waiting + failed > 0 {
                    step.deed = Deed::Tried;
                }
                erased = Some(done);
            }
        }
        let request = self.advance(tenant, id, step).await?;
        Ok(Dealt { request, report, erased })
    }

    /// Declines what is asked for; `by` has the reason.
    ///
    /// # Errors
    /// [`RequestError`]; calling again is safe.
    pub async fn refuse(
        &self,
        tenant: &TenantId,
        id: RequestId,
        by: &OrderedBy,
    ) -> Result<Request, RequestError> {
        let step = self.step(Deed::Refused, by).await?;
        self.get(tenant, id).await?.after(step.clone())?;
        self.record(tenant, ("request-refuse", id), by, None).await?;
        self.advance(tenant, id, step).await
    }

    /// Ends a restriction that is in force.
    ///
    /// # Errors
    /// [`RequestError`]; calling again is safe.
    pub async fn lift(
        &self,
        tenant: &TenantId,
        id: RequestId,
        by: &OrderedBy,
    ) -> Result<Request, RequestError> {
        let step = self.step(Deed::Lifted, by).await?;
        self.get(tenant, id).await?.after(step.clone())?;
        self.record(tenant, ("request-lift", id), by, None).await?;
        // The step comes first: what nothing says is in force any more may go on being refused, not the other way round.
        let request = self.advance(tenant, id, step).await?;
        lift(&*self.store, tenant.tag(), id).await?;
        Ok(request)
    }

    /// Counts the open requests of a tenant. Of those that are past their dates it is made sure that they still are open;
    /// the others cost one request to the store for all of them.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn count(&self, tenant: &TenantId) -> Result<OpenRequests, RequestError> {
        let now = self.store.now().await?;
        let prefix = layout::open_requests_prefix(tenant.tag());
        let (mut after, mut found) = (None, OpenRequests::default());
        loop {
            let page = self.store.list_after(&prefix, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(found) };
            after = Some(last.name.clone());
            for object in page {
                let Some((due, id)) = layout::open_request_of(&object.name) else { continue };
                if due >= now {
                    found.open += 1;
                } else if self.is_open(tenant, id).await {
                    found.open += 1;
                    found.overdue.push(id);
                } else {
                    // Left behind by a step that was interrupted.
                    self.store.purge(object.name.as_str()).await?;
                }
            }
        }
    }

    /// Whether a request is open, or nobody can tell.
    async fn is_open(&self, tenant: &TenantId, id: RequestId) -> bool {
        match self.get(tenant, id).await {
            Ok(request) => request.state == RequestState::Open,
            Err(RequestError::NotFound) => false,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(request = %id, error, "a request that is overdue cannot be read");
                true
            }
        }
    }

    async fn restrict(&self, tenant: &TenantId, (party, id): (&Term, RequestId)) -> Result<(), RequestError> {
        let key = self.keys.index_key(tenant).await?;
        let entry = party.blind(key.dek.expose());
        Ok(restrict(&*self.store, tenant.tag(), (entry, id)).await?)
    }

    /// Returns the recordings of a party that are held.
    async fn held(&self, tenant: &TenantId, party: &Term) -> Result<Vec<String>, RequestError> {
        let (mut held, mut after) = (Vec::new(), None);
        loop {
            let page = self.found(tenant, party, after).await?;
            let Some(last) = page.last() else { return Ok(held) };
            after = Some(*last);
            for recording in page {
                let order = newest_order(&*self.store, tenant.tag(), recording).await?;
                if order.is_some_and(|(_, order)| order.hold) {
                    held.push(recording.to_string());
                }
            }
        }
    }

    async fn found(
        &self,
        tenant: &TenantId,
        party: &Term,
        after: Option<RecordingId>,
    ) -> Result<Vec<RecordingId>, RequestError> {
        Ok(find(&*self.store, &self.keys, tenant, party, (after, PAGE)).await?.1)
    }

    async fn newest(&self, tenant: &TenantId, id: RequestId) -> Result<Newest, RequestError> {
        let prefix = layout::request_prefix(tenant.tag(), id);
        let revisions = self.store.list_after(&prefix, None, 1000).await?;
        let newest = revisions.last().ok_or(RequestError::NotFound)?;
        let revision = layout::request_revision(&newest.name).ok_or(RequestError::Damaged)?;
        let object = self.store.get(&newest.name, None).await?.bytes;
        let place = Place { tenant: tenant.tag(), request: id, revision };
        let key = Place::key_of(&object).ok_or(RequestError::Damaged)?;
        let opened = self.keys.open(tenant, key).await?;
        let request = place.open(&opened.dek, &object).ok_or(RequestError::Damaged)?;
        Ok(Newest { revision, request, key })
    }

    /// Takes a step; nobody else has taken one meanwhile.
    async fn advance(&self, tenant: &TenantId, id: RequestId, step: Step) -> Result<Request, RequestError> {
        for _ in 0..TRIES {
            let Newest { revision, request, key } = self.newest(tenant, id).await?;
            let next = request.after(step.clone())?;
            if self.put(tenant, (id, revision + 1), key, &next).await? {
                if step.deed != Deed::Tried {
                    let name = layout::open_request(tenant.tag(), UnixMillis(next.due_ms), id);
                    self.store.purge(name.as_str()).await?;
                }
                return Ok(next);
            }
        }
        Err(RequestError::Contended)
    }

    /// Puts a revision; answers whether it is the one that counts, and not somebody else's.
    async fn put(
        &self,
        tenant: &TenantId,
        (id, revision): (RequestId, u32),
        key: RecordingId,
        request: &Request,
    ) -> Result<bool, RequestError> {
        if revision > MAX_REVISION {
            return Err(RequestError::Contended);
        }
        let opened = self.keys.open(tenant, key).await?;
        let tag = tenant.tag();
        let object = Place { tenant: tag, request: id, revision }.seal(key, &opened.dek, request)?;
        let (name, tags) = (layout::request(tag, id, revision), Tags::of(tag, ObjectClass::Request));
        let put = self.store.put_new(&name, object.clone(), &tags).await?;
        if put == PutOutcome::AlreadyExists || self.store.profile().create_once {
            return Ok(put == PutOutcome::Created);
        }
        // Somebody may have written over it.
        Ok(self.store.get(&name, None).await?.bytes == object)
    }

    async fn step(&self, deed: Deed, by: &OrderedBy) -> Result<Step, RequestError> {
        Ok(Step {
            deed,
            at_ms: self.store.now().await?.0,
            actor: by.actor.clone(),
            reason: by.reason.clone(),
            detail: None,
            exceptions: Vec::new(),
        })
    }

    async fn record(
        &self,
        tenant: &TenantId,
        (action, id): (&str, RequestId),
        by: &OrderedBy,
        detail: Option<String>,
    ) -> Result<(), AuditError> {
        let event = AuditEvent {
            role: by.role.to_owned(),
            source: by.source.clone(),
            request: by.request.clone(),
            reason: Some(by.reason.clone()),
            detail,
            ..AuditEvent::by_operator(&by.actor, action, id.to_string())
        };
        self.audit.record(tenant, event).await
    }
}

/// The revision of a request that counts.
struct Newest {
    revision: u32,
    request: Request,
    key: RecordingId,
}

/// Puts the restrictions of a tenant that are in force under its present index key as well: when that is another than the
/// one they were put under.
pub(super) async fn restrict_anew(
    store: &Arc<dyn Store>,
    keys: &Arc<KeyService>,
    audit: &AuditLog,
    tenant: &TenantId,
) -> Result<(), RequestError> {
    let requests = Requests::new(Arc::clone(store), Arc::clone(keys), audit.clone(), Duration::ZERO);
    for (_, id) in restrictions(&**store, tenant.tag()).await? {
        let request = requests.get(tenant, id).await?;
        let party = request.party().map_err(|_| RequestError::Damaged)?;
        if request.restricts() {
            requests.restrict(tenant, (&party, id)).await?;
        }
    }
    Ok(())
}
