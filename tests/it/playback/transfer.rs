//! Long transfers: what they cost, and when they end.

use std::time::Duration;

use callseal::clock;
use callseal::domain::playback::grant::{Grant, TrackSelection};
use callseal::domain::playback::wav::{Encoding, WavLayout};
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER, Speech};
use callseal::simulate::{StreamingResponse, Track, TwilioCall};

use super::{PATH, get, grant, header, record, setup, target};
use crate::support::{GRANT_KEY, Home, Server};

/// 64 seconds: 2 MiB as PCM.
const CHUNKS: usize = 3_200;
/// More than the buffers of a connection take: 10 MiB as PCM.
const CHUNKS_TO_CUT: usize = 16_000;
const READERS: usize = 20;
/// What reading may cost at most, all readers together: far less than the file, which each of them gets whole.
const MAX_GROWTH: u64 = 16 << 20;

/// Records a call of so many messages; answers its recording and the file it plays as.
async fn record_long(server: &Server, chunks: usize) -> (String, Vec<u8>) {
    let tracks = [DEMO_CALLER, DEMO_AGENT].map(|audio| Track::looped(&Speech::new(audio.into()), 0, chunks));
    let mut plan = server.plan(PATH, 1, tracks[0].clone());
    plan.agent = Some(tracks[1].clone());
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let stored = server.wait_log("recording stored", 1).await;
    let [caller, agent] = tracks.map(|track| track.audio());
    let layout =
        WavLayout::new(Encoding::Pcm16, TrackSelection::Both.channels(), 8000, caller.len() as u64).unwrap();
    let mut file = layout.header();
    layout.write_frames(&caller, &agent, &mut file).unwrap();
    (stored.field("recording").to_owned(), file)
}

/// Returns the resident memory of the server in bytes.
fn memory(server: &Server) -> u64 {
    let page = server.metrics();
    let value = page.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    value.unwrap().parse().unwrap()
}

/// Reads on until the end of the body or its break; answers whether it ended well.
async fn read_on(answer: &mut StreamingResponse, body: &mut Vec<u8>) -> bool {
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_a_long_recording_cost_little_memory() {
    let (_home, mut server) = setup().serve();
    let (recording, file) = record_long(&server, CHUNKS).await;
    let link = target(&grant(&recording), GRANT_KEY);
    let before = memory(&server);
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut answer = server.https().get_streaming(&link, &[]).await.unwrap();
        let first = answer.chunk().await.unwrap().unwrap().to_vec();
        readers.push((answer, first));
    }
    // All of them are under way and read no further; the server must not read ahead for them.
    let mut highest = memory(&server);
    let reading = readers.into_iter().map(|(mut answer, mut body)| {
        tokio::spawn(async move {
            let ended = read_on(&mut answer, &mut body).await;
            (ended, body)
        })
    });
    for reader in reading.collect::<Vec<_>>() {
        let (ended, body) = reader.await.unwrap();
        assert!(ended && body == file, "{} of {} bytes", body.len(), file.len());
        highest = highest.max(memory(&server));
    }
    let growth = highest.saturating_sub(before);
    println!(
        "{READERS} readers of a file of {} KiB: server grew from {} to {} KiB",
        file.len() / 1024,
        before / 1024,
        highest / 1024
    );
    assert!(growth <= MAX_GROWTH, "{growth} bytes more");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_ends_with_its_grant() {
    let (_home, mut server) = setup().option("playback", "cut_after_exp_secs", "0").serve();
    server.allow("playback cut off");
    let (recording, file) = record_long(&server, CHUNKS_TO_CUT).await;
    let iat = clock::wall().secs();
    let short = Grant { iat, exp: iat + 2, ..grant(&recording) };
    let mut answer = server.https().get_streaming(&target(&short, GRANT_KEY), &[]).await.unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    let mut body = answer.chunk().await.unwrap().unwrap().to_vec();
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    assert!(!read_on(&mut answer, &mut body).await, "cut off");
    assert!(body.len() < file.len() && file.starts_with(&body), "{} bytes", body.len());
    assert_eq!(get(&server.https(), &target(&short, GRANT_KEY), &[]).await.status.as_u16(), 403);
    server.stop().await;
}

#[tokio::test]
async fn a_head_says_what_a_get_would_and_a_version_keeps_its_tag() {
    let (home, mut server): (Home, Server) = setup().serve();
    let recording = record(&home, &server, 1).await;
    let https = server.https();
    let mut tags = Vec::new();
    for encoding in [Encoding::Pcm16, Encoding::Ulaw] {
        for track in [TrackSelection::Both, TrackSelection::Caller, TrackSelection::Agent] {
            let link = target(&Grant { track, format: Some(encoding), ..grant(&recording) }, GRANT_KEY);
            let (got, head) = (get(&https, &link, &[]).await, https.head(&link, &[]).await.unwrap());
            assert_eq!((head.status, head.body.len()), (got.status, 0));
            for (name, value) in &got.headers {
                assert!(name == "date" || head.headers.get(name) == Some(value), "{name}: {value:?}");
            }
            assert_eq!(header(&got, "content-length"), got.body.len().to_string());
            let last = got.body.len() - 1;
            for range in
                [format!("bytes=0-{last}"), format!("bytes={last}-{last}"), format!("bytes=-{}", last + 2)]
            {
                let part = get(&https, &link, &[("range", &range)]).await;
                let first = if range.starts_with(&format!("bytes={last}-")) { last } else { 0 };
                assert_eq!((part.status.as_u16(), &part.body[..]), (206, &got.body[first..]), "{range}");
                assert_eq!(header(&part, "etag"), header(&got, "etag"));
                let head = https.head(&link, &[("range", &range)]).await.unwrap();
                assert_eq!(header(&head, "content-range"), header(&part, "content-range"));
            }
            tags.push(header(&got, "etag").to_owned());
        }
    }
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 6, "renditions are told apart");
    server.stop().await;
    let mut server = home.serve();
    let answer = get(&server.https(), &target(&grant(&recording), GRANT_KEY), &[]).await;
    assert!(tags.contains(&header(&answer, "etag").to_owned()), "also after a restart");
    server.stop().await;
}
