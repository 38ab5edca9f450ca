//! The suite that every store must pass.
//!
//! It runs against real stores too, so it lives in the library, uses only names under the prefix it is given, and deletes
//! what it created. What a store says it cannot do (see [`StoreProfile`]) is checked to be done as the profile promises.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::domain::time::UnixMillis;

use super::{ByteRange, MIN_PART_BYTES, ObjectName, PutOutcome, Store, StoreError, StoreProfile, Tags};

/// Runs every check against a store, under names that begin with `prefix`, which nobody else uses meanwhile.
///
/// # Panics
/// When the store does not do what [`Store`] promises; the message says what.
pub async fn run(store: &dyn Store, prefix: &str) {
    let suite = Suite { store, prefix, profile: store.profile() };
    store.ping().await.expect("the store answers");
    suite.missing_objects().await;
    suite.create_once().await;
    suite.parallel_writers().await;
    suite.sizes_and_ranges().await;
    suite.listing().await;
    suite.prefixes().await;
    suite.tags().await;
    suite.uploads().await;
    suite.upload_rules().await;
    suite.clock().await;
    suite.deletion().await;
    suite.clean_up().await;
}

struct Suite<'a> {
    store: &'a dyn Store,
    prefix: &'a str,
    profile: StoreProfile,
}

impl Suite<'_> {
    async fn missing_objects(&self) {
        let name = self.name("missing");
        assert!(matches!(self.store.get(&name, None).await, Err(StoreError::NotFound)), "get of nothing");
        assert!(matches!(self.store.head(&name).await, Err(StoreError::NotFound)), "head of nothing");
        if self.profile.tags {
            assert!(matches!(self.store.tags(&name).await, Err(StoreError::NotFound)), "tags of nothing");
            for given in [tags(&[("a", "1")]), Tags::new()] {
                let tagged = self.store.set_tags(&name, &given).await;
                assert!(matches!(tagged, Err(StoreError::NotFound)), "tagging nothing");
            }
        }
        self.store.delete(&name).await.expect("deleting nothing is success");
        assert!(matches!(self.store.head(&name).await, Err(StoreError::NotFound)), "tagging made no object");
    }

    async fn create_once(&self) {
        let name = self.name("once");
        let first = tags(&[("class", "call")]);
        assert_eq!(self.put_tagged(&name, b"first", &first).await, PutOutcome::Created);
        assert_eq!(self.put_tagged(&name, b"second", &Tags::new()).await, PutOutcome::AlreadyExists);
        assert_eq!(self.read(&name).await, "first", "a refused put changes nothing");
        self.has_tags(&name, &first, "a refused put changes no tags").await;

        self.store.delete(&name).await.expect("delete");
        self.store.delete(&name).await.expect("deleting twice is success");
        assert!(matches!(self.store.get(&name, None).await, Err(StoreError::NotFound)), "deleted is gone");
        assert_eq!(self.put(&name, b"third").await, PutOutcome::Created, "a deleted name is free");
        self.has_tags(&name, &Tags::new(), "tags go with their object").await;
    }

    async fn parallel_writers(&self) {
        let name = self.name("race/one");
        let race = (0..12).map(|writer| {
            let name = name.clone();
            async move {
                let body = Bytes::from(vec![writer; 4096]);
                let own = tags(&[("writer", &writer.to_string())]);
                (writer, self.store.put_new(&name, body, &own).await.expect("put in a race"))
            }
        });
        let outcomes = join_all(race).await;
        let created = outcomes.iter().filter(|(_, outcome)| *outcome == PutOutcome::Created);
        let winners: Vec<u8> = created.map(|(writer, _)| *writer).collect();
        let found = self.read(&name).await;
        let winner = winners.iter().find(|winner| found == vec![**winner; 4096]);
        let winner = winner.expect("the object is a winner's, whole");
        self.has_tags(&name, &tags(&[("writer", &winner.to_string())]), "the tags are the winner's").await;
        if self.profile.create_once {
            assert_eq!(winners.len(), 1, "exactly one of twelve writers wins");
        }
    }

    async fn sizes_and_ranges(&self) {
        let empty = self.name("sizes/empty");
        self.put(&empty, b"").await;
        assert_eq!(self.read(&empty).await, "", "an empty object");
        assert_eq!(self.store.head(&empty).await.expect("head").size, 0, "its size");
        let suffix = self.store.get(&empty, Some(ByteRange::Suffix(1))).await;
        assert!(matches!(suffix, Err(StoreError::OutOfRange { total_size: 0 })), "no suffix of nothing");

        let large = self.name("sizes/large");
        let body = pattern(3 << 20);
        self.put(&large, &body).await;
        assert_eq!(self.read(&large).await, body, "3 MiB read back");
        let info = self.store.head(&large).await.expect("head");
        assert_eq!((info.name, info.size), (large.clone(), 3 << 20), "head of 3 MiB");
        self.ranges(&large, &body).await;
    }

    async fn ranges(&self, name: &ObjectName, body: &Bytes) {
        let end = body.len() as u64;
        for range in [
            ByteRange::Span(0..1),
            ByteRange::Span(0..end),
            ByteRange::Span(1_000_000..1_000_160),
            ByteRange::Span(end - 1..end),
            ByteRange::Span(end - 10..end + 10),
            ByteRange::Suffix(1),
            ByteRange::Suffix(65_536),
            ByteRange::Suffix(end + 1),
        ] {
            let fetched = self.store.get(name, Some(range.clone())).await.expect("ranged get");
            let wanted = range.within(end).map(|r| body.slice(to_usize(r.start)..to_usize(r.end)));
            assert_eq!(Some(fetched.bytes), wanted, "bytes of {range:?}");
            assert_eq!(fetched.total_size, end, "whole size beside {range:?}");
        }
        let backwards = std::ops::Range { start: 6, end: 5 };
        for range in [
            ByteRange::Span(end..end + 1),
            ByteRange::Span(5..5),
            ByteRange::Span(backwards),
            ByteRange::Suffix(0),
        ] {
            let outside = self.store.get(name, Some(range.clone())).await;
            assert!(
                matches!(outside, Err(StoreError::OutOfRange { total_size }) if total_size == end),
                "{range:?}"
            );
        }
    }

    async fn listing(&self) {
        // In byte order, '-' and '.' come before '/', and digits after it.
        let sorted = ["list/a-b", "list/a.b", "list/a/0", "list/a/b/c", "list/a0", "list/b", "list/b0/x"];
        for name in sorted.iter().rev() {
            self.put(&self.name(name), name.as_bytes()).await;
        }
        let all = self.list("list/", None, 100).await;
        assert_eq!(all, sorted, "names in byte order");
        for limit in 1..=sorted.len() {
            assert_eq!(self.pages("list/", limit).await, sorted, "pages of {limit}");
        }
        assert!(self.list("list/", None, 0).await.is_empty(), "none asked, none given");
        assert_eq!(self.list("list/", Some("list/a"), 100).await, sorted, "start at a name that is none");
        assert_eq!(self.list("list/", Some("list/a.b"), 100).await, sorted.split_at(2).1, "start amid");
        let deep = self.list("list/", Some("list/a/b/c"), 100).await;
        assert_eq!(deep, ["list/a0", "list/b", "list/b0/x"], "start in a deep path");
        assert_eq!(self.list("list/", Some("aaa"), 100).await, sorted, "start before all");
        assert!(self.list("list/", Some("list/zzz"), 100).await.is_empty(), "start after all");

        let name = self.name("list/b0/x");
        let listed = self.store.list_after(name.as_str(), None, 2).await.expect("list");
        let sizes: Vec<_> = listed.into_iter().map(|info| (info.name, info.size)).collect();
        assert_eq!(sizes, [(name, 9)], "a whole name is its own prefix; sizes are told");
    }

    async fn prefixes(&self) {
        for name in ["pre/ab", "pre/abc/d", "pre/b"] {
            self.put(&self.name(name), b"").await;
        }
        assert_eq!(self.list("pre/a", None, 9).await, ["pre/ab", "pre/abc/d"], "a prefix ends anywhere");
        assert_eq!(self.list("pre/ab", None, 9).await, ["pre/ab", "pre/abc/d"], "also at a name");
        assert_eq!(self.list("pre/abc/", None, 9).await, ["pre/abc/d"], "also at a slash");
        for nothing in ["pre/ab/", "pre/x", "pre//", "pre/../pre/", "pre/A", "pre/abc/d/"] {
            assert!(self.list(nothing, None, 9).await.is_empty(), "nothing begins with {nothing:?}");
        }
    }

    async fn tags(&self) {
        let name = self.name("tags/one");
        let mut most = Tags::new();
        for n in 0..Tags::MAX {
            most.insert(format!("callseal-key+{n}"), "A z 0+-=._:/@").expect("a valid tag");
        }
        self.put_tagged(&name, b"x", &most).await;
        if !self.profile.tags {
            let read = self.store.tags(&name).await;
            assert!(matches!(read, Err(StoreError::Unsupported { .. })), "no tags to read: {read:?}");
            let written = self.store.set_tags(&name, &most).await;
            assert!(matches!(written, Err(StoreError::Unsupported { .. })), "none to write: {written:?}");
            assert_eq!(self.read(&name).await, "x", "tags are left out of a put");
            return;
        }
        assert_eq!(self.store.tags(&name).await.expect("tags"), most, "ten tags round trip");
        let fewer = tags(&[("callseal-hold", "true"), ("empty", "")]);
        self.store.set_tags(&name, &fewer).await.expect("set tags");
        assert_eq!(self.store.tags(&name).await.expect("tags"), fewer, "tags are replaced, not merged");
        self.store.set_tags(&name, &Tags::new()).await.expect("clear tags");
        assert!(self.store.tags(&name).await.expect("tags").is_empty(), "tags are cleared");
        assert_eq!(self.read(&name).await, "x", "tagging changes no byte");
    }

    async fn uploads(&self) {
        let name = self.name("upload/whole");
        let own = tags(&[("class", "final")]);
        let (first, last) = (pattern(MIN_PART_BYTES), pattern(1000));
        let mut upload = self.store.begin_upload(&name, &own).await.expect("begin upload");
        upload.put_part(first.clone()).await.expect("first part");
        upload.put_part(last.clone()).await.expect("last part");
        assert!(matches!(self.store.head(&name).await, Err(StoreError::NotFound)), "parts are no object");
        assert!(self.list("upload/", None, 9).await.is_empty(), "parts are not listed");
        assert_eq!(upload.complete().await.expect("complete"), PutOutcome::Created);
        assert_eq!(self.read(&name).await, [first, last].concat(), "parts in order");
        self.has_tags(&name, &own, "tags of an upload").await;

        let mut second = self.store.begin_upload(&name, &Tags::new()).await.expect("begin again");
        second.put_part(pattern(10)).await.expect("a short last part");
        assert_eq!(second.complete().await.expect("complete"), PutOutcome::AlreadyExists);
        let size = self.store.head(&name).await.expect("head").size;
        assert_eq!(size, MIN_PART_BYTES as u64 + 1000, "a refused upload changes nothing");
        self.has_tags(&name, &own, "nor any tag").await;
    }

    async fn upload_rules(&self) {
        let name = self.name("upload/stopped");
        let mut stopped = self.store.begin_upload(&name, &Tags::new()).await.expect("begin");
        stopped.put_part(pattern(10)).await.expect("part");
        stopped.abort().await.expect("abort");
        stopped.abort().await.expect("aborting twice is success");
        assert!(matches!(self.store.head(&name).await, Err(StoreError::NotFound)), "aborted is nothing");

        let mut short = self.store.begin_upload(&name, &Tags::new()).await.expect("begin");
        short.put_part(pattern(10)).await.expect("part");
        let next = short.put_part(pattern(10)).await;
        assert!(matches!(next, Err(StoreError::Refused { .. })), "a short part is the last");
        short.abort().await.expect("abort");

        let mut none = self.store.begin_upload(&name, &Tags::new()).await.expect("begin");
        assert!(matches!(none.complete().await, Err(StoreError::Refused { .. })), "an upload has a part");
        drop(none);
        assert!(matches!(self.store.head(&name).await, Err(StoreError::NotFound)), "dropped is nothing");
        assert_eq!(self.put(&name, b"put").await, PutOutcome::Created, "the name is still free");
    }

    async fn clock(&self) {
        let before = self.store.now().await.expect("clock");
        let name = self.name("clock");
        self.put(&name, b"tick").await;
        let after = self.store.now().await.expect("clock again");
        assert!(after >= before, "the store's clock does not go back");
        if let Some(modified) = self.store.head(&name).await.expect("head").modified {
            // Some stores tell seconds only.
            assert!(modified.0 + 2_000 >= before.0, "an object is not older than the clock said");
            assert!(modified.0 <= after.0 + 2_000, "nor younger");
        }
    }

    async fn deletion(&self) {
        let names: Vec<ObjectName> = (0..7).map(|n| self.name(&format!("gone/{n}"))).collect();
        for name in &names {
            self.put(name, b"x").await;
        }
        self.put(&self.name("gone-not/0"), b"x").await;
        let missing = self.name("gone/never");
        let some = [names.split_at(3).0, std::slice::from_ref(&missing)].concat();
        self.store.delete_all(&some).await.expect("delete some and one that is missing");
        self.store.delete_all(&[]).await.expect("delete none");
        assert_eq!(self.list("gone/", None, 9).await.len(), 4, "the others are there");
        let purged = self.store.purge(&format!("{}/gone/", self.prefix)).await.expect("purge");
        assert!(purged >= 4, "{purged} objects were purged");
        assert!(self.list("gone/", None, 9).await.is_empty(), "a purged prefix is empty");
        assert_eq!(self.list("gone-not/", None, 9).await.len(), 1, "its neighbours are there");
        assert_eq!(self.store.purge(&format!("{}/gone/", self.prefix)).await.expect("purge again"), 0);
        assert!(matches!(self.store.purge("").await, Err(StoreError::Refused { .. })), "never everything");

        let name = self.name("upload/orphan");
        let mut orphan = self.store.begin_upload(&name, &Tags::new()).await.expect("begin");
        orphan.put_part(pattern(10)).await.expect("part");
        let kept = self.store.abort_uploads(&name, UnixMillis(0)).await.expect("abort none");
        assert_eq!(kept, 0, "an upload that began later stays");
        drop(orphan);
        let now = self.store.now().await.expect("clock");
        let later = UnixMillis(now.0 + 60_000);
        self.store.abort_uploads(&name, later).await.expect("abort orphans");
        assert_eq!(self.store.abort_uploads(&name, later).await.expect("abort again"), 0, "none is left");
    }

    async fn clean_up(&self) {
        for name in self.pages("", 7).await {
            self.store.delete(&self.name(&name)).await.expect("delete");
        }
        assert!(self.list("", None, 1).await.is_empty(), "deleted objects are not listed");
    }

    fn name(&self, rest: &str) -> ObjectName {
        ObjectName::new(format!("{}/{rest}", self.prefix)).expect("names of the suite are valid")
    }

    async fn put(&self, name: &ObjectName, body: &[u8]) -> PutOutcome {
        self.put_tagged(name, body, &Tags::new()).await
    }

    async fn put_tagged(&self, name: &ObjectName, body: &[u8], tags: &Tags) -> PutOutcome {
        self.store.put_new(name, Bytes::copy_from_slice(body), tags).await.expect("put")
    }

    /// Checks the tags of an object, where the store has any.
    async fn has_tags(&self, name: &ObjectName, wanted: &Tags, what: &str) {
        if self.profile.tags {
            assert_eq!(&self.store.tags(name).await.expect("tags"), wanted, "{what}");
        }
    }

    async fn read(&self, name: &ObjectName) -> Bytes {
        let fetched = self.store.get(name, None).await.expect("get");
        assert_eq!(fetched.total_size, fetched.bytes.len() as u64, "size of a whole object");
        fetched.bytes
    }

    /// Lists names without the suite's prefix.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
        let after = after.map(|after| self.name(after));
        let prefix = format!("{}/{prefix}", self.prefix);
        let listed = self.store.list_after(&prefix, after.as_ref(), limit).await.expect("list");
        let own = self.prefix.len() + 1;
        listed.iter().map(|info| info.name.as_str().split_at(own).1.to_owned()).collect()
    }

    /// Lists all names in pages of `limit`.
    async fn pages(&self, prefix: &str, limit: usize) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        loop {
            let page = self.list(prefix, all.last().map(String::as_str), limit).await;
            assert!(page.len() <= limit, "a page has at most {limit} names");
            let is_last = page.len() < limit;
            all.extend(page);
            if is_last {
                return all;
            }
        }
    }
}

fn tags(pairs: &[(&str, &str)]) -> Tags {
    let mut tags = Tags::new();
    for (key, value) in pairs {
        tags.insert(*key, *value).expect("tags of the suite are valid");
    }
    tags
}

/// Makes bytes that differ from their neighbours and at every power of two.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|n| (n ^ n >> 8 ^ n >> 16).to_le_bytes()[0]).collect()
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("sizes of the suite fit in memory")
}
