//! What keeps a node from starting, and a clock that goes back.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use callseal::domain::audio::AudioFormat;
use callseal::domain::cmr::Manifest;
use callseal::domain::cmr::open_row;
use callseal::domain::ids::{RecordingId, WriterId};
use callseal::domain::playback::timeline::{Canvas, Timeline};
use callseal::domain::recovery::Rebuild;
use callseal::domain::time::UnixMillis;

use super::sealed::{CHUNK, Sealed};
use crate::support::{Setup, write_private};

#[test]
fn a_keyring_that_others_can_read_is_refused() {
    let home = Setup::new().write();
    let keyring = home.data().join("keyring.json");
    let honest = fs::read_to_string(&keyring).unwrap();
    fs::set_permissions(&keyring, Permissions::from_mode(0o644)).unwrap();
    let ran = home.run(&["serve"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("has mode 644") && ran.err.contains("chmod 600"), "{}", ran.err);
    fs::set_permissions(&keyring, Permissions::from_mode(0o600)).unwrap();
    write_private(&keyring, "{}");
    let ran = home.run(&["serve"]);
    assert!(ran.code == Some(1) && ran.err.contains("is not a keyring of version 1"), "{}", ran.err);
    let digits: String = honest.chars().filter(char::is_ascii_hexdigit).collect();
    assert!(!ran.err.contains(&digits), "nothing of a key is shown");
    fs::remove_file(&keyring).unwrap();
    let ran = home.run(&["serve"]);
    assert!(ran.code == Some(1) && ran.err.contains("callseal keys init"), "{}", ran.err);
}

#[test]
fn a_faulty_configuration_starts_nothing() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Setup::new().option("listen", "public", &format!("\"{free}\"")).write();
    let text = fs::read_to_string(home.config()).unwrap();
    let data = home.path().join("elsewhere");
    let text = text
        .replace("127.0.0.1:0", "192.0.2.1:0")
        .replace(&home.data().display().to_string(), &data.display().to_string());
    fs::write(home.config(), format!("{text}\n[upload]\nconcurrency = 0\n")).unwrap();
    let ran = home.run(&["serve"]);
    assert_eq!(ran.code, Some(64), "{}", ran.err);
    assert!(ran.err.contains("listen.ops") && ran.err.contains("upload.concurrency"), "{}", ran.err);
    assert!(!ran.err.contains("taking calls") && !data.exists(), "nothing was made");
}

#[test]
fn a_taken_address_or_journal_is_said_clearly() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let home = Setup::new().option("listen", "public", &format!("\"{address}\"")).write();
    let ran = home.run(&["serve"]);
    assert!(ran.code == Some(1) && ran.err.contains(&format!("bind {address}")), "{}", ran.err);
    let (home, _server) = Setup::new().serve();
    let ran = home.run(&["serve"]);
    assert!(ran.code == Some(1) && ran.err.contains("in use by another process"), "{}", ran.err);
}

#[test]
fn a_clock_that_goes_back_harms_no_recording() {
    // Sealed with a clock that goes back a minute with every message.
    let call = Sealed::call(120, CHUNK, 8 * 1024);
    Manifest::open(&call.manifest, &call.dek, &call.ids).unwrap();
    // Recovered from its segments alone, in any order.
    let mut rebuild = Rebuild::new(&call.dek, call.ids);
    for (row, bytes) in call.segments.iter().rev() {
        rebuild.add(row.writer, row.seq, bytes).unwrap();
    }
    let rebuilt = rebuild.finish(0, WriterId([9; 16]), &[8; 32], UnixMillis(1)).unwrap();
    let manifest = Manifest::open(&rebuilt.manifest, &call.dek, &call.ids).unwrap();
    let timeline = Timeline::new(&manifest.rows, &manifest.spans);
    let whole = 0..timeline.samples();
    let mut canvas = Canvas::new(AudioFormat::TELEPHONE, timeline.origin(), &whole);
    for (index, (row, (_, bytes))) in manifest.rows.iter().zip(&call.segments).enumerate() {
        let index = u32::try_from(index).unwrap();
        open_row(index, row, bytes, &call.dek, &call.ids, &mut |frame| {
            canvas.paint_frame(frame).unwrap();
        })
        .unwrap();
    }
    assert!(canvas.caller() == call.audio);
    // Ids stay different and readable, also at the ends of time.
    let ids = [u64::MAX, 1_790_000_000_000, 1, 0].map(|ms| RecordingId::new(ms, &[3; 10]));
    for id in ids {
        assert_eq!(id.to_string().parse::<RecordingId>().unwrap(), id);
    }
    assert_eq!(ids[1].created_ms(), 1_790_000_000_000);
}
