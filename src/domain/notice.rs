//! Notices: what a tenant's own server is told, how it is written and signed, and when it is told again.
//!
//! A notice says what happened to a recording, and to which one; nothing of what was said, and nobody's name or number. Its id
//! follows from what happened, so that two nodes that see the same thing make one notice, and a receiver can tell a
//! repetition. Its body is written once and never changes: the signatures are made anew for each attempt.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::audio::AudioFormat;
use super::cmr::GapReason;
use super::ids::{NoticeId, RecordingId, RequestId, TenantId, TenantTag, first_16};
use super::recording::{GapEntry, Life, RecordingEnd};
use super::sign::{encode_hex, hmac_sha256};

/// The header of the signatures of the body alone.
pub const BODY_SIGNATURE: &str = "x-signature-256";
/// The header of the signatures of time and body: `<timestamp>.<body>`.
pub const TIMED_SIGNATURE: &str = "x-callseal-signature";
/// The header of the time of the attempt, in Unix seconds.
pub const TIMESTAMP: &str = "x-callseal-timestamp";
/// The header of the notice's id, which is the same in every attempt.
pub const ID: &str = "x-callseal-id";

/// What a notice tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoticeKind {
    /// A recording ended, and all of it is there.
    Complete,
    /// A recording ended, and something is missing, or the stream broke off.
    Partial,
    /// A recording was finished after a crash.
    Recovered,
    /// A recording cannot be finished.
    Failed,
    /// A call was refused, because it could not be recorded.
    Blocked,
    /// A call goes on, or went by, without a recording.
    Skipped,
    /// Audio of a recording is lost.
    AudioLost,
    /// No key could be had for a call.
    KeyUnavailable,
    /// The time of a recording is over: its key is destroyed, and its bytes go.
    Expired,
    /// A recording is deleted before its time: its key is destroyed, and its bytes go.
    Deleted,
    /// Nothing is left of a recording but its receipt.
    Purged,
    /// A recording is held: nothing deletes it.
    Held,
    /// A recording is released: its date counts again.
    Released,
    /// A request of a person should have been dealt with by now.
    RequestOverdue,
    /// Somebody tries whether notices arrive.
    Test,
}

impl NoticeKind {
    /// Those that a tenant can choose.
    pub const CHOICES: [Self; 14] = [
        Self::Complete,
        Self::Partial,
        Self::Recovered,
        Self::Failed,
        Self::Blocked,
        Self::Skipped,
        Self::AudioLost,
        Self::KeyUnavailable,
        Self::Expired,
        Self::Deleted,
        Self::Purged,
        Self::Held,
        Self::Released,
        Self::RequestOverdue,
    ];

    /// Returns the word for it, the `type` of a notice.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "recording.complete",
            Self::Partial => "recording.partial",
            Self::Recovered => "recording.recovered",
            Self::Failed => "recording.failed",
            Self::Blocked => "recording.blocked",
            Self::Skipped => "recording.skipped",
            Self::AudioLost => "audio.lost",
            Self::KeyUnavailable => "key.unavailable",
            Self::Expired => "recording.expired",
            Self::Deleted => "recording.deleted",
            Self::Purged => "recording.purged",
            Self::Held => "recording.held",
            Self::Released => "recording.released",
            Self::RequestOverdue => "request.overdue",
            Self::Test => "webhook.test",
        }
    }

    /// Finds the kind that a word names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::CHOICES.into_iter().chain([Self::Test]).find(|kind| kind.name() == name)
    }

    /// The kind of an end.
    pub fn of_life(life: Life) -> Self {
        match life {
            Life::Complete => Self::Complete,
            Life::Partial => Self::Partial,
            Life::Recovered => Self::Recovered,
        }
    }
}

/// What it happened to. Two events of one kind and subject are the same event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A recording, at one revision of its manifest or order.
    Recording(RecordingId, u32),
    /// A call without a recording; the bytes are random.
    Call([u8; 16]),
    /// A request of a person.
    Request(RequestId),
    /// A stretch of time, by its number, in which one notice is enough.
    Period(u64),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What a notice of it tells.
    pub kind: NoticeKind,
    /// What it happened to.
    pub subject: Subject,
    /// What else there is to say.
    pub facts: Facts,
}

/// What else there is to say. Empty fields are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Why, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The provider's id of the call. Left out unless the tenant asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// Why the stream ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Unix milliseconds after which the recording must be gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Audio that is missing.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// Audio that is missing, of all tracks together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Milliseconds, rounded up for each reason.
    pub lost_ms: u64,
    /// The same by reason.
    pub lost_ms_by_reason: BTreeMap<&'static str, u64>,
    /// Milliseconds of gaps beyond the list's bound, whose reasons nobody knows any more.
    pub unlisted_gap_ms: u64,
}

impl Lost {
    /// Adds up what the end of a recording says is missing.
    pub fn of(end: &RecordingEnd, format: AudioFormat) -> Self {
        let mut samples: BTreeMap<&'static str, u64> = BTreeMap::new();
        for gap in end.gaps.iter().filter(|gap: &&GapEntry| gap.is_loss()) {
            let reason = GapReason::from_number(gap.reason).map_or("other", GapReason::name);
            *samples.entry(reason).or_default() += u64::from(gap.samples);
        }
        let millis = |samples: u64| samples.saturating_mul(1000).div_ceil(u64::from(format.rate()));
        let by_reason: BTreeMap<_, _> =
            samples.into_iter().map(|(reason, samples)| (reason, millis(samples))).collect();
        Self {
            lost_ms: by_reason.values().sum(),
            lost_ms_by_reason: by_reason,
            unlisted_gap_ms: millis(end.counts.unlisted_gap_samples),
        }
    }

    /// Whether there is anything to tell.
    pub fn is_none(&self) -> bool {
        self.lost_ms == 0 && self.unlisted_gap_ms == 0
    }
}

/// A recording that has ended, and of whom it is known.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// Which.
    pub recording: RecordingId,
    /// The revision of the manifest that says so.
    pub revision: u32,
    /// How.
    pub end: &'a RecordingEnd,
    /// How its samples are written.
    pub format: AudioFormat,
    /// Its route.
    pub route: &'a str,
    /// The provider's id of the call.
    pub call: &'a str,
}

/// Returns what there is to tell of the end of a recording: how it ended, and what was lost if something was.
pub fn ended(ended: &Ended<'_>) -> Vec<Event> {
    let Ended { recording, revision, end, format, route, call } = *ended;
    let lost = Lost::of(end, format);
    let subject = Subject::Recording(recording, revision);
    let facts = Facts {
        route: Some(route.to_owned()),
        call: Some(call.to_owned()),
        cause: Some(end.cause.name()),
        ended_ms: Some(end.ended_ms),
        expires_ms: Some(end.expires_ms),
        ..Facts::default()
    };
    let is_lossless = lost.is_none();
    let facts = Facts { lost: Some(lost), ..facts };
    let life = Event { kind: NoticeKind::of_life(end.life), subject, facts: facts.clone() };
    let loss = Event { kind: NoticeKind::AudioLost, subject, facts };
    if is_lossless { vec![life] } else { vec![life, loss] }
}

impl Event {
    /// An event of a recording about which there is no more to say.
    pub fn of_recording(kind: NoticeKind, recording: RecordingId, revision: u32) -> Self {
        Self { kind, subject: Subject::Recording(recording, revision), facts: Facts::default() }
    }

    /// A request of a person that is overdue.
    pub fn of_request(request: RequestId) -> Self {
        let (kind, subject) = (NoticeKind::RequestOverdue, Subject::Request(request));
        Self { kind, subject, facts: Facts::default() }
    }

    /// Says why.
    #[must_use]
    pub fn because(mut self, reason: &'static str) -> Self {
        self.facts.reason = Some(reason);
        self
    }

    /// Returns the id of its notice: the first half of SHA-256 over label, tenant, kind and subject.
    pub fn id(&self, tenant: TenantTag) -> NoticeId {
        let mut hash = Sha256::new();
        hash.update(b"callseal notice id\0");
        hash.update(tenant.0);
        hash.update(self.kind.name());
        match self.subject {
            Subject::Recording(recording, revision) => {
                hash.update(b"\0r");
                hash.update(recording.0);
                hash.update(revision.to_be_bytes());
            }
            Subject::Call(random) => {
                hash.update(b"\0c");
                hash.update(random);
            }
            Subject::Request(request) => {
                hash.update(b"\0q");
                hash.update(request.0);
            }
            Subject::Period(number) => {
                hash.update(b"\0p");
                hash.update(number.to_be_bytes());
            }
        }
        NoticeId(first_16(&hash.finalize().into()))
    }

    /// Writes the body of its notice; `created` is a time in RFC 3339.
    ///
    /// # Panics
    /// Never: plain texts and numbers always have a JSON form.
    pub fn body(&self, tenant: &TenantId, created: &str) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            id: String,
            #[serde(rename = "type")]
            kind: &'static str,
            created: &'a str,
            tenant: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            recording: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            revision: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            request: Option<String>,
            #[serde(flatten)]
            facts: &'a Facts,
        }
        let (recording, revision) = match self.subject {
            Subject::Recording(recording, revision) => (Some(recording.to_string()), Some(revision)),
            Subject::Call(_) | Subject::Request(_) | Subject::Period(_) => (None, None),
        };
        let request = match self.subject {
            Subject::Request(request) => Some(request.to_string()),
            Subject::Recording(..) | Subject::Call(_) | Subject::Period(_) => None,
        };
        let body = Body {
            id: self.id(tenant.tag()).to_string(),
            kind: self.kind.name(),
            created,
            tenant: tenant.as_str(),
            recording,
            revision,
            request,
            facts: &self.facts,
        };
        serde_json::to_vec(&body).expect("plain texts and numbers always have a JSON form")
    }
}

/// The signatures of one attempt, as their headers have them: one for each secret, split by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatures {
    /// Of the body: [`BODY_SIGNATURE`].
    pub body: String,
    /// Of `<timestamp>.<body>`: [`TIMED_SIGNATURE`].
    pub timed: String,
}

/// Signs a body with each secret, alone and with the time of the attempt in Unix seconds.
pub fn sign<'a>(secrets: impl Iterator<Item = &'a [u8]>, timestamp: u64, body: &[u8]) -> Signatures {
    let stamp = format!("{timestamp}.");
    let (mut plain, mut timed) = (Vec::new(), Vec::new());
    for secret in secrets {
        plain.push(format!("sha256={}", encode_hex(&hmac_sha256(secret, [body]))));
        timed.push(format!("sha256={}", encode_hex(&hmac_sha256(secret, [stamp.as_bytes(), body]))));
    }
    Signatures { body: plain.join(","), timed: timed.join(",") }
}

/// What a receiver's status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has the notice.
    Delivered,
    /// It does not want this notice, now or later: 410.
    Gone,
    /// It leads elsewhere, where nobody follows.
    Redirect,
    /// It is told again.
    Again,
}

/// Says what a status means.
pub fn judge(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered,
        300..=399 => Verdict::Redirect,
        410 => Verdict::Gone,
        _ => Verdict::Again,
    }
}

/// When a notice is told again, and when that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How long one attempt may take.
    pub attempt: Duration,
    /// The pause after the first attempt. It doubles.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// How long after its first attempt a notice is tried; then it is dead.
    pub give_up: Duration,
}

impl Schedule {
    /// Returns how long after the beginning of attempt `attempt`, counted from 1, the next one is due.
    ///
    /// All nodes come to the same time: what spreads the attempts follows from the id. An attempt is over before the next.
    pub fn wait(&self, id: NoticeId, attempt: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let pause = doubled.min(self.longest);
        let mut hash = Sha256::new();
        hash.update(id.0);
        hash.update(attempt.to_be_bytes());
        let [high, low, ..] = <[u8; 32]>::from(hash.finalize());
        let spread = f64::from(u16::from_be_bytes([high, low])) / f64::from(u16::MAX);
        self.attempt + pause + (pause / 2).mul_f64(spread)
    }

    /// Whether attempt `attempt` is the last: the next one would be due too late.
    pub fn is_last(&self, id: NoticeId, attempt: u32) -> bool {
        let mut until_next = Duration::ZERO;
        (1..=attempt).any(|attempt| {
            until_next += self.wait(id, attempt);
            until_next > self.give_up
        })
    }
}

#[cfg(test)]
mod tests;
