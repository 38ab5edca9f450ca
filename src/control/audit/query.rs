//! Finds records: who did what, from where, by which key, to what, and when.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use futures_util::{Stream, TryStreamExt, stream};
use memchr::memmem::Finder;

use super::error::{AuditError, Finding};
use super::place::Place;
use super::read::{AuditReader, Opened, Span, lines};
use super::record::AuditRecord;
use crate::domain::address::IpRange;
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;

/// What a record must be to be found. Everything given must hold; nothing given finds all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// When.
    pub span: Span,
    /// By whom, exactly.
    pub actor: Option<String>,
    /// From which addresses.
    pub source: Option<IpRange>,
    /// To which recording or other subject, exactly.
    pub subject: Option<String>,
    /// What, exactly.
    pub action: Option<String>,
    /// By which key, exactly: the `kid` of a grant or ticket, the id of a token.
    pub key: Option<String>,
    /// With which result, exactly.
    pub result: Option<String>,
    /// Whether to find what nodes write about the log itself as well: checkpoints and ends of chains.
    pub with_marks: bool,
}

/// Where a query goes on. Opaque; it stays good while the log grows, and when old records are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    place: Place,
    /// The line in the object to go on with.
    line: u32,
}

/// A text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor must be one that a query of this version has given")]
pub struct InvalidCursor;

/// Something that a query has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A record, and where to go on after it.
    Record(Box<AuditRecord>, Cursor),
    /// An object that may have held records and cannot be read.
    Damage(Finding),
}

/// Some of the records that a query finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The records, oldest first.
    pub records: Vec<AuditRecord>,
    /// Where the next page begins; none if there is nothing more.
    pub next: Option<Cursor>,
    /// Objects on the way that cannot be read: what they held is not among the records.
    pub damage: Vec<Finding>,
}

impl AuditReader<'_> {
    /// Finds up to `limit` records, oldest first, from `cursor` on. Reads on until it has found so many.
    ///
    /// A record that is found is authentic. Whether records are missing is told by [`AuditReader::verify`].
    ///
    /// # Errors
    /// [`AuditError::Key`], [`AuditError::Store`].
    pub async fn query(
        &self,
        tenant: &TenantId,
        filter: &Filter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, AuditError> {
        let mut page = Page::default();
        let mut found = std::pin::pin!(self.find(tenant, filter, cursor));
        while let Some(found) = found.try_next().await? {
            match found {
                Found::Record(..) if page.records.len() == limit => return Ok(page),
                Found::Record(record, next) => {
                    page.records.push(*record);
                    page.next = Some(next);
                }
                Found::Damage(finding) => page.damage.push(finding),
            }
        }
        page.next = None;
        Ok(page)
    }
}

impl<'a> AuditReader<'a> {
    /// Finds records, oldest first, from `cursor` on, as a stream.
    pub fn find(
        self,
        tenant: &'a TenantId,
        filter: &'a Filter,
        cursor: Option<Cursor>,
    ) -> impl Stream<Item = Result<Found, AuditError>> + 'a {
        let sieve = Sieve::of(filter);
        self.objects(tenant, filter.span, cursor.map(|cursor| cursor.place))
            .map_ok(move |opened| stream::iter(sieve.sift(opened, cursor).into_iter().map(Ok)))
            .try_flatten()
    }
}

/// A filter, made ready for many records.
struct Sieve<'f> {
    filter: &'f Filter,
    /// What the line of a record that is wanted holds for certain, so that others need not be parsed.
    certain: Vec<Finder<'static>>,
}

impl<'f> Sieve<'f> {
    fn of(filter: &'f Filter) -> Self {
        let fields = [
            ("actor", &filter.actor),
            ("subject", &filter.subject),
            ("action", &filter.action),
            ("key", &filter.key),
            ("result", &filter.result),
        ];
        let finder = |(name, value): (&str, &Option<String>)| {
            let value = serde_json::to_string(value.as_ref()?).ok()?;
            Some(Finder::new(&format!("\"{name}\":{value}")).into_owned())
        };
        Self { filter, certain: fields.into_iter().filter_map(finder).collect() }
    }

    fn sift(&self, opened: Opened, cursor: Option<Cursor>) -> Vec<Found> {
        let (place, text) = match opened.read {
            Ok(read) => read,
            Err(finding) => return vec![Found::Damage(finding)],
        };
        if !self.filter.span.contains(place.at) {
            return Vec::new();
        }
        let skipped = cursor.filter(|cursor| cursor.place == place).map_or(0, |cursor| cursor.line);
        let mut found = Vec::new();
        for (line, number) in lines(&text).zip(0_u32..).skip(skipped as usize) {
            if !self.certain.iter().all(|needle| needle.find(line).is_some()) {
                continue;
            }
            match serde_json::from_slice::<AuditRecord>(line) {
                Ok(record) if self.filter.wants(&record) => {
                    found.push(Found::Record(Box::new(record), Cursor { place, line: number + 1 }));
                }
                Ok(_) => {}
                Err(_) => found.push(Found::Damage(Finding::Foreign { object: opened.name.to_string() })),
            }
        }
        found
    }
}

impl Filter {
    /// Whether a record is wanted, whatever its time.
    fn wants(&self, record: &AuditRecord) -> bool {
        let event = &record.event;
        let is = |wanted: &Option<String>, given: &str| wanted.as_ref().is_none_or(|wanted| wanted == given);
        let address = || event.source.as_deref().and_then(|source| source.parse::<IpAddr>().ok());
        is(&self.actor, &event.actor)
            && is(&self.subject, &event.subject)
            && is(&self.action, &event.action)
            && is(&self.result, &event.result)
            && self.key.as_ref().is_none_or(|key| event.key.as_ref() == Some(key))
            && self.source.is_none_or(|range| address().is_some_and(|address| range.contains(address)))
            && (self.with_marks || !record.is_about_its_chain())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { at, chain, seq } = self.place;
        write!(f, "{:x}-{chain}-{seq:x}-{:x}", at.0, self.line)
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let number = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| InvalidCursor);
        let small = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| InvalidCursor);
        let parts: Vec<&str> = text.split('-').collect();
        let &[at, chain, seq, line] = parts.as_slice() else { return Err(InvalidCursor) };
        let chain = chain.parse().map_err(|_| InvalidCursor)?;
        let place = Place { at: UnixMillis(number(at)?), chain, seq: small(seq)? };
        let cursor = Self { place, line: small(line)? };
        if cursor.to_string() == text { Ok(cursor) } else { Err(InvalidCursor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::RecordingId;

    #[test]
    fn cursors_are_read_back_and_nothing_else_is_one() {
        let place = Place { at: UnixMillis(1_790_000_000_123), chain: RecordingId([0xab; 16]), seq: 77 };
        let cursor = Cursor { place, line: 255 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        let text = cursor.to_string();
        for wrong in
            ["", "-", "x", &text.to_uppercase(), &format!("{text}-1"), &format!("0{text}"), "+1-2-3-4"]
        {
            assert_eq!(wrong.parse::<Cursor>(), Err(InvalidCursor), "{wrong}");
        }
    }
}
