//! By what a recording can be looked for, without anybody reading it in the store: the calls it belongs to, and the
//! parties to them.
//!
//! A *term* is a call id or a telephone number in one spelling; its *blind id* is an HMAC of it under the index key of the
//! tenant (`docs/FORMAT.md` section 11.8). Whoever reads the store sees that two recordings have a term in common, and
//! neither which one nor whether another tenant has it, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::ids::{BlindId, RecordingId, first_16};
use super::recording::RecordingMetadata;
use super::sign::hmac_sha256;

/// The id under which the envelope of a tenant's index key lies. No recording has it: its version is 6, not 7.
pub const INDEX_KEY_ID: RecordingId = RecordingId(*b"callseal-index-1");

/// Terms of one recording: two parties and two calls, and room for what else a tenant names. Each costs two objects.
pub const MAX_TERMS: usize = 16;
/// The longest call id; those of Twilio and Vapi have up to 36 characters.
const MAX_CALL_BYTES: usize = 256;
/// The longest text that may be a party: a SIP address.
const MAX_PARTY_BYTES: usize = 256;
/// Digits of a number with its country's code: the shortest that are in use, and the most that E.164 allows.
const NUMBER_DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
/// What people write between digits.
const SEPARATORS: &str = " -./()";

/// Names under which the other side's id of a call is known, beside the provider's own.
const CALL_KEYS: [&str; 1] = ["phonecall"];
/// Names under which parties are known, unless the configuration has others.
const PARTY_KEYS: [&str; 13] = [
    "from",
    "to",
    "caller",
    "called",
    "callee",
    "customer",
    "from_number",
    "to_number",
    "caller_number",
    "called_number",
    "customer_number",
    "own_number",
    "phone_number",
];
/// The longest name of a party.
const MAX_KEY_BYTES: usize = 64;

/// What a term is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IndexKind {
    /// A provider's id of a call.
    Call,
    /// Somebody who was on the line.
    Party,
}

impl IndexKind {
    /// Returns the word for it, as object names have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Party => "party",
        }
    }

    /// Reads the word.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Call, Self::Party].into_iter().find(|kind| kind.name() == name)
    }

    /// Keeps the blind ids of one kind apart from those of the other, even of the same text.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Call => b"callseal index call\0",
            Self::Party => b"callseal index party\0",
        }
    }
}

/// What recordings are looked for by, in the one spelling that counts. Personal data: `Debug` shows its kind only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    kind: IndexKind,
    text: String,
}

/// Why a text is nothing to look for. Never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTerm {
    /// Not an id of a call.
    #[error("call id must be 1 to {MAX_CALL_BYTES} visible ASCII characters without spaces")]
    Call,
    /// Not a number or address.
    #[error(
        "party must be a number in international form, '+' and 7 to 15 digits such as +493012345678, or a SIP address \
         such as sip:name@example.com"
    )]
    Party,
}

impl Term {
    /// Reads a provider's id of a call; white space around it does not count, everything else does.
    ///
    /// # Errors
    /// [`InvalidTerm::Call`].
    pub fn call(text: &str) -> Result<Self, InvalidTerm> {
        let text = text.trim();
        let is_id = (1..=MAX_CALL_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        is_id.then(|| Self { kind: IndexKind::Call, text: text.to_owned() }).ok_or(InvalidTerm::Call)
    }

    /// Reads a telephone number in international form, however its digits are grouped, or a SIP address.
    ///
    /// # Errors
    /// [`InvalidTerm::Party`]; also for numbers without their country's code, which say different things in different places.
    pub fn party(text: &str) -> Result<Self, InvalidTerm> {
        let text = normal_party(text).ok_or(InvalidTerm::Party)?;
        Ok(Self { kind: IndexKind::Party, text })
    }

    /// Returns what it is.
    pub fn kind(&self) -> IndexKind {
        self.kind
    }

    /// Returns its text. It is personal: only what is sealed may hold it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Makes it blind under the index key of a tenant.
    pub fn blind(&self, key: &[u8]) -> IndexEntry {
        let mac = hmac_sha256(key, [self.kind.label(), self.text.as_bytes()]);
        IndexEntry { kind: self.kind, blind: BlindId(first_16(&mac)) }
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Term({})", self.kind.name())
    }
}

/// What the store sees of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexEntry {
    /// What the term is.
    pub kind: IndexKind,
    /// The term, blind.
    pub blind: BlindId,
}

/// The names under which a call's metadata holds parties. Case, `_`, `-` and spaces do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartyKeys(BTreeSet<String>);

/// A name under which metadata may hold a party.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartyKey(String);

/// Why a text is no such name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "allowed: names of 1 to {MAX_KEY_BYTES} characters of A-Z, a-z, 0-9, '_', '-' and ' ', such as \"from\""
)]
pub struct InvalidPartyKey;

impl FromStr for PartyKey {
    type Err = InvalidPartyKey;

    fn from_str(text: &str) -> Result<Self, InvalidPartyKey> {
        let is_name = text.len() <= MAX_KEY_BYTES
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_- ".contains(&b));
        let normal = normal_key(text);
        if is_name && !normal.is_empty() { Ok(Self(normal)) } else { Err(InvalidPartyKey) }
    }
}

impl Default for PartyKeys {
    fn default() -> Self {
        Self(PARTY_KEYS.into_iter().map(normal_key).collect())
    }
}

impl FromIterator<PartyKey> for PartyKeys {
    fn from_iter<I: IntoIterator<Item = PartyKey>>(keys: I) -> Self {
        Self(keys.into_iter().map(|PartyKey(key)| key).collect())
    }
}

impl PartyKeys {
    /// Returns the term that one text of a call's metadata is; most are none.
    pub fn term(&self, name: &str, text: &str) -> Option<Term> {
        let name = normal_key(name);
        if CALL_KEYS.contains(&name.as_str()) {
            return Term::call(text).ok();
        }
        if self.0.contains(&name) { Term::party(text).ok() } else { None }
    }

    /// Returns the terms of a recording: those of what was known when it began and of what was learned while it ran.
    pub fn terms(&self, metadata: &RecordingMetadata, notes: &BTreeMap<String, String>) -> Terms {
        let mut terms = Terms::default();
        terms.extend(Term::call(&metadata.call));
        let texts = metadata.parameters.iter().chain(&metadata.ticket).chain(notes);
        terms.extend(texts.filter_map(|(name, text)| self.term(name, text)));
        terms
    }
}

/// The terms of one recording: at most [`MAX_TERMS`], each once; later ones have no place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms(Vec<Term>);

impl Terms {
    /// Goes through them.
    pub fn iter(&self) -> impl Iterator<Item = &Term> {
        self.0.iter()
    }
}

impl Extend<Term> for Terms {
    fn extend<I: IntoIterator<Item = Term>>(&mut self, terms: I) {
        for term in terms {
            if self.0.len() < MAX_TERMS && !self.0.contains(&term) {
                self.0.push(term);
            }
        }
    }
}

fn normal_key(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).map(|c| c.to_ascii_lowercase()).collect()
}

fn normal_party(text: &str) -> Option<String> {
    let text = text.trim();
    if text.len() > MAX_PARTY_BYTES || !text.is_ascii() {
        return None;
    }
    match text.split_once(':') {
        None => normal_number(text),
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "tel" => normal_number(before(rest, ";")),
            "sip" | "sips" => normal_sip(rest),
            _ => None,
        },
    }
}

/// Reads a number in international form; `(0)`, which is not dialled from abroad, does not count.
fn normal_number(text: &str) -> Option<String> {
    let rest = text.trim().strip_prefix('+')?.replace("(0)", "");
    let digits: String = rest.chars().filter(|c| !SEPARATORS.contains(*c)).collect();
    let is_number = NUMBER_DIGITS.contains(&digits.len())
        && !digits.starts_with('0')
        && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| format!("+{digits}"))
}

/// Reads what follows `sip:`. A number at a carrier's host is that number.
fn normal_sip(text: &str) -> Option<String> {
    let (user, host) = before(text, "?").split_once('@')?;
    // Passwords and parameters of the user part, ports and parameters of the host.
    let (user, host) = (before(user, ":;"), before(host, ":;"));
    if let Some(number) = normal_number(user) {
        return Some(number);
    }
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && b != b'@');
    (is_part(user) && is_part(host)).then(|| format!("sip:{user}@{}", host.to_ascii_lowercase()))
}

fn before<'t>(text: &'t str, ends: &str) -> &'t str {
    text.split(|c| ends.contains(c)).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn party(text: &str) -> Option<String> {
        Term::party(text).ok().map(|term| term.text)
    }

    #[test]
    fn one_number_has_one_spelling() {
        for spelling in [
            "+493012345678",
            " +49 30 12345678 ",
            "+49 (0)30 / 123-456-78",
            "+49.30.1234.5678",
            "tel:+49-30-12345678;phone-context=example.com",
            "TEL:+493012345678",
            "sip:+493012345678@carrier.example;user=phone",
            "sips:+49-30-12345678;x=1@Carrier.Example:5061?subject=a",
        ] {
            assert_eq!(party(spelling).as_deref(), Some("+493012345678"), "{spelling}");
        }
    }

    #[test]
    fn what_is_no_number_is_no_party() {
        for bad in [
            "",
            "+",
            "030 12345678",
            "0049301234567",
            "493012345678",
            "+0493012345678",
            "+49",
            "+123456",
            "+1234567890123456",
            "+49301234567a",
            "+49301234567８",
            "anonymous",
            "client:alice",
            "sip:example.com",
            "sip:@example.com",
            "sip:a b@example.com",
            "sip:alice@",
            "sip:a@b@c",
            "+4930\n1234567",
            "+4930\u{0}1234567",
        ] {
            assert_eq!(party(bad), None, "{bad:?}");
        }
        assert_eq!(party(&format!("+{}", "1 ".repeat(200))), None);
        let error = Term::party("+1 secret").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("+493012345678"), "{error}");
    }

    #[test]
    fn sip_addresses_are_parties() {
        assert_eq!(
            party("sip:Alice@Example.COM:5060;transport=tls").as_deref(),
            Some("sip:Alice@example.com")
        );
        assert_eq!(party("SIP:Alice:secret@example.com").as_deref(), Some("sip:Alice@example.com"));
    }

    #[test]
    fn call_ids_keep_their_case() {
        assert_eq!(Term::call(" CAab ").unwrap().text, "CAab");
        for bad in ["", " ", "a b", "a\n", "é", &"a".repeat(257)].map(|text| format!("{text}\u{1}")) {
            assert_eq!(Term::call(&bad), Err(InvalidTerm::Call), "{bad:?}");
        }
        assert_eq!(Term::call(""), Err(InvalidTerm::Call));
        assert!(Term::call(&"a".repeat(256)).is_ok() && Term::call(&"a".repeat(257)).is_err());
    }

    #[test]
    fn kinds_keys_and_texts_have_blind_ids_of_their_own() {
        let term = |kind| Term { kind, text: "+493012345678".to_owned() };
        let (call, party) = (term(IndexKind::Call), term(IndexKind::Party));
        let ids = [call.blind(&[1; 32]), party.blind(&[1; 32]), party.blind(&[2; 32])];
        let other = Term::party("+493012345679").unwrap().blind(&[1; 32]);
        let all: BTreeSet<_> = ids.iter().chain([&other]).map(|entry| entry.blind).collect();
        assert_eq!(all.len(), 4);
        // That of docs/FORMAT.md.
        let key: Vec<u8> = (0..32).collect();
        assert_eq!(party.blind(&key).blind.to_string(), PUBLISHED_PARTY);
        assert_eq!(Term::call("CA0123").unwrap().blind(&key).blind.to_string(), PUBLISHED_CALL);
    }

    const PUBLISHED_PARTY: &str = "e02d420929afe11e1f9ebd8a5ef85559";
    const PUBLISHED_CALL: &str = "0fff17d20f0c1bffff7393a685aaa57c";

    #[test]
    fn nothing_shows_a_term() {
        assert_eq!(format!("{:?}", Term::party("+493012345678")), "Ok(Term(party))");
    }

    #[test]
    fn parties_are_found_by_the_names_that_the_configuration_has() {
        let keys = PartyKeys::default();
        for name in ["from", "From", "customer_number", "customerNumber", "Caller-Number"] {
            assert_eq!(keys.term(name, "+493012345678"), Term::party("+493012345678").ok(), "{name}");
        }
        assert_eq!(keys.term("from", "alice"), None);
        assert_eq!(keys.term("order", "+493012345678"), None);
        assert_eq!(keys.term("phone_call", "CA1"), Term::call("CA1").ok());
        let own: PartyKeys = ["Patient No"].iter().map(|name| name.parse().unwrap()).collect();
        assert!(
            own.term("patient_no", "+493012345678").is_some() && own.term("from", "+493012345678").is_none()
        );
        for bad in ["", "__", "é", "a.b", &"a".repeat(65)] {
            assert!(bad.parse::<PartyKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn terms_are_bounded_and_single() {
        let mut terms = Terms::default();
        terms.extend((0..100).map(|n| Term::call(&format!("CA{}", n % 20)).unwrap()));
        assert_eq!(terms.iter().count(), MAX_TERMS);
    }

    proptest! {
        #[test]
        fn normalising_again_changes_nothing(text in "\\PC{0,40}") {
            if let Some(once) = party(&text) {
                prop_assert_eq!(party(&once), Some(once.clone()));
            }
            if let Ok(call) = Term::call(&text) {
                prop_assert_eq!(Term::call(&call.text), Ok(call.clone()));
            }
        }

        #[test]
        fn grouping_does_not_count(
            digits in "[1-9][0-9]{6,14}",
            groups in proptest::collection::vec((0..15_usize, "[ ./-]{1,2}"), 0..6),
            scheme in prop_oneof![Just(""), Just("tel:"), Just("sip:")],
        ) {
            let mut spelled = digits.clone();
            for (at, separator) in groups {
                let at = at.min(spelled.len());
                spelled.insert_str(at, &separator);
            }
            let host = if scheme == "sip:" { "@host" } else { "" };
            prop_assert_eq!(party(&format!("{scheme}+{spelled}{host}")), Some(format!("+{digits}")));
        }

        #[test]
        fn nothing_makes_it_fail(text in any::<String>()) {
            drop((Term::party(&text), Term::call(&text), PartyKeys::default().term(&text, &text)));
        }
    }
}
