//! What a player gets, whatever it asks for, and what it does not get.

mod access;
mod transfer;

use std::fs;
use std::path::PathBuf;

use callseal::clock;
use callseal::domain::ids::TenantId;
use callseal::domain::playback::grant::{Grant, TrackSelection};
use callseal::domain::playback::wav::{Channels, Encoding, WavLayout};
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{HttpsClient, Response, Track, TwilioCall};

use crate::support::{GRANT_KEY, Home, Server, Setup, TENANT, TenantSetup};

const PATH: &str = "acme-dental/reception";
/// Six seconds of speech on both tracks: several segments of at most 64 KiB.
const SAMPLES: usize = 48_000;
const FROM: usize = 80_000;

fn tracks() -> (&'static [u8], &'static [u8]) {
    (&DEMO_CALLER[FROM..FROM + SAMPLES], &DEMO_AGENT[FROM..FROM + SAMPLES])
}

fn setup() -> Setup {
    Setup::new().option("segments", "max_bytes", "65536")
}

/// Records a call; answers its recording.
async fn record(home: &Home, server: &Server, number: u8) -> String {
    let (caller, agent) = tracks();
    let mut plan = server.plan(PATH, number, Track::whole(caller));
    plan.agent = Some(Track::whole(agent));
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let stored = server.wait_log("recording stored", before + 1).await;
    let recording = stored.field("recording").to_owned();
    assert_eq!(home.show(TENANT, &recording)["state"], "complete");
    recording
}

/// The whole file as it must be.
fn file(encoding: Encoding, track: TrackSelection) -> Vec<u8> {
    let (caller, agent) = tracks();
    let layout = WavLayout::new(encoding, track.channels(), 8000, SAMPLES as u64).unwrap();
    let mut file = layout.header();
    let (first, second): (&[u8], &[u8]) = match track {
        TrackSelection::Both => (caller, agent),
        TrackSelection::Caller => (caller, &[]),
        TrackSelection::Agent => (agent, &[]),
    };
    layout.write_frames(first, second, &mut file).unwrap();
    assert_eq!(layout.total_bytes(), file.len() as u64);
    assert_eq!(track.channels() == Channels::Stereo, track == TrackSelection::Both);
    file
}

/// A grant of the tenant's key for five minutes.
pub(crate) fn grant(recording: &str) -> Grant {
    let iat = clock::wall().secs();
    Grant {
        tenant: TENANT.parse().unwrap(),
        recording: recording.parse().unwrap(),
        iat,
        exp: iat + 300,
        kid: "k1".to_owned(),
        sub: "a listener".to_owned(),
        reason: None,
        ip: None,
        track: TrackSelection::Both,
        dl: false,
        format: None,
    }
}

/// The link of a grant.
pub(crate) fn target(grant: &Grant, key: &str) -> String {
    format!("/play/{}/{}.wav?{}", grant.tenant, grant.recording, grant.sign(key.as_bytes()))
}

async fn get(https: &HttpsClient, target: &str, headers: &[(&str, &str)]) -> Response {
    https.get(target, headers).await.unwrap()
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

fn code(answer: &Response) -> String {
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    problem["code"].as_str().unwrap().to_owned()
}

/// A repeatable sequence of numbers below `limit`.
fn numbers(limit: usize) -> impl Iterator<Item = usize> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % limit as u64).unwrap()
    })
}

#[tokio::test]
async fn every_rendition_and_any_range_of_it_is_what_was_said() {
    let (home, mut server) = setup().serve();
    let recording = record(&home, &server, 1).await;
    let https = server.https();
    for encoding in [Encoding::Pcm16, Encoding::Ulaw] {
        for track in [TrackSelection::Both, TrackSelection::Caller, TrackSelection::Agent] {
            let whole = file(encoding, track);
            let link = target(&Grant { track, format: Some(encoding), ..grant(&recording) }, GRANT_KEY);
            let answer = get(&https, &link, &[]).await;
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &whole[..]));
            assert_eq!(header(&answer, "content-length"), whole.len().to_string());
            let etag = header(&answer, "etag").to_owned();
            let mut offsets = numbers(whole.len());
            for _ in 0..20 {
                let (a, b) = (offsets.next().unwrap(), offsets.next().unwrap());
                let (first, last) = (a.min(b), a.max(b));
                let range = format!("bytes={first}-{last}");
                let part = get(&https, &link, &[("range", &range), ("if-range", &etag)]).await;
                assert_eq!((part.status.as_u16(), &part.body[..]), (206, &whole[first..=last]), "{range}");
                let named = format!("bytes {first}-{last}/{}", whole.len());
                assert_eq!(header(&part, "content-range"), named);
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn ranges_conditions_and_headers_follow_the_rules() {
    let (home, mut server) = setup().serve();
    let recording = record(&home, &server, 1).await;
    let (https, link, whole) =
        (server.https(), target(&grant(&recording), GRANT_KEY), file(Encoding::Pcm16, TrackSelection::Both));
    let end = whole.len();
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=-500", end - 500, end - 1),
        ("bytes=1000-", 1000, end - 1),
        ("bytes=0-99999999", 0, end - 1),
        ("bytes=43-44", 43, 44),
    ] {
        let part = get(&https, &link, &[("range", range)]).await;
        assert_eq!((part.status.as_u16(), &part.body[..]), (206, &whole[first..=last]), "{range}");
    }
    for range in ["bytes=0-1,5-6", "items=0-1", "bytes=5-1", "bytes="] {
        let answer = get(&https, &link, &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, end), "{range}");
    }
    let beyond = get(&https, &link, &[("range", "bytes=99999999-")]).await;
    assert_eq!((beyond.status.as_u16(), header(&beyond, "content-range")), (416, &*format!("bytes */{end}")));
    let changed = get(&https, &link, &[("range", "bytes=0-0"), ("if-range", "\"another\"")]).await;
    assert_eq!(changed.status.as_u16(), 200);
    let head = https.head(&link, &[]).await.unwrap();
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(header(&head, "content-length"), end.to_string());
    for (name, value) in [
        ("cache-control", "private, no-store"),
        ("accept-ranges", "bytes"),
        ("content-type", "audio/wav"),
        ("x-callseal-state", "complete"),
        ("referrer-policy", "no-referrer"),
        // A browser that opens the link makes a page around it, which must be able to load the audio.
        ("content-security-policy", "default-src 'none'; media-src 'self'; frame-ancestors 'none'"),
    ] {
        assert_eq!(header(&head, name), value);
    }
    let download = target(&Grant { dl: true, ..grant(&recording) }, GRANT_KEY);
    let disposition = get(&https, &download, &[]).await;
    assert_eq!(
        header(&disposition, "content-disposition"),
        format!("attachment; filename=\"{recording}.wav\"")
    );
    let post = https.request(hyper::Method::POST, &link, &[], bytes::Bytes::new()).await.unwrap();
    assert_eq!((post.status.as_u16(), header(&post, "allow")), (405, "GET, HEAD, OPTIONS"));
    server.stop().await;
}

#[tokio::test]
async fn only_a_good_grant_opens_and_each_refusal_has_its_code() {
    let other = TenantSetup {
        grant_key: "another tenant's grant key, long enough".to_owned(),
        ..TenantSetup::new("other")
    };
    let origin = "allowed_origins = [\"https://app.example.com\"]".to_owned();
    let (home, mut server) =
        setup().tenant(|tenant| tenant.playback = origin).add_tenant(other.clone()).serve();
    let recording = record(&home, &server, 1).await;
    let (https, good) = (server.https(), grant(&recording));
    let now = good.iat;
    let refused = [
        (Grant { iat: now - 400, exp: now - 100, ..good.clone() }, "grant_expired"),
        (Grant { iat: now + 200, exp: now + 300, ..good.clone() }, "grant_not_yet_valid"),
        (Grant { exp: now + 100_000, ..good.clone() }, "grant_too_long"),
        (Grant { kid: "k2".to_owned(), ..good.clone() }, "grant_unknown_key"),
        (Grant { ip: Some("192.0.2.0/24".parse().unwrap()), ..good.clone() }, "grant_address"),
    ];
    for (grant, wanted) in refused {
        let answer = get(&https, &target(&grant, GRANT_KEY), &[]).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (403, wanted));
    }
    let link = target(&good, GRANT_KEY);
    let tampered = [
        link.replace("sub=a%20listener", "sub=somebody"),
        target(&good, "not the key of this tenant at all"),
    ];
    for link in &tampered {
        let answer = get(&https, link, &[]).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (403, "grant_signature"));
    }
    for link in
        [format!("{link}&exp=1"), format!("{link}&x=1"), link.split("&sig").next().unwrap().to_owned()]
    {
        let answer = get(&https, &link, &[]).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "grant_malformed"));
    }
    // The other tenant's own good grant, but for a recording that is not its own: as if there were none.
    let foreign = Grant { tenant: "other".parse::<TenantId>().unwrap(), ..good.clone() };
    let answer = get(&https, &target(&foreign, &other.grant_key), &[]).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (404, "not_found"));
    let unknown = Grant { recording: "0".repeat(32).parse().unwrap(), ..good.clone() };
    assert_eq!(get(&https, &target(&unknown, GRANT_KEY), &[]).await.status.as_u16(), 404);
    for (page, allowed) in [("https://app.example.com", true), ("https://evil.example.com", false)] {
        let answer = get(&https, &link, &[("origin", page)]).await;
        assert_eq!(header(&answer, "access-control-allow-origin") == page, allowed);
    }
    let records = home.run_json(&["audit", "show", "--tenant", TENANT]);
    for result in ["allowed", "grant_expired", "grant_signature", "grant_address"] {
        let has = records.iter().any(|record| record["action"] == "play" && record["result"] == result);
        assert!(has, "no audit record of a play that was {result}");
    }
    let allowed = records.iter().find(|record| record["result"] == "allowed").unwrap();
    assert_eq!((&allowed["actor"], &allowed["source"]), (&"a listener".into(), &"127.0.0.1".into()));
    server.stop().await;
}

/// The last object in the store's folder whose name ends so.
fn stored(home: &Home, end: &str) -> PathBuf {
    let store = home.data().join("store");
    let files = crate::support::files_below(&store).into_iter().map(|(path, _)| path);
    let is_object = |path: &PathBuf| !path.strip_prefix(&store).unwrap().starts_with(".tags");
    files.filter(|path| is_object(path) && path.display().to_string().ends_with(end)).max().unwrap()
}

#[tokio::test]
async fn damaged_bytes_are_never_played() {
    let (home, mut server) = setup().serve();
    server.allow("damaged");
    let recording = record(&home, &server, 1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    let whole = file(Encoding::Pcm16, TrackSelection::Both);
    let (path, out) = (stored(&home, "final.cmr"), home.path().join("out.wav").display().to_string());
    let honest = fs::read(&path).unwrap();
    let mut positions = numbers(honest.len());
    for _ in 0..12 {
        let position = positions.next().unwrap();
        let mut flipped = honest.clone();
        flipped[position] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        let mut received = Vec::new();
        if let Ok(mut answer) = https.get_streaming(&link, &[]).await
            && answer.status == 200
        {
            while let Ok(Some(chunk)) = answer.chunk().await {
                received.extend_from_slice(&chunk);
            }
        }
        assert!(received.len() < whole.len() && whole.starts_with(&received), "byte {position} flipped");
        for command in [vec!["verify"], vec!["open", "--out", &out]] {
            let args = [&command[..], &["--tenant", TENANT, "--recording", &recording]].concat();
            assert_eq!(home.run(&args).code, Some(1), "byte {position} flipped: {command:?}");
        }
        assert!(!PathBuf::from(&out).exists(), "no partial file stays");
    }
    assert!(server.metric("integrity_failures_total") >= 12.0);
    fs::write(&path, &honest[..honest.len() - 1]).unwrap();
    let cut = get(&https, &link, &[]).await;
    assert_eq!((cut.status.as_u16(), code(&cut).as_str()), (500, "damaged"));
    fs::write(&path, &honest).unwrap();
    assert_eq!(get(&https, &link, &[]).await.body, whole, "the honest bytes play again");
    server.stop().await;
}

#[tokio::test]
async fn a_changed_or_missing_audit_record_is_noticed_and_no_record_means_no_audio() {
    let (home, mut server) = setup().serve();
    server.allow("audit");
    let recording = record(&home, &server, 1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    for _ in 0..3 {
        assert_eq!(get(&https, &link, &[("range", "bytes=0-0")]).await.status.as_u16(), 206);
    }
    let verify = || home.run(&["audit", "verify", "--tenant", TENANT]).code;
    assert_eq!(verify(), Some(0));
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    let path = stored(&home, "00000001.car");
    let honest = fs::read(&path).unwrap();
    let mut changed = honest.clone();
    changed[100] ^= 1;
    fs::write(&path, changed).unwrap();
    assert_eq!(verify(), Some(1), "changed");
    fs::remove_file(&path).unwrap();
    assert_eq!(verify(), Some(1), "taken out");
    fs::write(&path, honest).unwrap();
    assert_eq!(verify(), Some(0));
    // The store takes no more audit records: nothing is played, calls go on.
    let audit = home.data().join("store/a");
    fs::rename(&audit, home.data().join("moved")).unwrap();
    fs::write(&audit, "in the way").unwrap();
    let answer = get(&https, &link, &[]).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (503, "audit_unavailable"));
    let second = record(&home, &server, 2).await;
    assert_ne!(second, recording);
    server.stop().await;
}

#[tokio::test]
async fn a_call_that_goes_on_plays_up_to_its_last_stored_segment() {
    let (home, mut server) = setup().serve();
    let (caller, _) = tracks();
    let plan = server.plan(PATH, 1, Track::whole(caller));
    let mut call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    call.greet().await.unwrap();
    let track = Track::whole(caller);
    for chunk in 0..track.chunks() {
        let payload = track.base64(chunk).unwrap().to_owned();
        let message =
            call.messages().media(callseal::simulate::Direction::Inbound, 102 + chunk as u64 * 20, &payload);
        call.send_text(message).await.unwrap();
    }
    let begun = server.wait_log("recording begins", 1).await;
    let recording = begun.field("recording").to_owned();
    let link = target(
        &Grant { track: TrackSelection::Caller, format: Some(Encoding::Ulaw), ..grant(&recording) },
        GRANT_KEY,
    );
    let https = server.https();
    let answer = loop {
        let answer = get(&https, &link, &[]).await;
        if answer.status == 200 {
            break answer;
        }
        assert_eq!(answer.status.as_u16(), 404, "nothing is stored yet");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(header(&answer, "x-callseal-state"), "receiving");
    let audio = &answer.body[58..];
    assert!(!audio.is_empty() && caller.starts_with(audio), "{} samples", audio.len());
    call.send_stop().await.unwrap();
    assert_eq!(call.close(1000, "").await, Some(1000));
    assert_eq!(home.finished(TENANT, &recording).await["state"], "complete");
    server.stop().await;
}
