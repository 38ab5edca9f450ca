//! Answers that are kept for a day, so that whoever sends a request again, because the first answer did not arrive, gets
//! that answer and does nothing twice.
//!
//! Who may work on a request is decided by an object that is created once, so that it holds across all nodes; the answer
//! lies beside it. Both are sealed under the index key of the tenant, because answers hold tickets and links, and their names
//! are blind, because a key may be chosen after a person. Whatever was claimed by a process that died is claimed anew once
//! that process cannot be working on it any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::domain::cmr::SealedBox;
use crate::domain::ids::{BlindId, TenantId, TenantTag, first_16};
use crate::domain::sign::{encode_hex, hmac_sha256};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, OpenedKey, fill_random};
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, StoreError, Tags, layout};

/// How long an answer is given again.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// The longest answer: a ticket with its URL has some kilobytes.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// So long after its time was over nobody works on a request any more, whatever the clocks say.
const SLACK: Duration = Duration::from_secs(30);
/// How long one request to the store may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects listed at a time. One key has two of them, mostly.
const PAGE: usize = 1000;
/// Kept beyond their time for so long, so that no sweep takes away what somebody is about to read.
const BEFORE_SWEPT: Duration = Duration::from_secs(3600);

const LABEL: &[u8] = b"callseal answer\0";

/// Why it cannot be told whether a request was answered before.
#[derive(Debug, thiserror::Error)]
pub enum AnswersError {
    /// The index key.
    #[error("key of kept answers")]
    Key(#[from] KeyError),
    /// The store.
    #[error("store of kept answers")]
    Store(#[from] StoreError),
    /// The store did not answer in time.
    #[error("store did not answer in time")]
    TimedOut,
    /// What is kept does not open.
    #[error("kept answer does not open")]
    Damaged,
    /// The answer is none that can be kept.
    #[error("answer has more than {MAX_ANSWER_BYTES} bytes or is no text")]
    TooLarge,
}

/// A request that may come again.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Whose things it is about.
    pub tenant: &'a TenantId,
    /// Who asks.
    pub principal: &'a str,
    /// For what: keys of different operations have nothing to do with each other.
    pub operation: &'a str,
    /// What the one who asks calls it.
    pub key: &'a str,
    /// SHA-256 of all that it says.
    pub digest: [u8; 32],
    /// Nobody works on it for longer.
    pub longest: Duration,
}

/// An answer as it was given first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The type of its body.
    pub kind: String,
    /// Its body.
    pub body: String,
    /// The id of the request that it was given to.
    pub request: String,
}

/// What is to be done with a request.
pub enum Claimed {
    /// To work on it, and to keep the answer.
    Mine(Claim),
    /// To answer what was answered before.
    Kept(KeptAnswer),
    /// Somebody works on it.
    Running,
    /// The key was used for another request.
    OtherRequest,
}

/// That somebody works on a request.
#[derive(Serialize, Deserialize)]
struct Run {
    /// Version of this record: 1.
    v: u8,
    /// Of the request, hexadecimal.
    digest: String,
    /// For how long at most.
    longest_ms: u64,
}

/// What became of it.
#[derive(Serialize, Deserialize)]
struct Done {
    v: u8,
    digest: String,
    answer: KeptAnswer,
}

/// Where what is kept under one key lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    tenant: TenantTag,
    blind: BlindId,
}

impl Place {
    fn of(question: &Question<'_>, key: &OpenedKey) -> Self {
        let parts = [question.principal, question.operation, question.key];
        let parts = parts.iter().flat_map(|part| [part.as_bytes(), &b"\0"[..]]);
        let mac = hmac_sha256(key.dek.expose(), std::iter::once(LABEL).chain(parts));
        Self { tenant: question.tenant.tag(), blind: BlindId(first_16(&mac)) }
    }

    fn name(self, revision: u32, is_done: bool) -> ObjectName {
        layout::answer(self.tenant, self.blind, revision, is_done)
    }

    fn context(self, revision: u32, is_done: bool) -> Vec<u8> {
        [&self.tenant.0[..], &self.blind.0, &revision.to_be_bytes(), &[u8::from(is_done)]].concat()
    }
}

/// What this process works on: by their places, the digests of the requests.
type Running = Mutex<HashMap<Place, [u8; 32]>>;

/// The answers that are kept in a store.
pub struct Answers {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    running: Arc<Running>,
}

impl Answers {
    /// Keeps them in `store`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>) -> Self {
        Self { store, keys, running: Arc::default() }
    }

    /// Says what is to be done with a request.
    ///
    /// # Errors
    /// [`AnswersError`]; nothing is to be done then.
    pub async fn claim(&self, question: &Question<'_>) -> Result<Claimed, AnswersError> {
        let key = self.keys.index_key(question.tenant).await?;
        let place = Place::of(question, &key);
        let held = match Held::take(&self.running, place, question.digest) {
            Ok(held) => held,
            Err(digest) if digest == question.digest => return Ok(Claimed::Running),
            Err(_) => return Ok(Claimed::OtherRequest),
        };
        let revision = match self.look(place, &key, question).await? {
            Found::Free(revision) => revision,
            Found::Taken(claimed) => return Ok(claimed),
        };
        let longest_ms = u64::try_from(question.longest.as_millis()).unwrap_or(u64::MAX);
        let run = seal(
            (place, revision, false),
            &key,
            &Run { v: 1, digest: encode_hex(&question.digest), longest_ms },
        )?;
        let name = place.name(revision, false);
        let tags = Tags::of(place.tenant, ObjectClass::Answer);
        let outcome = in_time(self.store.put_new(&name, run.clone(), &tags)).await?;
        // It may be ours although the store says that it was there: a put is tried more than once.
        if outcome == PutOutcome::AlreadyExists && in_time(self.store.get(&name, None)).await?.bytes != run {
            return Ok(Claimed::Running);
        }
        let store = Arc::clone(&self.store);
        Ok(Claimed::Mine(Claim { store, key, place, revision, digest: question.digest, _held: held }))
    }

    /// Looks at what is kept under a key.
    async fn look(
        &self,
        place: Place,
        key: &OpenedKey,
        question: &Question<'_>,
    ) -> Result<Found, AnswersError> {
        let prefix = layout::answers_prefix(place.tenant, place.blind);
        let listed = in_time(self.store.list_after(&prefix, None, PAGE)).await?;
        let newest = listed.iter().filter_map(|info| Some((layout::answer_of(&info.name)?, info.modified)));
        let Some(((revision, is_done), at)) = newest.max_by_key(|(place, _)| *place) else {
            return Ok(Found::Free(0));
        };
        let next = Found::Free(revision.saturating_add(1));
        let now = in_time(self.store.now()).await?;
        let age = Duration::from_millis(at.map_or(0, |at| now.0.saturating_sub(at.0)));
        let object = match in_time(self.store.get(&place.name(revision, is_done), None)).await {
            // Given up or swept a moment ago.
            Err(AnswersError::Store(StoreError::NotFound)) => return Ok(Found::Taken(Claimed::Running)),
            object => object?.bytes,
        };
        let (digest, claimed) = if is_done {
            let done: Done = open((place, revision, true), key, &object)?;
            if age >= KEPT_FOR {
                return Ok(next);
            }
            (done.digest, Claimed::Kept(done.answer))
        } else {
            let run: Run = open((place, revision, false), key, &object)?;
            if age >= Duration::from_millis(run.longest_ms).saturating_add(SLACK) {
                return Ok(next);
            }
            (run.digest, Claimed::Running)
        };
        let is_same = digest == encode_hex(&question.digest);
        Ok(Found::Taken(if is_same { claimed } else { Claimed::OtherRequest }))
    }
}

enum Found {
    /// To be worked on, as this revision.
    Free(u32),
    Taken(Claimed),
}

/// That this process works on something; dropped, it does so no more.
struct Held {
    running: Arc<Running>,
    place: Place,
}

impl Held {
    /// Fails with the digest of what is worked on already.
    fn take(running: &Arc<Running>, place: Place, digest: [u8; 32]) -> Result<Self, [u8; 32]> {
        match lock(running).entry(place) {
            Entry::Occupied(other) => Err(*other.get()),
            Entry::Vacant(free) => {
                free.insert(digest);
                Ok(Self { running: Arc::clone(running), place })
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.place);
    }
}

fn lock(running: &Running) -> MutexGuard<'_, HashMap<Place, [u8; 32]>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to work on a request, and the duty to say what came of it.
pub struct Claim {
    store: Arc<dyn Store>,
    key: OpenedKey,
    place: Place,
    revision: u32,
    digest: [u8; 32],
    _held: Held,
}

impl Claim {
    /// Keeps the answer. It must not be given before that.
    ///
    /// # Errors
    /// [`AnswersError`]; then it is to be given to nobody.
    pub async fn keep(self, answer: KeptAnswer) -> Result<(), AnswersError> {
        if answer.body.len() > MAX_ANSWER_BYTES {
            return Err(AnswersError::TooLarge);
        }
        let done = Done { v: 1, digest: encode_hex(&self.digest), answer };
        let sealed = seal((self.place, self.revision, true), &self.key, &done)?;
        let tags = Tags::of(self.place.tenant, ObjectClass::Answer);
        // A name that is taken is this answer, put before: nobody else has this revision.
        in_time(self.store.put_new(&self.place.name(self.revision, true), sealed, &tags)).await.map(drop)
    }

    /// Says that nothing was done, so that the request may come again.
    ///
    /// # Errors
    /// [`AnswersError`]; then it may come again after its time.
    pub async fn give_up(self) -> Result<(), AnswersError> {
        remove(&*self.store, vec![self.place.name(self.revision, false)]).await
    }
}

/// Removes what nobody is answered any more; answers how many objects that were.
///
/// # Errors
/// [`StoreError`]; calling again is safe.
pub async fn forget(store: &dyn Store, now: UnixMillis) -> Result<u64, AnswersError> {
    let (mut after, mut forgotten) = (None, 0);
    loop {
        let page = in_time(store.list_after(layout::ANSWERS_PREFIX, after.as_ref(), PAGE)).await?;
        after = page.last().map(|info| info.name.clone());
        let is_last = page.len() < PAGE;
        let is_old = |at: UnixMillis| at.plus(KEPT_FOR).plus(BEFORE_SWEPT) < now;
        let old = page.into_iter().filter(|info| info.modified.is_some_and(is_old)).map(|info| info.name);
        let old: Vec<ObjectName> = old.collect();
        forgotten += old.len() as u64;
        remove(store, old).await?;
        if is_last {
            return Ok(forgotten);
        }
    }
}

async fn remove(store: &dyn Store, names: Vec<ObjectName>) -> Result<(), AnswersError> {
    if !store.profile().versions {
        return in_time(store.delete_all(&names)).await;
    }
    for name in names {
        in_time(store.purge(name.as_str())).await?;
    }
    Ok(())
}

fn seal(at: (Place, u32, bool), key: &OpenedKey, record: &impl Serialize) -> Result<Bytes, AnswersError> {
    let (place, revision, is_done) = at;
    let text = zeroize::Zeroizing::new(serde_json::to_vec(record).map_err(|_| AnswersError::Damaged)?);
    let mut salt = [0; 32];
    fill_random(&mut salt)?;
    let context = place.context(revision, is_done);
    let sealed = SealedBox::ANSWER.seal(key.dek.expose(), &salt, &context, &text);
    sealed.map(Bytes::from).map_err(|_| AnswersError::Damaged)
}

fn open<T: DeserializeOwned>(
    at: (Place, u32, bool),
    key: &OpenedKey,
    sealed: &[u8],
) -> Result<T, AnswersError> {
    let (place, revision, is_done) = at;
    let context = place.context(revision, is_done);
    let opened = SealedBox::ANSWER.open(key.dek.expose(), &context, sealed);
    let text = opened.map_err(|_| AnswersError::Damaged)?;
    serde_json::from_slice(&text).map_err(|_| AnswersError::Damaged)
}

async fn in_time<T>(request: impl Future<Output = Result<T, StoreError>>) -> Result<T, AnswersError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(AnswersError::TimedOut),
    }
}
