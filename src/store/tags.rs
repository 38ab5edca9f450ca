//! Object tags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::ids::TenantTag;

/// Why a tag cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTag {
    /// There are ten already.
    #[error("an object has at most {} tags", Tags::MAX)]
    TooMany,
    /// The key is not one that every store takes.
    #[error(
        "tag key must be 1 to 128 characters of A-Z, a-z, 0-9, ' ' and '+-=._:/@', not beginning with 'aws:'"
    )]
    Key,
    /// The value is not one that every store takes.
    #[error("tag value must be at most 256 characters of A-Z, a-z, 0-9, ' ' and '+-=._:/@'")]
    Value,
}

/// The tags of an object: at most ten pairs of short ASCII texts, ordered by key.
///
/// The limits are those of S3's object tagging. Tags are a copy for the operator and for bucket rules; the truth is in
/// the sealed manifest. They hold nothing personal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Tags(BTreeMap<String, String>);

impl Tags {
    /// The greatest number of tags.
    pub const MAX: usize = 10;

    /// Returns no tags.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the two tags that every object has: whose it is, and what.
    ///
    /// # Panics
    /// Never: short keys and values of digits, dashes and letters are valid tags.
    pub fn of(tenant: TenantTag, class: ObjectClass) -> Self {
        let mut tags = Self::new();
        for (key, value) in
            [("callseal-tenant", tenant.to_string()), ("callseal-class", class.name().to_owned())]
        {
            tags.insert(key, value)
                .expect("short keys and values of digits, dashes and letters are valid tags");
        }
        tags
    }

    /// Adds a tag or replaces the value of one.
    ///
    /// # Errors
    /// [`InvalidTag`]; the tags are then unchanged.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<(), InvalidTag> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() || key.len() > 128 || key.starts_with("aws:") || !key.bytes().all(is_tag_byte) {
            return Err(InvalidTag::Key);
        }
        if value.len() > 256 || !value.bytes().all(is_tag_byte) {
            return Err(InvalidTag::Value);
        }
        if self.0.len() == Self::MAX && !self.0.contains_key(&key) {
            return Err(InvalidTag::TooMany);
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Returns the value of a tag.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Goes through the tags in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What an object is, as its tag says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectClass {
    /// A recording or part of one.
    CallAudio,
    /// A wrapped key.
    Envelope,
    /// An entry of the expiry index.
    Expiry,
    /// Audit records.
    Audit,
    /// A retention order.
    Order,
    /// The receipt of a deletion.
    Receipt,
    /// A ticket that was used.
    Ticket,
    /// An order about a live recording.
    LiveOrder,
    /// A notice, or what became of it.
    Notice,
    /// An entry of the blind index.
    Index,
    /// An entry of the deletion ledger.
    Ledger,
    /// A request of a person about what is kept of them, or what it has in force.
    Request,
    /// A revision of a tenant.
    Tenant,
    /// An answer of the admin API that is kept.
    Answer,
}

impl ObjectClass {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CallAudio => "call-audio",
            Self::Envelope => "envelope",
            Self::Expiry => "expiry",
            Self::Audit => "audit",
            Self::Order => "order",
            Self::Receipt => "receipt",
            Self::Ticket => "ticket",
            Self::LiveOrder => "live-order",
            Self::Notice => "notice",
            Self::Index => "index",
            Self::Ledger => "ledger",
            Self::Request => "request",
            Self::Tenant => "tenant",
            Self::Answer => "answer",
        }
    }
}

impl TryFrom<BTreeMap<String, String>> for Tags {
    type Error = InvalidTag;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, InvalidTag> {
        let mut tags = Self::new();
        pairs.into_iter().try_for_each(|(key, value)| tags.insert(key, value))?;
        Ok(tags)
    }
}

impl From<Tags> for BTreeMap<String, String> {
    fn from(tags: Tags) -> Self {
        tags.0
    }
}

fn is_tag_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" +-=._:/@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_to_the_limits_of_s3() {
        let mut tags = Tags::new();
        assert_eq!(tags.insert("", "x"), Err(InvalidTag::Key));
        assert_eq!(tags.insert("aws:x", "x"), Err(InvalidTag::Key));
        assert_eq!(tags.insert("a".repeat(129), "x"), Err(InvalidTag::Key));
        assert_eq!(tags.insert("a&b", "x"), Err(InvalidTag::Key));
        assert_eq!(tags.insert("a", "é"), Err(InvalidTag::Value));
        assert_eq!(tags.insert("a", "x".repeat(257)), Err(InvalidTag::Value));
        for n in 0..10 {
            assert_eq!(tags.insert(format!("key-{n}"), ""), Ok(()));
        }
        assert_eq!(tags.insert("key-10", ""), Err(InvalidTag::TooMany));
        assert_eq!(tags.insert("key-9", "new"), Ok(()));
        assert_eq!(tags.value("key-9"), Some("new"));
        assert_eq!(tags.iter().count(), 10);
    }

    #[test]
    fn tags_read_back_are_checked_again() {
        let tags: Tags = serde_json::from_str(r#"{"b":"2","a":"1"}"#).unwrap();
        assert_eq!(serde_json::to_string(&tags).unwrap(), r#"{"a":"1","b":"2"}"#);
        assert!(serde_json::from_str::<Tags>(r#"{"a":"\n"}"#).is_err());
    }
}
