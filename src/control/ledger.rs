//! Keeps the deletion ledger of each tenant: appends to it, reads it, and checks that nothing was taken out of it.
//!
//! Any number of processes append to the same chain: each number is created once, and whoever comes second goes on
//! behind the first. Where a store does not create names once, what was put is read back a moment later, and put
//! again if somebody else's came over it; two that do that within this moment may still break the chain, which the
//! check tells.

mod export;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::Mutex;

use crate::domain::cmr::SealError;
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::ledger::{ChainFault, Entry, Head, MAX_LINK_BYTES};
use crate::domain::retention::Receipt;
use crate::domain::time::UnixMillis;
use crate::jitter::part_of;
use crate::keys::{KeyError, KeyService, Minted, OpenedKey, fill_random};
use crate::store::{ObjectClass, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, Tags, layout};
use export::Envelopes;
pub use export::Objects;

/// How often an entry is put behind what others have put meanwhile, and how often a put that fails is made again.
const TRIES: u32 = 64;
const PUT_TRIES: u32 = 4;
/// How long the store may take for one object.
const PUT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where names are not created once: how long another writer of the same name may be on its way, mostly.
const RACE: Duration = Duration::from_millis(200);
/// Objects listed at a time, and read at the same time.
const PAGE: usize = 1000;
const READ_AHEAD: usize = 16;

/// Why the ledger cannot be kept, read or believed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The key that seals entries.
    #[error("ledger key")]
    Key(#[from] KeyError),
    /// The store.
    #[error("store of the ledger")]
    Store(#[from] StoreError),
    /// An entry that was changed, exchanged or taken out.
    #[error("deletion ledger is broken")]
    Broken(#[from] ChainFault),
    /// A receipt names an entry that the ledger does not have: its end was cut off, or the receipt is none of ours.
    #[error("deletion ledger ends before entry {number}, which the receipt of {recording} names")]
    CutOff {
        /// The recording.
        recording: RecordingId,
        /// The entry.
        number: u64,
    },
    /// A receipt names an entry about something else.
    #[error("entry {number} of the deletion ledger is not about {recording}, whose receipt names it")]
    Mismatch {
        /// The recording.
        recording: RecordingId,
        /// The entry.
        number: u64,
    },
    /// It is shorter than somebody knows it to be, or another one.
    #[error("deletion ledger does not have the end that was noted: entry {0}")]
    OtherEnd(u64),
    /// The cipher refuses.
    #[error("ledger entry cannot be sealed")]
    Seal(#[from] SealError),
    /// Others append again and again.
    #[error("deletion ledger is being appended to by too many")]
    Contended,
}

/// The ledgers of all tenants; clones are the same.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    writers: Arc<std::sync::Mutex<HashMap<TenantId, Arc<Mutex<Writer>>>>>,
}

/// What this process knows of one tenant's ledger.
#[derive(Default)]
struct Writer {
    key: Option<Minted>,
    head: Option<Head>,
}

/// A ledger that was read and found unbroken.
#[derive(Debug)]
pub struct Read {
    /// What it says, oldest first.
    pub entries: Vec<Entry>,
    /// Where it ends.
    pub head: Head,
}

impl Ledger {
    /// Keeps ledgers in `store`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>) -> Self {
        Self { store, keys, writers: Arc::default() }
    }

    /// Makes an entry durable; answers its number. After an error it may be there or not, and a second one does no
    /// harm.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn append(&self, tenant: &TenantId, entry: &Entry) -> Result<u64, LedgerError> {
        let writer = self.writer(tenant);
        let mut writer = writer.lock().await;
        let appended = self.append_with(&mut writer, tenant, entry).await;
        if appended.is_err() {
            writer.head = None;
        }
        appended
    }

    fn writer(&self, tenant: &TenantId) -> Arc<Mutex<Writer>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(writers.entry(tenant.clone()).or_default())
    }

    async fn append_with(
        &self,
        writer: &mut Writer,
        tenant: &TenantId,
        entry: &Entry,
    ) -> Result<u64, LedgerError> {
        let tag = tenant.tag();
        let key = match writer.key.take() {
            Some(key) => key,
            None => self.keys.mint(tenant).await?,
        };
        let key = &*writer.key.insert(key);
        let mut head = match writer.head {
            Some(head) => head,
            None => self.find_head(tag).await?,
        };
        for _ in 0..TRIES {
            let mut salt = [0; 32];
            fill_random(&mut salt)?;
            let link = head.seal(tag, (key.ids.recording, key.dek.expose()), &salt, entry)?;
            let number = head.links;
            let there = self.put(&layout::ledger(tag, number), Bytes::from(link.clone()), tag).await?;
            head = head.after(&there);
            writer.head = Some(head);
            if there == link {
                return Ok(number);
            }
        }
        Err(LedgerError::Contended)
    }

    /// Puts an object unless there is one; answers what is there then.
    async fn put(&self, name: &ObjectName, link: Bytes, tag: TenantTag) -> Result<Bytes, StoreError> {
        let tags = Tags::of(tag, ObjectClass::Ledger);
        let mut tries = 0;
        loop {
            tries += 1;
            let putting = async {
                let put = self.store.put_new(name, link.clone(), &tags).await?;
                if put == PutOutcome::Created && self.store.profile().create_once {
                    return Ok::<_, StoreError>(link.clone());
                }
                if put == PutOutcome::Created {
                    tokio::time::sleep(RACE + part_of(RACE)).await;
                }
                Ok(self.store.get(name, None).await?.bytes)
            };
            let late =
                || StoreError::Io { action: "answer in time", source: std::io::ErrorKind::TimedOut.into() };
            match tokio::time::timeout(PUT_TIMEOUT, putting).await.unwrap_or_else(|_| Err(late())) {
                Err(error) if error.is_retryable() && tries < PUT_TRIES => {
                    tokio::time::sleep(part_of(RACE)).await;
                }
                there => return there,
            }
        }
    }

    /// Finds the end of a chain with a number of requests that grows with the logarithm of its length.
    async fn find_head(&self, tag: TenantTag) -> Result<Head, StoreError> {
        let Some(last) = self.last_number(tag).await? else { return Ok(Head::EMPTY) };
        let bytes = self.store.get(&layout::ledger(tag, last), None).await?.bytes;
        Ok(Head { links: last, ..Head::EMPTY }.after(&bytes))
    }

    async fn last_number(&self, tag: TenantTag) -> Result<Option<u64>, StoreError> {
        let Some(first) = self.number_after(tag, None).await? else { return Ok(None) };
        let mut search = Search { last: first, step: Some(1) };
        while let Some(number) = search.question() {
            search.learn(self.number_after(tag, Some(number)).await?);
        }
        Ok(Some(search.last))
    }

    /// Returns the number of the first object behind a number.
    async fn number_after(&self, tag: TenantTag, after: Option<u64>) -> Result<Option<u64>, StoreError> {
        let after = after.map(|number| layout::ledger(tag, number));
        let listed = self.store.list_after(&layout::ledger_prefix(tag), after.as_ref(), 1).await?;
        Ok(listed.first().and_then(|object| layout::ledger_number(&object.name)))
    }

    /// Reads the whole ledger of a tenant and checks that it is unbroken.
    ///
    /// # Errors
    /// [`LedgerError::Broken`]; see [`LedgerError`].
    pub async fn read(&self, tenant: &TenantId) -> Result<Read, LedgerError> {
        let tag = tenant.tag();
        let mut reader = Reader::new(&self.keys, tenant, Envelopes::new());
        let mut after = None;
        loop {
            let page = self.store.list_after(&layout::ledger_prefix(tag), after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(reader.done()) };
            after = Some(last.name.clone());
            self.add_all(&mut reader, page).await?;
        }
    }

    /// Reads up to `limit` entries with their numbers, from number `from` on. That they follow on each other is checked,
    /// and nothing of those before them: [`Ledger::verify`] does that.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn page(
        &self,
        tenant: &TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, LedgerError> {
        let tag = tenant.tag();
        let after = from.checked_sub(1).map(|before| layout::ledger(tag, before));
        let page = self.store.list_after(&layout::ledger_prefix(tag), after.as_ref(), limit).await?;
        let Some(first) = page.first() else { return Ok(Vec::new()) };
        let bytes = self.store.get(&first.name, None).await?.bytes;
        let mut reader = Reader::new(&self.keys, tenant, Envelopes::new());
        (reader.read.head, _) = Head::claimed_by(from, &bytes)?;
        self.add_all(&mut reader, page).await?;
        Ok((from..).zip(reader.done().entries).collect())
    }

    /// Reads listed objects in their order.
    async fn add_all(&self, reader: &mut Reader<'_>, page: Vec<ObjectInfo>) -> Result<(), LedgerError> {
        let mut fetched = stream::iter(page)
            .map(|object| async move {
                let too_large = object.size > MAX_LINK_BYTES as u64;
                let bytes = match too_large {
                    true => Bytes::new(),
                    false => self.store.get(&object.name, None).await?.bytes,
                };
                Ok::<_, StoreError>((layout::ledger_number(&object.name), bytes))
            })
            .buffered(READ_AHEAD);
        while let Some(one) = fetched.next().await {
            let (number, bytes) = one?;
            reader.add(number, bytes).await?;
        }
        Ok(())
    }

    /// Reads the ledger, and holds it against the receipts of deletions, and against an end that somebody has noted.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn verify(&self, tenant: &TenantId, noted: Option<Head>) -> Result<Read, LedgerError> {
        let read = self.read(tenant).await?;
        if let Some(noted) = noted {
            self.check_noted(tenant.tag(), &read, noted).await?;
        }
        let prefix = layout::receipts_prefix(tenant.tag());
        let mut after = None;
        loop {
            let page = self.store.list_after(&prefix, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(read) };
            after = Some(last.name.clone());
            let receipts = page.into_iter().filter_map(|object| {
                let recording = layout::receipt_recording(&object.name)?;
                Some((recording, object.name))
            });
            let mut fetched = stream::iter(receipts)
                .map(|(recording, name)| async move { (recording, self.store.get(&name, None).await) })
                .buffered(READ_AHEAD);
            while let Some((recording, receipt)) = fetched.next().await {
                check_receipt(&read, recording, &receipt?.bytes)?;
            }
        }
    }

    async fn check_noted(&self, tag: TenantTag, read: &Read, noted: Head) -> Result<(), LedgerError> {
        let Some(last) = noted.links.checked_sub(1) else { return Ok(()) };
        let other = LedgerError::OtherEnd(last);
        if read.head.links < noted.links {
            return Err(other);
        }
        let bytes = self.store.get(&layout::ledger(tag, last), None).await?.bytes;
        if Head::EMPTY.after(&bytes).digest == noted.digest { Ok(()) } else { Err(other) }
    }

    /// Whether one of the last entries says that a recording was deleted: for a deletion that was interrupted.
    pub(super) async fn was_noted(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<Option<u64>, LedgerError> {
        const LAST: u64 = 64;
        let tag = tenant.tag();
        let Some(last) = self.last_number(tag).await? else { return Ok(None) };
        for number in (last.saturating_sub(LAST)..=last).rev() {
            let bytes = match self.store.get(&layout::ledger(tag, number), None).await {
                // Somebody has taken it out; that is for the check to tell.
                Err(StoreError::NotFound) => continue,
                fetched => fetched?.bytes,
            };
            let Ok(entry) = self.open_alone(tenant, number, &bytes).await else { continue };
            if matches!(&entry, Entry::Deleted { .. }) && entry.recording() == Some(recording) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Opens an entry without looking at those before it.
    async fn open_alone(&self, tenant: &TenantId, number: u64, bytes: &[u8]) -> Result<Entry, LedgerError> {
        let (before, link) = Head::claimed_by(number, bytes)?;
        let key_id = link.key_id().ok_or(ChainFault::Sealed(number))?;
        let key = self.keys.open(tenant, key_id).await?;
        Ok(link.open(&before, tenant.tag(), key.dek.expose())?)
    }
}

/// Reads a chain object by object.
struct Reader<'a> {
    keys: &'a KeyService,
    tenant: &'a TenantId,
    /// Where keys are that the store does not have.
    envelopes: Envelopes,
    opened: HashMap<RecordingId, OpenedKey>,
    read: Read,
}

impl<'a> Reader<'a> {
    fn new(keys: &'a KeyService, tenant: &'a TenantId, envelopes: Envelopes) -> Self {
        let read = Read { entries: Vec::new(), head: Head::EMPTY };
        Self { keys, tenant, envelopes, opened: HashMap::new(), read }
    }

    async fn add(&mut self, number: Option<u64>, bytes: Bytes) -> Result<(), LedgerError> {
        let head = self.read.head;
        let link = head.next(number.ok_or(ChainFault::Malformed(head.links))?, &bytes)?;
        let key_id = link.key_id().ok_or(ChainFault::Malformed(head.links))?;
        let key = match self.opened.get(&key_id) {
            Some(key) => key.clone(),
            None => match (self.keys.open(self.tenant, key_id).await, self.envelopes.get(&key_id)) {
                (Err(KeyError::NoEnvelope), Some(envelope)) => {
                    self.keys.open_envelope(self.tenant, key_id, envelope).await?
                }
                // A key that is not there opens nothing, and so was not what sealed it.
                (Err(KeyError::NoEnvelope), None) => return Err(ChainFault::Sealed(head.links).into()),
                (opened, _) => opened?,
            },
        };
        self.read.entries.push(link.open(&head, self.tenant.tag(), key.dek.expose())?);
        self.opened.insert(key_id, key);
        self.read.head = head.after(&bytes);
        Ok(())
    }

    fn done(self) -> Read {
        self.read
    }
}

impl Read {
    /// Returns the recordings that were deleted, or ordered to be by `now`, the store's clock; each once, in the order of
    /// their ids.
    pub fn recordings(&self, now: UnixMillis) -> BTreeSet<RecordingId> {
        self.entries.iter().filter(|entry| entry.is_due(now)).filter_map(Entry::recording).collect()
    }
}

/// Looks for the end of a chain. Others may append meanwhile, faster than this asks.
struct Search {
    /// The last number that is known.
    last: u64,
    /// How far beyond it is asked; `None` when nothing is behind it.
    step: Option<u64>,
}

impl Search {
    /// Returns the number of which to ask what is behind it; `None` when the end is found.
    fn question(&self) -> Option<u64> {
        self.step.map(|step| self.last.saturating_add(step))
    }

    /// Takes the first number behind the one that was asked for.
    fn learn(&mut self, behind: Option<u64>) {
        let step = self.step.unwrap_or_default();
        self.step = match behind {
            Some(next) => {
                self.last = next;
                Some(step.saturating_mul(2).max(1))
            }
            None => step.checked_sub(1).map(|_| step / 2),
        };
    }
}

fn check_receipt(read: &Read, recording: RecordingId, json: &[u8]) -> Result<(), LedgerError> {
    let receipt: Receipt = serde_json::from_slice(json)
        .map_err(|_| StoreError::Corrupt { what: "deletion receipt is not readable" })?;
    // Those of earlier versions name none.
    let Some(number) = receipt.ledger else { return Ok(()) };
    let entry = usize::try_from(number).ok().and_then(|number| read.entries.get(number));
    match entry.ok_or(LedgerError::CutOff { recording, number })? {
        entry @ Entry::Deleted { .. } if entry.recording() == Some(recording) => Ok(()),
        Entry::Deleted { .. } | Entry::Ordered { .. } | Entry::Shortened { .. } => {
            Err(LedgerError::Mismatch { recording, number })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for the end of a chain that has so many entries, and more with each question. Answers what was found, how long the
    /// chain was then, and how many questions that took.
    fn look(mut entries: u64, more: u64) -> (u64, u64, u64) {
        let (mut search, mut questions) = (Search { last: 0, step: Some(1) }, 0);
        while let Some(number) = search.question() {
            questions += 1;
            search.learn((number + 1 < entries).then_some(number + 1));
            // They stop some day.
            entries += if questions < 100 { more } else { 0 };
        }
        (search.last, entries, questions)
    }

    #[test]
    fn the_end_is_found_with_few_questions() {
        for entries in (1..300).chain([4095, 4096, 4097, 65_536, 99_999, 1_000_000]) {
            let (found, _, questions) = look(entries, 0);
            assert_eq!(found, entries - 1);
            let bound = 3 + 4 * u64::from(64 - entries.leading_zeros());
            assert!(questions <= bound, "{questions} questions for {entries} entries");
        }
    }

    #[test]
    fn a_chain_that_grows_meanwhile_is_caught_up_with() {
        for (entries, more) in [(1, 1), (10, 20), (50_000, 20), (50_000, 1000)] {
            let (found, length, questions) = look(entries, more);
            assert!(found < length);
            assert!(
                questions <= 160,
                "{questions} questions for {entries} entries and {more} more each time"
            );
            if questions >= 100 {
                assert_eq!(found, length - 1);
            }
        }
    }
}
