//! The way of every request to the store: the breaker lets it go, and a permit comes in turn.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::clock;
use crate::domain::ids::TenantTag;
use crate::store::StoreError;

use super::breaker::{Breaker, Verdict};
use super::turns::{Turns, Urgency};

/// How long after one probe of a store that fails the next may go.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Bounds how many requests are made at once, shares them out, and leaves a store alone that fails.
#[derive(Debug)]
pub(super) struct Door {
    turns: Mutex<Turns<oneshot::Sender<()>>>,
    breaker: Mutex<Breaker>,
    closed: Notify,
}

/// Leave to make one request; dropping it lets the next one in.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    door: &'a Door,
    urgency: Urgency,
}

impl Door {
    /// Lets `permits` requests through at once, and probes no less often than lanes would try by themselves.
    pub(super) fn new(permits: usize, longest_wait: Duration) -> Self {
        Self {
            turns: Mutex::new(Turns::new(permits)),
            breaker: Mutex::new(Breaker::new(PROBE_EVERY.min(longest_wait))),
            closed: Notify::new(),
        }
    }

    /// Waits for leave to make one request.
    pub(super) async fn enter(&self, tenant: TenantTag, urgency: Urgency) -> Pass<'_> {
        loop {
            let pass = self.acquire(tenant, urgency).await;
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            let verdict = self.breaker().ask(clock::monotonic());
            let Verdict::Wait(wait) = verdict else { return pass };
            // Nobody holds a permit while waiting.
            drop(pass);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = closed => {}
            }
        }
    }

    /// Notes how a request ended. The store has failed if it gave no answer in time, broke off, was busy or was full.
    pub(super) fn report(&self, outcome: Result<(), Option<&StoreError>>) {
        match outcome {
            Err(None | Some(StoreError::Io { .. } | StoreError::Full { .. })) => self.failed(None),
            Err(Some(StoreError::Busy { retry_after })) => self.failed(*retry_after),
            Ok(())
            | Err(Some(
                StoreError::NotFound
                | StoreError::OutOfRange { .. }
                | StoreError::Denied { .. }
                | StoreError::Corrupt { .. }
                | StoreError::Refused { .. }
                | StoreError::Unsupported { .. }
                | StoreError::Locked { .. },
            )) => {
                if self.breaker().answered() {
                    tracing::info!("store takes requests again");
                    self.closed.notify_waiters();
                }
            }
        }
    }

    /// Whether the store failed so often that it is only probed now and then.
    pub(super) fn is_open(&self) -> bool {
        self.breaker().is_open()
    }

    fn failed(&self, retry_after: Option<Duration>) {
        let mut breaker = self.breaker();
        let was_open = breaker.is_open();
        breaker.failed(clock::monotonic(), retry_after);
        let is_open = breaker.is_open();
        drop(breaker);
        if is_open && !was_open {
            tracing::warn!("store fails again and again; it is only probed now");
        }
    }

    async fn acquire(&self, tenant: TenantTag, urgency: Urgency) -> Pass<'_> {
        let (turn, mine) = oneshot::channel();
        self.turns().wait(tenant, urgency, turn);
        let mut waiter = Waiter { door: self, urgency, mine, is_served: false };
        self.serve();
        // The sender is dropped with the door only.
        waiter.is_served = (&mut waiter.mine).await.is_ok();
        Pass { door: self, urgency }
    }

    /// Hands out the permits that are free.
    fn serve(&self) {
        let mut turns = self.turns();
        while let Some((urgency, waiter)) = turns.next() {
            // Whoever is gone needs none.
            if waiter.send(()).is_err() {
                turns.release(urgency);
            }
        }
    }

    fn release(&self, urgency: Urgency) {
        self.turns().release(urgency);
        self.serve();
    }

    fn turns(&self) -> MutexGuard<'_, Turns<oneshot::Sender<()>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.door.release(self.urgency);
    }
}

/// Somebody who waits for a permit and may go away before or after getting it.
struct Waiter<'a> {
    door: &'a Door,
    urgency: Urgency,
    mine: oneshot::Receiver<()>,
    is_served: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.mine.close();
        if !self.is_served && self.mine.try_recv().is_ok() {
            self.door.release(self.urgency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::pin::Pin;
    use std::sync::Arc;

    const TENANT: TenantTag = TenantTag([1; 16]);

    fn broken() -> StoreError {
        StoreError::Io { action: "send", source: io::ErrorKind::ConnectionReset.into() }
    }

    /// Lets everything run that can; more often than there are tasks.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    /// Polls once.
    async fn is_waiting(future: Pin<&mut impl Future>) -> bool {
        tokio::time::timeout(Duration::ZERO, future).await.is_err()
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_takes_no_permit_along() {
        let door = Door::new(1, PROBE_EVERY);
        let first = door.enter(TENANT, Urgency::Live).await;
        {
            let mut gone = pin!(door.enter(TENANT, Urgency::Live));
            assert!(is_waiting(gone.as_mut()).await);
            // It is served and never looks.
            drop(first);
        }
        let held = door.enter(TENANT, Urgency::Live).await;
        {
            let mut gone = pin!(door.enter(TENANT, Urgency::Live));
            assert!(is_waiting(gone.as_mut()).await);
        }
        drop(held);
        assert!(!is_waiting(pin!(door.enter(TENANT, Urgency::Live))).await);
    }

    #[tokio::test]
    async fn everybody_goes_on_as_soon_as_the_store_answers() {
        let door = Arc::new(Door::new(4, Duration::from_secs(30)));
        for _ in 0..10 {
            drop(door.enter(TENANT, Urgency::Live).await);
            door.report(Err(Some(&broken())));
        }
        assert!(door.is_open());
        let (sender, mut entered) = tokio::sync::mpsc::channel(8);
        for number in 0..8 {
            let (door, sender) = (Arc::clone(&door), sender.clone());
            tokio::spawn(async move {
                let _pass = door.enter(TENANT, Urgency::Live).await;
                sender.send(number).await.unwrap();
            });
        }
        settle().await;
        assert!(entered.try_recv().is_err(), "nobody goes before the time of the first probe");
        door.report(Err(Some(&StoreError::Denied { action: "put", source: io::Error::other("no") })));
        assert!(!door.is_open(), "a store that says no is there");
        for _ in 0..8 {
            entered.recv().await.unwrap();
        }
    }
}
