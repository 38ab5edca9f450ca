//! Carries one session's outputs: sealed bytes to the journal at once, segments and manifest to the uploader.

mod begin;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{Counter, Histogram, counter, histogram};

use crate::clock;
use crate::config::{Dtmf, Route, Tenant};
use crate::control::audit::AuditEvent;
use crate::control::index::RecordingIndex;
use crate::control::recovery::OpenedNote;
use crate::domain::audio::AudioFormat;
use crate::domain::cmr::{GapReason, sha256};
use crate::domain::ids::RecordingId;
use crate::domain::notice::{self, Ended, NoticeKind};
use crate::domain::provider::{Digit, Media, Payload};
use crate::domain::recording::{EndCause, StreamCounts};
use crate::domain::session::{
    CallSession, DtmfPolicy, Entropy, EntropyFailed, Output, SealedManifest, SealedSegment, SegmentLimits,
    SessionError, SessionSetup, Stored, Unjournaled,
};
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::journal::{Journal, Record, Runs};
use crate::keys::{Minted, fill_random};
use crate::live::Present;
use crate::node::Node;
use crate::observe::metrics::{self as names, LocalHistogram};
use crate::upload::{Lane, RetentionTags, UploadContext};

use begin::metadata;
pub(crate) use begin::{Begin, entry};

/// The operating system's random bytes.
struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        fill_random(out).map_err(|_| EntropyFailed)
    }
}

/// Notes in the audit log that a stream is not recorded, and tells the tenant.
pub(crate) fn skipped(node: &Arc<Node>, tenant: &Tenant, route: &Route, why: &'static str) {
    counter!(names::WITHOUT_CONSENT).increment(1);
    node.notices.tell_unrecorded(&tenant.id, NoticeKind::Skipped, route.name.as_str(), why);
    let event = AuditEvent {
        reason: Some(why.to_owned()),
        result: "skipped".to_owned(),
        ..AuditEvent::by_node(node.config.node.as_str(), "record", "stream".to_owned())
    };
    let (audit, tenant) = (node.audit.clone(), tenant.id.clone());
    tokio::spawn(async move {
        if let Err(error) = audit.record(&tenant, event).await {
            tracing::error!(%tenant, error = &error as &dyn std::error::Error, "skipped stream is not in the audit log");
        }
    });
}

/// One stream being recorded.
///
/// What every message needs lies close together here; all else is behind a box.
pub(crate) struct Recorder {
    session: CallSession,
    runs: Runs,
    lane: Lane,
    journal: Journal,
    generation: u64,
    /// What people want of it.
    present: Present,
    /// [`Present::orders`] when it was last looked at.
    orders: u64,
    is_paused: bool,
    /// What [`Present`] was told of the open segment.
    open_since: Option<Instant>,
    read_to_sealed: LocalHistogram,
    about: Box<About>,
}

/// What is needed where a segment or the call ends.
struct About {
    node: Arc<Node>,
    tenant: Arc<Tenant>,
    recording: RecordingId,
    /// For the notice of its end: the route's name and the provider's call.
    route: String,
    call: String,
    format: AudioFormat,
    index: Arc<RecordingIndex>,
    opened: Record,
    /// What the shared counters know already.
    published: StreamCounts,
    metrics: Metrics,
}

struct Metrics {
    frames: Counter,
    audio_bytes: Counter,
    audio_millis: Counter,
    read_to_sealed: Histogram,
}

impl Metrics {
    fn register() -> Self {
        Self {
            frames: counter!(names::FRAMES_SEALED),
            audio_bytes: counter!(names::AUDIO_SEALED),
            audio_millis: counter!(names::AUDIO_SEALED_MILLIS),
            read_to_sealed: histogram!(names::READ_TO_SEALED),
        }
    }
}

impl Recorder {
    /// Starts the recording of a stream.
    ///
    /// # Errors
    /// [`SessionError`]; nothing was recorded.
    pub(crate) fn start(
        node: &Arc<Node>,
        tenant: &Arc<Tenant>,
        route: &Route,
        key: Minted,
        begin: &Begin<'_>,
    ) -> Result<Self, SessionError> {
        let (now, wall) = (clock::monotonic(), clock::wall());
        let ids = key.ids;
        let present = node.live.enter(entry(tenant, route, &key, begin.provider, &begin.start.call));
        let metadata = metadata(tenant, route, begin, wall);
        let retention_days = metadata.retention_days;
        let party_keys = node.config.index.party_keys.clone();
        let terms = party_keys.terms(&metadata, &BTreeMap::new());
        let index = RecordingIndex::new(Arc::clone(&node.keys), tenant.id.clone(), party_keys, terms);
        let index = Arc::new(index);
        let segments = &node.config.segments;
        let setup = SessionSetup {
            dek: key.dek,
            ids,
            limits: SegmentLimits { max_age: segments.max_age, max_bytes: segments.max_bytes },
            dtmf: match route.dtmf {
                Dtmf::Redact => DtmfPolicy::Redact,
                Dtmf::Keep => DtmfPolicy::Keep,
            },
            agent: begin.agent,
            speakers: begin.speakers,
            metadata,
        };
        let mut session = CallSession::start(setup, Box::new(SystemEntropy), now, wall)?;
        session.handle_number(begin.start.sequence);
        let retention = RetentionTags { tenant: ids.tenant, days: retention_days };
        let upload = UploadContext { recording: ids.recording, retention };
        let note = OpenedNote { v: 1, tenant: tenant.id.to_string(), retention_days };
        let body = Bytes::from(serde_json::to_vec(&note).unwrap_or_default());
        let about = About {
            node: Arc::clone(node),
            tenant: Arc::clone(tenant),
            recording: ids.recording,
            route: route.name.to_string(),
            call: begin.start.call.clone(),
            format: begin.format,
            index: Arc::clone(&index),
            opened: Record::Opened { recording: ids.recording, tenant_tag: ids.tenant, body },
            published: StreamCounts::default(),
            metrics: Metrics::register(),
        };
        let mut recorder = Self {
            session,
            runs: node.journal.runs(ids.recording),
            lane: node.uploader.indexed_lane(upload, index),
            journal: node.journal.clone(),
            generation: node.journal.generation(),
            present,
            orders: 0,
            is_paused: false,
            open_since: None,
            read_to_sealed: LocalHistogram::default(),
            about: Box::new(about),
        };
        recorder.journal_opened();
        recorder.hand_over(now);
        Ok(recorder)
    }

    /// Reads a little of what the next message needs, so that it is in the processor's cache by then.
    pub(crate) fn prefetch(&self) {
        black_box((self.generation, self.open_since));
        self.session.prefetch();
    }

    /// Returns the recording's id.
    pub(crate) fn recording(&self) -> RecordingId {
        self.about.recording
    }

    /// Does what was ordered about this recording. To be called before anything that could be paused is sealed.
    fn obey(&mut self, now: Instant) -> Result<(), SessionError> {
        let orders = self.present.orders();
        if orders == self.orders {
            return Ok(());
        }
        self.orders = orders;
        let is_paused = self.present.is_paused();
        if is_paused == self.is_paused {
            return Ok(());
        }
        self.is_paused = is_paused;
        match is_paused {
            true => self.session.mute(now, clock::wall(), GapReason::Pause),
            false => self.session.unmute(now, clock::wall()),
        }
    }

    /// Seals the audio of a message, or counts it as a gap while neither the store nor the journal takes enough.
    pub(crate) fn media(&mut self, now: Instant, media: &Media<'_>) -> Result<(), SessionError> {
        self.obey(now)?;
        self.session.set_overloaded(self.lane.is_full());
        match self.session.handle_media(now, clock::wall(), media)? {
            Stored::Sealed | Stored::Nothing => Ok(()),
        }
    }

    /// Seals that so much of all tracks is missing.
    pub(crate) fn gap(
        &mut self,
        now: Instant,
        time: Duration,
        reason: GapReason,
    ) -> Result<(), SessionError> {
        self.session.handle_gap(now, clock::wall(), time, reason)
    }

    /// Seals that the call had run for so long before it was heard.
    pub(crate) fn joined_late(&mut self, now: Instant, time: Duration) -> Result<(), SessionError> {
        self.session.handle_joined_late(now, clock::wall(), time)
    }

    /// Notes a fact of the call, to be sealed at its end.
    pub(crate) fn note(&mut self, name: &str, text: &str) {
        self.about.index.note(name, text);
        if !self.session.note(name, text) {
            tracing::debug!(recording = %self.about.recording, name, "no room for a note");
        }
    }

    /// Seals that a mark came back.
    pub(crate) fn mark(
        &mut self,
        now: Instant,
        sequence: Option<u64>,
        name: &str,
    ) -> Result<(), SessionError> {
        self.session.handle_mark(now, clock::wall(), sequence, name)
    }

    /// Seals that a key was pressed.
    pub(crate) fn dtmf(
        &mut self,
        now: Instant,
        sequence: Option<u64>,
        digit: Digit,
    ) -> Result<(), SessionError> {
        self.obey(now)?;
        self.session.handle_dtmf(now, clock::wall(), sequence, digit)
    }

    /// Queues audio of the agent; what of it is heard is sealed when it is.
    pub(crate) fn agent_media(&mut self, now: Instant, payload: &Payload<'_>) -> Result<(), SessionError> {
        self.obey(now)?;
        self.session.set_overloaded(self.lane.is_full());
        self.session.handle_agent_media(now, clock::wall(), payload).map(drop)
    }

    /// Leaves out samples of the agent that nobody has looked at.
    pub(crate) fn agent_missed(&mut self, now: Instant, samples: u32) -> Result<(), SessionError> {
        self.session.handle_agent_missed(now, clock::wall(), samples)
    }

    /// Throws away what of the agent's audio was not heard yet.
    pub(crate) fn agent_clear(&mut self, now: Instant) -> Result<(), SessionError> {
        self.session.handle_agent_clear(now, clock::wall())
    }

    /// Notes a mark of the agent.
    pub(crate) fn agent_mark(&mut self, now: Instant, name: &str) {
        self.session.handle_agent_mark(now, name);
    }

    /// Notes the number of another message.
    pub(crate) fn number(&mut self, sequence: Option<u64>) {
        self.session.handle_number(sequence);
    }

    /// Notes that messages were not looked at: their audio is a gap of our own making.
    pub(crate) fn missed(&mut self, messages: u64) {
        self.session.handle_missed(messages);
    }

    /// Counts a dropped message.
    pub(crate) fn dropped(&mut self) {
        self.session.count_dropped();
    }

    /// Cuts the segment if its time has come.
    pub(crate) fn timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        self.obey(now)?;
        self.session.handle_timeout(now, clock::wall())
    }

    /// Returns when [`Recorder::timeout`] is wanted.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.session.poll_timeout()
    }

    /// Hands everything that was sealed since `read_at` on. To be called after every batch of messages.
    pub(crate) fn hand_over(&mut self, read_at: Instant) {
        self.read_to_sealed.record(clock::since(read_at));
        while let Some(output) = self.session.poll_output() {
            self.output(output);
        }
        let open_since = self.session.open_since();
        if open_since != self.open_since {
            self.open_since = open_since;
            self.present.segment_open_since(open_since);
        }
        let generation = self.journal.generation();
        if generation != self.generation {
            self.generation = generation;
            self.session.journal_lost();
            self.journal_opened();
        }
        let Some(unjournaled) = self.session.unjournaled() else { return };
        let Unjournaled { writer, seq, offset, bytes } = unjournaled;
        // A full queue is no loss: the bytes stay in the open segment and are handed over with the next ones.
        if self.runs.append((writer, seq), offset, bytes, read_at).is_ok() {
            self.session.mark_journaled();
        }
    }

    /// Ends the recording.
    pub(crate) fn finish(mut self, cause: EndCause) {
        let wall = clock::wall();
        // What the caller has heard by now; the rest of the agent's queue nobody did.
        let played = self.session.handle_timeout(clock::monotonic(), wall);
        if let Err(error) = played.and_then(|()| self.session.finish(wall, cause)) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(recording = %self.about.recording, error, "recording cannot be finished; recovery will");
        }
        let mut manifest = None;
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Finished(finished) => manifest = Some(finished),
                segment @ Output::Segment(_) => self.output(segment),
            }
        }
        self.publish();
        if let Some(manifest) = manifest {
            self.finish_with(manifest, wall);
        }
    }

    fn finish_with(self, manifest: SealedManifest, wall: UnixMillis) {
        let SealedManifest { bytes, rows, end } = manifest;
        count_lost(&end.gaps, self.about.format);
        let event = AuditEvent {
            result: end.life.name().to_owned(),
            detail: Some(format!("root={} revision=0 rows={}", encode_hex(&sha256(&bytes)), rows.len())),
            ..AuditEvent::by_node(
                self.about.node.config.node.as_str(),
                "record",
                self.about.recording.to_string(),
            )
        };
        counter!(names::STREAMS_ENDED, "cause" => end.cause.name()).increment(1);
        tracing::info!(
            recording = %self.about.recording,
            cause = end.cause.name(),
            life = end.life.name(),
            frames = end.counts.frames,
            missing_messages = end.counts.missing_messages,
            "recording sealed"
        );
        let About { recording, format, ref route, ref call, .. } = *self.about;
        let events = notice::ended(&Ended { recording, revision: 0, end: &end, format, route, call });
        let (notices, tenant) = (self.about.node.notices.clone(), self.about.tenant.id.clone());
        // What is not told now is told when the outbox takes it.
        let told = Box::pin(async move {
            let _told = notices.told_all(&tenant, events).await;
        });
        if !self.lane.finish_and_tell(Bytes::from(bytes), wall, end.life, told) {
            tracing::error!(recording = %self.about.recording, "manifest was not taken; recovery will make one");
        }
        let (audit, tenant) = (self.about.node.audit.clone(), self.about.tenant.id.clone());
        let recording = self.about.recording;
        tokio::spawn(async move {
            if let Err(error) = audit.record(&tenant, event).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%recording, error, "recording root is not in the audit log");
            }
        });
    }

    fn output(&mut self, output: Output) {
        let Output::Segment(SealedSegment { row, bytes, journaled_bytes, opened_at }) = output else {
            return;
        };
        let bytes = Bytes::from(bytes);
        let journaled_bytes = journaled_bytes.min(bytes.len());
        let rest = bytes.slice(journaled_bytes..);
        let sealed = Record::Sealed {
            recording: self.about.recording,
            writer: row.writer,
            seq: row.seq,
            offset: u32::try_from(journaled_bytes).unwrap_or(u32::MAX),
            bytes: rest,
            sealed_at: clock::monotonic(),
        };
        let cut = Record::Cut {
            recording: self.about.recording,
            writer: row.writer,
            seq: row.seq,
            length: row.byte_len,
        };
        for record in [sealed, cut] {
            if let Err(refused) = self.journal.append(record) {
                tracing::debug!(error = &refused as &dyn std::error::Error, "segment is not in the journal");
            }
        }
        if !self.lane.segment(row, bytes, opened_at, self.generation) {
            tracing::error!(recording = %self.about.recording, seq = row.seq, "segment was not taken; recovery will store it");
        }
        self.publish();
    }

    fn journal_opened(&self) {
        if let Err(refused) = self.journal.append(self.about.opened.clone()) {
            let error = &refused as &dyn std::error::Error;
            tracing::warn!(recording = %self.about.recording, error, "a crash would lose this recording's open segment");
        }
    }

    /// Adds local counts to the shared ones: once per segment, not once per frame.
    fn publish(&mut self) {
        let counts = *self.session.counts();
        let millis = |bytes| self.about.format.millis_of_bytes(bytes);
        self.about.metrics.frames.increment(counts.frames - self.about.published.frames);
        self.about.metrics.audio_bytes.increment(counts.audio_bytes - self.about.published.audio_bytes);
        self.about
            .metrics
            .audio_millis
            .increment(millis(counts.audio_bytes) - millis(self.about.published.audio_bytes));
        self.about.published = counts;
        self.read_to_sealed.publish(&self.about.metrics.read_to_sealed);
    }
}

/// Adds lost audio to its metric, in bytes.
fn count_lost(gaps: &[crate::domain::recording::GapEntry], format: AudioFormat) {
    let sample_bytes = format.codec().sample_bytes() as u64;
    for gap in gaps.iter().filter(|gap| gap.is_loss()) {
        let reason = GapReason::from_number(gap.reason).map_or("other", GapReason::name);
        counter!(names::AUDIO_LOST, "reason" => reason).increment(u64::from(gap.samples) * sample_bytes);
    }
}
