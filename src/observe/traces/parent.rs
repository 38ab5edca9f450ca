//! The header by which a request says which trace it is a part of (W3C Trace Context): read from those whom we know, and sent on.
//!
//! `tracestate` is neither read nor sent: it may hold any text.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, TraceState};
use opentelemetry::{SpanId, TraceFlags, TraceId};

use super::Place;

/// The header.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `00-` 32 digits `-` 16 digits `-` 2 digits. Later versions may have more behind that.
const LENGTH: usize = 55;

impl Place {
    /// Reads what a request says it is a part of; empty where it says nothing, or nothing that can be read.
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (first, more) = (values.next(), values.next());
        Self(first.filter(|_| more.is_none()).and_then(|value| parse(value.to_str().ok()?)))
    }
}

/// Returns the header for a request of this task; `None` where there are no traces.
pub fn traceparent() -> Option<HeaderValue> {
    let Place(here) = Place::here();
    let here = here?;
    let flags = here.trace_flags() & TraceFlags::SAMPLED;
    HeaderValue::from_str(&format!("00-{}-{}-{flags:02x}", here.trace_id(), here.span_id())).ok()
}

fn parse(text: &str) -> Option<SpanContext> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let parts: Vec<&str> = known.split('-').collect();
    let [version, trace, span, flags] = parts.as_slice() else { return None };
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    if ![(*version, 2), (*trace, 32), (*span, 16), (*flags, 2)]
        .into_iter()
        .all(|(text, length)| is_hex(text, length))
    {
        return None;
    }
    let is_version = match *version {
        "ff" => false,
        "00" => rest.is_empty(),
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let parent = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    (is_version && parent.is_valid()).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn only_the_exact_form_is_a_parent() {
        for (text, is_sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), false),
            (format!("00-{TRACE}-{SPAN}-fe"), false),
            (format!("00-{TRACE}-{SPAN}-ff"), true),
            (format!("01-{TRACE}-{SPAN}-01-what-comes-later"), true),
        ] {
            let parent = parse(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((parent.trace_id().to_string().as_str(), parent.is_sampled()), (TRACE, is_sampled));
            assert!(parent.is_remote() && parent.span_id().to_string() == SPAN);
        }
        for text in [
            String::new(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-x"),
            format!("00-{TRACE}-{SPAN}-011"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("01-{TRACE}-{SPAN}-01x"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!(" 0-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-é1"),
        ] {
            assert!(parse(&text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn two_parents_are_none() {
        let mut headers = HeaderMap::new();
        let value: HeaderValue = format!("00-{TRACE}-{SPAN}-01").parse().unwrap();
        headers.append(TRACEPARENT, value.clone());
        assert!(Place::of_request(&headers).0.is_some());
        headers.append(TRACEPARENT, value);
        assert!(Place::of_request(&headers).0.is_none());
    }
}
