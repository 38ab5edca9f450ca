//! The query under a grant: which parameters there are, and their one canonical spelling.

use super::{GrantFault, MAX_QUERY_BYTES};
use crate::domain::percent;

/// Every parameter that a query may have, once each.
const NAMES: [&str; 10] = ["iat", "exp", "kid", "sub", "reason", "ip", "track", "dl", "format", "sig"];

/// The decoded values of a query, by parameter.
pub(super) struct Parameters([(&'static str, Option<String>); NAMES.len()]);

impl Parameters {
    /// Reads a query of at most [`MAX_QUERY_BYTES`]; no piece of it may be empty.
    pub(super) fn parse(query: &str) -> Result<Self, GrantFault> {
        if query.len() > MAX_QUERY_BYTES {
            return Err(GrantFault::Query);
        }
        let mut parameters = Self(NAMES.map(|name| (name, None)));
        for piece in query.split('&').filter(|_| !query.is_empty()) {
            let (name, value) = piece.split_once('=').ok_or(GrantFault::Query)?;
            let name = decode(name).ok_or(GrantFault::Query)?;
            let slot = parameters.0.iter_mut().find(|(known, _)| *known == name);
            let (name, slot) = slot.ok_or_else(|| GrantFault::Unknown(name.chars().take(32).collect()))?;
            let value = decode(value).ok_or(GrantFault::Malformed(name))?;
            if slot.replace(value).is_some() {
                return Err(GrantFault::Repeated(name));
            }
        }
        Ok(parameters)
    }

    /// Returns the canonical query: every parameter but `sig`.
    pub(super) fn canonical(&self) -> String {
        let mut signed = self.0.clone().map(|(name, value)| (name, value.filter(|_| name != "sig")));
        canonical(&mut signed)
    }

    /// Moves a value out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.iter_mut().find(|(known, _)| *known == name).and_then(|(_, value)| value.take())
    }

    /// Moves a value out and reads it, where the parameter is present.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(String) -> Option<T>,
    ) -> Result<Option<T>, GrantFault> {
        self.take(name).map(|text| parse(text).ok_or(GrantFault::Malformed(name))).transpose()
    }

    /// Moves a value out and reads it.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(String) -> Option<T>,
    ) -> Result<T, GrantFault> {
        self.optional(name, parse)?.ok_or(GrantFault::Missing(name))
    }
}

/// Joins the present parameters, sorted by name, values escaped; the names need no escape.
pub(super) fn canonical(parameters: &mut [(&'static str, Option<String>)]) -> String {
    parameters.sort_unstable_by_key(|(name, _)| *name);
    let mut query = String::new();
    for (name, value) in parameters.iter() {
        let Some(value) = value else { continue };
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        percent::encode_into(value, &mut query);
    }
    query
}

/// Decodes one name or value. Outside escapes stands only what RFC 3986 section 3.4 allows in a query, without `&` and
/// `=`; `+` is a plus.
fn decode(text: &str) -> Option<String> {
    let is_literal = |byte: u8| percent::is_unreserved(byte) || b"!$'()*+,;:@/?".contains(&byte);
    percent::decode(text.as_bytes(), |byte| is_literal(byte).then_some(byte))
}
