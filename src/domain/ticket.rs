//! Tickets: path segments that make one call's URL, sealed so that nobody else can make or read one.
//!
//! `<kid>.<base64url of a sealed box>` (`docs/FORMAT.md` section 11 has the box). Inside is JSON: an id for single use, the
//! time of its making and of its end, the route, and what is known of the call. A ticket in a URL is a bearer secret.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::cmr::{Salt, SealedBox};
use super::ids::TenantId;
use super::provider::vapi_transport::TransportFormat;
use super::provider::vapi_webhook::SecretUrl;
use super::sign::{decode_base64url, encode_base64url, hmac_sha256};

/// A URL in TwiML may be longer, but nobody documents how much.
pub const MAX_TEXT_BYTES: usize = 1_500;
/// Names and values of the metadata together.
pub const MAX_METADATA_BYTES: usize = 512;
/// Entries of the metadata.
pub const MAX_METADATA: usize = 16;
/// Days for which a recording may be kept.
pub const RETENTION_DAYS: RangeInclusive<u32> = 1..=3650;
/// The URL of a line of Vapi; theirs have about 130 bytes.
pub const MAX_LINE_BYTES: usize = 512;
/// The clock of whoever made a ticket may be ahead by so much, in seconds.
pub const SKEW_SECS: u64 = 30;

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// Version of this record: 1.
    pub v: u8,
    /// 32 hexadecimal digits, random.
    pub id: String,
    /// Unix seconds of its making.
    pub iat: u64,
    /// Unix seconds from which on it is worth nothing.
    pub exp: u64,
    /// The only route that it is for.
    pub route: String,
    /// The provider's call that it is for; any unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// How many days the recording is kept, instead of the tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// The caller has agreed to be recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub consent: bool,
    /// What the recording shall say of itself. Often personal data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Where a call of Vapi's websocket transport goes on to; on routes of that provider only, and there always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vapi: Option<VapiLine>,
}

/// The line of one call of Vapi's websocket transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VapiLine {
    /// Vapi's `websocketCallUrl`: whoever knows it is the caller.
    #[serde(with = "exposed")]
    pub url: SecretUrl,
    /// How samples are written in both directions.
    pub audio: TransportFormat,
}

/// A secret URL as it stands in a ticket, which is sealed.
mod exposed {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::SecretUrl;

    pub(super) fn serialize<S: Serializer>(url: &SecretUrl, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(url.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretUrl, D::Error> {
        Ok(SecretUrl::new(&zeroize::Zeroizing::new(String::deserialize(deserializer)?)))
    }
}

/// Where a ticket was brought.
#[derive(Debug, Clone, Copy)]
pub struct BroughtTo<'t> {
    /// Whose it must be.
    pub tenant: &'t TenantId,
    /// The route that it must be for.
    pub route: &'t str,
    /// The tenant's longest life of a ticket, in seconds.
    pub max_ttl_secs: u64,
}

/// Why a ticket cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketFault {
    /// Too much in it.
    #[error(
        "ticket is too long; allowed: {MAX_METADATA} entries of metadata, {MAX_METADATA_BYTES} bytes together, and \
         {MAX_LINE_BYTES} bytes of Vapi's URL"
    )]
    TooLong,
    /// The cipher refuses.
    #[error("ticket cannot be sealed")]
    Unsealable,
}

/// Why a ticket is not taken. Who brings it is never told which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketRefusal {
    /// Not the form of a ticket, or a key that the tenant does not have.
    #[error("not a ticket")]
    Malformed,
    /// Not sealed by the tenant's key.
    #[error("not sealed by this tenant's key")]
    NotAuthentic,
    /// For another route.
    #[error("of another route")]
    OtherRoute,
    /// Over, or not begun.
    #[error("expired, or not yet valid")]
    Expired,
    /// Sealed by the tenant's key, but it says what no ticket may say.
    #[error("ticket's {0} is outside its bounds")]
    OutOfBounds(&'static str),
}

impl Ticket {
    /// Seals a ticket with one of the tenant's secrets. `salt` must be fresh random bytes.
    ///
    /// # Errors
    /// [`TicketFault`].
    pub fn seal(
        &self,
        tenant: &TenantId,
        kid: &str,
        secret: &[u8],
        salt: &Salt,
    ) -> Result<String, TicketFault> {
        if !self.is_metadata_bounded() || !self.is_line_bounded() {
            return Err(TicketFault::TooLong);
        }
        let text = Zeroizing::new(serde_json::to_vec(self).map_err(|_| TicketFault::Unsealable)?);
        let sealed = SealedBox::TICKET
            .seal(&key(secret), salt, &context(tenant, kid), &text)
            .map_err(|_| TicketFault::Unsealable)?;
        let ticket = format!("{kid}.{}", encode_base64url(&sealed));
        if ticket.len() > MAX_TEXT_BYTES { Err(TicketFault::TooLong) } else { Ok(ticket) }
    }

    /// Opens a ticket that was brought to a route; `secrets` finds the tenant's by name. Takes as long for a ticket of a key
    /// that there is not as for one that is not authentic.
    ///
    /// # Errors
    /// [`TicketRefusal`].
    pub fn open<'s>(
        text: &str,
        place: BroughtTo<'_>,
        secrets: impl FnOnce(&str) -> Option<&'s [u8]>,
        now_secs: u64,
    ) -> Result<Self, TicketRefusal> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TicketRefusal::Malformed);
        }
        let (kid, sealed) = text.split_once('.').ok_or(TicketRefusal::Malformed)?;
        let sealed = decode_base64url(sealed.as_bytes()).ok_or(TicketRefusal::Malformed)?;
        let secret = secrets(kid).unwrap_or(b"no tenant has this key");
        let opened = SealedBox::TICKET
            .open(&key(secret), &context(place.tenant, kid), &sealed)
            .map_err(|_| TicketRefusal::NotAuthentic)?;
        let ticket: Self = serde_json::from_slice(&opened).map_err(|_| TicketRefusal::Malformed)?;
        if ticket.v != 1 {
            return Err(TicketRefusal::Malformed);
        }
        if ticket.route != place.route {
            return Err(TicketRefusal::OtherRoute);
        }
        if now_secs >= ticket.exp || now_secs.saturating_add(SKEW_SECS) < ticket.iat {
            return Err(TicketRefusal::Expired);
        }
        ticket.check_bounds(place.max_ttl_secs)?;
        Ok(ticket)
    }

    /// A tenant's key may be with a program that knows no bounds.
    fn check_bounds(&self, max_ttl_secs: u64) -> Result<(), TicketRefusal> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let rules = [
            ("id", self.id.len() == 32 && self.id.bytes().all(is_hex)),
            ("life", self.exp.saturating_sub(self.iat) <= max_ttl_secs),
            ("retention_days", self.retention_days.is_none_or(|days| RETENTION_DAYS.contains(&days))),
            ("metadata", self.is_metadata_bounded()),
            ("vapi", self.is_line_bounded()),
        ];
        match rules.iter().find(|(_, is_kept)| !is_kept) {
            Some((field, _)) => Err(TicketRefusal::OutOfBounds(field)),
            None => Ok(()),
        }
    }

    fn is_line_bounded(&self) -> bool {
        self.vapi.as_ref().is_none_or(|line| line.url.expose().len() <= MAX_LINE_BYTES)
    }

    fn is_metadata_bounded(&self) -> bool {
        let bytes: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata.len() <= MAX_METADATA && bytes <= MAX_METADATA_BYTES
    }
}

fn key(secret: &[u8]) -> [u8; 32] {
    hmac_sha256(secret, [b"callseal-ticket-v1".as_slice()])
}

fn context(tenant: &TenantId, kid: &str) -> Vec<u8> {
    format!("callseal-ticket-v1\n{kid}\n{tenant}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"a ticket secret of more than 32 bytes, invented";

    fn tenant() -> TenantId {
        "acme-dental".parse().unwrap()
    }

    fn ticket() -> Ticket {
        Ticket {
            v: 1,
            id: "000102030405060708090a0b0c0d0e0f".to_owned(),
            iat: 1_000,
            exp: 1_300,
            route: "agent".to_owned(),
            call: Some("CA1".to_owned()),
            retention_days: Some(30),
            consent: true,
            metadata: BTreeMap::from([("order".to_owned(), "r-20417".to_owned())]),
            vapi: None,
        }
    }

    fn open(text: &str, tenant: &TenantId, route: &str, now: u64) -> Result<Ticket, TicketRefusal> {
        let place = BroughtTo { tenant, route, max_ttl_secs: 600 };
        Ticket::open(text, place, |kid| (kid == "k1").then_some(SECRET), now)
    }

    #[test]
    fn a_ticket_comes_back_and_is_one_text_for_ever() {
        let text = ticket().seal(&tenant(), "k1", SECRET, &[7; 32]).unwrap();
        assert_eq!(open(&text, &tenant(), "agent", 1_100), Ok(ticket()));
        // Tickets that were made by one version are taken by the next.
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/ticket.txt");
        assert_eq!(text, std::fs::read_to_string(path).unwrap().trim_end());
        let plain = Ticket {
            call: None,
            retention_days: None,
            consent: false,
            metadata: BTreeMap::new(),
            ..ticket()
        };
        let text = plain.seal(&tenant(), "k1", SECRET, &[8; 32]).unwrap();
        assert_eq!(open(&text, &tenant(), "agent", 1_100), Ok(plain));
    }

    #[test]
    fn anything_else_is_refused() {
        let text = ticket().seal(&tenant(), "k1", SECRET, &[7; 32]).unwrap();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(open(&changed, &tenant(), "agent", 1_100).is_err(), "character {at}");
            assert!(open(&text[..at], &tenant(), "agent", 1_100).is_err(), "cut at {at}");
        }
        let refused =
            |tenant: &str, route: &str, now| open(&text, &tenant.parse().unwrap(), route, now).unwrap_err();
        assert_eq!(refused("acme", "agent", 1_100), TicketRefusal::NotAuthentic);
        assert_eq!(refused("acme-dental", "default", 1_100), TicketRefusal::OtherRoute);
        assert_eq!(refused("acme-dental", "agent", 1_300), TicketRefusal::Expired);
        assert_eq!(refused("acme-dental", "agent", 969), TicketRefusal::Expired);
        assert!(open(&text, &tenant(), "agent", 970).is_ok());
        let renamed = text.replacen("k1.", "k2.", 1);
        assert_eq!(open(&renamed, &tenant(), "agent", 1_100), Err(TicketRefusal::NotAuthentic));
        let long = format!("k1.{}", "A".repeat(MAX_TEXT_BYTES));
        assert_eq!(open(&long, &tenant(), "agent", 1_100), Err(TicketRefusal::Malformed));
    }

    #[test]
    fn what_is_outside_its_bounds_is_refused_although_it_is_sealed() {
        let id = |id: &str| Ticket { id: id.to_owned(), ..ticket() };
        let days = |days| Ticket { retention_days: Some(days), ..ticket() };
        let outside = [
            ("id", id("")),
            ("id", id("../../r/0102030405060708090a0b0c")),
            ("id", id("000102030405060708090A0B0C0D0E0F")),
            ("life", Ticket { exp: 1_601, ..ticket() }),
            ("retention_days", days(0)),
            ("retention_days", days(3_651)),
            (
                "metadata",
                Ticket { metadata: BTreeMap::from([("x".to_owned(), "y".repeat(512))]), ..ticket() },
            ),
        ];
        for (field, outside) in outside {
            // As a program seals it that does not look.
            let text = serde_json::to_vec(&outside).unwrap();
            let sealed = SealedBox::TICKET.seal(&key(SECRET), &[7; 32], &context(&tenant(), "k1"), &text);
            let text = format!("k1.{}", encode_base64url(&sealed.unwrap()));
            let refused = open(&text, &tenant(), "agent", 1_100);
            assert_eq!(refused, Err(TicketRefusal::OutOfBounds(field)), "{outside:?}");
        }
        let longest = Ticket { exp: 1_600, retention_days: Some(3_650), ..ticket() };
        let text = longest.seal(&tenant(), "k1", SECRET, &[7; 32]).unwrap();
        assert_eq!(open(&text, &tenant(), "agent", 1_100), Ok(longest));
    }

    #[test]
    fn a_line_of_vapi_comes_back_and_is_shown_nowhere() {
        let line = |url: &str| VapiLine { url: SecretUrl::new(url), audio: "mulaw:8000".parse().unwrap() };
        let url = "wss://api.vapi.ai/01a024d9-bef8-7b44-9a10-6f2c8e51b7d0/transport";
        let with_line = Ticket { vapi: Some(line(url)), ..ticket() };
        assert!(!format!("{with_line:?}").contains("vapi.ai"));
        let text = with_line.seal(&tenant(), "k1", SECRET, &[7; 32]).unwrap();
        assert_eq!(open(&text, &tenant(), "agent", 1_100), Ok(with_line));
        let long = Ticket { vapi: Some(line(&"x".repeat(MAX_LINE_BYTES + 1))), ..ticket() };
        assert_eq!(long.seal(&tenant(), "k1", SECRET, &[7; 32]), Err(TicketFault::TooLong));
        assert!(
            !serde_json::to_string(&ticket()).unwrap().contains("vapi"),
            "older nodes read tickets without one"
        );
    }

    #[test]
    fn metadata_is_bounded() {
        let many = (0..17).map(|number| (number.to_string(), String::new())).collect();
        let long = BTreeMap::from([("x".to_owned(), "y".repeat(512))]);
        for metadata in [many, long] {
            let ticket = Ticket { metadata, ..ticket() };
            assert_eq!(ticket.seal(&tenant(), "k1", SECRET, &[7; 32]), Err(TicketFault::TooLong));
        }
    }
}
