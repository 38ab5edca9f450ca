//! The login to Vault: one task owns it, renews it before its lease ends, and makes a new one when the old one is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{SecretRef, VaultLogin};
use crate::jitter::jittered;
use crate::keys::{KeyError, Said};

use super::http::{Answer, Http};

/// How long one request of a login may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a login that failed; it doubles up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A login that is younger is not made anew because of a denial that does not call it invalid: the right is missing then, and
/// each denied request would cause a login.
const LEAST_LIFE: Duration = Duration::from_secs(10);

/// What the task has come to.
#[derive(Clone)]
enum State {
    Begun,
    In(Session),
    /// It tries on.
    Failed(Failure),
}

/// A login that was accepted.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) token: HeaderValue,
    number: u64,
    since: Instant,
}

impl Session {
    /// Whether a denial may mean that the login is over.
    pub(super) fn may_be_over(&self, is_called_invalid: bool) -> bool {
        is_called_invalid || clock::since(self.since) >= LEAST_LIFE
    }
}

/// Why there is no login; a [`KeyError`] that can be told to many.
#[derive(Clone)]
enum Failure {
    Refused(Said),
    Passing(Said),
    TimedOut,
}

impl From<Failure> for KeyError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(said) => Self::BadLogin(said),
            Failure::Passing(said) => Self::Unavailable(said),
            Failure::TimedOut => Self::TimedOut,
        }
    }
}

/// Where requests get their login. Dropped, it ends the task.
pub(super) struct Login {
    state: watch::Receiver<State>,
    doubts: mpsc::Sender<u64>,
}

impl Login {
    pub(super) fn begin(http: Arc<Http>, given: VaultLogin) -> Self {
        let (tell, state) = watch::channel(State::Begun);
        // One doubt is as good as many.
        let (doubts, heard) = mpsc::channel(1);
        let keeper = Keeper { http, given, tell, doubts: heard, number: 0 };
        tokio::spawn(keeper.run());
        Self { state, doubts }
    }

    /// Returns the present login; waits for the first one.
    ///
    /// # Errors
    /// [`KeyError::BadLogin`], or that Vault cannot be asked.
    pub(super) async fn session(&self) -> Result<Session, KeyError> {
        self.wait_for(|state| !matches!(state, State::Begun)).await
    }

    /// Has a login made anew, and returns the new one.
    ///
    /// # Errors
    /// As [`Login::session`].
    pub(super) async fn after(&self, old: &Session) -> Result<Session, KeyError> {
        // Full means that a doubt is on its way already.
        let _is_told = self.doubts.try_send(old.number).is_ok();
        let is_over = |state: &State| match state {
            State::In(session) => session.number > old.number,
            State::Failed(_) => true,
            State::Begun => false,
        };
        self.wait_for(is_over).await
    }

    async fn wait_for(&self, is_it: impl FnMut(&State) -> bool) -> Result<Session, KeyError> {
        let mut state = self.state.clone();
        let ended = |_| KeyError::Unavailable(Said::new("the login task has ended"));
        let found = state.wait_for(is_it).await.map_err(ended)?.clone();
        match found {
            State::In(session) => Ok(session),
            State::Failed(failure) => Err(failure.into()),
            State::Begun => Err(KeyError::TimedOut),
        }
    }
}

/// A token, and how long it lives.
struct Granted {
    token: HeaderValue,
    lease: Lease,
}

#[derive(Clone, Copy)]
struct Lease {
    /// `None` for a token that does not end.
    life: Option<Duration>,
    is_renewable: bool,
}

impl Lease {
    fn new(seconds: u64, is_renewable: bool) -> Self {
        Self { life: (seconds > 0).then_some(Duration::from_secs(seconds)), is_renewable }
    }

    /// Two thirds of it, so that a third is left for trying; at least a second.
    fn renew_after(self) -> Option<Duration> {
        self.life.map(|life| (life * 2 / 3).max(Duration::from_secs(1)))
    }
}

/// What ends the keeping of one login.
enum Over {
    /// A new one is needed.
    Renew,
    /// Nobody needs one any more.
    Stop,
}

/// The task that owns the login.
struct Keeper {
    http: Arc<Http>,
    given: VaultLogin,
    tell: watch::Sender<State>,
    doubts: mpsc::Receiver<u64>,
    number: u64,
}

impl Keeper {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.log_in().await {
                Ok(granted) => {
                    pause = FIRST_PAUSE;
                    self.number += 1;
                    let Granted { token, lease } = granted;
                    let session =
                        Session { token: token.clone(), number: self.number, since: clock::monotonic() };
                    self.tell.send_replace(State::In(session));
                    if matches!(self.keep(&token, lease).await, Over::Stop) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot log in to vault");
                    self.tell.send_replace(State::Failed(failure(error)));
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    if self.doubts.is_closed() {
                        return;
                    }
                }
            }
        }
    }

    /// Renews a login as long as that goes and nobody doubts it.
    async fn keep(&mut self, token: &HeaderValue, first: Lease) -> Over {
        let (mut lease, mut until) = (first, end_of(first));
        let mut wait = first.renew_after();
        loop {
            tokio::select! {
                doubt = self.doubts.recv() => match doubt {
                    None => return Over::Stop,
                    Some(number) if number == self.number => return Over::Renew,
                    Some(_) => continue,
                },
                () = sleep(wait) => {}
            }
            if !lease.is_renewable {
                return Over::Renew;
            }
            match self.renew(token).await {
                // Close to the longest life of a token its renewals get shorter.
                Ok(renewed) if renewed.life < first.life.map(|life| life / 2) => return Over::Renew,
                Ok(renewed) => (lease, until, wait) = (renewed, end_of(renewed), renewed.renew_after()),
                Err(error) if error.is_retryable() && until.is_none_or(|end| clock::monotonic() < end) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot renew the login to vault"
                    );
                    wait = Some(jittered(LONGEST_PAUSE.min(lease.life.unwrap_or(LONGEST_PAUSE) / 12)));
                }
                Err(_) => return Over::Renew,
            }
        }
    }

    async fn log_in(&self) -> Result<Granted, KeyError> {
        match &self.given {
            VaultLogin::Token(token) => {
                let token = read_header(token.clone()).await?;
                let lease = self.look_up(&token).await?;
                Ok(Granted { token, lease })
            }
            VaultLogin::AppRole { mount, role_id, secret_id } => {
                let (role, secret) = (read(role_id.clone()).await?, read(secret_id.clone()).await?);
                let body =
                    Zeroizing::new(serde_json::json!({"role_id": *role, "secret_id": *secret}).to_string());
                let path = format!("auth/{mount}/login");
                let auth = auth_of(&self.ask(Method::POST, &path, None, Some(&body)).await?)?;
                let token = auth.client_token.as_ref().and_then(|token| header(token));
                let token = token.ok_or_else(|| KeyError::Unavailable(Said::new("a login without token")))?;
                Ok(Granted { token, lease: Lease::new(auth.lease_duration, auth.renewable) })
            }
        }
    }

    async fn look_up(&self, token: &HeaderValue) -> Result<Lease, KeyError> {
        let answer = self.ask(Method::GET, "auth/token/lookup-self", Some(token), None).await?;
        let found: Result<LookedUp, _> = serde_json::from_slice(&answer.body);
        let LookedUp { data } = found.map_err(|_| unreadable())?;
        Ok(Lease::new(data.ttl, data.renewable))
    }

    async fn renew(&self, token: &HeaderValue) -> Result<Lease, KeyError> {
        let answer = self.ask(Method::POST, "auth/token/renew-self", Some(token), Some("{}")).await?;
        let auth = auth_of(&answer)?;
        Ok(Lease::new(auth.lease_duration, auth.renewable))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&HeaderValue>,
        body: Option<&str>,
    ) -> Result<Answer, KeyError> {
        let asking = self.http.ask(method, path, token, body);
        let answer = tokio::time::timeout(TIMEOUT, asking).await.map_err(|_| KeyError::TimedOut)??;
        match answer.status {
            status if status.is_success() => Ok(answer),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PRECONDITION_FAILED => Err(answer.passing()),
            status if status.is_client_error() => Err(KeyError::BadLogin(answer.said())),
            _ => Err(answer.passing()),
        }
    }
}

#[derive(Deserialize)]
struct LookedUp {
    data: TokenData,
}

#[derive(Deserialize)]
struct TokenData {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct LoggedIn {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Option<Zeroizing<String>>,
    lease_duration: u64,
    renewable: bool,
}

fn auth_of(answer: &Answer) -> Result<Auth, KeyError> {
    let read: Result<LoggedIn, _> = serde_json::from_slice(&answer.body);
    read.map(|read| read.auth).map_err(|_| unreadable())
}

fn unreadable() -> KeyError {
    KeyError::Unavailable(Said::new("an answer to a login that cannot be read"))
}

fn failure(error: KeyError) -> Failure {
    if let KeyError::BadLogin(said) = error {
        return Failure::Refused(said);
    }
    if let KeyError::TimedOut = error {
        return Failure::TimedOut;
    }
    let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
    Failure::Passing(Said::new(&why))
}

fn end_of(lease: Lease) -> Option<Instant> {
    lease.life.map(|life| clock::monotonic() + life)
}

/// Sleeps; for ever without a time.
async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Reads a secret on a thread that may block.
async fn read(secret: SecretRef) -> Result<Zeroizing<String>, KeyError> {
    let bad = |problem: &str| KeyError::BadLogin(Said::new(problem));
    let read = tokio::task::spawn_blocking(move || secret.read()).await;
    let secret = read.map_err(|_| bad("a secret cannot be read"))?.map_err(|problem| bad(&problem))?;
    let text =
        std::str::from_utf8(secret.expose()).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()));
    text.map(|text| Zeroizing::new(text.to_owned())).ok_or_else(|| bad("a secret is not printable ASCII"))
}

async fn read_header(secret: SecretRef) -> Result<HeaderValue, KeyError> {
    let token = read(secret).await?;
    header(&token).ok_or_else(|| KeyError::BadLogin(Said::new("the token is not printable ASCII")))
}

fn header(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(token).ok()?;
    value.set_sensitive(true);
    Some(value)
}
