//! Tokens of an identity provider: keeps its keys at hand, and says who brings a token.
//!
//! Keys are looked at again and again, and once more when a token names one that is not known, but not for everybody who makes
//! one up. While the issuer is away, the keys that there are do for a bounded time. A node starts without them: calls
//! do not wait for an identity provider.

mod fetch;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::authorities::AuthoritiesError;
use crate::clock;
use crate::config::{AdminJwt, JwtKeys};
use crate::domain::access::Principal;
use crate::domain::jwt::{BadKeySet, KeySet, Refused, Rules, Unverified};
use crate::jitter::jittered;
use crate::observe::metrics as names;

use fetch::{FetchError, Fetcher};

/// A key set has a few kilobytes, with certificates in it some tens.
const MAX_KEY_SET_BYTES: usize = 256 * 1024;
/// How soon it is tried again after keys could not be had.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);
/// How often a file of keys is looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(2);

/// Why tokens of an issuer cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// The authorities that vouch for the issuer.
    #[error("admin_jwt.ca_file")]
    Authorities(#[from] AuthoritiesError),
    /// Others may write the file of keys, and so give themselves any role.
    #[error("admin_jwt.jwks_file {} has mode {mode:03o}; only its owner may write it: chmod 644 {}", path.display(), path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file of keys cannot be read.
    #[error("admin_jwt.jwks_file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file of keys is none.
    #[error("admin_jwt.jwks_file {}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: BadKeySet,
    },
}

/// Why nobody is known by a token.
#[derive(Debug, thiserror::Error)]
pub enum JwtRefusal {
    /// The token is worth nothing.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There are no keys to check it with, or they are too old.
    #[error("there are no keys of the issuer that may still be used")]
    NoKeys,
}

/// Who signs tokens.
pub struct Issuer {
    rules: Rules,
    source: Source,
    refresh: Duration,
    stale: Duration,
    unknown: Duration,
    held: ArcSwapOption<Held>,
    /// When keys were asked for last.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

/// Keys, and since when nobody has said anything else.
struct Held {
    keys: KeySet,
    since: Instant,
}

enum Source {
    Url(Fetcher),
    File(PathBuf),
}

impl Issuer {
    /// Reads the file of keys, or gets ready to ask for them.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn open(config: &AdminJwt) -> Result<Arc<Self>, JwtError> {
        let mut held = None;
        let source = match &config.keys {
            JwtKeys::Url { url, ca_file, allow_private } => {
                Source::Url(Fetcher::new(url.clone(), ca_file.as_deref(), *allow_private)?)
            }
            JwtKeys::File(path) => {
                held = Some(Arc::new(Held { keys: read_file(path)?, since: clock::monotonic() }));
                Source::File(path.clone())
            }
        };
        Ok(Arc::new(Self {
            rules: config.rules.clone(),
            source,
            refresh: config.refresh,
            stale: config.stale,
            unknown: config.unknown,
            held: ArcSwapOption::new(held),
            asked: tokio::sync::Mutex::default(),
        }))
    }

    /// Says who brings a token.
    ///
    /// # Errors
    /// [`JwtRefusal`].
    pub async fn find(self: &Arc<Self>, token: &str) -> Result<Principal, JwtRefusal> {
        let unverified = Unverified::parse(token, &self.rules)?;
        let mut held = self.usable();
        if !held.as_ref().is_some_and(|held| unverified.is_of(&held.keys)) {
            // In a task of its own: whoever hangs up meanwhile does not keep the keys from coming.
            let issuer = Arc::clone(self);
            let asking = tokio::spawn(async move { issuer.ask_again(issuer.unknown).await });
            // A task that was stopped has brought nothing.
            let _came = asking.await.is_ok();
            held = self.usable();
        }
        let held = held.ok_or(JwtRefusal::NoKeys)?;
        Ok(unverified.verify(&held.keys, &self.rules, clock::wall())?)
    }

    /// Looks at the keys as long as the process lives.
    pub async fn watch(self: Arc<Self>) {
        let Source::File(path) = &self.source else {
            loop {
                let came = self.ask_again(Duration::ZERO).await;
                tokio::time::sleep(jittered(if came { self.refresh } else { RETRY_INTERVAL })).await;
            }
        };
        // Read once more at the beginning: it may have changed while the node started.
        let mut known = None;
        loop {
            tokio::time::sleep(FILE_INTERVAL).await;
            let now = stamp(path);
            if now == known {
                continue;
            }
            known = now;
            match read_file(path) {
                Ok(keys) => self.hold(keys),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "keys of the identity provider cannot be used; the old ones stay");
                }
            }
        }
    }

    /// The keys, unless they are too old. Those of a file are as old as whoever wrote it wants.
    fn usable(&self) -> Option<Arc<Held>> {
        let held = self.held.load_full()?;
        let is_usable = matches!(self.source, Source::File(_)) || clock::since(held.since) < self.stale;
        is_usable.then_some(held)
    }

    fn hold(&self, keys: KeySet) {
        let count = keys.count();
        let old = self.held.swap(Some(Arc::new(Held { keys, since: clock::monotonic() })));
        if old.is_none_or(|old| old.keys.count() != count) {
            tracing::info!(keys = count, "keys of the identity provider are here");
        }
    }

    /// Asks the issuer for its keys, unless somebody has within `pause`; answers whether they came. One asks at a time, and the
    /// others wait for what comes of it.
    async fn ask_again(&self, pause: Duration) -> bool {
        let Source::Url(fetcher) = &self.source else { return false };
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| clock::since(at) < pause) {
            return false;
        }
        *asked = Some(clock::monotonic());
        match fetcher.fetch().await {
            Ok(keys) => {
                self.hold(keys);
                true
            }
            Err(error) => {
                self.complain(&error);
                false
            }
        }
    }

    fn complain(&self, error: &FetchError) {
        ::metrics::counter!(names::KEY_SET_FAILURES).increment(1);
        let error = error as &dyn std::error::Error;
        if self.usable().is_some() {
            tracing::warn!(error, "keys of the identity provider cannot be had; the old ones do for a while");
        } else {
            tracing::error!(error, "keys of the identity provider cannot be had; its tokens are refused");
        }
    }
}

fn read_file(path: &Path) -> Result<KeySet, JwtError> {
    let unreadable = |source| JwtError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(JwtError::Loose { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    file.take(MAX_KEY_SET_BYTES as u64).read_to_end(&mut text).map_err(unreadable)?;
    KeySet::parse(&text).map_err(|source| JwtError::Malformed { path: path.to_owned(), source })
}

/// What differs between two states of a file.
fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}
