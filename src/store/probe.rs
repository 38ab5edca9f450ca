//! Finds out what a store really does, because several answer 200 to what they ignore.
//!
//! The probe knows no kind of store: it asks through [`Store`] and compares with [`Store::profile`], which is what the
//! operator claims. It works below a random name of its own, takes a second or two, and removes what it made. It never
//! touches lifecycle rules or other settings of a bucket: some stores obey a rule they have not understood.
//!
//! What a profile does not claim is not asked for, as the store inside does not even send it then.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use metrics::gauge;
use serde::Serialize;

use crate::clock;
use crate::domain::time::UnixMillis;

use super::{ByteRange, ObjectName, PutOutcome, Store, StoreError, Tags};

/// Gauge of what was found, 1 or 0; label `feature`.
pub const CAPABILITY: &str = "store_capability";

/// How far the clocks of the store and of this machine may be apart. S3 refuses requests at 15 minutes; retention is
/// judged by days.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);
/// Writers that race for one name: where create-once is not atomic, twelve nearly always show it.
const WRITERS: u8 = 12;
/// How long the probe's own object is locked. Locks end at whole seconds.
const LOCK_MS: u64 = 4_000;
/// How often and how long the probe waits for the end of its lock, on stores that are slow to notice.
const CLEAN_UPS: u32 = 40;
const CLEAN_UP_WAIT: Duration = Duration::from_millis(500);

/// Something that a store does or does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// What is put can be read back, byte for byte.
    RoundTrip,
    /// Bytes that are not those that were sent are refused.
    RefusesDamage,
    /// Ranges are obeyed.
    Ranges,
    /// A listing starts after a name.
    ListAfter,
    /// Tags that come with a put are kept.
    TagsOnPut,
    /// Tags of an upload are kept.
    TagsOnUpload,
    /// A name is taken once.
    CreateOnce,
    /// Of writers that race for a name exactly one is told that it made the object.
    CreateOnceRace,
    /// An aborted upload is gone.
    AbortUpload,
    /// Deleted objects stay as versions.
    Versions,
    /// A locked object cannot be destroyed.
    ObjectLock,
    /// The clocks of the store and of this machine agree.
    Clock,
}

/// What the probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// It is not claimed, and so was not asked for.
    NotAsked,
}

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked for.
    pub feature: Feature,
    /// Whether the configuration claims it.
    pub claimed: bool,
    /// What was seen.
    pub found: Found,
    /// What the store said instead, where it said anything.
    pub why: Option<String>,
}

impl Feature {
    /// All of them, in the order of the table.
    const ALL: [Self; 12] = [
        Self::RoundTrip,
        Self::RefusesDamage,
        Self::Ranges,
        Self::ListAfter,
        Self::TagsOnPut,
        Self::TagsOnUpload,
        Self::CreateOnce,
        Self::CreateOnceRace,
        Self::AbortUpload,
        Self::Versions,
        Self::ObjectLock,
        Self::Clock,
    ];

    /// Names the feature for tables and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::RoundTrip => "round_trip",
            Self::RefusesDamage => "refuses_damage",
            Self::Ranges => "ranges",
            Self::ListAfter => "list_after",
            Self::TagsOnPut => "tags_on_put",
            Self::TagsOnUpload => "tags_on_upload",
            Self::CreateOnce => "create_once",
            Self::CreateOnceRace => "create_once_race",
            Self::AbortUpload => "abort_upload",
            Self::Versions => "versions",
            Self::ObjectLock => "object_lock",
            Self::Clock => "clock",
        }
    }

    /// Says what callseal does where a store lacks the feature.
    pub fn instead(self) -> &'static str {
        match self {
            Self::RoundTrip | Self::Ranges | Self::ListAfter => "nothing: such a store cannot be used",
            Self::RefusesDamage => "compares the MD5 of each put with the store's",
            Self::TagsOnPut | Self::TagsOnUpload => "sends no tags; manifest and expiry index rule retention",
            Self::CreateOnce | Self::CreateOnceRace => "looks before each put; only one node may write",
            Self::AbortUpload => "leaves parts behind: have the bucket remove old uploads",
            Self::Versions => "purges without versions",
            Self::ObjectLock => "locks nothing",
            Self::Clock => "nothing: set the clocks",
        }
    }

    /// Says what the operator can do about a broken claim.
    fn remedy(self) -> &'static str {
        match self {
            Self::RoundTrip | Self::Ranges | Self::ListAfter => "use another store",
            Self::TagsOnPut | Self::TagsOnUpload => "set store.tags = false",
            Self::CreateOnce | Self::CreateOnceRace => {
                "set store.create_once = false and let one node write alone"
            }
            Self::AbortUpload | Self::RefusesDamage => "use another store, or tell its vendor",
            Self::ObjectLock => {
                "set store.object_lock = \"none\", or use a bucket that was made with object lock"
            }
            Self::Versions => "set store.versions = true, or switch versions off",
            Self::Clock => "set the clocks of this machine and the store",
        }
    }
}

/// Names the claims that a store breaks and what to do about each; nothing if it keeps them all.
pub fn broken_claims(findings: &[Finding]) -> Option<String> {
    let broken = findings.iter().filter(|finding| finding.is_broken_claim());
    let texts: Vec<_> =
        broken.map(|finding| format!("{} ({})", finding.feature.label(), finding.feature.remedy())).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

impl Finding {
    /// Whether the store breaks what the configuration claims. A store that keeps versions nobody spoke of does, too:
    /// what is deleted would still be there.
    pub fn is_broken_claim(&self) -> bool {
        match self.feature {
            Feature::Versions => self.found == Found::Yes && !self.claimed,
            Feature::RoundTrip
            | Feature::RefusesDamage
            | Feature::Ranges
            | Feature::ListAfter
            | Feature::TagsOnPut
            | Feature::TagsOnUpload
            | Feature::CreateOnce
            | Feature::CreateOnceRace
            | Feature::AbortUpload
            | Feature::ObjectLock
            | Feature::Clock => self.found == Found::No && self.claimed,
        }
    }
}

/// Probes a store, publishes what was found, and removes what it made.
///
/// # Errors
/// [`StoreError`] when the store does not answer or denies: then nothing is known of its features.
pub async fn run(store: &dyn Store) -> Result<Vec<Finding>, StoreError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| StoreError::Io { action: "choose a name", source: io::Error::other(error) })?;
    let prefix = format!("probe/{:032x}/", u128::from_be_bytes(random));
    let probe = Probe { store, prefix: &prefix };
    let looked = probe.look().await;
    // Also after a failure, as far as that is possible; what stays behind is a few bytes below "probe/".
    let cleaned = probe.clean_up().await;
    let findings = looked?;
    cleaned?;
    for finding in &findings {
        let value = if finding.found == Found::Yes { 1.0 } else { 0.0 };
        gauge!(CAPABILITY, "feature" => finding.feature.label()).set(value);
    }
    Ok(findings)
}

struct Probe<'a> {
    store: &'a dyn Store,
    prefix: &'a str,
}

impl Probe<'_> {
    async fn look(&self) -> Result<Vec<Finding>, StoreError> {
        let profile = self.store.profile();
        let mut findings = Vec::new();
        for feature in Feature::ALL {
            let claimed = match feature {
                Feature::TagsOnPut | Feature::TagsOnUpload => profile.tags,
                Feature::CreateOnce | Feature::CreateOnceRace => profile.create_once,
                Feature::Versions => profile.versions,
                Feature::ObjectLock => profile.object_lock,
                // No option says so: it is found out.
                Feature::RefusesDamage => false,
                Feature::RoundTrip
                | Feature::Ranges
                | Feature::ListAfter
                | Feature::AbortUpload
                | Feature::Clock => true,
            };
            // Versions show themselves to whoever deletes, and anybody may send damaged bytes; the others show only what is
            // asked for.
            let is_asked = claimed || matches!(feature, Feature::Versions | Feature::RefusesDamage);
            let (found, why) = if is_asked { self.ask(feature).await? } else { (Found::NotAsked, None) };
            findings.push(Finding { feature, claimed, found, why });
        }
        Ok(findings)
    }

    /// Asks for one feature. An error is an answer, too, unless nothing can be learned from it.
    async fn ask(&self, feature: Feature) -> Result<(Found, Option<String>), StoreError> {
        match self.has(feature).await {
            Ok(Some(true)) => Ok((Found::Yes, None)),
            Ok(Some(false)) => Ok((Found::No, None)),
            Ok(None) => Ok((Found::NotAsked, None)),
            Err(error) if error.is_retryable() => Err(error),
            // Whom the store does not let in at all, it tells nothing about its features.
            Err(error @ StoreError::Denied { .. }) if feature == Feature::RoundTrip => Err(error),
            Err(error) => Ok((Found::No, Some(with_cause(&error)))),
        }
    }

    /// `None`: there is nothing to be asked.
    async fn has(&self, feature: Feature) -> Result<Option<bool>, StoreError> {
        let answer = match feature {
            Feature::RefusesDamage => return self.store.refuses_damage(&self.name("damaged")?).await,
            Feature::RoundTrip => self.round_trip().await,
            Feature::Ranges => self.ranges().await,
            Feature::ListAfter => self.list_after().await,
            Feature::TagsOnPut => self.tags_on_put().await,
            Feature::TagsOnUpload => self.tags_on_upload().await,
            Feature::CreateOnce => self.create_once().await,
            Feature::CreateOnceRace => self.create_once_race().await,
            Feature::AbortUpload => self.abort_upload().await,
            Feature::Versions => self.versions().await,
            Feature::ObjectLock => self.object_lock().await,
            Feature::Clock => self.clock().await,
        };
        answer.map(Some)
    }

    /// Every byte there is, and more than one packet: a store may keep the framing of a body as its content.
    async fn round_trip(&self) -> Result<bool, StoreError> {
        let body: Bytes = (0..70_000_u32).map(|n| (n ^ n >> 8).to_le_bytes()[0]).collect();
        let name = self.name("round-trip")?;
        self.store.put_new(&name, body.clone(), &Tags::new()).await?;
        let fetched = self.store.get(&name, None).await?;
        Ok(fetched.bytes == body && self.store.head(&name).await?.size == body.len() as u64)
    }

    async fn ranges(&self) -> Result<bool, StoreError> {
        let name = self.put("ranges", b"0123456789").await?;
        let span = self.store.get(&name, Some(ByteRange::Span(2..5))).await?;
        let suffix = self.store.get(&name, Some(ByteRange::Suffix(3))).await?;
        let outside = self.store.get(&name, Some(ByteRange::Span(10..11))).await;
        let is_refused = matches!(outside, Err(StoreError::OutOfRange { total_size: 10 }));
        Ok(span.bytes == "234" && span.total_size == 10 && suffix.bytes == "789" && is_refused)
    }

    async fn list_after(&self) -> Result<bool, StoreError> {
        let first = self.put("list/a", b"").await?;
        let second = self.put("list/b", b"").await?;
        let prefix = format!("{}list/", self.prefix);
        let all = self.store.list_after(&prefix, None, 9).await?;
        let rest = self.store.list_after(&prefix, Some(&first), 9).await?;
        let all: Vec<_> = all.iter().map(|info| &info.name).collect();
        let rest: Vec<_> = rest.iter().map(|info| &info.name).collect();
        Ok(all == [&first, &second] && rest == [&second])
    }

    async fn tags_on_put(&self) -> Result<bool, StoreError> {
        let (name, tags) = (self.name("tags")?, some_tags("put"));
        self.store.put_new(&name, Bytes::from_static(b"x"), &tags).await?;
        let is_kept = self.store.tags(&name).await? == tags;
        let other = some_tags("changed");
        self.store.set_tags(&name, &other).await?;
        Ok(is_kept && self.store.tags(&name).await? == other)
    }

    async fn tags_on_upload(&self) -> Result<bool, StoreError> {
        let (name, tags) = (self.name("upload")?, some_tags("upload"));
        let mut upload = self.store.begin_upload(&name, &tags).await?;
        upload.put_part(Bytes::from_static(b"part")).await?;
        let made = upload.complete().await?;
        Ok(made == PutOutcome::Created && self.store.tags(&name).await? == tags)
    }

    async fn create_once(&self) -> Result<bool, StoreError> {
        let name = self.put("once", b"first").await?;
        let again = self.store.put_new(&name, Bytes::from_static(b"second"), &Tags::new()).await?;
        Ok(again == PutOutcome::AlreadyExists && self.store.get(&name, None).await?.bytes == "first")
    }

    async fn create_once_race(&self) -> Result<bool, StoreError> {
        let (name, none) = (self.name("race")?, Tags::new());
        let writers = (0..WRITERS).map(|writer| {
            let body = Bytes::from(vec![writer; 4096]);
            self.store.put_new(&name, body, &none)
        });
        let mut winners = Vec::new();
        for (writer, outcome) in (0..WRITERS).zip(join_all(writers).await) {
            match outcome {
                Ok(PutOutcome::Created) => winners.push(writer),
                // A store may ask losers to come back.
                Ok(PutOutcome::AlreadyExists) | Err(StoreError::Busy { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let [winner] = winners.as_slice() else { return Ok(false) };
        Ok(self.store.get(&name, None).await?.bytes == vec![*winner; 4096])
    }

    async fn abort_upload(&self) -> Result<bool, StoreError> {
        let name = self.name("aborted")?;
        let mut upload = self.store.begin_upload(&name, &Tags::new()).await?;
        upload.put_part(Bytes::from_static(b"part")).await?;
        upload.abort().await?;
        let is_gone = matches!(self.store.head(&name).await, Err(StoreError::NotFound));
        Ok(is_gone && self.store.abort_uploads(&name, UnixMillis(u64::MAX)).await? == 0)
    }

    async fn versions(&self) -> Result<bool, StoreError> {
        let name = self.put("versions/one", b"x").await?;
        self.store.delete(&name).await?;
        Ok(self.store.purge(name.as_str()).await? > 0)
    }

    /// Locks an object for some seconds, which the probe waits for at its end.
    async fn object_lock(&self) -> Result<bool, StoreError> {
        let name = self.put("lock", b"x").await?;
        let until = UnixMillis(self.store.now().await?.0 + LOCK_MS);
        self.store.lock(&name, until).await?;
        Ok(matches!(self.store.purge(name.as_str()).await, Err(StoreError::Locked { .. })))
    }

    /// Removes what was made, once no lock is left.
    async fn clean_up(&self) -> Result<(), StoreError> {
        for _ in 0..CLEAN_UPS {
            match self.store.purge(self.prefix).await {
                Err(StoreError::Locked { .. }) => tokio::time::sleep(CLEAN_UP_WAIT).await,
                purged => return purged.map(drop),
            }
        }
        self.store.purge(self.prefix).await.map(drop)
    }

    async fn clock(&self) -> Result<bool, StoreError> {
        let (theirs, ours) = (self.store.now().await?, clock::wall());
        Ok(u128::from(theirs.0.abs_diff(ours.0)) <= MAX_SKEW.as_millis())
    }

    async fn put(&self, rest: &str, body: &'static [u8]) -> Result<ObjectName, StoreError> {
        let name = self.name(rest)?;
        self.store.put_new(&name, Bytes::from_static(body), &Tags::new()).await?;
        Ok(name)
    }

    fn name(&self, rest: &str) -> Result<ObjectName, StoreError> {
        ObjectName::new(format!("{}{rest}", self.prefix))
            .map_err(|_| StoreError::Refused { rule: "the probe's names are valid" })
    }
}

fn with_cause(error: &StoreError) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn some_tags(value: &str) -> Tags {
    let mut tags = Tags::new();
    for (key, value) in [("callseal-probe", value), ("callseal-hold", "false")] {
        tags.insert(key, value).unwrap_or_default();
    }
    tags
}

#[cfg(test)]
mod tests;
