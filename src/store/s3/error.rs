//! What an S3-compatible store answers, sorted by what the caller can do. The one place that knows codes and statuses.
//!
//! Texts hold the status, the store's code and its request id: never a URL, a header, or what the store wrote in words.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::store::StoreError;

/// The longest wait that is believed when a store says `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Credentials that are wrong, old, or not allowed to do this; some stores answer with 400.
const DENIED: [&str; 11] = [
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "PermanentRedirect",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "NoSuchBucket",
];
const FULL: [&str; 5] =
    ["InsufficientCapacity", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "StorageFull"];
const BUSY: [&str; 6] = [
    "ConditionalRequestConflict",
    "OperationAborted",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottlingException",
    "TooManyRequests",
];
/// The bytes that arrived are not those that were signed.
const DAMAGED: [&str; 4] =
    ["BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"];
const INTERRUPTED: [&str; 3] = ["IncompleteBody", "RequestTimeout", "InternalError"];

/// A request that failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The store answered.
    Answered(Answer),
    /// There is no answer, or none that can be read.
    Unanswered { kind: io::ErrorKind, text: String },
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    code: String,
    request_id: String,
    retry_after: Option<Duration>,
}

impl<E: Error + ProvideErrorMetadata + 'static> From<SdkError<E, HttpResponse>> for Failed {
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let code = error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default();
        let is_late = matches!(&error, SdkError::TimeoutError(_))
            || matches!(&error, SdkError::DispatchFailure(failure) if failure.is_timeout());
        let kind = if is_late { io::ErrorKind::TimedOut } else { io::ErrorKind::Other };
        match error.raw_response() {
            Some(raw) if raw.status().as_u16() >= 300 => Self::Answered(Answer {
                status: raw.status().as_u16(),
                code: code.to_owned(),
                request_id: raw.headers().get("x-amz-request-id").unwrap_or_default().to_owned(),
                retry_after: raw.headers().get("retry-after").and_then(retry_after),
            }),
            // A few requests fail with a 200, as the store began to answer before it knew.
            Some(_) if !code.is_empty() => Self::of_code(code),
            Some(_) | None => Self::Unanswered { kind, text: chain(&error) },
        }
    }
}

impl Failed {
    /// One object of many that a store refused to delete; a code is all it gives.
    pub(super) fn of_code(code: &str) -> Self {
        Self::Answered(Answer {
            status: 200,
            code: code.to_owned(),
            request_id: String::new(),
            retry_after: None,
        })
    }

    /// Whether the store said so with this status.
    pub(super) fn is_status(&self, status: u16) -> bool {
        matches!(self, Self::Answered(answer) if answer.status == status)
    }

    /// Whether the store said so with this code.
    pub(super) fn is_code(&self, code: &str) -> bool {
        matches!(self, Self::Answered(answer) if answer.code == code)
    }

    /// Whether there is no such object, version or upload; a missing bucket is a denial.
    pub(super) fn is_missing(&self) -> bool {
        self.is_status(404) && !self.is_denial()
    }

    /// Whether a name was taken, for a request that had to create it.
    pub(super) fn is_taken(&self) -> bool {
        self.is_status(412) || self.is_code("PreconditionFailed")
    }

    /// Whether the bytes that arrived are not those that were signed.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Answered(answer) if is_one_of(&answer.code, &DAMAGED))
    }

    /// Whether the store does not know this kind of request.
    pub(super) fn is_unsupported(&self) -> bool {
        self.is_status(501) || self.is_status(405) || self.is_code("NotImplemented")
    }

    /// Whether other credentials might help.
    pub(super) fn is_denial(&self) -> bool {
        match self {
            Self::Answered(answer) => matches!(answer.status, 401 | 403) || is_one_of(&answer.code, &DENIED),
            Self::Unanswered { .. } => false,
        }
    }

    /// Sorts the failure; `action` completes "cannot …".
    pub(super) fn during(self, action: &'static str) -> StoreError {
        match self {
            Self::Answered(answer) => answer.sort(action),
            Self::Unanswered { kind, text } => StoreError::Io { action, source: io::Error::new(kind, text) },
        }
    }
}

impl Answer {
    fn sort(self, action: &'static str) -> StoreError {
        let source = io::Error::other(self.text());
        let code = self.code.as_str();
        match self.status {
            _ if is_one_of(code, &FULL) => StoreError::Full { action, source },
            _ if is_one_of(code, &BUSY) => StoreError::Busy { retry_after: self.retry_after },
            _ if is_one_of(code, &DAMAGED) => {
                StoreError::Corrupt { what: "bytes that arrived are not those that were sent" }
            }
            _ if is_one_of(code, &INTERRUPTED) => StoreError::Io { action, source },
            _ if code == "EntityTooLarge" => {
                StoreError::Refused { rule: "an object is larger than the store takes" }
            }
            _ if is_one_of(code, &DENIED) => StoreError::Denied { action, source },
            404 => StoreError::NotFound,
            409 | 429 | 503 => StoreError::Busy { retry_after: self.retry_after },
            507 => StoreError::Full { action, source },
            405 | 501 => StoreError::Unsupported { feature: action },
            // Another redirect, right or rule that only an operator can change.
            300..=499 => StoreError::Denied { action, source },
            _ => StoreError::Io { action, source },
        }
    }

    fn text(&self) -> String {
        let mut text = format!("store answered {}", self.status);
        let hint = match self.code.as_str() {
            "NoSuchBucket" => "there is no such bucket",
            "RequestTimeTooSkewed" => "the clocks of this machine and the store are too far apart",
            "PermanentRedirect" | "AuthorizationHeaderMalformed" => "the bucket is in another region",
            "InvalidAccessKeyId" => "the store does not know this access key",
            "SignatureDoesNotMatch" => "the secret access key is wrong",
            "ExpiredToken" | "TokenRefreshRequired" => "the credentials have expired",
            _ => "",
        };
        // Writing to a text cannot fail.
        for part in [self.code.as_str(), hint].into_iter().filter(|part| !part.is_empty()) {
            write!(text, ", {}", printable(part)).unwrap_or_default();
        }
        if !self.request_id.is_empty() {
            write!(text, " (request {})", printable(&self.request_id)).unwrap_or_default();
        }
        text
    }
}

/// Makes what a store wrote short and fit on one line.
fn printable(text: &str) -> String {
    text.chars().take(80).filter(|c| c.is_ascii_graphic() || *c == ' ').collect()
}

fn is_one_of(code: &str, codes: &[&str]) -> bool {
    codes.contains(&code)
}

/// Reads seconds; a date is left out, as clocks differ.
fn retry_after(text: &str) -> Option<Duration> {
    let wait = Duration::from_secs(text.trim().parse().ok()?);
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Writes an error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").unwrap_or_default();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(status: u16, code: &str) -> StoreError {
        let retry_after = Some(Duration::from_secs(7));
        Answer { status, code: code.to_owned(), request_id: "tx1".to_owned(), retry_after }.sort("put object")
    }

    #[test]
    fn answers_are_sorted_by_what_can_be_done() {
        for (status, code, label) in [
            (404, "NoSuchKey", "not_found"),
            (404, "", "not_found"),
            (404, "NoSuchBucket", "denied"),
            (403, "AccessDenied", "denied"),
            (403, "", "denied"),
            (403, "QuotaExceeded", "full"),
            (400, "ExpiredToken", "denied"),
            (301, "PermanentRedirect", "denied"),
            (409, "ConditionalRequestConflict", "busy"),
            (429, "Whatever", "busy"),
            (503, "SlowDown", "busy"),
            (503, "", "busy"),
            (500, "InternalError", "io"),
            (502, "", "io"),
            (504, "", "io"),
            (507, "", "full"),
            (400, "BadDigest", "corrupt"),
            (400, "RequestTimeout", "io"),
            (501, "NotImplemented", "unsupported"),
            (400, "EntityTooLarge", "refused"),
            (200, "InternalError", "io"),
            (400, "Strange", "denied"),
        ] {
            assert_eq!(sorted(status, code).label(), label, "{status} {code}");
        }
        let StoreError::Busy { retry_after } = sorted(503, "SlowDown") else { panic!("busy") };
        assert_eq!(retry_after, Some(Duration::from_secs(7)), "the store's wish is kept");
        assert_eq!(super::retry_after("99999"), Some(MAX_RETRY_AFTER));
        assert_eq!(super::retry_after("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }

    #[test]
    fn texts_name_the_trouble_on_one_line() {
        let text = |status, code| {
            let error = sorted(status, code);
            error.source().expect("the answer is the source").to_string()
        };
        assert_eq!(
            text(403, "RequestTimeTooSkewed"),
            "store answered 403, RequestTimeTooSkewed, the clocks of this machine and the store are too far apart (request tx1)"
        );
        assert_eq!(
            text(404, "NoSuchBucket"),
            "store answered 404, NoSuchBucket, there is no such bucket (request tx1)"
        );
        assert_eq!(text(403, "Bad\nCode\u{1b}"), "store answered 403, BadCode (request tx1)");
    }
}
