//! Puts together what makes spans and what sends them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider, SpanLimits, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};

use crate::config::Traces;

use super::TRACER;
use super::export::{Queue, Worker};
use super::post::Collector;

/// What one span may hold. None comes near: the most have ten attributes, and an event for each try of an upload.
const LIMITS: SpanLimits = SpanLimits {
    max_events_per_span: 32,
    max_attributes_per_span: 32,
    max_links_per_span: 0,
    max_attributes_per_event: 4,
    max_attributes_per_link: 0,
};

/// What sends spans; it lives as long as the process.
pub struct Exporter {
    stops: mpsc::Sender<oneshot::Sender<()>>,
}

impl Exporter {
    /// Sends what waits, once, and ends; answers whether that was done within `limit`. What is not sent then is lost.
    pub async fn finish(&self, limit: Duration) -> bool {
        let finishing = async {
            let (done, is_done) = oneshot::channel();
            self.stops.send(done).await.is_ok() && is_done.await.is_ok()
        };
        tokio::time::timeout(limit, finishing).await.unwrap_or(false)
    }
}

/// Begins to make spans, and to send them. To be called in a runtime, and once: there is one of it in a process, as of the
/// metrics.
///
/// # Errors
/// The certificates of `traces.ca_file` cannot be used, or spans are made already.
pub fn start(config: &Traces, node: &str) -> io::Result<Exporter> {
    let collector = Collector::new(config)?;
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "callseal"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_owned()),
        ])
        .build();
    let (queue, spans) = Queue::new();
    let tracer = tracer(queue, config.share, resource.clone());
    TRACER.set(tracer).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
    let (stops, stop) = mpsc::channel(1);
    tokio::spawn(Worker::new(spans, Arc::new(collector), &resource, config.interval).run(stop));
    Ok(Exporter { stops })
}

/// Everything is said here, so that nothing is taken from variables of the environment.
pub(super) fn tracer(queue: impl SpanProcessor + 'static, share: f64, resource: Resource) -> SdkTracer {
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
        .with_id_generator(RandomIdGenerator::default())
        .with_span_limits(LIMITS)
        .with_resource(resource)
        .build();
    let scope = InstrumentationScope::builder("callseal").with_version(env!("CARGO_PKG_VERSION")).build();
    provider.tracer_with_scope(scope)
}
