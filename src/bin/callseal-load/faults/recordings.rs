//! What the store has of the calls, read past the server and its proxy.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::control::recordings::{StoredRecording, list};
use callseal::domain::audio::Codec;
use callseal::domain::ids::{RecordingId, TenantId};
use callseal::keys::KeyService;
use callseal::server::{open_keys, open_store};
use callseal::store::Store;
use futures_util::{StreamExt, stream};

use super::calls::{Call, Outcome};
use crate::ledger::Ledger;
use crate::node::{Home, TENANT};

/// Samples painted at a time.
const WINDOW: u64 = 400_000;
/// Recordings listed at a time.
const PAGE: usize = 1000;
/// Pause between two looks at the store.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Calls compared at the same time; an hour of one is about 60 MB in memory.
const COMPARED_AT_ONCE: usize = 8;
/// Samples in a millisecond.
const PER_MS: u64 = 8;

/// The recordings of the tenant.
pub(super) struct Recordings {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    tenant: TenantId,
    /// Everything up to this one was compared in earlier runs.
    last: Option<RecordingId>,
}

impl Recordings {
    pub(super) async fn open(home: &Home) -> anyhow::Result<Self> {
        let config = home.direct_config()?;
        let store = open_store(&config).await?;
        let keys = open_keys(&config, &store)?;
        let mut recordings = Self { store, keys, tenant: TENANT.parse()?, last: None };
        recordings.last = recordings.listed().await?.last().copied();
        Ok(recordings)
    }

    /// Waits until every call has a finished recording, then compares them all. Also answers what each track of a killed
    /// server lost, in milliseconds.
    pub(super) async fn compare(
        &mut self,
        outcome: &Outcome,
        patience: Duration,
    ) -> anyhow::Result<(Ledger, Vec<u64>)> {
        let mut finished = HashMap::new();
        let began = clock::monotonic();
        let wanted = outcome.calls.iter().filter(|call| call.was_sent()).count();
        loop {
            for recording in self.listed().await? {
                self.find_finished(recording, &mut finished).await?;
            }
            // A restarted server is ready when everything is recovered that can be.
            let was_killed = outcome.calls.iter().any(|call| call.killed_at_ms().is_some());
            if was_killed || finished.len() >= wanted {
                break;
            }
            let waited = clock::since(began);
            ensure!(
                waited < patience,
                "after {waited:?} only {} of {wanted} calls have a finished recording",
                finished.len()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let (mut ledger, mut losses) = (Ledger::default(), Vec::new());
        let mut comparisons = stream::iter(&outcome.calls)
            .map(|call| async {
                let Some(stored) = finished.get(&call.id) else {
                    // Nothing of it is left: all that was sent is lost.
                    let losses = call.killed_at_ms().map(|noted| [noted; 2]).into_iter().flatten();
                    return Ok(Compared { ledger: Ledger::default(), killed_losses_ms: losses.collect() });
                };
                compare_call(call, stored).await.with_context(|| format!("call {}", call.id))
            })
            .buffer_unordered(COMPARED_AT_ONCE);
        while let Some(compared) = comparisons.next().await {
            let compared = compared?;
            ledger.add(compared.ledger);
            losses.extend(compared.killed_losses_ms);
        }
        drop(comparisons);
        self.last = finished.values().map(|stored| stored.ids().recording).max().or(self.last);
        Ok((ledger, losses))
    }

    async fn listed(&self) -> anyhow::Result<Vec<RecordingId>> {
        let mut all: Vec<RecordingId> = Vec::new();
        loop {
            let after = all.last().copied().or(self.last);
            let page = list(&*self.store, &self.tenant, after, PAGE).await?;
            let is_last = page.len() < PAGE;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Looks at one recording; one that still runs, or of which nothing is stored, is looked at again later.
    async fn find_finished(
        &self,
        recording: RecordingId,
        finished: &mut HashMap<String, StoredRecording>,
    ) -> anyhow::Result<()> {
        if finished.values().any(|stored| stored.ids().recording == recording) {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let Ok(stored) = StoredRecording::open(store, &self.keys, &self.tenant, recording).await else {
            return Ok(());
        };
        if let (true, Some(manifest)) = (stored.is_final(), stored.manifest()) {
            finished.insert(manifest.metadata.call.clone(), stored);
        }
        Ok(())
    }
}

struct Compared {
    ledger: Ledger,
    killed_losses_ms: Vec<u64>,
}

async fn compare_call(call: &Call, stored: &StoredRecording) -> anyhow::Result<Compared> {
    let played = play(stored).await?;
    let end = &stored.manifest().context("recording has no manifest")?.end;
    let origin = stored.timeline().origin();
    let mut compared = Compared { ledger: Ledger::default(), killed_losses_ms: Vec::new() };
    for (number, (track, mut played)) in call.tracks.iter().zip(played).enumerate() {
        let mut sent = track.audio();
        if let Some(noted_ms) = call.killed_at_ms() {
            // The end of the shorter track is filled up with silence, which the noise does not have.
            while played.last() == Some(&Codec::Ulaw.silence()) {
                played.pop();
            }
            let recovered_ms = played.len() as u64 / PER_MS;
            compared.killed_losses_ms.push(noted_ms.saturating_sub(recovered_ms));
            // What came before the end must be what was sent; the end itself is the loss above.
            sent.truncate(played.len());
        }
        let own = end.gaps.iter().filter(|gap| usize::from(gap.track) == number && gap.is_loss());
        let lost: Vec<Range<usize>> = own
            .map(|gap| {
                let start = usize::try_from(gap.pts.saturating_sub(origin)).unwrap_or(usize::MAX);
                start..start.saturating_add(usize::try_from(gap.samples).unwrap_or(usize::MAX))
            })
            .collect();
        compared.ledger.add(Ledger::of_track(&sent, &played, &lost));
    }
    Ok(compared)
}

/// Opens all segments and paints both tracks.
async fn play(stored: &StoredRecording) -> anyhow::Result<[Vec<u8>; 2]> {
    let timeline = stored.timeline();
    let mut tracks = [Vec::new(), Vec::new()];
    let mut next = 0;
    while next < timeline.samples() {
        let window = timeline.window(next, timeline.samples(), WINDOW);
        let mut canvas = stored.canvas(&window);
        for index in timeline.rows_for(&window) {
            stored.paint(index, &stored.segment(index).await?, &mut canvas)?;
        }
        let [caller, agent] = &mut tracks;
        caller.extend_from_slice(canvas.caller());
        agent.extend_from_slice(canvas.agent());
        next = window.end.max(next + 1);
    }
    Ok(tracks)
}
