//! How key services are asked: each attempt within a time, a few attempts, not too many at once, everything counted.

use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use tokio::sync::Semaphore;

use crate::clock;
use crate::config::KeyProviderKind;
use crate::jitter::jittered;
use crate::observe::metrics as names;
use crate::observe::traces::{Place, Span, words};

use super::{KeyError, Said};

/// Attempts of one call. The second meets a lost connection, the third a short throttling; whoever has to wait longer
/// does better to say so.
const ATTEMPTS: u32 = 3;
/// The first pause between two attempts; each further one is twice as long, and all are spread by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Bounds on the calls to one key service.
pub(super) struct Calls {
    attempt_timeout: Duration,
    places: Semaphore,
}

impl Calls {
    /// Gives each attempt `attempt_timeout`, and runs at most `concurrency` calls at the same time.
    pub(super) fn new(attempt_timeout: Duration, concurrency: usize) -> Self {
        Self { attempt_timeout, places: Semaphore::new(concurrency) }
    }

    /// Makes a call. Takes at most as long as all its attempts may, waiting for a place included.
    ///
    /// # Errors
    /// That of the last attempt; [`KeyError::TimedOut`] when no place was free in time.
    pub(super) async fn make<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, KeyError>
    where
        F: Future<Output = Result<T, KeyError>>,
    {
        let end = clock::monotonic() + self.attempt_timeout * ATTEMPTS;
        let place = tokio::time::timeout_at(end.into(), self.places.acquire()).await;
        let Ok(Ok(_place)) = place else { return Err(KeyError::TimedOut) };
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.once(attempt(), end).await {
                Err(error) if error.is_retryable() => {}
                done => return done,
            }
            tokio::time::sleep_until((clock::monotonic() + jittered(pause)).min(end).into()).await;
            pause *= 2;
        }
        self.once(attempt(), end).await
    }

    async fn once<T>(
        &self,
        attempt: impl Future<Output = Result<T, KeyError>>,
        end: Instant,
    ) -> Result<T, KeyError> {
        let end = (clock::monotonic() + self.attempt_timeout).min(end);
        tokio::time::timeout_at(end.into(), attempt).await.unwrap_or(Err(KeyError::TimedOut))
    }
}

/// Counts a use of a key service by its result, and how long it took.
pub(super) async fn counted<T>(
    provider: &'static str,
    operation: &'static str,
    call: impl Future<Output = Result<T, KeyError>>,
) -> Result<T, KeyError> {
    let began = clock::monotonic();
    let mut span = begin_span(provider, operation);
    let done = call.await;
    let result = done.as_ref().err().map_or("ok", KeyError::label);
    if done.is_err() {
        span.fail(result);
    }
    drop(span);
    counter!(names::KEY_REQUESTS, "provider" => provider, "operation" => operation, "result" => result)
        .increment(1);
    histogram!(names::KEY_SECONDS, "provider" => provider, "operation" => operation)
        .record(clock::since(began).as_secs_f64());
    done
}

/// What happens within this process in microseconds is worth telling as a part of something, and no trace of its own.
fn begin_span(provider: &'static str, operation: &'static str) -> Span {
    let place = Place::here();
    let is_within =
        [KeyProviderKind::Local, KeyProviderKind::Recipient].iter().any(|kind| kind.name() == provider);
    if is_within && place.is_empty() {
        return Span::default();
    }
    let mut span = Span::begin_kind(words::KEY, operation, &place);
    span.word(words::PROVIDER, provider);
    span
}

/// The failure of a service that this node does not have, which the check of the configuration rules out.
pub(super) fn not_configured(provider: &str) -> KeyError {
    KeyError::Unavailable(Said::new(&format!("{provider} is not configured on this node")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn passing_failures_are_tried_again_and_others_are_not() {
        let calls = Calls::new(Duration::from_secs(1), 1);
        for (error, attempts) in [
            (|| KeyError::Throttled(Said::new("slow down")), ATTEMPTS),
            (|| KeyError::Unavailable(Said::new("503")), ATTEMPTS),
            (|| KeyError::BadLogin(Said::new("who?")), 1),
            (|| KeyError::Denied { why: "disabled", source: Said::new("") }, 1),
            (|| KeyError::BadEnvelope("wrong"), 1),
        ] as [(fn() -> KeyError, u32); 5]
        {
            let seen = AtomicU32::new(0);
            let failed = calls.make(async || {
                seen.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(error())
            });
            assert_eq!(failed.await.unwrap_err().label(), error().label());
            assert_eq!(seen.into_inner(), attempts, "{}", error());
        }
    }

    #[tokio::test]
    async fn a_service_that_does_not_answer_is_given_up_and_blocks_nobody_for_ever() {
        let calls = Calls::new(Duration::from_millis(20), 1);
        let hang = || calls.make(std::future::pending::<Result<(), KeyError>>);
        let (first, second) = tokio::join!(hang(), hang());
        assert!(matches!(first, Err(KeyError::TimedOut)) && matches!(second, Err(KeyError::TimedOut)));
    }
}
