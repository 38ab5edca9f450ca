//! What a call counts for itself and publishes now and then.

use std::time::Instant;

use metrics::{Counter, Histogram, counter, histogram};

use crate::clock;
use crate::observe::metrics::{self as names, LocalHistogram};

/// Local counts are published after so many.
const PUBLISH_EVERY: u64 = 500;

pub(super) struct Counts {
    messages: u64,
    bytes: u64,
    messages_in: Counter,
    bytes_in: Counter,
    pub(super) to_agent: Lag,
    pub(super) to_provider: Lag,
    pub(super) dropped_to_agent: Counter,
    pub(super) dropped_to_provider: Counter,
}

impl Counts {
    pub(super) fn new() -> Self {
        let dropped = |direction: &'static str| counter!(names::RELAY_DROPPED, "direction" => direction);
        Self {
            messages: 0,
            bytes: 0,
            messages_in: counter!(names::MESSAGES_IN),
            bytes_in: counter!(names::BYTES_IN),
            to_agent: Lag::new("to_agent"),
            to_provider: Lag::new("to_provider"),
            dropped_to_agent: dropped("to_agent"),
            dropped_to_provider: dropped("to_provider"),
        }
    }

    pub(super) fn count_in(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
        if self.messages >= PUBLISH_EVERY {
            self.publish_in();
        }
    }

    pub(super) fn publish_in(&mut self) {
        self.messages_in.increment(std::mem::take(&mut self.messages));
        self.bytes_in.increment(std::mem::take(&mut self.bytes));
    }
}

/// How long messages of one direction take from being read to being with the kernel.
pub(super) struct Lag {
    since: Option<Instant>,
    local: LocalHistogram,
    unpublished: u64,
    metric: Histogram,
}

impl Lag {
    fn new(direction: &'static str) -> Self {
        let metric = histogram!(names::RELAY_LAG, "direction" => direction);
        Self { since: None, local: LocalHistogram::default(), unpublished: 0, metric }
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    pub(super) fn end(&mut self) {
        let Some(since) = self.since.take() else { return };
        self.local.record(clock::since(since));
        self.unpublished += 1;
        if self.unpublished >= PUBLISH_EVERY {
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        self.local.publish(&self.metric);
        self.unpublished = 0;
    }
}
