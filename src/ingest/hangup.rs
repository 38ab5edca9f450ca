//! Ends phone calls through Twilio's REST API, where the agent of a call is lost for good and the route says so.
//!
//! Everything is bounded: two tries, a time for each, requests at once. Only the call that is ended waits. Ids and
//! secrets are in the request and nowhere else: not in a log, not in a metric.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use metrics::counter;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::authorities::{AuthoritiesError, client_config};
use crate::config::{ApiUser, Tenant, TwilioApi};
use crate::domain::provider::twilio::{AccountSid, CallSid};
use crate::domain::sign::encode_base64;
use crate::jitter::jittered;
use crate::node::Node;
use crate::observe::metrics as names;

/// Requests at once, when all agents of a node are lost together: Twilio answers 429 to accounts that ask for more than it
/// likes.
const MAX_AT_ONCE: usize = 64;
/// Connections that are kept for the next request.
const MAX_IDLE: usize = 8;
/// The longest pause before the second try.
const PAUSE: Duration = Duration::from_millis(500);
/// A call as Twilio describes it has 2 KB.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// All that is asked.
const FORM: &[u8] = b"Status=completed";
/// Twilio's error code of a call that is not in progress.
const NOT_IN_PROGRESS: u64 = 21_220;
const PRODUCT: &str = concat!("callseal/", env!("CARGO_PKG_VERSION"));

/// Twilio's REST API, as far as it ends calls.
pub struct HangUps {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    /// For one request.
    timeout: Duration,
    places: Semaphore,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The call was ended.
    Ended,
    /// There was no such call any more.
    Over,
    /// We are not who may do that.
    Refused(u16),
    /// Twilio is asked too often.
    Throttled,
    /// Twilio is in trouble.
    Failed(u16),
    /// Another answer, which the same question gets again.
    Unexpected(u16),
    /// No connection, no certificate that somebody vouches for, or one that broke.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// Too many calls are being ended at once.
    Busy,
    /// There is no secret to ask with, or it cannot be read.
    NoSecret,
}

impl Outcome {
    /// Returns the word for it in metrics and logs.
    fn name(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Over => "over",
            Self::Refused(_) => "refused",
            Self::Throttled => "throttled",
            Self::Failed(_) => "failed",
            Self::Unexpected(_) => "unexpected",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timeout",
            Self::Busy => "busy",
            Self::NoSecret => "no_secret",
        }
    }

    fn status(self) -> Option<u16> {
        match self {
            Self::Refused(status) | Self::Failed(status) | Self::Unexpected(status) => Some(status),
            Self::Throttled => Some(429),
            Self::Ended | Self::Over | Self::Unreachable | Self::TimedOut | Self::Busy | Self::NoSecret => {
                None
            }
        }
    }

    /// Whether the call is over.
    fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Over)
    }

    /// Whether another try may have another outcome. The request may be made twice: a call ends once.
    fn may_pass(self) -> bool {
        matches!(self, Self::Throttled | Self::Failed(_) | Self::Unreachable | Self::TimedOut)
    }
}

/// Returns what ends a call when it is first polled, and answers whether the call is over. It goes on when it is dropped:
/// the stream's connection may break while the phone call does not.
pub(super) fn when_polled(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    (account, call): (AccountSid, CallSid),
) -> BoxFuture<'static, bool> {
    let (node, tenant) = (Arc::clone(node), Arc::clone(tenant));
    Box::pin(async move {
        let ending = tokio::spawn(async move {
            // The process must not end before the call.
            let _alive = node.drain.alive();
            // Secrets may have changed since the call began.
            let tenant = node.tenant(&tenant.id).unwrap_or(tenant);
            let outcome = node.hang_ups.end(&account, &call, tenant.twilio.api_users(&account)).await;
            counter!(names::HANG_UPS, "result" => outcome.name()).increment(1);
            let (tenant, result, status) = (&tenant.id, outcome.name(), outcome.status());
            if outcome.is_over() {
                tracing::info!(%tenant, result, "agent was lost for good; the call is ended");
            } else {
                tracing::error!(%tenant, result, status, "call could not be ended, it is given back to the provider");
            }
            outcome.is_over()
        });
        ending.await.unwrap_or(false)
    })
}

impl HangUps {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// [`AuthoritiesError`].
    pub fn new(options: &TwilioApi) -> Result<Self, AuthoritiesError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // What may be asked without TLS, this machine alone, the check of the configuration has decided.
        let tls = client_config(options.ca_file.as_deref())?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = connector.enable_http1().wrap_connector(tcp);
        let mut client = Client::builder(TokioExecutor::new());
        Ok(Self {
            client: client.pool_max_idle_per_host(MAX_IDLE).build(connector),
            url: options.url.clone(),
            timeout: options.timeout,
            places: Semaphore::new(MAX_AT_ONCE),
        })
    }

    /// Ends a call, in two tries at most. A user that is refused is followed by the next, at once; after any other trouble
    /// the second try comes after a pause.
    async fn end(&self, account: &AccountSid, call: &CallSid, users: Vec<ApiUser>) -> Outcome {
        let mut users = users.into_iter();
        let Some(mut user) = users.next() else { return Outcome::NoSecret };
        let Ok(Ok(_place)) = timeout(self.timeout, self.places.acquire()).await else {
            return Outcome::Busy;
        };
        let first = self.ask_in_time(account, call, &user).await;
        if let Outcome::Refused(_) = first {
            match users.next() {
                Some(next) => user = next,
                None => return first,
            }
        } else if first.may_pass() {
            tokio::time::sleep(jittered(PAUSE)).await;
        } else {
            return first;
        }
        self.ask_in_time(account, call, &user).await
    }

    async fn ask_in_time(&self, account: &AccountSid, call: &CallSid, user: &ApiUser) -> Outcome {
        timeout(self.timeout, self.ask(account, call, user)).await.unwrap_or(Outcome::TimedOut)
    }

    async fn ask(&self, account: &AccountSid, call: &CallSid, user: &ApiUser) -> Outcome {
        let Some(authorization) = authorization(user).await else { return Outcome::NoSecret };
        let request = Request::post(format!(
            "{}/2010-04-01/Accounts/{}/Calls/{}.json",
            self.url,
            account.as_str(),
            call.as_str()
        ))
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, PRODUCT)
        .body(Full::new(Bytes::from_static(FORM)));
        // Ids of 34 letters and digits behind a URL that was checked always make a request.
        let Ok(request) = request else { return Outcome::Unexpected(0) };
        let answer = match self.client.request(request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no answer of Twilio's API");
                return Outcome::Unreachable;
            }
        };
        let status = answer.status();
        // Read to its end, so that the connection can be used again; what cannot be read changes nothing.
        let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        judge(status, &body)
    }
}

/// Says what an answer means. Redirects are not followed.
fn judge(status: StatusCode, body: &[u8]) -> Outcome {
    let number = status.as_u16();
    match number {
        200..=299 => Outcome::Ended,
        404 => Outcome::Over,
        400 if error_code(body) == Some(NOT_IN_PROGRESS) => Outcome::Over,
        401 | 403 => Outcome::Refused(number),
        429 => Outcome::Throttled,
        500.. => Outcome::Failed(number),
        _ => Outcome::Unexpected(number),
    }
}

fn error_code(body: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(body).ok()?.get("code")?.as_u64()
}

/// Makes the header of a user; `None` when its secret cannot be read.
async fn authorization(user: &ApiUser) -> Option<HeaderValue> {
    let source = user.secret.clone();
    // A file may block for a moment.
    let read = tokio::task::spawn_blocking(move || source.read()).await.ok()?;
    let secret = match read {
        Ok(secret) => secret,
        Err(problem) => {
            tracing::error!(problem, "secret of Twilio's API cannot be read");
            return None;
        }
    };
    let pair = Zeroizing::new([user.sid.as_bytes(), b":", secret.expose()].concat());
    let text = Zeroizing::new(format!("Basic {}", Zeroizing::new(encode_base64(&pair)).as_str()));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
