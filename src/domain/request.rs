//! Requests of people about what is kept of them: what they ask for, by when it must be done, and what became of it.
//!
//! A request is a series of revisions, each created once and the highest counting, so that two people who decide at the
//! same moment cannot both have decided. It holds somebody's number, and so is never written anywhere but sealed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::RequestId;
use super::index::{InvalidTerm, Term};
use super::time::UnixMillis;

/// The longest text of somebody on whose behalf a request comes.
pub const MAX_BEHALF_BYTES: usize = 256;
/// Recordings that an outcome lists as exceptions; more are counted only.
const MAX_EXCEPTIONS: usize = 200;

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// To be told what is kept.
    Access,
    /// That it be deleted.
    Delete,
    /// To be given it in a form that others can use.
    Port,
    /// That nobody use it, and nothing be deleted.
    Restrict,
}

impl RequestKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Access, Self::Delete, Self::Port, Self::Restrict];

    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Delete => "delete",
            Self::Port => "port",
            Self::Restrict => "restrict",
        }
    }
}

/// A text that names no kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: access, delete, port, restrict")]
pub struct NoKind;

impl FromStr for RequestKind {
    type Err = NoKind;

    fn from_str(text: &str) -> Result<Self, NoKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(NoKind)
    }
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestState {
    /// To be dealt with.
    Open,
    /// Done as asked for. A restriction is in force.
    Fulfilled,
    /// Not done, and the person was told why.
    Refused,
    /// A restriction that is in force no more.
    Lifted,
}

impl RequestState {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Fulfilled => "fulfilled",
            Self::Refused => "refused",
            Self::Lifted => "lifted",
        }
    }
}

/// What somebody has done about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deed {
    /// Written it down.
    Opened,
    /// Begun, and not come to an end yet.
    Tried,
    /// Done what was asked for.
    Fulfilled,
    /// Declined.
    Refused,
    /// Ended a restriction.
    Lifted,
}

impl Deed {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Tried => "tried",
            Self::Fulfilled => "fulfilled",
            Self::Refused => "refused",
            Self::Lifted => "lifted",
        }
    }
}

/// One step of a request: who did what about it, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub deed: Deed,
    /// When: Unix milliseconds by the store's clock.
    pub at_ms: u64,
    /// Who.
    pub actor: String,
    /// Why, in their words.
    pub reason: String,
    /// What came of it: counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Recordings that a deletion had to leave, because they are held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<String>,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Version of this record: 1.
    v: u8,
    /// What is asked for.
    pub kind: RequestKind,
    /// How far it has come.
    pub state: RequestState,
    /// Whom it is about, as the blind index writes it.
    party: String,
    /// When it came in: Unix milliseconds.
    pub received_ms: u64,
    /// By when it must be dealt with: Unix milliseconds.
    pub due_ms: u64,
    /// On whose behalf somebody else asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<String>,
    /// What was done about it, oldest first.
    pub steps: Vec<Step>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({}, {})", self.kind.name(), self.state.name())
    }
}

/// Why something cannot be done about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepRefused {
    /// It was dealt with.
    #[error("request is {} already", .0.name())]
    Settled(RequestState),
    /// It is no restriction in force.
    #[error("only a restriction that is in force can be lifted; this is a request to {}, {}", .0.name(), .1.name())]
    NotInForce(RequestKind, RequestState),
}

impl StepRefused {
    /// Returns a stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Settled(_) => "settled",
            Self::NotInForce(..) => "not_in_force",
        }
    }
}

impl Request {
    /// Writes down a request.
    pub fn new(
        kind: RequestKind,
        party: &Term,
        (received, due): (UnixMillis, UnixMillis),
        on_behalf_of: Option<String>,
        opened: Step,
    ) -> Self {
        Self {
            v: 1,
            kind,
            state: RequestState::Open,
            party: party.expose().to_owned(),
            received_ms: received.0,
            due_ms: due.0,
            on_behalf_of,
            steps: vec![opened],
        }
    }

    /// Returns whom it is about.
    ///
    /// # Errors
    /// [`InvalidTerm`] for what was never written by [`Request::new`].
    pub fn party(&self) -> Result<Term, InvalidTerm> {
        Term::party(&self.party)
    }

    /// Returns the number or address itself, to be shown to whoever deals with the request.
    pub fn expose_party(&self) -> &str {
        &self.party
    }

    /// Whether it is of a version that this program knows.
    pub fn is_known(&self) -> bool {
        self.v == 1
    }

    /// Whether it is a restriction that is in force.
    pub fn restricts(&self) -> bool {
        self.kind == RequestKind::Restrict && self.state == RequestState::Fulfilled
    }

    /// Returns the request after a step.
    ///
    /// # Errors
    /// [`StepRefused`].
    pub fn after(&self, mut step: Step) -> Result<Self, StepRefused> {
        let state = match (step.deed, self.state) {
            (Deed::Lifted, _) if self.restricts() => RequestState::Lifted,
            (Deed::Lifted, state) => return Err(StepRefused::NotInForce(self.kind, state)),
            (Deed::Opened | Deed::Tried, RequestState::Open) => RequestState::Open,
            (Deed::Fulfilled, RequestState::Open) => RequestState::Fulfilled,
            (Deed::Refused, RequestState::Open) => RequestState::Refused,
            (_, settled) => return Err(StepRefused::Settled(settled)),
        };
        step.exceptions.truncate(MAX_EXCEPTIONS);
        let mut next = Self { state, ..self.clone() };
        // However often somebody tries, the last time is enough.
        if next.steps.last().is_some_and(|last| last.deed == Deed::Tried) && step.deed == Deed::Tried {
            next.steps.pop();
        }
        next.steps.push(step);
        Ok(next)
    }
}

impl RequestId {
    /// Makes an id that sorts by time: a UUID version 7, as recordings have.
    pub fn new(unix_ms: u64, random: &[u8; 10]) -> Self {
        Self(super::ids::RecordingId::new(unix_ms, random).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(deed: Deed) -> Step {
        Step {
            deed,
            at_ms: 5,
            actor: "jane".to_owned(),
            reason: "a letter".to_owned(),
            detail: None,
            exceptions: Vec::new(),
        }
    }

    fn request(kind: RequestKind) -> Request {
        let party = Term::party("+49 30 901820017").unwrap();
        Request::new(kind, &party, (UnixMillis(1), UnixMillis(9)), None, step(Deed::Opened))
    }

    #[test]
    fn a_request_is_dealt_with_once() {
        for kind in RequestKind::ALL {
            let open = request(kind);
            for deed in [Deed::Fulfilled, Deed::Refused] {
                let settled = open.after(step(deed)).unwrap();
                assert_eq!(settled.steps.len(), 2);
                for again in [Deed::Fulfilled, Deed::Refused, Deed::Tried, Deed::Opened] {
                    assert_eq!(settled.after(step(again)), Err(StepRefused::Settled(settled.state)));
                }
                assert_eq!(settled.after(step(Deed::Lifted)).is_ok(), settled.restricts());
            }
            assert!(open.after(step(Deed::Lifted)).is_err(), "nothing is in force yet");
        }
        let lifted = request(RequestKind::Restrict).after(step(Deed::Fulfilled)).unwrap();
        let lifted = lifted.after(step(Deed::Lifted)).unwrap();
        assert_eq!((lifted.state, lifted.restricts()), (RequestState::Lifted, false));
        assert!(lifted.after(step(Deed::Lifted)).is_err(), "once");
    }

    #[test]
    fn tries_do_not_add_up_and_exceptions_are_bounded() {
        let mut tried = request(RequestKind::Delete);
        for _ in 0..10 {
            tried = tried.after(step(Deed::Tried)).unwrap();
        }
        assert_eq!((tried.state, tried.steps.len()), (RequestState::Open, 2));
        let exceptions = vec![String::new(); 1_000];
        let done = tried.after(Step { exceptions, ..step(Deed::Fulfilled) }).unwrap();
        assert_eq!(done.steps.last().unwrap().exceptions.len(), MAX_EXCEPTIONS);
    }

    #[test]
    fn it_is_written_and_read_and_never_shows_the_number() {
        let written = request(RequestKind::Port);
        let json = serde_json::to_vec(&written).unwrap();
        let read: Request = serde_json::from_slice(&json).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.party(), Term::party("+4930901820017"));
        assert!(!format!("{read:?}").contains("901820017"));
        for kind in RequestKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("forget".parse::<RequestKind>(), Err(NoKind));
    }
}
