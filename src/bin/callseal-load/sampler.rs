//! What server and generator did, second by second.
//!
//! A server that cannot be asked at the moment leaves holes; it ends nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use callseal::clock;
use callseal::observe::page::{Buckets, Page};
use callseal::simulate::LagHistogram;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ops;
use crate::process::Process;

/// Looks at most: a day and an hour.
const MAX_SAMPLES: usize = 90_000;
const MIB: f64 = 1024.0 * 1024.0;

/// What is drawn into one picture.
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    /// Names of columns, and what they are called in the picture.
    pub(crate) lines: &'static [(&'static str, &'static str)],
}

/// All pictures; every column is in one of them.
pub(crate) const CHARTS: [Chart; 10] = [
    Chart {
        title: "Calls",
        unit: "",
        lines: &[
            ("open_calls", "open calls"),
            ("live_streams", "recorded by the server"),
            ("connections", "connections of the server"),
        ],
    },
    Chart { title: "Messages sent", unit: "a second", lines: &[("messages_per_sec", "messages")] },
    Chart {
        title: "Send lag: how much later than due messages were sent",
        unit: "ms",
        lines: &[("send_lag_p50_ms", "p50"), ("send_lag_p99_ms", "p99"), ("send_lag_max_ms", "max")],
    },
    Chart {
        title: "Delays in the server, p99 of each second (upper bound of a bucket)",
        unit: "ms",
        lines: &[
            ("read_to_sealed_p99_ms", "read to sealed"),
            ("relay_p99_ms", "read to passed on"),
            ("event_loop_lag_p99_ms", "event loop"),
        ],
    },
    Chart {
        title: "CPU",
        unit: "cores",
        lines: &[("server_cores", "server"), ("generator_cores", "generator")],
    },
    Chart { title: "Memory of the server", unit: "MiB", lines: &[("server_memory_mib", "resident")] },
    Chart {
        title: "Store lag: age of the oldest segment that waits",
        unit: "s",
        lines: &[("store_lag_secs", "store lag")],
    },
    Chart {
        title: "Sealed audio that waits for the store",
        unit: "MiB",
        lines: &[("waiting_mib", "waiting")],
    },
    Chart { title: "Audio played", unit: "MB a second", lines: &[("played_mb_per_sec", "played")] },
    Chart { title: "Open files of the server", unit: "", lines: &[("server_files", "files and sockets")] },
];

/// One second: its end, and a value for each column.
pub(crate) struct Sample {
    pub(crate) at: Duration,
    values: Vec<(&'static str, Option<f64>)>,
}

impl Sample {
    pub(crate) fn value(&self, column: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| *name == column).and_then(|(_, value)| *value)
    }

    /// Moves it, to stand behind those of another run.
    pub(crate) fn later(mut self, by: Duration) -> Self {
        self.at += by;
        self
    }

    #[cfg(test)]
    pub(crate) fn invented(at_secs: u64, values: Vec<(&'static str, Option<f64>)>) -> Self {
        Self { at: Duration::from_secs(at_secs), values }
    }
}

/// Writes all samples as one list for each column.
pub(crate) fn columns(samples: &[Sample]) -> Map<String, Value> {
    let mut columns = Map::new();
    let at: Vec<f64> = samples.iter().map(|sample| sample.at.as_secs_f64()).collect();
    columns.insert("at_secs".to_owned(), json!(at));
    for (name, _) in CHARTS.iter().flat_map(|chart| chart.lines) {
        let values: Vec<_> = samples.iter().map(|sample| sample.value(name)).collect();
        columns.insert((*name).to_owned(), json!(values));
    }
    columns
}

/// What the tasks of all calls count together.
#[derive(Default)]
pub(crate) struct Tally {
    /// Calls whose handshake is over, however it ended.
    pub(crate) tried: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) messages: AtomicU64,
    lag: Mutex<LagHistogram>,
}

impl Tally {
    /// Counts messages that were sent, and how late the latest of them was.
    pub(crate) fn sent(&self, messages: u64, lag: Duration) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        lock(&self.lag).record(lag);
    }

    fn take_lag(&self) -> LagHistogram {
        std::mem::take(&mut *lock(&self.lag))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server that is looked at; it may be another one later.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watched {
    pub(crate) process: Option<Process>,
    pub(crate) ops: Option<SocketAddr>,
}

/// Looks once a second until it is stopped.
pub(crate) struct Sampler {
    watched: watch::Sender<Watched>,
    ended: watch::Sender<bool>,
    task: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// Begins at `began`, which is second 0.
    pub(crate) fn start(watched: Watched, tally: Arc<Tally>, began: Instant) -> Self {
        let (watched, seen) = watch::channel(watched);
        let (ended, until) = watch::channel(false);
        let looks = Looks { tally, began, seen, before: Before::default() };
        Self { watched, ended, task: tokio::spawn(looks.run(until)) }
    }

    /// Looks at another server from now on.
    pub(crate) fn watch(&self, watched: Watched) {
        self.watched.send_replace(watched);
    }

    /// Ends it, and answers what it saw.
    pub(crate) async fn stop(self) -> Vec<Sample> {
        self.ended.send_replace(true);
        self.task.await.unwrap_or_default()
    }
}

struct Looks {
    tally: Arc<Tally>,
    began: Instant,
    seen: watch::Receiver<Watched>,
    before: Before,
}

/// What the look before saw, where differences are wanted.
#[derive(Default)]
struct Before {
    at: Duration,
    messages: u64,
    server: Option<(Process, Duration)>,
    own_cpu: Option<Duration>,
    sealed: Buckets,
    relayed: Buckets,
    loop_lag: Buckets,
    played_bytes: Option<f64>,
}

impl Looks {
    async fn run(mut self, mut until: watch::Receiver<bool>) -> Vec<Sample> {
        let mut samples = Vec::new();
        self.look().await;
        loop {
            // A look that took longer leaves out the seconds that are over.
            let next = clock::since(self.began).as_secs() + 1;
            let next = self.began + Duration::from_secs(next);
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                _ = until.changed() => return samples,
            }
            samples.push(self.look().await);
            if samples.len() >= MAX_SAMPLES {
                return samples;
            }
        }
    }

    async fn look(&mut self) -> Sample {
        let Watched { process, ops } = *self.seen.borrow();
        let page = match ops {
            Some(ops) => ops::look(ops).await.ok(),
            None => None,
        };
        let at = clock::since(self.began);
        let secs = (at - self.before.at).as_secs_f64().max(0.001);
        let messages = self.tally.messages.load(Ordering::Relaxed);
        let lag = self.tally.take_lag();
        let late = |lag: Duration| Some(lag.as_secs_f64() * 1000.0);
        let mut values = vec![
            ("open_calls", Some(self.tally.open.load(Ordering::Relaxed) as f64)),
            ("messages_per_sec", Some(messages.saturating_sub(self.before.messages) as f64 / secs)),
            ("send_lag_p50_ms", late(lag.percentile(50))),
            ("send_lag_p99_ms", late(lag.percentile(99))),
            ("send_lag_max_ms", late(lag.max())),
        ];
        (self.before.at, self.before.messages) = (at, messages);
        self.processes(process, secs, &mut values);
        if let Some(page) = page {
            self.page(&page, secs, &mut values);
        }
        Sample { at, values }
    }

    fn processes(
        &mut self,
        process: Option<Process>,
        secs: f64,
        values: &mut Vec<(&'static str, Option<f64>)>,
    ) {
        let cores = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / secs;
        let own = Process::new(std::process::id()).cpu().ok();
        values
            .push(("generator_cores", own.zip(self.before.own_cpu).map(|(now, before)| cores(now, before))));
        self.before.own_cpu = own;
        let Some(process) = process else { return };
        let cpu = process.cpu().ok();
        let before = self.before.server.filter(|(known, _)| *known == process);
        values.push(("server_cores", cpu.zip(before).map(|(now, (_, before))| cores(now, before))));
        self.before.server = cpu.map(|cpu| (process, cpu));
        values.push(("server_memory_mib", process.resident_kib().ok().map(|kib| kib as f64 / 1024.0)));
        values.push(("server_files", process.open_files().map(|files| files as f64)));
    }

    fn page(&mut self, page: &Page, secs: f64, values: &mut Vec<(&'static str, Option<f64>)>) {
        let sealed = page.buckets("ingest_read_to_sealed_seconds");
        let relayed = page.buckets("relay_read_to_written_seconds");
        let loop_lag = page.buckets("event_loop_lag_seconds");
        let played = page.sum("playback_bytes_total");
        let played_since = played.zip(self.before.played_bytes).map(|(now, before)| now - before);
        let p99 = |now: &Buckets, before: &Buckets| now.quantile_since(before, 0.99).map(|p99| p99 * 1000.0);
        let waiting = ["upload_waiting_bytes", "upload_spilled_bytes"].map(|name| page.sum(name));
        let waiting = waiting.into_iter().flatten().reduce(|sum, bytes| sum + bytes);
        values.extend([
            ("live_streams", page.sum("ingest_live_streams")),
            ("store_lag_secs", page.sum("upload_oldest_unstored_seconds")),
            ("waiting_mib", waiting.map(|bytes| bytes / MIB)),
            ("read_to_sealed_p99_ms", p99(&sealed, &self.before.sealed)),
            ("relay_p99_ms", p99(&relayed, &self.before.relayed)),
            ("event_loop_lag_p99_ms", p99(&loop_lag, &self.before.loop_lag)),
            ("connections", page.sum("ingest_connections")),
            ("played_mb_per_sec", played_since.map(|bytes| bytes / 1e6 / secs)),
        ]);
        (self.before.sealed, self.before.relayed) = (sealed, relayed);
        (self.before.loop_lag, self.before.played_bytes) = (loop_lag, played.or(Some(0.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_look_has_all_of_its_columns() {
        let tally = Arc::new(Tally::default());
        let watched = Watched { process: Some(Process::new(std::process::id())), ops: None };
        let (_server, seen) = watch::channel(watched);
        let began = clock::monotonic();
        let mut looks = Looks { tally: Arc::clone(&tally), began, seen, before: Before::default() };
        looks.look().await;
        tally.open.store(2, Ordering::Relaxed);
        tally.sent(200, Duration::from_millis(3));
        let samples = [looks.look().await, looks.look().await];
        let columns = columns(&samples);
        for (name, _) in CHARTS.iter().flat_map(|chart| chart.lines) {
            assert_eq!(columns[*name].as_array().map(Vec::len), Some(2), "{name}");
        }
        let [first, second] = &samples;
        assert_eq!((first.value("open_calls"), first.value("send_lag_max_ms")), (Some(2.0), Some(3.0)));
        assert_eq!(second.value("send_lag_max_ms"), Some(0.0), "what was taken is gone");
        assert!(
            first.value("messages_per_sec").unwrap() > 0.0 && second.value("messages_per_sec") == Some(0.0)
        );
        assert!(first.value("server_memory_mib").unwrap() > 0.1 && first.value("server_cores").is_some());
        assert_eq!(first.value("store_lag_secs"), None, "nobody was asked");
    }
}
