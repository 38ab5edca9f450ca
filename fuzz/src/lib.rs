//! What the fuzz targets do with their bytes. Each function panics when a rule is broken.
//!
//! The targets in `fuzz_targets` call one each; `tests/it/fuzz_seeds.rs` calls all of them with every seed, so that what
//! was found once stays found without a fuzzer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use callseal::config::{Config, Files, Secret, TenantFile};
use callseal::domain::cmr::{
    Dek, EndOfObject, EndReason, EndState, Expected, Frame, GapReason, Manifest, ManifestWriter, ObjectKind,
    ObjectReader, RecordingVerifier, Row, RowSpan, SealError, SegmentIds, SegmentWriter, Tail, TrackSpan,
    TrailerTotals, whole_frames_prefix,
};
use callseal::domain::ids::{RecordingId, TenantId, TrackId, WriterId};
use callseal::domain::playback::grant::{Grant, GrantCheck, GrantLimits, SignedGrant, TrackSelection};
use callseal::domain::playback::range::{ByteRange, if_range_matches};
use callseal::domain::provider::Event;
use callseal::domain::provider::twilio::TwilioDecoder;
use callseal::domain::provider::twilio_signature::{
    MAX_FORM_BYTES, MAX_FORM_FIELDS, SignatureHeaders, TwilioSecrets, parse_form, verify_callback,
    verify_handshake,
};
use callseal::domain::provider::vapi_listen_url::{ListenPolicy, ListenUrl};
use callseal::domain::provider::vapi_webhook::{SecretUrl, Webhook};
use callseal::domain::time::UnixMillis;

/// The ids and key of the published vectors, so that they are good seeds.
fn published() -> (Dek, Expected) {
    let dek = Dek::filled_by::<()>(|key| {
        for (byte, value) in key.iter_mut().zip(0..) {
            *byte = value;
        }
        Ok(())
    })
    .expect("filling cannot fail");
    let tenant = tenant().tag();
    let recording = recording();
    let key = dek.key_id(tenant, recording);
    (dek, Expected { tenant, recording, key })
}

fn tenant() -> TenantId {
    "acme-dental".parse().expect("a valid name")
}

fn recording() -> RecordingId {
    "018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f".parse().expect("32 digits")
}

/// One provider message a line. The quick scan and the full parser must agree, whatever came before.
pub fn provider_message(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let decoder = || {
        let account = "AC000000000000000000000000c0ffee01".parse().expect("an account");
        TwilioDecoder::new(vec![account], 100)
    };
    let (mut quick, mut thorough) = (decoder(), decoder());
    for line in text.lines() {
        // A space in front is nothing to a JSON parser, and keeps the quick scan out.
        let spaced = format!(" {line}");
        let event = quick.decode(line);
        assert_eq!(event, thorough.decode(&spaced));
        assert_eq!(
            (quick.has_started(), quick.has_stopped()),
            (thorough.has_started(), thorough.has_stopped())
        );
        if let Ok(Event::Media(media)) = event {
            let mut audio = Vec::new();
            if let Ok(appended) = media.payload.append_to(&mut audio) {
                assert_eq!(appended, audio.len());
                assert!(appended <= media.payload.max_bytes());
                assert_eq!(media.payload.is_empty(), audio.is_empty());
            }
        }
    }
}

/// The bytes as a segment, as a trailer, and as a script of frames that is sealed, opened, cut and changed.
pub fn segment(bytes: &[u8]) {
    let (dek, expected) = published();
    let _end = read_segment(bytes, &dek, &expected);
    assert!(whole_frames_prefix(bytes) <= bytes.len());
    let _totals = TrailerTotals::parse(u32::try_from(bytes.len()).unwrap_or(0), bytes);

    let mut script = Script(bytes);
    let (place, value) = (script.u32(), script.u8());
    let (sealed, row, wanted) = sealed_script(script, &dek, expected);
    let mut seen = Vec::new();
    let note = |frame: &Frame<'_>| seen.extend(described(frame));
    let checked = RecordingVerifier::new(&dek, expected).check_row(&row, &sealed, note);
    assert!(checked.is_ok(), "{checked:?}");
    assert_eq!(seen, wanted);

    let place = usize::try_from(place).unwrap_or(0) % sealed.len();
    let (cut, _) = sealed.split_at(place);
    assert_ne!(read_segment(cut, &dek, &expected), Some(EndOfObject::Complete));
    let mut changed = sealed.clone();
    if let Some(byte) = changed.get_mut(place) {
        *byte ^= value.max(1);
    }
    assert_ne!(read_segment(&changed, &dek, &expected), Some(EndOfObject::Complete));
}

/// Opens every frame; `None` when the object is refused.
fn read_segment(object: &[u8], dek: &Dek, expected: &Expected) -> Option<EndOfObject> {
    let mut reader = ObjectReader::new(object, ObjectKind::Segment, dek, expected).ok()?;
    let mut scratch = Vec::new();
    while reader.next_frame(&mut scratch).ok()?.is_some() {}
    assert!(reader.consumed_bytes() <= object.len());
    reader.end()
}

/// Bytes as numbers and pieces; zeros once they are used up.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u32(&mut self) -> u32 {
        let mut number = [0; 4];
        for (slot, byte) in number.iter_mut().zip(self.bytes(4)) {
            *slot = *byte;
        }
        u32::from_be_bytes(number)
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        piece
    }
}

/// Seals what the script says; returns the segment, its row and what an honest reader sees.
fn sealed_script(mut script: Script<'_>, dek: &Dek, ids: Expected) -> (Vec<u8>, Row, Vec<String>) {
    let place = SegmentIds { ids, writer: WriterId([7; 16]), seq: 0, created_ms: 0, prev: [0; 16] };
    let metadata = script.u8();
    let metadata = script.bytes(usize::from(metadata));
    let mut segment = SegmentWriter::start(dek, place, &[9; 32], b"\x80", Some(metadata), 0)
        .expect("the first frames always fit");
    let mut wanted = Vec::new();
    while !script.0.is_empty() {
        let (head, pts) = (script.u8(), script.u32() >> 1);
        let track = TrackId::from_nibble(head);
        let length = usize::from(script.u8());
        match head >> 4 {
            0 => {
                let samples = script.u32() >> 1;
                let reason = GapReason::from_number(head % 5 + 1).expect("one of five");
                segment.gap(track, pts, samples, reason).expect("few frames fit");
                wanted.push(format!("{:?}", Frame::Gap { track, pts, samples, reason }));
            }
            1 => {
                let body = script.bytes(length);
                segment.event(track, pts, body).expect("few frames fit");
                wanted.push(format!("{:?}", Frame::Event { track, pts, body }));
            }
            _ => {
                let payload = script.bytes(length);
                let audio = segment.audio_with(track, pts, |inner| {
                    inner.extend_from_slice(payload);
                    Ok::<_, SealError>(u32::try_from(payload.len()).unwrap_or(0))
                });
                let samples = audio.expect("few frames fit");
                wanted.push(format!("{:?}", Frame::Audio { track, pts, samples, payload }));
            }
        }
    }
    let finished = segment.finish(EndReason::CallEnd).expect("a trailer always fits");
    (finished.bytes, finished.row, wanted)
}

/// What a script wrote, without what every segment begins and ends with.
fn described(frame: &Frame<'_>) -> Option<String> {
    match frame {
        Frame::Audio { .. } | Frame::Gap { .. } | Frame::Event { .. } => Some(format!("{frame:?}")),
        Frame::TrackTable(_)
        | Frame::Metadata(_)
        | Frame::TimeIndex(_)
        | Frame::Trailer(_)
        | Frame::Unknown(_) => None,
    }
}

/// A server message of Vapi, and the listen URL in it: whatever may be dialled has the one form, below the one host.
pub fn vapi_webhook(bytes: &[u8]) {
    let Ok(message) = Webhook::parse(bytes) else { return };
    let facts = match &message {
        Webhook::InProgress(running) => &running.facts,
        Webhook::Ended(_, facts) | Webhook::Report(_, facts) => facts,
        Webhook::Other(_) => return,
    };
    assert!(facts.0.values().all(|text| (1..=256).contains(&text.len())));
    let shown = format!("{message:?}");
    assert!(!shown.contains("wss://") && shown.len() < 1000, "{shown}");
    let Webhook::InProgress(running) = &message else { return };
    let Some(url) = &running.listen_url else { return };
    let policy = ListenPolicy { hosts: vec!["vapi.ai".parse().expect("a name")], any_port: false };
    if let Ok(checked) = ListenUrl::check(url, &running.call, &policy) {
        let (host, text) = (checked.host(), checked.expose().to_ascii_lowercase());
        assert!(host == "vapi.ai" || host.ends_with(".vapi.ai"));
        let path = format!("/{}/listen", running.call.as_str());
        assert!([format!("wss://{host}{path}"), format!("wss://{host}:443{path}")].contains(&text));
        assert_eq!(ListenUrl::check(&SecretUrl::new(checked.expose()), &running.call, &policy), Ok(checked));
    }
}

/// The bytes as a manifest, with and without the key, as the tail of a final object, and as the rows of a new manifest.
pub fn manifest(bytes: &[u8]) {
    let (dek, expected) = published();
    if let Ok(opened) = Manifest::open(bytes, &dek, &expected) {
        assert_eq!(Manifest::rows_without_key(bytes).as_ref(), Ok(&opened.rows));
        assert_eq!(opened.rows.len(), opened.spans.len());
    }
    let _rows = Manifest::rows_without_key(bytes);
    if let Ok(tail) = Tail::parse(bytes, bytes.len() as u64) {
        assert!(bytes.ends_with(&tail.encode()));
    }

    let mut script = Script(bytes);
    let (mut rows, mut spans): (Vec<Row>, Vec<RowSpan>) = (Vec::new(), Vec::new());
    let (place, value) = (script.u32(), script.u8());
    while !script.0.is_empty() {
        let (writer, seq, byte_len, tracks) = (script.u8(), script.u32(), script.u32(), script.u8());
        let row = Row {
            writer: WriterId([writer; 16]),
            seq,
            byte_len,
            sha256: [writer; 32],
            complete: tracks & 1 == 1,
        };
        let track = |number: u8| {
            let first_pts = byte_len >> 1;
            TrackSpan { track: TrackId::from_nibble(number), first_pts, end_pts: first_pts + 1 }
        };
        rows.push(row);
        spans.push((0..8).filter(|number| tracks >> number & 1 == 1).map(track).collect());
    }
    let writer = ManifestWriter {
        ids: expected,
        writer: WriterId([3; 16]),
        revision: 0,
        created_ms: 0,
        rows: &rows,
        spans: &spans,
        metadata: b"\xa0",
        state: EndState::Complete,
        end: b"\xa0",
    };
    let mut sealed = writer.seal(&dek, &[5; 32]).expect("few rows fit");
    let opened = Manifest::open(&sealed, &dek, &expected).expect("what was sealed opens");
    assert_eq!((opened.rows, opened.spans), (rows, spans));
    let place = usize::try_from(place).unwrap_or(0) % sealed.len();
    if let Some(byte) = sealed.get_mut(place) {
        *byte ^= value.max(1);
    }
    assert!(Manifest::open(&sealed, &dek, &expected).is_err());
}

/// Eight bytes of total, then the header.
pub fn range_header(bytes: &[u8]) {
    let Some((total, header)) = bytes.split_first_chunk::<8>() else { return };
    let Ok(header) = str::from_utf8(header) else { return };
    let total = u64::from_be_bytes(*total);
    let range = ByteRange::parse(Some(header), total);
    match range {
        ByteRange::Whole => assert_eq!(range.content_range(total), None),
        ByteRange::Part { first, last } => {
            assert!(first <= last && last < total);
            assert_eq!(range.content_range(total), Some(format!("bytes {first}-{last}/{total}")));
        }
        ByteRange::Unsatisfiable => assert_eq!(range.content_range(total), Some(format!("bytes */{total}"))),
    }
    assert!(!if_range_matches(Some(header), "W/\"weak\""));
}

/// The text as a grant's query, and as the name of somebody who is granted something.
pub fn grant(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let key: &[u8] = b"a key that no seed is signed with, 32 bytes and more";
    let check = GrantCheck {
        key: Some(key),
        now: UnixMillis(1_760_000_001_000),
        limits: GrantLimits { max_ttl_secs: 900, skew_secs: 30 },
        source: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        not_before: None,
    };
    if let Ok(signed) = SignedGrant::parse_query(&tenant(), recording(), text) {
        assert!(signed.verify(&check).is_err(), "nobody but the key's owner can sign");
    }
    let (sub, reason) = text.split_once('\n').unwrap_or((text, ""));
    let made = Grant {
        tenant: tenant(),
        recording: recording(),
        iat: 1_760_000_000,
        exp: 1_760_000_300,
        kid: "g1".to_owned(),
        sub: sub.to_owned(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        ip: None,
        track: TrackSelection::Caller,
        dl: true,
        format: None,
    };
    if made.validate().is_ok() {
        let query = made.sign(key);
        let signed = SignedGrant::parse_query(&tenant(), recording(), &query).expect("what was minted reads");
        assert_eq!(signed.verify(&check), Ok(&made));
    }
}

/// A form body, then the signature of a callback that nobody made.
pub fn form(bytes: &[u8]) {
    let Ok(fields) = parse_form(bytes) else { return };
    assert!(fields.len() <= MAX_FORM_FIELDS && bytes.len() <= MAX_FORM_BYTES);
    let secrets = TwilioSecrets {
        auth_tokens: &[b"a token that no seed is signed with"],
        shared_keys: &|_| None,
        require_shared_key: false,
    };
    let headers = SignatureHeaders { signatures: &[bytes], settings: &[] };
    let url = "https://media.example.com/twilio/v1/acme-dental/status";
    assert!(verify_callback(&secrets, url, &fields, headers).is_err());
    if let Ok(target) = str::from_utf8(bytes) {
        let headers = SignatureHeaders { signatures: &[b"xLfNepaevEGYXpPdNv+VBj1Jlm0="], settings: &[] };
        assert!(verify_handshake(&secrets, "wss://media.example.com", target, headers).is_err());
    }
}

/// What stands between the parts of a configuration seed: the node's file, the environment, the tenants' files.
const PART: &str = "\n%%%\n";
/// What every secret of a configuration seed holds. It must come out nowhere.
const CANARY: &str = "canary-that-must-not-be-shown-anywhere";

/// A whole configuration, with its environment and tenants.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut parts = text.split(PART);
    let node = parts.next().unwrap_or_default();
    let env = parts.next().unwrap_or_default().lines().filter_map(|line| line.split_once('='));
    let tenants = (0..).map(|number| format!("tenant-{number}.toml")).zip(parts.map(str::to_owned)).collect();
    let checked = Config::from_toml(node, Path::new("etc"), env, &Invented(tenants));
    let shown = match &checked {
        Ok(config) => format!("{config:?}"),
        Err(faults) => {
            assert!(faults.iter().len() > 0);
            faults.to_string()
        }
    };
    assert!(text.contains("canary") || !shown.contains(CANARY), "{shown}");
}

/// Files that exist in the seed only.
struct Invented(BTreeMap<String, String>);

impl Files for Invented {
    fn read_secret(&self, _path: &Path) -> Result<Secret, String> {
        Ok(Secret::new(CANARY.into()))
    }

    fn check_readable(&self, _path: &Path) -> Result<(), String> {
        Ok(())
    }

    fn tenant_files(&self, _dir: &Path) -> Result<Vec<TenantFile>, String> {
        let file =
            |(name, text): (&String, &String)| TenantFile { name: name.clone(), text: Ok(text.clone()) };
        Ok(self.0.iter().map(file).collect())
    }
}
