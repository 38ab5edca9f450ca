//! Holds a bucket against what the configuration claims of it: at start, or later if it does not answer then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::node::Node;
use crate::store::{Store, StoreError, probe};

/// The probe takes some seconds; one that takes much longer meets a store in trouble.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The wait before a store that did not answer is asked again, and the longest that it grows to.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a store does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claims {
    /// What is claimed of it.
    Kept,
    /// Not what is claimed of it; the text names what, and what to do about it.
    Broken(String),
    /// Nobody knows, as it does not answer.
    Unknown,
}

/// Asks a store.
///
/// # Errors
/// [`StoreError`] when the store does not let us in: somebody has to act.
pub async fn check(store: &dyn Store) -> Result<Claims, StoreError> {
    match tokio::time::timeout(TIMEOUT, probe::run(store)).await {
        Ok(Ok(findings)) => Ok(probe::broken_claims(&findings).map_or(Claims::Kept, Claims::Broken)),
        Ok(Err(error)) if error.is_retryable() => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the store does not answer; what it can do is not checked yet");
            Ok(Claims::Unknown)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            tracing::warn!("the store does not answer in time; what it can do is not checked yet");
            Ok(Claims::Unknown)
        }
    }
}

/// Asks the store of a running node until it answers. If it breaks its claims, the node takes no new calls.
pub(crate) async fn check_until_known(node: Arc<Node>) {
    let mut wait = FIRST_WAIT;
    loop {
        tokio::time::sleep(wait).await;
        wait = LONGEST_WAIT.min(wait * 2);
        match check(&*node.store).await {
            Ok(Claims::Unknown) => {}
            Ok(Claims::Kept) => {
                tracing::info!("the store does what the configuration claims");
                return;
            }
            Ok(Claims::Broken(broken)) => {
                node.claims_broken.store(true, Ordering::Release);
                tracing::error!(
                    broken,
                    "the store does not do what the configuration claims; no new call is taken"
                );
                return;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the store does not let us in; what it can do is not checked yet");
            }
        }
    }
}
