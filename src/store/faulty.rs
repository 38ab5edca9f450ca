//! A store that fails on purpose.
//!
//! What fails is programmed through a [`Faults`] handle, also while the store is in use.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{
    ByteRange, Fetched, ObjectInfo, ObjectName, Operation, PutOutcome, Store, StoreError, StoreProfile, Tags,
    Upload,
};
use crate::domain::time::UnixMillis;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store answers that it is busy; nothing is done.
    Busy {
        /// The wait it asks for.
        retry_after: Option<Duration>,
    },
    /// The store denies the request; nothing is done.
    Deny,
    /// The store has no space; nothing is done.
    Full,
    /// The connection breaks before the request arrives; nothing is done.
    Break,
    /// The request arrives only after [`Faults::release`], and is then carried out.
    Hang,
    /// The request is carried out, but the connection breaks before the answer.
    LoseAnswer,
}

/// Makes requests to the store inside fail as its [`Faults`] say; at first none does.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S: Store> Faulty<S> {
    /// Goes around `inner`.
    pub fn new(inner: S) -> Self {
        let faults = Faults { shared: Arc::default() };
        Self { inner, faults }
    }

    /// Returns the handle that programs the faults.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

/// Programs what fails; all clones speak to the same store.
///
/// Rules are asked in the order they were added, and the first that applies decides. An operation of `None` means any.
#[derive(Debug, Clone)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    /// Counts the releases; hanging requests wait for it to change.
    releases: watch::Sender<u64>,
    hanging: AtomicUsize,
}

#[derive(Debug, Default)]
struct Plan {
    rules: Vec<Rule>,
    requests: HashMap<Operation, u64>,
}

#[derive(Debug)]
struct Rule {
    operation: Option<Operation>,
    when: When,
    fault: Fault,
}

#[derive(Debug)]
enum When {
    /// The next so many requests.
    Next(u32),
    /// Every `period`-th request; `seen` counts from 0.
    Every { period: u32, seen: u32 },
}

impl Faults {
    /// Lets the next `tries` requests fail.
    pub fn fail_next(&self, operation: impl Into<Option<Operation>>, tries: u32, fault: Fault) {
        self.add(operation.into(), When::Next(tries), fault);
    }

    /// Lets every `period`-th request fail, counted from now; 1 means all of them until [`Faults::heal`].
    pub fn fail_every(&self, operation: impl Into<Option<Operation>>, period: u32, fault: Fault) {
        self.add(operation.into(), When::Every { period: period.max(1), seen: 0 }, fault);
    }

    /// Forgets all rules and lets hanging requests go on.
    pub fn heal(&self) {
        self.plan().rules.clear();
        self.release();
    }

    /// Lets the requests go on that hang now.
    pub fn release(&self) {
        self.shared.releases.send_modify(|count| *count += 1);
    }

    /// Returns how many requests hang now.
    pub fn hanging(&self) -> usize {
        self.shared.hanging.load(Ordering::SeqCst)
    }

    /// Returns how many requests of this kind were made, failed ones too.
    pub fn requests(&self, operation: Operation) -> u64 {
        self.plan().requests.get(&operation).copied().unwrap_or(0)
    }

    fn add(&self, operation: Option<Operation>, when: When, fault: Fault) {
        self.plan().rules.push(Rule { operation, when, fault });
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn apply<T>(
        &self,
        operation: Operation,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = self.plan().next_fault(operation);
        match fault {
            None => request.await,
            Some(Fault::Hang) => {
                self.hang().await;
                request.await
            }
            Some(Fault::LoseAnswer) => {
                request.await?;
                Err(broken("read the answer"))
            }
            Some(Fault::Break) => Err(broken("send the request")),
            Some(Fault::Busy { retry_after }) => Err(StoreError::Busy { retry_after }),
            Some(Fault::Deny) => Err(StoreError::from_io("act", io::ErrorKind::PermissionDenied.into())),
            Some(Fault::Full) => Err(StoreError::from_io("write object", io::ErrorKind::StorageFull.into())),
        }
    }

    async fn hang(&self) {
        let mut releases = self.shared.releases.subscribe();
        let _counted = Hanging::new(&self.shared.hanging);
        // The sender lives in `self`, so that this cannot fail.
        releases.changed().await.unwrap_or_default();
    }
}

impl Plan {
    fn next_fault(&mut self, operation: Operation) -> Option<Fault> {
        *self.requests.entry(operation).or_default() += 1;
        self.rules.iter_mut().find_map(|rule| rule.applies_to(operation).then_some(rule.fault))
    }
}

impl Rule {
    /// Tells whether the rule lets this request fail, and counts it.
    fn applies_to(&mut self, operation: Operation) -> bool {
        if self.operation.is_some_and(|only| only != operation) {
            return false;
        }
        match &mut self.when {
            When::Next(0) => false,
            When::Next(left) => {
                *left -= 1;
                true
            }
            When::Every { period, seen } => {
                *seen = (*seen + 1) % *period;
                *seen == 0
            }
        }
    }
}

/// Counts a hanging request for as long as it lives, also when its future is dropped.
struct Hanging<'a>(&'a AtomicUsize);

impl<'a> Hanging<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn broken(action: &'static str) -> StoreError {
    StoreError::Io { action, source: io::ErrorKind::ConnectionReset.into() }
}

#[async_trait]
impl<S: Store> Store for Faulty<S> {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.faults.apply(Operation::PutNew, self.inner.put_new(name, body, tags)).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.faults.apply(Operation::Get, self.inner.get(name, range)).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.faults.apply(Operation::Head, self.inner.head(name)).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.faults.apply(Operation::ListAfter, self.inner.list_after(prefix, after, limit)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.faults.apply(Operation::Delete, self.inner.delete(name)).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.faults.apply(Operation::Tags, self.inner.tags(name)).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        self.faults.apply(Operation::SetTags, self.inner.set_tags(name, tags)).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.faults.apply(Operation::Lock, self.inner.lock(name, until)).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.faults.apply(Operation::BeginUpload, self.inner.begin_upload(name, tags)).await?;
        Ok(Box::new(FaultyUpload { inner, faults: self.faults(), has_part: false }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.faults.apply(Operation::Ping, self.inner.ping()).await
    }

    fn profile(&self) -> StoreProfile {
        self.inner.profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.faults.apply(Operation::Now, self.inner.now()).await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        self.faults.apply(Operation::DeleteAll, self.inner.delete_all(names)).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.faults.apply(Operation::Purge, self.inner.purge(prefix)).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.faults.apply(Operation::AbortUploads, self.inner.abort_uploads(name, before)).await
    }

    async fn refuses_damage(&self, name: &ObjectName) -> Result<Option<bool>, StoreError> {
        self.faults.apply(Operation::PutNew, self.inner.refuses_damage(name)).await
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    faults: Faults,
    /// The store has a part whose answer was lost; the same part again takes its place.
    has_part: bool,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let Self { inner, faults, has_part } = self;
        let put = async {
            if !*has_part {
                inner.put_part(part).await?;
                *has_part = true;
            }
            Ok(())
        };
        faults.apply(Operation::PutPart, put).await?;
        *has_part = false;
        Ok(())
    }

    async fn complete(&mut self) -> Result<PutOutcome, StoreError> {
        self.faults.apply(Operation::Complete, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        self.faults.apply(Operation::Abort, self.inner.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{conformance, folder::Folder};

    async fn store() -> (tempfile::TempDir, Faulty<Folder>, Faults) {
        let dir = tempfile::tempdir().unwrap();
        let store = Faulty::new(Folder::open(dir.path()).await.unwrap());
        let faults = store.faults();
        (dir, store, faults)
    }

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    async fn put(store: &Faulty<Folder>, to: &str) -> Result<PutOutcome, StoreError> {
        store.put_new(&name(to), Bytes::from_static(b"x"), &Tags::new()).await
    }

    #[tokio::test]
    async fn conforms_without_faults() {
        let (_dir, store, _) = store().await;
        conformance::run(&store, "t/faulty").await;
    }

    #[tokio::test]
    async fn first_tries_fail_and_the_next_succeeds() {
        let (_dir, store, faults) = store().await;
        let retry_after = Some(Duration::from_secs(3));
        faults.fail_next(Operation::PutNew, 2, Fault::Busy { retry_after });
        assert!(
            matches!(put(&store, "a").await, Err(StoreError::Busy { retry_after: r }) if r == retry_after)
        );
        store.ping().await.unwrap();
        assert!(put(&store, "a").await.is_err());
        assert_eq!(put(&store, "a").await.unwrap(), PutOutcome::Created);
        assert_eq!(faults.requests(Operation::PutNew), 3);
    }

    #[tokio::test]
    async fn every_third_request_fails_until_healed() {
        let (_dir, store, faults) = store().await;
        faults.fail_every(None, 3, Fault::Break);
        let mut failed = vec![];
        for n in 0..7 {
            failed.push(put(&store, &format!("a{n}")).await.is_err());
        }
        assert_eq!(failed, [false, false, true, false, false, true, false]);
        faults.fail_every(Operation::Ping, 1, Fault::Deny);
        assert!(matches!(store.ping().await, Err(StoreError::Denied { .. })));
        faults.heal();
        store.ping().await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_lost_leaves_the_object() {
        let (_dir, store, faults) = store().await;
        faults.fail_next(Operation::PutNew, 1, Fault::LoseAnswer);
        assert!(put(&store, "a").await.unwrap_err().is_retryable());
        assert_eq!(put(&store, "a").await.unwrap(), PutOutcome::AlreadyExists);
        assert_eq!(store.get(&name("a"), None).await.unwrap().bytes, "x");
    }

    #[tokio::test]
    async fn a_request_hangs_until_released() {
        let (_dir, store, faults) = store().await;
        faults.fail_next(Operation::PutNew, 1, Fault::Hang);
        let release = async {
            while faults.hanging() == 0 {
                tokio::task::yield_now().await;
            }
            assert!(matches!(store.head(&name("a")).await, Err(StoreError::NotFound)));
            faults.release();
        };
        let (outcome, ()) = tokio::join!(put(&store, "a"), release);
        assert_eq!(outcome.unwrap(), PutOutcome::Created);
        assert_eq!(faults.hanging(), 0);
    }
}
