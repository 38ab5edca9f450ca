//! The only place that reads the machine's clocks.
//!
//! Timers and media order use the monotonic clock; the wall clock only labels things and judges expiry.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::time::UnixMillis;

/// Reads the wall clock; a clock before 1970 reads as 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn wall() -> UnixMillis {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

/// Reads the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Returns how long ago a moment of the monotonic clock was.
pub fn since(moment: Instant) -> Duration {
    monotonic().saturating_duration_since(moment)
}

/// Writes a moment as RFC 3339 in UTC, to the millisecond.
pub fn rfc3339(moment: UnixMillis) -> String {
    let millis = i64::try_from(moment.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "9999-12-31T23:59:59Z".to_owned(), |at| at.to_string())
}

/// Writes the UTC date of a moment: `2026-11-23`.
pub fn utc_date(moment: UnixMillis) -> String {
    let mut text = rfc3339(moment);
    text.truncate(10);
    text
}

/// Writes a moment as a path that sorts as moments do, a folder for each UTC day: `2026/11/23/120000250`.
pub fn utc_path(moment: UnixMillis) -> String {
    let text = rfc3339(moment);
    let (date, time) = text.split_at(text.len().min(10));
    let time: String = time.chars().filter(char::is_ascii_digit).take(6).collect();
    format!("{}/{time}{:03}", date.replace('-', "/"), moment.0 % 1000)
}

/// Reads what [`utc_path`] writes; `None` for another text.
pub fn parse_utc_path(path: &str) -> Option<UnixMillis> {
    let (date, time) = (path.get(..10)?, path.get(11..)?);
    let (hours, minutes, seconds, millis) =
        (time.get(..2)?, time.get(2..4)?, time.get(4..6)?, time.get(6..)?);
    let text = format!("{}T{hours}:{minutes}:{seconds}.{millis}Z", date.replace('/', "-"));
    parse_rfc3339(&text).filter(|moment| utc_path(*moment) == path)
}

/// Returns the moment at which a UTC date, `2026-11-23`, begins; `None` if it is none.
pub fn begin_of_utc_date(date: &str) -> Option<UnixMillis> {
    parse_rfc3339(&format!("{date}T00:00:00Z")).filter(|_| date.len() == 10)
}

/// Reads a time in RFC 3339, such as `2026-11-23T12:00:00Z`; `None` for another text and for times before 1970.
pub fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok().map(UnixMillis)
}

/// Returns the moment at which a UTC date, `2026-11-23`, is over; `None` if it is none.
pub fn end_of_utc_date(date: &str) -> Option<UnixMillis> {
    let begin: jiff::Timestamp = format!("{date}T00:00:00Z").parse().ok()?;
    Some(UnixMillis(u64::try_from(begin.as_millisecond()).ok()?).plus(Duration::from_secs(24 * 3600)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_moments_sort_as_moments_do_and_are_read_back() {
        let moments = [
            0,
            1_790_000_000_000,
            1_790_000_000_050,
            1_790_000_000_999,
            1_790_000_001_000,
            1_800_000_000_007,
        ];
        let paths: Vec<_> = moments.map(|at| utc_path(UnixMillis(at))).into();
        assert_eq!(paths[2], "2026/09/21/141320050");
        assert!(paths.is_sorted());
        assert_eq!(paths.iter().map(|path| parse_utc_path(path).unwrap().0).collect::<Vec<_>>(), moments);
        for wrong in [
            "",
            "2026/09/21",
            "2026/09/21/14132005",
            "2026/09/21/1413200500",
            "2026-09-21/141320050",
            "2026/13/21/141320050",
            "2026/09/21/241320050",
            "2026/09/21/1413é050",
        ] {
            assert_eq!(parse_utc_path(wrong), None, "{wrong}");
        }
        assert_eq!(begin_of_utc_date("2026-09-21").map(utc_date).as_deref(), Some("2026-09-21"));
        assert_eq!(begin_of_utc_date("2026-09-2"), None);
    }

    #[test]
    fn a_date_ends_where_the_next_begins() {
        let end = end_of_utc_date("2026-12-31").unwrap();
        assert_eq!(rfc3339(end), "2027-01-01T00:00:00Z");
        assert_eq!(utc_date(UnixMillis(end.0 - 1)), "2026-12-31");
        assert_eq!(parse_rfc3339(&rfc3339(end)), Some(end));
        assert_eq!([parse_rfc3339("2026-12-31"), parse_rfc3339("1969-12-31T23:59:59Z")], [None, None]);
        assert_eq!([end_of_utc_date("2026-13-01"), end_of_utc_date("x")], [None, None]);
    }
}
