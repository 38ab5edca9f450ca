//! A collector: HTTPS with a certificate of its own, and the spans of all requests that it was sent.

use std::path::Path;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::support::{Setup, write_private};
use crate::webhooks::receiver::{Got, Identity, Receiver};

pub(super) struct Collector {
    pub(super) receiver: Receiver,
    identity: Identity,
    token_file: std::path::PathBuf,
}

impl Collector {
    pub(super) async fn listen(dir: &Path) -> Self {
        let identity = Identity::new(dir, "collector");
        let receiver = identity.listen(0).await;
        Self { receiver, identity, token_file: dir.join("collector.token") }
    }

    pub(super) fn port(&self) -> u16 {
        self.receiver.port
    }

    /// A node that sends here, every tenth of a second; with further lines in its table.
    pub(super) fn setup(&self, more: &str) -> Setup {
        let endpoint = format!("\"https://localhost:{}/v1/traces\"", self.port());
        let setup = Setup::new()
            .option("traces", "endpoint", &endpoint)
            .option("traces", "interval_ms", "100")
            .option("traces", "ca_file", &format!("{:?}", self.identity.ca_file.display().to_string()));
        more.lines()
            .filter_map(|line| line.split_once(" = "))
            .fold(setup, |setup, (option, value)| setup.option("traces", option, value))
    }

    /// Writes the secret of a header; answers the option for it.
    pub(super) fn header(&self, authorization: &str) -> String {
        write_private(&self.token_file, authorization);
        format!("{{ authorization = {{ file = {:?} }} }}", self.token_file.display().to_string())
    }

    pub(super) fn got(&self) -> Vec<Got> {
        self.receiver.got()
    }

    /// Returns all spans so far; one that was sent twice counts once.
    pub(super) fn spans(&self) -> Spans {
        let mut spans: Vec<Seen> = Vec::new();
        for request in self.got() {
            let resource_spans = decode(&request.body).resource_spans.into_iter();
            for span in resource_spans.flat_map(|of| of.scope_spans).flat_map(|of| of.spans) {
                if !spans.iter().any(|seen| seen.span.span_id == span.span_id) {
                    spans.push(Seen { span });
                }
            }
        }
        Spans(spans)
    }
}

pub(super) fn decode(body: &[u8]) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(body).unwrap()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One span.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) span: Span,
}

impl Seen {
    fn value(&self, key: &str) -> &Value {
        let mut pairs = self.span.attributes.iter().filter(|pair| pair.key == key);
        let (first, more) = (pairs.next(), pairs.next());
        assert!(more.is_none(), "{key} twice: {self:?}");
        let pair = first.unwrap_or_else(|| panic!("no {key}: {self:?}"));
        pair.value.as_ref().unwrap().value.as_ref().unwrap()
    }

    pub(super) fn text(&self, key: &str) -> &str {
        let Value::StringValue(text) = self.value(key) else { panic!("{key} is no text: {self:?}") };
        text
    }

    pub(super) fn number(&self, key: &str) -> i64 {
        let Value::IntValue(number) = self.value(key) else { panic!("{key} is no number: {self:?}") };
        *number
    }

    pub(super) fn events(&self) -> Vec<&str> {
        self.span.events.iter().map(|event| event.name.as_str()).collect()
    }
}

/// Spans in the order of their arrival.
#[derive(Debug)]
pub(super) struct Spans(Vec<Seen>);

impl Spans {
    pub(super) fn all(&self) -> impl Iterator<Item = &Seen> {
        self.0.iter()
    }

    pub(super) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Seen> {
        self.all().filter(move |seen| seen.span.name == name)
    }

    /// Returns the only span of a name.
    pub(super) fn one<'a>(&'a self, name: &'a str) -> &'a Seen {
        let found: Vec<_> = self.named(name).collect();
        let [one] = found.as_slice() else { panic!("{} spans {name}: {self:#?}", found.len()) };
        one
    }
}
