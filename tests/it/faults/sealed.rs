//! One sealed call without a server: its segments, its manifest, and the final object that they must become.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use callseal::clock;
use callseal::domain::audio::{AudioFormat, Speakers};
use callseal::domain::cmr::{Dek, Expected, Manifest, Row, Tail};
use callseal::domain::ids::{RecordingId, TenantId, TrackId};
use callseal::domain::provider::{Media, Payload};
use callseal::domain::recording::{EndCause, Life, RecordingMetadata};
use callseal::domain::session::{
    AgentAudio, CallSession, DtmfPolicy, Entropy, EntropyFailed, Output, SegmentLimits, SessionSetup,
};
use callseal::domain::sign::encode_base64;
use callseal::domain::time::UnixMillis;
use callseal::journal::{Journal, JournalConfig};
use callseal::keys::fill_random;
use callseal::store::folder::Folder;
use callseal::store::{ObjectName, Store, layout};
use callseal::upload::{Lane, RetentionTags, RetryPolicy, UploadContext, Uploader};
use tempfile::TempDir;

use crate::support::TENANT;

/// Samples of one message.
pub(super) const CHUNK: usize = 160;
/// A day of the year 2026.
const STARTED: UnixMillis = UnixMillis(1_790_000_000_000);

/// The system's random bytes.
struct Random;

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        fill_random(out).map_err(|_| EntropyFailed)
    }
}

/// A call that was sealed in memory.
pub(super) struct Sealed {
    pub(super) ids: Expected,
    pub(super) dek: Dek,
    pub(super) audio: Vec<u8>,
    pub(super) segments: Vec<(Row, Bytes)>,
    pub(super) manifest: Bytes,
}

impl Sealed {
    /// Seals `chunks` messages of `chunk_bytes` of the caller's audio in segments of about `max_bytes`.
    ///
    /// The wall clock goes back by a minute with every message.
    pub(super) fn call(chunks: usize, chunk_bytes: usize, max_bytes: usize) -> Self {
        let tenant: TenantId = TENANT.parse().unwrap();
        let mut random = [0; 10];
        fill_random(&mut random).unwrap();
        let recording = RecordingId::new(STARTED.0, &random);
        let dek = copy_of(&[7; 32]);
        let ids = Expected { tenant: tenant.tag(), recording, key: dek.key_id(tenant.tag(), recording) };
        Self::call_of(ids, &dek, chunks, chunk_bytes, max_bytes)
    }

    /// As [`Sealed::call`], for a recording whose key was minted.
    pub(super) fn call_of(
        ids: Expected,
        dek: &Dek,
        chunks: usize,
        chunk_bytes: usize,
        max_bytes: usize,
    ) -> Self {
        let dek = copy_of(dek.expose());
        let setup = SessionSetup {
            dek: copy_of(dek.expose()),
            ids,
            limits: SegmentLimits { max_age: Duration::from_secs(5), max_bytes },
            dtmf: DtmfPolicy::Redact,
            agent: AgentAudio::Received,
            speakers: Speakers::CallerAndAgent,
            metadata: metadata(),
        };
        let now = clock::monotonic();
        let mut session = CallSession::start(setup, Box::new(Random), now, STARTED).unwrap();
        let audio: Vec<u8> = (0..chunks * chunk_bytes).map(|i| u8::try_from(i / 3 % 251).unwrap()).collect();
        let mut at_ms = 0;
        for (chunk, number) in audio.chunks(chunk_bytes).zip(1u32..) {
            let media = Media {
                track: TrackId::CALLER,
                sequence: Some(u64::from(number)),
                timestamp_ms: Some(at_ms),
                payload: Payload::new(encode_base64(chunk)),
            };
            at_ms += (chunk.len() / 8) as u64;
            let wall = UnixMillis(STARTED.0 - u64::from(number) * 60_000);
            session.handle_media(now, wall, &media).unwrap();
        }
        session.finish(STARTED, EndCause::Stop).unwrap();
        let (mut segments, mut manifest) = (Vec::new(), Bytes::new());
        while let Some(output) = session.poll_output() {
            match output {
                Output::Segment(segment) => segments.push((segment.row, Bytes::from(segment.bytes))),
                Output::Finished(finished) => manifest = Bytes::from(finished.bytes),
            }
        }
        Self { ids, dek, audio, segments, manifest }
    }

    /// Returns the bytes of the one object that it must become.
    pub(super) fn final_object(&self) -> Vec<u8> {
        let segments: Vec<&[u8]> = self.segments.iter().map(|(_, bytes)| &bytes[..]).collect();
        let mut whole = segments.concat();
        let tail = Tail {
            manifest_offset: whole.len() as u64,
            manifest_len: u32::try_from(self.manifest.len()).unwrap(),
            segments: u32::try_from(self.segments.len()).unwrap(),
        };
        whole.extend_from_slice(&self.manifest);
        whole.extend_from_slice(&tail.encode());
        whole
    }

    pub(super) fn final_name(&self) -> ObjectName {
        layout::final_object(self.ids.tenant, self.ids.recording)
    }

    pub(super) fn manifest_name(&self) -> ObjectName {
        layout::manifest(self.ids.tenant, self.ids.recording, 0)
    }

    pub(super) fn segment_name(&self, index: usize) -> ObjectName {
        let row = &self.segments[index].0;
        layout::segment(self.ids.tenant, self.ids.recording, row.writer, row.seq)
    }

    pub(super) fn retention(&self) -> RetentionTags {
        RetentionTags { tenant: self.ids.tenant, days: 90 }
    }

    /// Opens a way to the store for it.
    pub(super) fn lane(&self, uploader: &Uploader) -> Lane {
        uploader.lane(UploadContext { recording: self.ids.recording, retention: self.retention() })
    }

    /// Hands every segment over.
    pub(super) fn hand_segments(&self, lane: &Lane) {
        for (row, bytes) in &self.segments {
            assert!(lane.segment(*row, bytes.clone(), clock::monotonic(), 0));
        }
    }

    /// Hands the manifest over.
    pub(super) fn finish(&self, lane: Lane) {
        assert!(lane.finish(self.manifest.clone(), STARTED, Life::Complete));
    }

    /// Checks that the final object is there, with its tags, and nothing but it.
    pub(super) async fn assert_stored(&self, store: &dyn Store) {
        let prefix = layout::recording_prefix(self.ids.tenant, self.ids.recording);
        let objects = store.list_after(&prefix, None, 1000).await.unwrap();
        let names: Vec<ObjectName> = objects.into_iter().map(|object| object.name).collect();
        assert_eq!(names, [self.final_name()]);
        let stored = store.get(&self.final_name(), None).await.unwrap().bytes;
        assert!(stored == self.final_object(), "the final object differs from what was sealed");
        assert_eq!(store.tags(&self.final_name()).await.unwrap(), self.retention().tags(STARTED));
        Manifest::open(&self.manifest, &self.dek, &self.ids).unwrap();
    }
}

/// A key of these bytes.
fn copy_of(bytes: &[u8; 32]) -> Dek {
    Dek::filled_by::<()>(|key| {
        key.copy_from_slice(bytes);
        Ok(())
    })
    .unwrap()
}

fn metadata() -> RecordingMetadata {
    RecordingMetadata {
        v: 1,
        tenant: TENANT.to_owned(),
        route: "reception".to_owned(),
        provider: "twilio".to_owned(),
        account: "AC".to_owned(),
        call: "CA".to_owned(),
        stream: "MZ".to_owned(),
        started_ms: STARTED.0,
        parameters: BTreeMap::new(),
        retention_days: 90,
        own_days: false,
        ticket: BTreeMap::new(),
        consent: None,
        format: AudioFormat::TELEPHONE,
    }
}

/// A folder store, and the journal that an uploader needs.
pub(super) struct Disk {
    dir: TempDir,
    pub(super) folder: Folder,
    pub(super) journal: Journal,
}

impl Disk {
    pub(super) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let folder = Folder::open(dir.path().join("store")).await.unwrap();
        let (journal, _replay) = Journal::open(&JournalConfig::new(dir.path().join("journal"))).unwrap();
        Self { dir, folder, journal }
    }

    /// Uploads to `store` with waits of milliseconds and a budget of `budget_bytes`.
    pub(super) fn uploader(&self, store: Arc<dyn Store>, budget_bytes: u64) -> Uploader {
        let policy = RetryPolicy {
            base: Duration::from_millis(1),
            max: Duration::from_millis(8),
            // Longer than any put takes on a busy machine.
            try_timeout: Duration::from_secs(1),
        };
        Uploader::new(store, self.journal.clone(), policy, 4, budget_bytes)
    }

    /// Where the files of the journal are.
    pub(super) fn journal_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("journal")
    }

    /// Where the bytes of an object are.
    pub(super) fn path(&self, name: &ObjectName) -> std::path::PathBuf {
        Path::new(&self.dir.path().join("store")).join(name.as_str())
    }
}
