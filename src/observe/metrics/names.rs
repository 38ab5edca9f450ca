//! The names of all metrics, with their labels.

/// Counter: websocket messages from providers.
pub const MESSAGES_IN: &str = "ingest_messages_total";
/// Counter: bytes of those messages.
pub const BYTES_IN: &str = "ingest_bytes_total";
/// Counter, label `reason`: messages dropped; the stream went on.
pub const MESSAGES_DROPPED: &str = "ingest_messages_dropped_total";
/// Counter, label `status`: websocket handshakes by HTTP status.
pub const HANDSHAKES: &str = "ingest_handshakes_total";
/// Gauge: open connections of any kind on the public listener.
pub const CONNECTIONS: &str = "ingest_connections";
/// Counter: requests of trusted proxies that named no address of a client.
pub const PROXIED_WITHOUT_ADDRESS: &str = "proxied_without_address_total";
/// Gauge: streams being recorded.
pub const LIVE_STREAMS: &str = "ingest_live_streams";
/// Counter, label `cause`: streams ended.
pub const STREAMS_ENDED: &str = "ingest_streams_ended_total";
/// Histogram: seconds from the start of a read to its frames being sealed.
pub const READ_TO_SEALED: &str = "ingest_read_to_sealed_seconds";
/// Counter: audio frames sealed.
pub const FRAMES_SEALED: &str = "seal_frames_total";
/// Counter: audio bytes sealed.
pub const AUDIO_SEALED: &str = "seal_audio_bytes_total";
/// Counter: milliseconds of audio sealed, those of each track.
pub const AUDIO_SEALED_MILLIS: &str = "seal_audio_milliseconds_total";
/// Counter, label `reason`: audio bytes lost. Normal is 0.
pub const AUDIO_LOST: &str = "audio_lost_bytes_total";
/// Histogram: seconds from a segment's first sealed frame to its being stored.
pub const SEALED_TO_STORED: &str = "upload_sealed_to_stored_seconds";
/// Counter: segments stored and verified.
pub const SEGMENTS_STORED: &str = "upload_segments_stored_total";
/// Counter: uploads tried again.
pub const UPLOAD_RETRIES: &str = "upload_retries_total";
/// Gauge: calls that are passed on to an agent now.
pub const RELAYED_CALLS: &str = "relay_live_calls";
/// Histogram, label `direction`: seconds from a message's being read to its being with the kernel for the other side.
pub const RELAY_LAG: &str = "relay_read_to_written_seconds";
/// Counter, label `direction`: messages that were not passed on: audio for an agent that does not read or is away, and
/// messages that are no text.
pub const RELAY_DROPPED: &str = "relay_messages_dropped_total";
/// Counter, label `result`: attempts to reach an agent.
pub const UPSTREAM_DIALS: &str = "relay_dials_total";
/// Counter, label `action`: agents that were lost, and what became of the call.
pub const AGENTS_LOST: &str = "relay_agents_lost_total";
/// Counter, label `result`: phone calls that were to be ended because their agents were lost. Anything but `ended` and `over`
/// gave the call back to the provider.
pub const HANG_UPS: &str = "relay_hangups_total";
/// Counter, label `result`: Vapi's server messages, by kind or by why they were refused.
pub const VAPI_WEBHOOKS: &str = "vapi_webhooks_total";
/// Counter, label `result`: what became of calls that Vapi told of.
pub const VAPI_CALLS: &str = "vapi_calls_total";
/// Counter, label `result`: attempts to reach a listen socket.
pub const VAPI_DIALS: &str = "vapi_dials_total";
/// Counter: listen sockets that ended before Vapi said that the call was over; they are dialled again.
pub const VAPI_SOCKETS_LOST: &str = "vapi_sockets_lost_total";
/// Counter: calls whose audio did not come as its format says.
pub const VAPI_FORMAT_IN_DOUBT: &str = "vapi_format_in_doubt_total";
/// Counter: calls of which the store did not say in time whether another node hears them; they were heard.
pub const VAPI_UNCONFIRMED: &str = "vapi_unconfirmed_total";
/// Counter: tickets of which the store did not say in time whether another node had used them; they were taken.
pub const TICKETS_UNCONFIRMED: &str = "tickets_unconfirmed_total";
/// Counter: streams that were not recorded, because nobody said that the caller agrees.
pub const WITHOUT_CONSENT: &str = "streams_without_consent_total";
/// Counter: calls passed on without a recording, because no key was to be had.
pub const CALLS_UNRECORDED: &str = "calls_unrecorded_total";
/// Gauge: sealed bytes waiting in memory for the store.
pub const UPLOAD_WAITING: &str = "upload_waiting_bytes";
/// Gauge: sealed bytes waiting for the store in the journal only.
pub const UPLOAD_SPILLED: &str = "upload_spilled_bytes";
/// Gauge: 1 while the store fails so often that it is only probed, else 0.
pub const BREAKER_OPEN: &str = "upload_breaker_open";
/// Gauge: seconds since the oldest segment that waits for the store was begun; 0 when none waits.
pub const OLDEST_UNSTORED: &str = "upload_oldest_unstored_seconds";
/// Gauge: 1 while audio of running calls is dropped, because neither the store nor the journal takes enough, else 0.
pub const DROPPING: &str = "upload_dropping";
/// Gauge: seconds since the oldest frame was sealed that the store does not have, open segments among them; 0 when it
/// has all.
pub const STORE_LAG: &str = "store_lag_seconds";
/// Gauge: seconds since the oldest frame was sealed that neither the journal nor the store has for certain.
pub const OLDEST_UNSAVED: &str = "oldest_unsaved_seconds";
/// Counter, label `life`: recordings finished.
pub const RECORDINGS_FINISHED: &str = "recordings_finished_total";
/// Counter: recordings finished after a crash.
pub const RECORDINGS_RECOVERED: &str = "recordings_recovered_total";
/// Counter: recordings that a crash cut off and that this node, which only records, has stored for others to finish.
pub const RECORDINGS_HANDED_OVER: &str = "recordings_handed_over_total";
/// Counter: recordings that could not be recovered at start; they stay in the journal.
pub const RECOVERY_FAILED: &str = "recordings_recovery_failed_total";
/// Counter: recordings of nodes that never came back, finished by this one.
pub const RECORDINGS_ADOPTED: &str = "recordings_adopted_total";
/// Counter: recordings of this node that another one had finished meanwhile.
pub const RECORDINGS_TAKEN_OVER: &str = "recordings_taken_over_total";
/// Counter: abandoned recordings that a scan could not finish; the next one tries again.
pub const REPAIR_FAILED: &str = "recordings_repair_failed_total";
/// Gauge: recordings without their final form that the last scan found, running calls among them.
pub const RECORDINGS_UNSETTLED: &str = "recordings_unsettled";
/// Counter, labels `use` and `kind`: keys that could not be minted, opened or moved.
pub const KEY_ERRORS: &str = "key_errors_total";
/// Counter, labels `provider`, `operation` and `result`: requests to keyring and key services, repetitions not counted.
pub const KEY_REQUESTS: &str = "key_requests_total";
/// Histogram, labels `provider` and `operation`: seconds of those requests, repetitions and waiting included.
pub const KEY_SECONDS: &str = "key_request_seconds";
/// Gauge: keys minted ahead of calls.
pub const KEYS_WAITING: &str = "keys_waiting";
/// Gauge: keys in locked memory.
pub const KEYS_LOCKED: &str = "keys_locked";
/// Counter: keys that lay in ordinary memory, because no locked memory was to be had. Normal is 0.
pub const KEYS_UNLOCKED: &str = "keys_unlocked_total";
/// Gauge: seconds since the oldest of the tenants' present KEKs was made or rotated, as far as their services tell.
pub const KEK_AGE: &str = "kek_oldest_age_seconds";
/// Gauge: tenants whose KEK should have been rotated.
pub const KEKS_DUE: &str = "keks_due";
/// Gauge: tenants whose key service does not tell the age of their KEK.
pub const KEKS_OF_UNKNOWN_AGE: &str = "keks_of_unknown_age";
/// Counter, label `result`: playback requests by outcome.
pub const PLAYS: &str = "playback_requests_total";
/// Counter: audio bytes played.
pub const PLAYED_BYTES: &str = "playback_bytes_total";
/// Counter: stored bytes that failed authentication or their digest. Normal is 0; anything else wakes someone.
pub const INTEGRITY_FAILURES: &str = "integrity_failures_total";
/// Gauge: streams whose recording is paused.
pub const STREAMS_PAUSED: &str = "streams_paused";
/// Gauge: how long the longest of these pauses has lasted. More than 300 was most likely forgotten.
pub const LONGEST_PAUSE: &str = "streams_longest_pause_seconds";
/// Counter, labels `operation`, `status`: requests to the admin API.
pub const ADMIN_REQUESTS: &str = "admin_requests_total";
/// Counter: looks at the keys of an identity provider that failed.
pub const KEY_SET_FAILURES: &str = "admin_key_set_failures_total";
/// Counter: audit records made durable.
pub const AUDIT_RECORDS: &str = "audit_records_total";
/// Counter: audit records that could not be made durable; the action did not happen.
pub const AUDIT_FAILURES: &str = "audit_failures_total";
/// Counter: recordings that are stored and cannot be found by call or number. Normal is 0.
pub const INDEX_FAILURES: &str = "index_failures_total";
/// Counter: audit objects that the file beside the store did not take. Normal is 0.
pub const AUDIT_FILE_FAILURES: &str = "audit_file_failures_total";
/// Counter: audit checkpoints that could not be made durable. Normal is 0.
pub const AUDIT_CHECKPOINT_FAILURES: &str = "audit_checkpoint_failures_total";
/// Counter: refusals of strangers that are told in sums instead of one by one.
pub const AUDIT_REFUSALS_COUNTED: &str = "audit_refusals_counted_total";
/// Counter: purges of old audit records that failed; the next one goes on. Normal is 0.
pub const AUDIT_PURGE_FAILURES: &str = "audit_purge_failures_total";
/// Counter, label `reason`: recordings deleted.
pub const RETENTION_DELETED: &str = "retention_deleted_total";
/// Counter, label `reason`: sweeps that deleted nothing (clock, store, too_much_due), and recordings that could not be
/// deleted (recording); later dates in orders that are not proven, each time one is read (kept_until). Normal is 0.
pub const RETENTION_FAILURES: &str = "retention_failures_total";
/// Histogram: seconds from the moment a recording had to be gone to its being gone.
pub const RETENTION_LAG: &str = "retention_purge_lag_seconds";
/// Gauge: recordings due for more than one sweep interval, neither held nor deleted. Normal is 0.
pub const RETENTION_OVERDUE: &str = "retention_overdue_recordings";
/// Gauge: recordings whose date has come and that are held.
pub const RETENTION_HELD: &str = "retention_held_recordings";
/// Gauge: when the last sweep was finished, Unix seconds.
pub const RETENTION_SWEPT: &str = "retention_last_sweep_seconds";
/// Gauge: 1 while sweeps stop because too much is due at once.
pub const RETENTION_STOPPED: &str = "retention_stopped";
/// Gauge: requests of people about what is kept of them that are open.
pub const REQUESTS_OPEN: &str = "requests_open";
/// Gauge: requests of people that should have been dealt with by now. Normal is 0.
pub const REQUESTS_OVERDUE: &str = "requests_overdue";
/// Counter: counts of requests that failed; the gauges are old then. Normal is 0.
pub const REQUESTS_COUNT_FAILURES: &str = "requests_count_failures_total";
/// Counter: notices put into the outbox.
pub const NOTICES_MADE: &str = "notices_made_total";
/// Counter, label `result`: attempts to deliver a notice.
pub const NOTICES_ATTEMPTS: &str = "notices_attempts_total";
/// Counter: notices that could not be delivered in time. Normal is 0.
pub const NOTICES_DEAD: &str = "notices_dead_total";
/// Counter, label `reason`: notices that never reached the outbox, or could not be read there. Normal is 0.
pub const NOTICES_LOST: &str = "notices_lost_total";
/// Gauge: notices that wait in the outbox, of all nodes.
pub const NOTICES_WAITING: &str = "notices_waiting";
/// Gauge: seconds since the oldest waiting notice was made; 0 when none waits.
pub const NOTICES_OLDEST: &str = "notices_oldest_waiting_seconds";
/// Gauge, labels `provider` and `state`: streams that are recorded or could be.
pub const STREAMS: &str = "streams";
/// Counter: spans that the collector has taken.
pub const TRACES_EXPORTED: &str = "traces_exported_total";
/// Counter, label `reason`: spans that it has not and will not.
pub const TRACES_DROPPED: &str = "traces_dropped_total";
/// Histogram: seconds by which the timer of the server's own tasks is late.
pub const LOOP_LAG: &str = "event_loop_lag_seconds";
/// Gauge: the longest of these delays in the last 10 to 20 seconds.
pub const LOOP_LONGEST_LAG: &str = "event_loop_longest_lag_seconds";
/// Gauge, label `version`: 1.
pub const BUILD: &str = "callseal_build_info";
/// Gauge: when the process began, Unix seconds.
pub const PROCESS_STARTED: &str = "process_start_time_seconds";
/// Gauge: how many files the process may have open.
pub const PROCESS_MAX_FILES: &str = "process_max_fds";
/// Gauge: resident memory of the process.
pub const PROCESS_MEMORY: &str = "process_resident_memory_bytes";
/// Counter: milliseconds of CPU time that the process has used, on all cores.
pub const PROCESS_CPU_MILLIS: &str = "process_cpu_milliseconds_total";
/// Gauge: open files of the process.
pub const PROCESS_FILES: &str = "process_open_fds";
