//! Reads the log as a stream, in the order of time, with bounded memory: the names of objects are in that order, so that
//! neither an index nor a sort is needed, and a span of time is found without reading what lies outside of it.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use zeroize::Zeroizing;

use super::error::{AuditError, Finding, Id};
use super::place::{self, Place};
use crate::domain::cmr::{Dek, SealedBox, sha256};
use crate::domain::ids::{TenantId, TenantTag};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService};
use crate::store::{ObjectInfo, ObjectName, Store, StoreError, layout};

/// Names listed at a time.
const PAGE: usize = 1000;
/// Objects read at the same time: with a store that takes 20 ms for each, 1,600 a second.
const IN_FLIGHT: usize = 32;
/// No object of ours is larger: 256 records of at most some kilobytes, or a checkpoint that names 10,000 chains.
const MAX_OBJECT_BYTES: u64 = 8 << 20;

/// Reads audit logs.
#[derive(Clone, Copy)]
pub struct AuditReader<'a> {
    keys: &'a KeyService,
    store: &'a dyn Store,
}

/// A part of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// Records of this moment and later; all when none.
    pub from: Option<UnixMillis>,
    /// Records of before this moment; all when none.
    pub until: Option<UnixMillis>,
}

impl Span {
    pub(super) fn contains(&self, at: UnixMillis) -> bool {
        self.from.is_none_or(|from| at >= from) && self.until.is_none_or(|until| at < until)
    }
}

/// An object that was read.
pub(super) struct Opened {
    pub(super) name: ObjectName,
    /// Where it stands, and the lines of its records; or what is wrong with it.
    pub(super) read: Result<(Place, Zeroizing<Vec<u8>>), Finding>,
    /// Where it stands, if its name says so, and the digest of its bytes.
    pub(super) digest: Option<(Place, [u8; 32])>,
}

/// Splits the text of an object into the lines of its records.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

impl<'a> AuditReader<'a> {
    /// Reads with the keys of `keys` what is in `store`.
    pub fn new(keys: &'a KeyService, store: &'a dyn Store) -> Self {
        Self { keys, store }
    }

    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Reads the objects of a span, from `resume` on, in the order of their names.
    pub(super) fn objects(
        self,
        tenant: &'a TenantId,
        span: Span,
        resume: Option<Place>,
    ) -> impl Stream<Item = Result<Opened, AuditError>> + 'a {
        let tag = tenant.tag();
        self.names(tag, span, resume)
            // One after the other, so that a chain's key is opened once.
            .and_then(move |info| async move {
                let place = Place::parse(tag, &info.name);
                let key = match place {
                    Some(place) => self.key(tenant, place).await?,
                    None => None,
                };
                Ok((info, place, key))
            })
            .map(move |found| async move {
                let (info, place, key) = found?;
                self.open(tag, info, place, key).await
            })
            .buffered(IN_FLIGHT)
            .try_filter_map(|opened| async { Ok(opened) })
    }

    /// Lists what lies in a span, and everything whose name tells no time.
    fn names(
        self,
        tag: TenantTag,
        span: Span,
        resume: Option<Place>,
    ) -> impl Stream<Item = Result<ObjectInfo, AuditError>> + 'a {
        let start = match (resume.map(|place| place.at), span.from) {
            (Some(resume), Some(from)) => Some(resume.max(from)),
            (resume, from) => resume.or(from),
        };
        let first = Some(start.map(|at| place::from(tag, at)));
        let end = span.until.map(|at| place::from(tag, at));
        let prefix: Arc<str> = layout::audit_prefix(tag).into();
        let pages = stream::try_unfold(first, move |after| {
            let (prefix, end) = (Arc::clone(&prefix), end.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let mut page = self.store.list_after(&prefix, after.as_ref(), PAGE).await?;
                let last = page.last().map(|info| info.name.clone()).filter(|_| page.len() == PAGE);
                let listed = page.len();
                page.retain(|info| end.as_ref().is_none_or(|end| info.name < *end));
                let next = last.filter(|_| page.len() == listed).map(Some);
                Ok::<_, AuditError>(Some((page, next)))
            }
        });
        pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten().try_filter(move |info| {
            let is_before = |resume| Place::parse(tag, &info.name).is_some_and(|place| place < resume);
            std::future::ready(!resume.is_some_and(is_before))
        })
    }

    /// Opens the key of a chain; none for one that the tenant has no key for.
    async fn key(&self, tenant: &TenantId, place: Place) -> Result<Option<Arc<Dek>>, AuditError> {
        match self.keys.open(tenant, place.chain).await {
            Ok(opened) => Ok(Some(opened.dek)),
            Err(KeyError::NoEnvelope | KeyError::BadEnvelope(_) | KeyError::ForeignKek | KeyError::NoKek) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads and opens one object; none if it was removed since it was listed.
    async fn open(
        &self,
        tag: TenantTag,
        info: ObjectInfo,
        place: Option<Place>,
        key: Option<Arc<Dek>>,
    ) -> Result<Option<Opened>, AuditError> {
        let name = info.name;
        let Some(place) = place else {
            let read = Err(Finding::Foreign { object: name.as_str().to_owned() });
            return Ok(Some(Opened { name, read, digest: None }));
        };
        let chain = Id(place.chain);
        let changed = Finding::Changed { chain, seq: place.seq };
        if info.size > MAX_OBJECT_BYTES {
            return Ok(Some(Opened { name, read: Err(changed), digest: None }));
        }
        let sealed = match self.store.get(&name, None).await {
            Ok(fetched) => fetched.bytes,
            Err(StoreError::NotFound) => return Ok(None),
            Err(StoreError::Corrupt { .. }) => {
                return Ok(Some(Opened { name, read: Err(changed), digest: None }));
            }
            Err(error) => return Err(error.into()),
        };
        let digest = Some((place, sha256(&sealed)));
        let read = match key {
            None => Err(Finding::NoKey { chain }),
            Some(key) => match SealedBox::AUDIT_RECORD.open(key.expose(), &place.context(tag), &sealed) {
                Ok(text) => Ok((place, text)),
                Err(_) => Err(changed),
            },
        };
        Ok(Some(Opened { name, read, digest }))
    }
}
