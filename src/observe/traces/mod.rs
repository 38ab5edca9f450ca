//! Traces: which step of a call or a request took how long, for the collector of whoever runs the node.
//!
//! Off unless the configuration names a collector, and then one trace in a hundred by default. A span is made for a call, an
//! upload, a request: never for a message. Where it is off, or a trace is not one of those that are made, there is nothing to do.
//!
//! What a span may say is closed: ids that callseal made or that the configuration has, words that stand in the sources, and
//! numbers. There is no way to give one a text, so that no payload, name, phone number, URL or secret gets there.
//!
//! Must not know what the spans are of. Nobody waits for the collector: see `export.rs`.

mod export;
mod parent;
mod post;
mod start;
pub mod words;

use std::borrow::Cow;
use std::sync::OnceLock;

use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

use crate::domain::ids::{NoticeId, RecordingId, RouteName, TenantId};

pub use parent::{TRACEPARENT, traceparent};
pub use start::{Exporter, start};
use words::{NOTICE, RECORDING, REQUEST, RETRY, ROUTE, TENANT, WHY, Work};

/// As long as the ids of requests may be: hexadecimal digits.
const MAX_REQUEST_ID: usize = 32;

/// What makes spans; nothing where there are no traces.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

tokio::task_local! {
    /// What the work of this task is a part of.
    static HERE: Place;
}

/// Where a span stands: what its parts are put below. Empty where there are no traces.
#[derive(Debug, Clone, Default)]
pub struct Place(Option<SpanContext>);

impl Place {
    /// Returns what the work of this task is a part of.
    pub fn here() -> Self {
        HERE.try_with(Self::clone).unwrap_or_default()
    }

    /// Whether there is nothing that work here would be a part of.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Runs `work` as a part of what stands here. To be taken along where work goes on in another task.
    pub async fn around<F: Future>(self, work: F) -> F::Output {
        match self.0 {
            None => work.await,
            // Boxed only here, so that nothing gets larger where there are no traces.
            Some(_) => HERE.scope(self, Box::pin(work)).await,
        }
    }

    /// Runs `work`, which waits for nothing, as a part of what stands here.
    pub fn around_now<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.0 {
            None => work(),
            Some(_) => HERE.sync_scope(self.clone(), work),
        }
    }
}

/// One piece of work, from its beginning until it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// Begins a piece of work: a part of what this task is at, else a trace of its own.
    pub fn begin(work: Work) -> Self {
        Self::start(work.name.into(), work, &Place::here())
    }

    /// Begins a part of what stands at `place`; where there is no such thing, nothing.
    pub fn part_of(place: &Place, work: Work) -> Self {
        if !place.is_empty() { Self::start(work.name.into(), work, place) } else { Self::default() }
    }

    /// Begins work of one of several kinds, `{name}.{kind}`: a part of what stands at `place`, else a trace of its own.
    pub fn begin_kind(work: Work, kind: &'static str, place: &Place) -> Self {
        // Nothing is put together for nobody.
        if TRACER.get().is_none() {
            return Self::default();
        }
        Self::start(format!("{}.{kind}", work.name).into(), work, place)
    }

    fn start(name: Cow<'static, str>, work: Work, place: &Place) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        Self::start_with(tracer, name, work, place)
    }

    fn start_with(tracer: &SdkTracer, name: Cow<'static, str>, work: Work, Place(above): &Place) -> Self {
        let context = match above {
            Some(above) => Context::new().with_remote_span_context(above.clone()),
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name(name).with_kind(work.kind);
        Self(Some(Box::new(tracer.build_with_context(builder, &context))))
    }

    /// Whether what is said of it goes anywhere.
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|span| span.is_recording())
    }

    /// Returns where it stands.
    pub fn place(&self) -> Place {
        Place(self.0.as_ref().map(|span| span.span_context().clone()))
    }

    /// Says whose it is.
    pub fn tenant(&mut self, tenant: &TenantId) {
        self.set(TENANT, || tenant.to_string().into());
    }

    /// Says on which route it is, by the name in the configuration.
    pub fn route(&mut self, route: &RouteName) {
        self.set(ROUTE, || route.to_string().into());
    }

    /// Says which recording it is about.
    pub fn recording(&mut self, recording: RecordingId) {
        self.set(RECORDING, || recording.to_string().into());
    }

    /// Says which notice it is about.
    pub fn notice(&mut self, notice: NoticeId) {
        self.set(NOTICE, || notice.to_string().into());
    }

    /// Says which request it is, by the id that answers and audit log have; anything else is left out.
    pub fn request(&mut self, id: &str) {
        if id.len() <= MAX_REQUEST_ID && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            self.set(REQUEST, || id.to_owned().into());
        }
    }

    /// Says one word of those in the sources.
    pub fn word(&mut self, key: &'static str, word: &'static str) {
        self.set(key, || word.into());
    }

    /// Says a number.
    pub fn number(&mut self, key: &'static str, number: u64) {
        self.set(key, || i64::try_from(number).unwrap_or(i64::MAX).into());
    }

    /// Notes that something happened now.
    pub fn event(&mut self, name: &'static str) {
        if let Some(span) = &mut self.0 {
            span.add_event(name, Vec::new());
        }
    }

    /// Notes that it is tried again, and why.
    pub fn retry(&mut self, why: &'static str) {
        if let Some(span) = &mut self.0 {
            span.add_event(RETRY, vec![KeyValue::new(WHY, why)]);
        }
    }

    /// Says that it came to nothing, and why.
    pub fn fail(&mut self, why: &'static str) {
        self.set(WHY, || why.into());
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(""));
        }
    }

    fn set(&mut self, key: &'static str, value: impl FnOnce() -> Value) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }
}
