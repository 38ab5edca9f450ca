//! The hot path once, for a count of its instructions: `scripts/instructions` runs it under callgrind.
//!
//! A call of 57.8 s, 5,780 messages, each decoded, sealed, and written as the journal's record; segments are cut every
//! 5 s. One thread, no socket, no disk. Nothing is measured here: the script counts what [`take_messages`] does.

#[path = "../benches/shared/call.rs"]
mod shared;

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use callseal::clock;
use callseal::domain::ids::RecordingId;
use callseal::journal::Record;
use callseal::simulate::CallIds;

use shared::{ACCOUNT, Call, Recording};

/// Records that are written together, as many as a thousand calls make in a flush of the journal.
const BATCH: usize = 1_000;

#[expect(clippy::print_stdout, reason = "the script divides by it")]
fn main() {
    let call = Call::new(CallIds::new(ACCOUNT, &[1; 16], &[2; 16]));
    let mut recording = Recording::start(&call);
    let mut journal = Vec::with_capacity(1 << 20);
    let now = clock::monotonic();
    take_messages(&call, &mut recording, now, &mut journal);
    recording.finish();
    black_box(journal);
    println!("{}", call.media.len());
}

/// What is counted. The script knows it by its name.
#[inline(never)]
fn take_messages(call: &Call, recording: &mut Recording, now: Instant, journal: &mut Vec<u8>) {
    for (number, message) in call.media.iter().enumerate() {
        if number % BATCH == 0 {
            journal.clear();
        }
        recording.handle(message);
        write_record(recording, now, journal);
    }
}

/// Does what the recorder and the journal's writer do with what was sealed.
fn write_record(recording: &mut Recording, sealed_at: Instant, journal: &mut Vec<u8>) {
    let Some(unjournaled) = recording.session.unjournaled() else { return };
    let record = Record::Sealed {
        recording: RecordingId([1; 16]),
        writer: unjournaled.writer,
        seq: unjournaled.seq,
        offset: unjournaled.offset,
        bytes: Bytes::copy_from_slice(unjournaled.bytes),
        sealed_at,
    };
    record.encode(journal);
    recording.session.mark_journaled();
}
