//! Who we are to a service: keys that somebody else may change while the node runs.
//!
//! They are read again after a minute, temporary ones some minutes before they expire, and all of them at once after the
//! service has denied a request, so a rotation needs no restart.
//! When they cannot be read, the old ones stay in use and the log says so.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use aws_config::Region;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{AwsCredentials, SecretRef};
use crate::domain::time::UnixMillis;

use super::behavior;

/// How long credentials are used before they are read again.
const LIFE: Duration = Duration::from_secs(60);
/// How long credentials are kept at least, so that a service that denies everything causes no storm of reading.
const LEAST_LIFE: Duration = Duration::from_secs(2);

/// How long before their end temporary credentials are no longer used.
const SPARE: Duration = Duration::from_secs(300);

/// The current credentials and where newer ones come from. Clones share them.
#[derive(Clone)]
pub(crate) struct Rotating(Arc<Inner>);

struct Inner {
    source: Source,
    current: ArcSwapOption<Loaded>,
}

enum Source {
    Keys(Keys),
    Chain(Chain),
}

/// How AWS's tools find credentials. Made anew each time: its profile files would be read only once.
#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) http: SharedHttpClient,
    pub(crate) region: Region,
}

/// Where the keys of the configuration are.
#[derive(Clone)]
struct Keys {
    access_key_id: SecretRef,
    secret_access_key: SecretRef,
    session_token: Option<SecretRef>,
}

struct Loaded {
    credentials: Credentials,
    at: Instant,
    /// The service has denied a request since.
    doubted: bool,
}

impl Rotating {
    /// Uses keys of the configuration, or else what `chain` finds.
    pub(crate) fn new(given: &AwsCredentials, chain: Chain) -> Self {
        let source = match given {
            AwsCredentials::Static { access_key_id, secret_access_key, session_token } => {
                Source::Keys(Keys {
                    access_key_id: access_key_id.clone(),
                    secret_access_key: secret_access_key.clone(),
                    session_token: session_token.clone(),
                })
            }
            AwsCredentials::Chain => Source::Chain(chain),
        };
        Self(Arc::new(Inner { source, current: ArcSwapOption::empty() }))
    }

    /// Has them read again before the next request.
    pub(crate) fn doubt(&self) {
        if let Some(loaded) = &*self.0.current.load() {
            let (credentials, at) = (loaded.credentials.clone(), loaded.at);
            self.0.current.store(Some(Arc::new(Loaded { credentials, at, doubted: true })));
        }
    }

    async fn load(&self) -> Result<Credentials, CredentialsError> {
        let known = self.0.current.load_full();
        if let Some(known) = known.as_ref().filter(|known| known.is_fresh()) {
            return Ok(known.credentials.clone());
        }
        let read = match &self.0.source {
            Source::Keys(keys) => read_keys(keys.clone()).await,
            Source::Chain(chain) => chain.find().await,
        };
        let credentials = match (read, known) {
            (Ok(credentials), _) => credentials,
            (Err(error), Some(known)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "credentials cannot be read; the old ones stay");
                known.credentials.clone()
            }
            (Err(error), None) => return Err(error),
        };
        let loaded = Loaded { credentials: credentials.clone(), at: clock::monotonic(), doubted: false };
        self.0.current.store(Some(Arc::new(loaded)));
        Ok(credentials)
    }
}

impl Chain {
    async fn find(&self) -> Result<Credentials, CredentialsError> {
        let chain =
            aws_config::defaults(behavior()).http_client(self.http.clone()).region(self.region.clone());
        let provider = chain.load().await.credentials_provider();
        provider
            .ok_or_else(|| CredentialsError::not_loaded("the chain is empty"))?
            .provide_credentials()
            .await
    }
}

impl Loaded {
    fn is_fresh(&self) -> bool {
        let age = clock::since(self.at);
        if self.doubted {
            return age < LEAST_LIFE;
        }
        match self.credentials.expiry() {
            Some(end) => clock::wall().plus(SPARE) < millis_of_time(end),
            None => age < LIFE,
        }
    }
}

impl ProvideCredentials for Rotating {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.load())
    }
}

impl fmt::Debug for Rotating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rotating(***)")
    }
}

/// Returns a moment of the system as Unix milliseconds.
fn millis_of_time(moment: SystemTime) -> UnixMillis {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Reads the keys on a thread that may block.
async fn read_keys(keys: Keys) -> Result<Credentials, CredentialsError> {
    let read = tokio::task::spawn_blocking(move || {
        let token = keys.session_token.as_ref().map(text).transpose()?;
        let (id, secret) = (text(&keys.access_key_id)?, text(&keys.secret_access_key)?);
        let token = token.map(|token| token.to_string());
        Ok(Credentials::new(id.as_str(), secret.as_str(), token, None, "callseal"))
    });
    match read.await {
        Ok(read) => read.map_err(|problem: String| CredentialsError::not_loaded(problem)),
        Err(stopped) => Err(CredentialsError::not_loaded(stopped)),
    }
}

fn text(secret: &SecretRef) -> Result<Zeroizing<String>, String> {
    let bytes = secret.read()?;
    let text =
        std::str::from_utf8(bytes.expose()).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()));
    text.map(|text| Zeroizing::new(text.to_owned()))
        .ok_or_else(|| "an access key is not printable ASCII".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use aws_smithy_http_client::Builder as HttpBuilder;

    use super::*;
    use crate::config::Secret;

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[tokio::test]
    async fn keys_are_read_again_when_they_are_doubted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        write(&file, "first\n");
        let given = AwsCredentials::Static {
            access_key_id: SecretRef::fixed(Secret::new(b"id".to_vec())),
            secret_access_key: SecretRef::file(&file),
            session_token: None,
        };
        let chain = Chain { http: HttpBuilder::new().build_http(), region: Region::new("r") };
        let rotating = Rotating::new(&given, chain);
        let secret = async || rotating.load().await.unwrap().secret_access_key().to_owned();
        assert_eq!(secret().await, "first");
        write(&file, "second");
        assert_eq!(secret().await, "first", "fresh ones are kept");
        age(&rotating, LEAST_LIFE);
        assert_eq!(secret().await, "first", "doubt alone makes the difference");
        rotating.doubt();
        assert_eq!(secret().await, "second");

        write(&file, "third");
        rotating.doubt();
        assert_eq!(secret().await, "second", "not read again at once");
        age(&rotating, LIFE);
        assert_eq!(secret().await, "third");

        fs::remove_file(&file).unwrap();
        age(&rotating, LIFE);
        assert_eq!(secret().await, "third", "old ones stay when there are no new ones");
        assert!(!format!("{rotating:?}").contains("third"));
    }

    /// Makes the loaded credentials older.
    fn age(rotating: &Rotating, by: Duration) {
        let loaded = rotating.0.current.load_full().unwrap();
        let at = loaded.at.checked_sub(by).unwrap();
        let older = Loaded { credentials: loaded.credentials.clone(), at, doubted: loaded.doubted };
        rotating.0.current.store(Some(Arc::new(older)));
    }
}
