//! The way of spans to the collector: a bounded queue that nobody waits for, and one task that sends what is in it.
//!
//! What does not fit is dropped and counted. A collector in trouble is asked again ever more rarely, and told of in the log once
//! when its trouble begins and once when it ends; nothing else of the node notices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::counter;
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::jitter::jittered;
use crate::observe::metrics as names;

use super::post::{Collector, PostError};

/// Spans that may wait, of about 1 KB each: as the specification of OpenTelemetry has it.
const QUEUE: usize = 2048;
/// Spans of one request, as there.
const BATCH: usize = 512;
/// Requests for the same spans; with the pauses between them half a minute.
const TRIES: u32 = 5;
/// The pause after a request that came to nothing; it doubles up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Takes spans that have ended, without waiting.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

impl Queue {
    /// Makes a queue and its other end.
    pub(super) fn new() -> (Self, mpsc::Receiver<SpanData>) {
        let (spans, waiting) = mpsc::channel(QUEUE);
        (Self(spans), waiting)
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(span).is_err() {
            dropped("queue_full", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn dropped(reason: &'static str, spans: u64) {
    counter!(names::TRACES_DROPPED, "reason" => reason).increment(spans);
}

/// Spans as they are sent.
struct Batch {
    body: Bytes,
    spans: u64,
    tries: u32,
}

/// Sends what is in the queue.
pub(super) struct Worker {
    spans: mpsc::Receiver<SpanData>,
    collector: Arc<Collector>,
    resource: ResourceAttributesWithSchema,
    interval: Duration,
    /// Of the next request.
    gathered: Vec<SpanData>,
    /// What is being sent.
    batch: Option<Batch>,
    not_before: Instant,
    pause: Duration,
    /// Whether the last request came to nothing.
    is_in_trouble: bool,
}

impl Worker {
    pub(super) fn new(
        spans: mpsc::Receiver<SpanData>,
        collector: Arc<Collector>,
        resource: &Resource,
        interval: Duration,
    ) -> Self {
        Self {
            spans,
            collector,
            resource: ResourceAttributesWithSchema::from(resource),
            interval,
            gathered: Vec::new(),
            batch: None,
            not_before: clock::monotonic(),
            pause: FIRST_PAUSE,
            is_in_trouble: false,
        }
    }

    /// Sends until somebody stops it; then what is left, once.
    pub(super) async fn run(mut self, mut stop: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            tokio::select! {
                biased;
                told = stop.recv() => {
                    self.finish().await;
                    // Whoever wanted it may not wait any more.
                    let _told = told.is_some_and(|done| done.send(()).is_ok());
                    return;
                }
                () = self.work() => {}
            }
        }
    }

    /// Makes one request, when it is time. Given up in the middle, it loses nothing.
    async fn work(&mut self) {
        if self.batch.is_none() {
            self.gather().await;
            self.pack();
        }
        tokio::time::sleep_until(self.not_before.into()).await;
        self.send().await;
    }

    /// Waits for a span, and then for others that may go with it.
    async fn gather(&mut self) {
        if self.gathered.is_empty() && self.spans.recv_many(&mut self.gathered, BATCH).await == 0 {
            // Whatever makes spans lives as long as the process.
            return std::future::pending().await;
        }
        let until = clock::monotonic() + self.interval;
        while self.gathered.len() < BATCH {
            let room = BATCH - self.gathered.len();
            let more = self.spans.recv_many(&mut self.gathered, room);
            if tokio::time::timeout_at(until.into(), more).await.is_err() {
                return;
            }
        }
    }

    fn pack(&mut self) {
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.is_empty() {
            return;
        }
        let spans = gathered.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(gathered, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        self.batch = Some(Batch { body: Bytes::from(body), spans, tries: 0 });
    }

    async fn send(&mut self) {
        let Some(Batch { body, spans, tries }) = &mut self.batch else { return };
        let (spans, posted) = (*spans, self.collector.post(body.clone()).await);
        *tries += 1;
        let is_last = *tries >= TRIES;
        match posted {
            Ok(rejected) => {
                self.batch = None;
                self.taken(spans, rejected);
            }
            Err(error) => {
                let reason = if error.is_passing() { "unavailable" } else { "refused" };
                if is_last || !error.is_passing() {
                    self.batch = None;
                    dropped(reason, spans);
                }
                self.failed(&error);
            }
        }
    }

    fn taken(&mut self, spans: u64, rejected: u64) {
        let rejected = rejected.min(spans);
        counter!(names::TRACES_EXPORTED).increment(spans - rejected);
        if rejected > 0 {
            dropped("rejected", rejected);
        }
        self.pause = FIRST_PAUSE;
        if std::mem::take(&mut self.is_in_trouble) {
            tracing::info!(collector = self.collector.authority(), "collector takes traces again");
        }
    }

    fn failed(&mut self, error: &PostError) {
        let asked = error.retry_after().unwrap_or_default().min(LONGEST_PAUSE);
        self.not_before = clock::monotonic() + jittered(self.pause.max(asked));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if !std::mem::replace(&mut self.is_in_trouble, true) {
            let (collector, error) = (self.collector.authority(), error as &dyn std::error::Error);
            tracing::warn!(
                collector,
                error,
                "collector does not take traces; some will be dropped, calls go on"
            );
        }
    }

    /// Sends what is left until something fails; then all of it is lost.
    async fn finish(&mut self) {
        loop {
            while self.batch.is_none() && self.gathered.len() < BATCH {
                let Ok(span) = self.spans.try_recv() else { break };
                self.gathered.push(span);
            }
            if self.batch.is_none() {
                self.pack();
            }
            let Some(Batch { body, spans, .. }) = self.batch.take() else { return };
            match self.collector.post(body).await {
                Ok(rejected) => self.taken(spans, rejected),
                Err(error) => {
                    let left = spans + self.gathered.len() as u64 + self.spans.len() as u64;
                    dropped("shutdown", left);
                    let error = &error as &dyn std::error::Error;
                    tracing::info!(spans = left, error, "traces are lost: the collector did not take them");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::observe::traces::start::tracer;
    use crate::observe::traces::{Place, Span, words};

    fn spans(share: f64, place: &Place, count: usize) -> mpsc::Receiver<SpanData> {
        let (queue, spans) = Queue::new();
        let tracer = tracer(queue, share, Resource::builder_empty().build());
        for _ in 0..count {
            drop(Span::start_with(&tracer, "sweep".into(), words::SWEEP, place));
        }
        spans
    }

    #[test]
    fn what_the_queue_does_not_take_is_dropped_and_counted() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let waiting = metrics::with_local_recorder(&recorder, || spans(1.0, &Place::default(), QUEUE + 7));
        assert_eq!(waiting.len(), QUEUE);
        let page = recorder.handle().render();
        assert!(page.contains("traces_dropped_total{reason=\"queue_full\"} 7"), "{page}");
    }

    #[test]
    fn as_many_are_made_as_is_wanted_and_parts_follow_their_whole() {
        let parent = |flags: &str| {
            let mut headers = hyper::HeaderMap::new();
            let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            headers.insert("traceparent", value.parse().unwrap());
            Place::of_request(&headers)
        };
        let none = Place::default();
        assert_eq!(spans(0.0, &none, 1000).len(), 0);
        assert_eq!(spans(1.0, &none, 1000).len(), 1000);
        // 200 of 2,000, give or take six times what chance does to it.
        assert!((120..=280).contains(&spans(0.1, &none, 2000).len()));
        assert_eq!(spans(0.0, &parent("01"), 3).len(), 3);
        assert_eq!(spans(1.0, &parent("00"), 3).len(), 0);
        let mut below = spans(0.0, &parent("01"), 1);
        let span = below.try_recv().unwrap();
        assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    }
}
