//! Objects and ranges of them, read into memory.

use std::io;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;

use crate::store::{ByteRange, Fetched, ObjectName, StoreError};

use super::Bucket;

const ACTION: &str = "read object";

impl Bucket {
    pub(super) async fn get(
        &self,
        name: &ObjectName,
        range: Option<ByteRange>,
    ) -> Result<Fetched, StoreError> {
        let header = match &range {
            None => None,
            // Stores answer ranges without a byte in different ways, so they are never sent.
            Some(range) => match header_of(range) {
                Some(header) => Some(header),
                None => return Err(self.out_of_range(name).await),
            },
        };
        let get = self.client.get_object().bucket(self.name()).key(self.key(name)).set_range(header);
        let answer = match get.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_status(416) || failed.is_code("InvalidRange") {
                    return Err(self.out_of_range(name).await);
                }
                return Err(failed.during(ACTION));
            }
        };
        let collected = tokio::time::timeout(self.options.attempt_timeout, collect(answer)).await;
        let (bytes, content_range) = collected.map_err(|_| cut_off(io::ErrorKind::TimedOut))??;
        sort_out(bytes, content_range.as_deref(), range.as_ref())
    }

    /// Says how large the object is that a range lies outside of.
    async fn out_of_range(&self, name: &ObjectName) -> StoreError {
        match self.look_at(name).await {
            Ok(Some(seen)) => StoreError::OutOfRange { total_size: seen.info.size },
            Ok(None) => StoreError::NotFound,
            Err(error) => error,
        }
    }
}

/// Reads the body to its end, which must be where the store said.
async fn collect(answer: GetObjectOutput) -> Result<(Bytes, Option<String>), StoreError> {
    let told = answer.content_length().and_then(|length| usize::try_from(length).ok());
    let content_range = answer.content_range().map(str::to_owned);
    let body = answer.body.collect().await;
    let body = body.map_err(|error| StoreError::Io { action: ACTION, source: io::Error::other(error) })?;
    let bytes = body.into_bytes();
    match told {
        Some(told) if told != bytes.len() => Err(cut_off(io::ErrorKind::UnexpectedEof)),
        Some(_) | None => Ok((bytes, content_range)),
    }
}

fn cut_off(kind: io::ErrorKind) -> StoreError {
    StoreError::Io { action: ACTION, source: kind.into() }
}

/// Makes an answer of what came, whether the store obeyed the range or sent the whole.
fn sort_out(
    bytes: Bytes,
    content_range: Option<&str>,
    range: Option<&ByteRange>,
) -> Result<Fetched, StoreError> {
    let Some(range) = range else { return Ok(Fetched { total_size: bytes.len() as u64, bytes }) };
    let sent = content_range.and_then(parse_content_range);
    let (start, total_size) = sent.unwrap_or((0, bytes.len() as u64));
    let wanted = range.within(total_size).ok_or(StoreError::OutOfRange { total_size })?;
    let inside = wanted.start.checked_sub(start).zip(wanted.end.checked_sub(start));
    let inside = inside.and_then(|(from, to)| Some(usize::try_from(from).ok()?..usize::try_from(to).ok()?));
    match inside {
        Some(inside) if inside.end <= bytes.len() => Ok(Fetched { bytes: bytes.slice(inside), total_size }),
        Some(_) | None => Err(StoreError::Corrupt { what: "store sent another range than it was asked for" }),
    }
}

/// Reads start and whole size out of `bytes 5-9/100`.
fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// Writes a range as a header; nothing if it can hold no byte.
fn header_of(range: &ByteRange) -> Option<String> {
    match range {
        ByteRange::Span(span) if span.start < span.end => {
            Some(format!("bytes={}-{}", span.start, span.end - 1))
        }
        ByteRange::Suffix(length) if *length > 0 => Some(format!("bytes=-{length}")),
        ByteRange::Span(_) | ByteRange::Suffix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"0123456789";

    #[test]
    fn ranges_without_a_byte_are_not_sent() {
        assert_eq!(header_of(&ByteRange::Span(2..5)).as_deref(), Some("bytes=2-4"));
        assert_eq!(header_of(&ByteRange::Suffix(7)).as_deref(), Some("bytes=-7"));
        assert_eq!(header_of(&ByteRange::Span(5..5)), None);
        assert_eq!(header_of(&ByteRange::Suffix(0)), None);
    }

    #[test]
    fn answers_are_cut_to_what_was_asked() {
        let span = ByteRange::Span(2..5);
        let obeyed = sort_out(Bytes::from_static(b"234"), Some("bytes 2-4/10"), Some(&span)).unwrap();
        let ignored = sort_out(Bytes::from_static(WHOLE), None, Some(&span)).unwrap();
        assert_eq!(obeyed, ignored);
        assert_eq!((&obeyed.bytes[..], obeyed.total_size), (&b"234"[..], 10));
        let wrong = sort_out(Bytes::from_static(b"345"), Some("bytes 3-5/10"), Some(&span));
        assert!(matches!(wrong, Err(StoreError::Corrupt { .. })), "{wrong:?}");
        let short = sort_out(Bytes::from_static(b"2"), Some("bytes 2-2/10"), Some(&span));
        assert!(matches!(short, Err(StoreError::Corrupt { .. })), "{short:?}");
        let empty = sort_out(Bytes::new(), None, Some(&ByteRange::Suffix(1)));
        assert!(matches!(empty, Err(StoreError::OutOfRange { total_size: 0 })), "{empty:?}");
    }
}
