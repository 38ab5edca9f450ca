//! Why a key is not to be had, sorted by what can be done about it.

use crate::locked::NoRoom;
use crate::store::StoreError;

/// Why a key is not to be had. What a key service said is the source, made fit for a log; it never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The tenant has no KEK of that name and version.
    #[error("no key-encryption key for this tenant")]
    NoKek,
    /// The envelope names a KEK that is neither the tenant's present one nor a former one of its configuration.
    #[error("key envelope is under a key-encryption key that is not this tenant's")]
    ForeignKek,
    /// The recording has no envelope: unknown, or its key was destroyed.
    #[error("recording has no key envelope")]
    NoEnvelope,
    /// An envelope that is not one, or that does not open to the key it names.
    #[error("key envelope does not open: {0}")]
    BadEnvelope(&'static str),
    /// This node only records. Another one can open it.
    #[error("this node cannot open recordings: keys.role is \"ingest\"")]
    WriteOnly,
    /// The key service refuses the KEK: no right to it, disabled, about to be deleted, gone. Its owner can change that.
    #[error("key service refuses the key-encryption key: {why}")]
    Denied {
        /// Why, in our words.
        why: &'static str,
        /// What it said.
        #[source]
        source: Said,
    },
    /// The key service does not know us: wrong or expired credentials. The operator can change that.
    #[error("key service does not accept our login")]
    BadLogin(#[source] Said),
    /// The key service is asked too often.
    #[error("key service is asked too often")]
    Throttled(#[source] Said),
    /// The key service cannot be reached, or is ill.
    #[error("key service is not available")]
    Unavailable(#[source] Said),
    /// It took too long.
    #[error("key service did not answer in time")]
    TimedOut,
    /// No key could be made a moment ago; a task of its own tries on, so that callers need not wait for the same failure.
    #[error("no key could be made a moment ago: {0}")]
    StillFailing(&'static str),
    /// The system has no random bytes.
    #[error("no random bytes")]
    Entropy,
    /// The key would not lie in locked memory, and the configuration requires that.
    #[error(transparent)]
    NotLocked(#[from] NoRoom),
    /// The store does not take or give the envelope.
    #[error("store of key envelopes")]
    Store(#[from] StoreError),
}

impl KeyError {
    /// Returns the word for it in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoKek => "no_kek",
            Self::ForeignKek => "foreign_kek",
            Self::NoEnvelope => "no_envelope",
            Self::BadEnvelope(_) => "bad_envelope",
            Self::WriteOnly => "write_only",
            Self::Denied { .. } => "denied",
            Self::BadLogin(_) => "bad_login",
            Self::Throttled(_) => "throttled",
            Self::Unavailable(_) => "unavailable",
            Self::TimedOut => "timed_out",
            Self::StillFailing(_) => "still_failing",
            Self::Entropy => "entropy",
            Self::NotLocked(_) => "not_locked",
            Self::Store(_) => "store",
        }
    }

    /// Whether the KEK itself is the reason: missing, another's, or refused by its service.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NoKek | Self::ForeignKek | Self::Denied { .. })
    }

    /// Whether trying again may help, without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled(_)
            | Self::Unavailable(_)
            | Self::TimedOut
            | Self::StillFailing(_)
            | Self::NotLocked(_) => true,
            Self::Store(error) => error.is_retryable(),
            Self::NoKek
            | Self::ForeignKek
            | Self::NoEnvelope
            | Self::BadEnvelope(_)
            | Self::WriteOnly
            | Self::Denied { .. }
            | Self::BadLogin(_)
            | Self::Entropy => false,
        }
    }
}

/// The longest text of a key service that is kept: a code, a hint and a request id.
const MAX_SAID: usize = 160;

/// What a key service said, on one line of printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Said(String);

impl Said {
    /// Shortens a text and leaves out what could break a log.
    pub fn new(text: &str) -> Self {
        Self(text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_SAID).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_said_stays_on_one_short_line() {
        assert_eq!(Said::new("a\nb\u{1b}[31m é c").to_string(), "ab[31m  c");
        assert_eq!(Said::new(&"x".repeat(10_000)).to_string().len(), MAX_SAID);
    }
}
