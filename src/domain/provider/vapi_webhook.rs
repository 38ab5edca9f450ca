//! Vapi's server messages: the few facts that a recorder needs, out of bodies that hold whole conversations.
//!
//! Everything else of a body is skipped while it is read and never copied. A field that is missing, null or of another kind
//! counts as absent: Vapi's schema leaves nearly all of them optional, and real bodies differ. Source: Vapi's pages "Server
//! events" and "Call features"; `message.call.status` is that of the call's creation and is not looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::vapi::TextKind;

/// The largest body that is read. A report of a long call has transcripts in several forms; Vapi names no limit.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The longest text that is kept of a body; numbers, ids and reasons are far shorter.
const MAX_FACT_BYTES: usize = 256;
/// The longest URL that is kept.
const MAX_URL_BYTES: usize = 1024;

/// Vapi's id of a call: a UUID of any version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(String);

impl CallId {
    /// Returns the id in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Not 36 hexadecimal digits and hyphens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("call id must be 36 hexadecimal digits and hyphens")]
pub struct InvalidCallId;

impl FromStr for CallId {
    type Err = InvalidCallId;

    fn from_str(text: &str) -> Result<Self, InvalidCallId> {
        let is_id = text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if is_id { Ok(Self(text.to_ascii_lowercase())) } else { Err(InvalidCallId) }
    }
}

/// A URL by which anybody can hear a call. `Debug` does not show it; it is erased when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Zeroizing<String>);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// Returns the URL, to be checked and dialled.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(***)")
    }
}

/// What is kept of a call, by names of our own. Often personal data: it is sealed and never logged.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CallFacts(pub BTreeMap<&'static str, String>);

impl fmt::Debug for CallFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One server message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Webhook {
    /// The call runs.
    InProgress(Box<InProgress>),
    /// The call is over.
    Ended(CallId, CallFacts),
    /// All that Vapi knows of a call that is over.
    Report(CallId, CallFacts),
    /// Anything else; its type is all that may be shown.
    Other(Option<TextKind>),
}

/// A call that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InProgress {
    /// Which.
    pub call: CallId,
    /// The organisation that it belongs to, where the message says so.
    pub org: Option<String>,
    /// Where it can be heard; `None` where the assistant does not allow that.
    pub listen_url: Option<SecretUrl>,
    /// When Vapi wrote the message, in Unix milliseconds.
    pub sent_ms: Option<u64>,
    /// What is known of it.
    pub facts: CallFacts,
}

/// A body that is not a server message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadWebhook {
    /// Not JSON, or not an object with an object `message`.
    #[error("not a server message")]
    NotAMessage,
    /// A message about a call without a usable id.
    #[error("message has no call id")]
    NoCall,
}

impl Webhook {
    /// Reads one body.
    ///
    /// # Errors
    /// [`BadWebhook`].
    pub fn parse(body: &[u8]) -> Result<Self, BadWebhook> {
        let Lenient(body) =
            serde_json::from_slice::<Lenient<Body>>(body).map_err(|_| BadWebhook::NotAMessage)?;
        let message = body.message.0;
        let kind = message.kind.0.as_deref().map(|kind| kind.trim());
        let status = message.status.0.as_deref().map(|status| status.trim());
        let call = || {
            let id = message.call.0.id.0.as_deref().and_then(|id| id.parse::<CallId>().ok());
            id.ok_or(BadWebhook::NoCall)
        };
        match (kind, status) {
            (None, _) => Err(BadWebhook::NotAMessage),
            (Some("status-update"), Some("in-progress")) => {
                Ok(Self::InProgress(Box::new(message.in_progress(call()?))))
            }
            (Some("status-update"), Some("ended")) => Ok(Self::Ended(call()?, message.facts())),
            (Some("end-of-call-report"), _) => Ok(Self::Report(call()?, message.facts())),
            (Some(kind), _) => Ok(Self::Other(TextKind::new(kind))),
        }
    }
}

impl Message {
    fn in_progress(&self, call: CallId) -> InProgress {
        let url = self.call.0.monitor.0.listen_url.0.as_deref();
        InProgress {
            call,
            org: self.call.0.org.0.clone(),
            listen_url: url.filter(|url| url.len() <= MAX_URL_BYTES).map(SecretUrl::new),
            sent_ms: self.timestamp.0,
            facts: self.facts(),
        }
    }

    fn facts(&self) -> CallFacts {
        let call = &self.call.0;
        let other = [&self.customer.0, &call.customer.0];
        let number = other.iter().find_map(|party| party.number.0.as_ref().or(party.sip_uri.0.as_ref()));
        let known = [
            ("org", call.org.0.as_ref()),
            ("assistant", call.assistant.0.as_ref().or(self.assistant.0.id.0.as_ref())),
            ("squad", call.squad.0.as_ref()),
            ("call_type", call.kind.0.as_ref()),
            ("phone_provider", call.phone_provider.0.as_ref()),
            ("phone_call", call.phone_call.0.as_ref()),
            ("customer_number", number),
            ("own_number", self.phone_number.0.number.0.as_ref()),
            ("ended_reason", self.ended_reason.0.as_ref()),
            ("started_at", self.started_at.0.as_ref()),
            ("ended_at", self.ended_at.0.as_ref()),
            ("consent_granted_at", self.compliance.0.consent.0.granted_at.0.as_ref()),
        ];
        let is_kept = |text: &&String| (1..=MAX_FACT_BYTES).contains(&text.len());
        CallFacts(
            known
                .into_iter()
                .filter_map(|(name, text)| Some((name, text.filter(is_kept)?.clone())))
                .collect(),
        )
    }
}

/// An object, or the default of it where something else stands.
#[derive(Default)]
struct Lenient<T>(T);

/// A text, or nothing where something else stands.
#[derive(Default)]
struct Text(Option<String>);

/// A whole number from 0 up, or nothing where something else stands.
#[derive(Default)]
struct Whole(Option<u64>);

/// Declares an object of which some fields are read; all others are skipped.
macro_rules! object {
    ($name:ident { $($field:ident $key:literal: $kind:ty,)* }) => {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct $name {
            $(#[serde(rename = $key)] $field: $kind,)*
        }
    };
}

object!(Body { message "message": Lenient<Message>, });
object!(Message {
    kind "type": Text,
    status "status": Text,
    timestamp "timestamp": Whole,
    call "call": Lenient<Call>,
    customer "customer": Lenient<Party>,
    phone_number "phoneNumber": Lenient<Party>,
    assistant "assistant": Lenient<Assistant>,
    ended_reason "endedReason": Text,
    started_at "startedAt": Text,
    ended_at "endedAt": Text,
    compliance "compliance": Lenient<Compliance>,
});
object!(Call {
    id "id": Text,
    org "orgId": Text,
    kind "type": Text,
    monitor "monitor": Lenient<Monitor>,
    assistant "assistantId": Text,
    squad "squadId": Text,
    phone_provider "phoneCallProvider": Text,
    phone_call "phoneCallProviderId": Text,
    customer "customer": Lenient<Party>,
});
object!(Monitor { listen_url "listenUrl": Text, });
object!(Party { number "number": Text, sip_uri "sipUri": Text, });
object!(Assistant { id "id": Text, });
object!(Compliance { consent "recordingConsent": Lenient<Consent>, });
object!(Consent { granted_at "grantedAt": Text, });

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Object<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
                skip_seq(seq).map(|()| T::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_unit<E>(self) -> Result<T, E> {
                Ok(T::default())
            }
        }

        deserializer.deserialize_any(Object(PhantomData)).map(Self)
    }
}

/// A value of which only a text or a number is wanted.
enum Scalar {
    Text(String),
    Whole(u64),
    Other,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                // The longest text that anybody asks for is a URL.
                let is_kept = text.len() <= MAX_URL_BYTES;
                Ok(if is_kept { Scalar::Text(text.to_owned()) } else { Scalar::Other })
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar::Whole(number))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
                let is_whole = number.fract() == 0.0 && (0.0..=9e15).contains(&number);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "whole, 0 to 9e15"
                )]
                let whole = number as u64;
                Ok(if is_whole { Scalar::Whole(whole) } else { Scalar::Other })
            }

            fn visit_i64<E>(self, _: i64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Scalar, A::Error> {
                skip_seq(seq).map(|()| Scalar::Other)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => Some(text),
            Scalar::Whole(_) | Scalar::Other => None,
        }))
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Scalar::deserialize(deserializer)? {
            Scalar::Whole(number) => Some(number),
            Scalar::Text(_) | Scalar::Other => None,
        }))
    }
}

fn skip_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests;
