//! Nothing that must stay secret shows anywhere: in logs at the finest level, metrics, answers, or on the disk.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use callseal::domain::provider::twilio_signature::sign_url;
use callseal::simulate::{Track, TwilioCall};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::reader::hex;
use crate::support::socket::{Socket, greeting, media, stop, stream_id};
use crate::support::wire::{Answer, signed_upgrade, upgrade};
use crate::support::{AUTH_TOKEN, GRANT_KEY, Home, Server, Setup, TENANT, files_below};

const PATH: &str = "acme-dental/reception";
const TARGET: &str = "/twilio/v1/acme-dental/reception";
const NAME: &str = "Zora Quillfeather";
const PHONE: &str = "+15550142857";
const DTMF_PARAMETER: &str = "pin-4929-7718";

/// What must not be seen, by name, with everything that it could look like.
pub(crate) struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes bytes in every usual form: as they are, base64 of both alphabets at all three offsets, hexadecimal.
    pub(crate) fn add(&mut self, name: &str, secret: &[u8]) {
        self.0.push((name.to_owned(), secret.to_vec()));
        self.0.push((format!("{name}, hex"), hex(secret).into_bytes()));
        self.0.push((format!("{name}, HEX"), hex(secret).to_uppercase().into_bytes()));
        // As serde or Debug would write a list of bytes.
        let listed = secret.iter().map(u8::to_string);
        for separator in [",", ", "] {
            let list = listed.clone().collect::<Vec<_>>().join(separator);
            self.0.push((format!("{name}, listed"), list.into_bytes()));
        }
        for offset in 0..3 {
            let padded = [&vec![0; offset][..], secret].concat();
            for (alphabet, text) in [
                ("base64", BASE64_STANDARD.encode(&padded)),
                ("base64url", BASE64_URL_SAFE_NO_PAD.encode(&padded)),
            ] {
                // Without the characters that the bytes before and after have a part in.
                let inner = text.trim_end_matches('=');
                let inner = &inner[(offset * 4).div_ceil(3)..inner.len() - 2];
                self.0.push((format!("{name}, {alphabet} at {offset}"), inner.as_bytes().to_vec()));
            }
        }
    }

    /// Fails where one of them is seen.
    pub(crate) fn check(&self, place: &str, content: &[u8]) {
        for (name, secret) in &self.0 {
            assert!(!contains(content, secret), "{name} in {place}");
        }
    }
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(content, part).is_some()
}

/// Audio that no two calls share, so that 16 bytes of it are as good as a fingerprint.
fn audio(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..1600).map(next).collect()
}

/// Places a call that says everything that must stay secret; a digit is pressed in it.
async fn call(server: &Server, audio: &[u8]) {
    let mut plan = server.plan(PATH, 1, Track::whole(audio.to_vec()));
    plan.agent = Some(Track::whole(audio.iter().rev().copied().collect::<Vec<_>>()));
    plan.parameters = BTreeMap::from([
        ("name".to_owned(), NAME.to_owned()),
        ("phone".to_owned(), PHONE.to_owned()),
        ("pin".to_owned(), DTMF_PARAMETER.to_owned()),
    ]);
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    assert_eq!(call.run(|_| ()).await.unwrap().close_code, Some(1000));
}

/// Opens a stream and says what a provider never says, all of it with secrets inside.
async fn odd_call(server: &Server, audio: &[u8]) {
    let mut socket: Socket = server.open(PATH).await;
    for message in greeting(2) {
        socket.text(message).await;
    }
    let stream = stream_id(2);
    let payload = BASE64_STANDARD.encode(&audio[..160]);
    for odd in [
        format!("{NAME} {PHONE}"),
        format!(r#"{{"event":"{NAME}","streamSid":"{stream}","phone":"{PHONE}"}}"#),
        format!(
            r#"{{"event":"media","streamSid":"{stream}","media":{{"track":"{PHONE}","payload":"{payload}"}}}}"#
        ),
        format!(r#"{{"event":"media","streamSid":"{stream}","media":{{"payload":"{payload}@"}}}}"#),
        format!(r#"{{"event":"media","streamSid":"{stream}","media":{{"payload":["{payload}"]}}}}"#),
        format!(r#"{{"event":"mark","streamSid":"{stream}","mark":{{"name":"{NAME}"}}}}"#),
        format!(r#"{{"event":"dtmf","streamSid":"{stream}","dtmf":{{"digit":"{DTMF_PARAMETER}"}}}}"#),
        json!({"event": "dtmf", "streamSid": stream, "dtmf": {"digit": "7", "track": "inbound_track"}})
            .to_string(),
    ] {
        socket.text(odd).await;
    }
    socket.settle().await;
    // The last one ends the stream: an account, call and stream that are none.
    let [_, start] = greeting(3);
    socket.text(start.replace("CA0", PHONE)).await;
    assert_eq!(socket.closed().await.map(|(code, _)| code), Some(1008));
}

/// Sends requests that are refused for one thing or another; answers what came back.
async fn wrong_requests(server: &Server, link: &str, signature: &str) -> Vec<Answer> {
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: media.example.com\r\n\r\n");
    let signed = format!("x-twilio-signature: {signature}\r\n");
    let (path, query) = link.split_once('?').unwrap();
    let form = format!("StreamEvent=stream-error&StreamError={NAME}&From={PHONE}");
    let callback = format!(
        "POST {TARGET}/status HTTP/1.1\r\nHost: media.example.com\r\n{signed}Content-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let mut answers = Vec::new();
    for request in [
        upgrade("/twilio/v1/acme-dental/nowhere", &signed),
        upgrade(&format!("{TARGET}/{PHONE}"), &signed),
        upgrade(TARGET, &signed.repeat(2)),
        upgrade(&format!("{TARGET}?phone={PHONE}"), &signed),
        callback,
        get(&format!("{path}?{}", query.replacen("exp=", "exp=1", 1))),
        get(&format!("{path}?{query}&{query}")),
        get(&format!("{path}?phone={PHONE}")),
        get(&format!("{path}x?{query}")),
        get(&format!("/play/other{}?{query}", path.trim_start_matches("/play/acme-dental"))),
        get(&format!("/nothing/{PHONE}?{query}")),
    ] {
        let answer = server.exchange(&request).await;
        assert!(answer.status >= 400, "{request}: {answer:?}");
        answers.push(answer);
    }
    answers
}

/// Makes the canaries of one run; signatures are as good as passwords.
fn canaries(audio: &[u8], link: &str, signature: &str) -> Canaries {
    let mut canaries = Canaries::new();
    for (name, secret) in [
        ("auth token", AUTH_TOKEN),
        ("grant key", GRANT_KEY),
        ("name", NAME),
        ("phone number", PHONE),
        ("typed number", DTMF_PARAMETER),
        ("signature of the stream's URL", signature),
        ("signature of the grant", link.rsplit_once("sig=").unwrap().1),
    ] {
        canaries.add(name, secret.as_bytes());
    }
    let agent: Vec<u8> = audio.iter().rev().copied().collect();
    for at in [0, 160, 805, 1584] {
        canaries.add(&format!("caller's audio at {at}"), &audio[at..at + 16]);
        canaries.add(&format!("agent's audio at {at}"), &agent[at..at + 16]);
    }
    canaries
}

#[tokio::test]
async fn nothing_secret_is_seen_anywhere() {
    let audio = audio(7);
    let (home, mut server) = Setup::new().option("log", "level", "\"trace\"").serve();
    for allowed in ["stream handshake refused", "stream closed by us", "Twilio reports a stream error"] {
        server.allow(allowed);
    }
    call(&server, &audio).await;
    let recording = server.wait_log("recording sealed", 1).await.field("recording").to_owned();
    home.finished(TENANT, &recording).await;
    odd_call(&server, &audio).await;
    server.wait_log("recording sealed", 2).await;

    let link = home.grant(TENANT, &recording, &["--track", "caller", "--format", "ulaw"]);
    let played = server.https().get(&link, &[]).await.unwrap();
    assert_eq!(played.status, 200);
    assert!(contains(&played.body, &audio), "what may be heard is heard");
    let signature = sign_url(AUTH_TOKEN.as_bytes(), &format!("wss://media.example.com{TARGET}"));
    let answers = wrong_requests(&server, &link, &signature).await;

    let canaries = canaries(&audio, &link, &signature);
    canaries.check("the metrics", server.metrics().as_bytes());
    for answer in &answers {
        canaries.check("an answer", format!("{answer:?}").as_bytes());
    }
    // While the journal still holds what a crash would need, and once more after the end.
    check_disk(&home, &canaries);
    server.stop().await;
    check_disk(&home, &canaries);
    assert!(server.log().len() > 5);
    for line in server.log() {
        canaries.check(&line.text, line.text.as_bytes());
    }
    let shown = home.show(TENANT, &recording);
    canaries.check("the tags", shown["objects"].to_string().as_bytes());
    check_canaries_sing(&canaries, &audio);
}

/// Everything that the node has written, but for its keys.
fn check_disk(home: &Home, canaries: &Canaries) {
    let (mut segments, mut journals) = (0, 0);
    for folder in ["store", "journal"] {
        for (path, content) in files_below(&home.data().join(folder)) {
            let name = path.strip_prefix(home.path()).unwrap().display().to_string();
            canaries.check(&format!("the name {name}"), name.as_bytes());
            canaries.check(&name, &content);
            segments += usize::from(name.contains(".cmr"));
            journals += usize::from(folder == "journal");
        }
    }
    assert!(segments > 0 && journals > 0, "{segments} objects, {journals} files of the journal");
}

/// A canary that nothing could find would prove nothing.
fn check_canaries_sing(canaries: &Canaries, audio: &[u8]) {
    let sings = |content: &[u8]| canaries.0.iter().any(|(_, secret)| contains(content, secret));
    for offset in 0..3 {
        assert!(sings(BASE64_STANDARD.encode(&audio[160 - offset..320]).as_bytes()), "{offset}");
    }
    assert!(sings(&audio[150..200]));
    assert!(sings(hex(&audio[150..200]).as_bytes()));
    assert!(sings(format!("{:?}", &audio[150..200]).as_bytes()));
    assert!(sings(format!("caller {PHONE}").as_bytes()));
    assert!(!sings(b"nothing of it"));
}

/// What would be a line of its own if a line end in it counted.
const FORGED: &str = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","message":"forged"}"#;

/// Says things with line ends in them wherever a peer can say something.
async fn inject(server: &Server) {
    for end in ["\r\n", "\n", "\r", "\u{2028}", "\x1b[2J\n"] {
        let forged = format!("x{end}{FORGED}{end}");
        let mut plan = server.plan(PATH, 9, Track::whole(vec![0xff; 160]));
        plan.parameters = BTreeMap::from([(forged.clone(), forged.clone())]);
        let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
        assert_eq!(call.run(|_| ()).await.unwrap().close_code, Some(1000));
        let mut socket = server.open(PATH).await;
        let [connected, start] = greeting(1);
        socket.text(connected).await;
        socket.text(start).await;
        socket.text(json!({"event": forged, "streamSid": stream_id(1)}).to_string()).await;
        socket.text(json!({"event": "mark", "mark": {"name": forged}}).to_string()).await;
        socket.text(forged.clone()).await;
        socket.text(media(&stream_id(1), 1, 7)).await;
        socket.text(stop(&stream_id(1))).await;
        assert_eq!(socket.close(Some(1000)).await, Some(1000));
        // Line ends within a header are no header any more; most of these are refused before anybody reads them.
        let request = signed_upgrade(TARGET).replace("Twilio.TmeWs/1.0", &forged);
        let mut stream = server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(b"Connection: close\r\n\r\n").await.unwrap();
        drop(stream);
    }
    let encoded = format!("/twilio/v1/acme-dental/%0d%0a{}", FORGED.replace('"', "%22"));
    assert_eq!(server.exchange(signed_upgrade(&encoded)).await.status, 403);
}

#[tokio::test]
async fn no_peer_writes_a_log_line() {
    let (_home, mut server) = Setup::new().option("log", "level", "\"trace\"").serve();
    server.allow("stream handshake refused");
    inject(&server).await;
    server.stop().await;
    for line in server.log() {
        assert!(line.json.is_object(), "{}", line.text);
        assert!(!line.text.contains("forged"), "{}", line.text);
        assert!(!line.text.contains('\x1b'), "{}", line.text);
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_crash_leaves_no_core_dump() {
    let (home, mut server) = Setup::new().serve();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    server.stop().await;
    drop(home);
}
