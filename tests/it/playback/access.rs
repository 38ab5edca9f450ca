//! Who may play what, and what is written down about it.

use std::fs;

use callseal::domain::playback::grant::{Grant, TrackSelection};
use callseal::domain::playback::wav::Encoding;
use hyper::Method;

use super::{PATH, code, file, get, grant, header, record, setup, stored, target};
use crate::support::{GRANT_KEY, Home, TENANT, TenantSetup, eventually};

/// Returns the results of all requests to play a recording, oldest first, with who made them.
fn plays(home: &Home, recording: &str) -> Vec<(String, String)> {
    let records = home.run_json(&["audit", "show", "--tenant", TENANT]);
    let of_it = records.iter().filter(|record| record["action"] == "play" && record["subject"] == recording);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    of_it.map(|record| (text(&record["result"]), text(&record["actor"]))).collect()
}

#[tokio::test]
async fn every_answer_is_in_the_audit_log_before_its_first_byte() {
    let (home, mut server) = setup().serve();
    server.allow("damaged");
    let recording = record(&home, &server, 1).await;
    let (https, good) = (server.https(), grant(&recording));
    let mut wanted = Vec::new();
    let mut expect = |result: &str, actor: &str| {
        wanted.push((result.to_owned(), actor.to_owned()));
        assert_eq!(plays(&home, &recording), wanted);
    };
    let link = target(&good, GRANT_KEY);
    let answer = https.get_streaming(&link, &[]).await.unwrap();
    expect("allowed", "a listener");
    drop(answer);
    assert_eq!(https.head(&link, &[]).await.unwrap().status.as_u16(), 200);
    expect("allowed", "a listener");
    assert_eq!(get(&https, &link, &[("range", "bytes=99999999-")]).await.status.as_u16(), 416);
    expect("allowed", "a listener");
    assert_eq!(get(&https, &format!("{link}&dl=2"), &[]).await.status.as_u16(), 400);
    expect("grant_malformed", "unknown");
    assert_eq!(get(&https, &target(&good, "a key of nobody at all"), &[]).await.status.as_u16(), 403);
    expect("grant_signature", "unknown");
    let path = stored(&home, "final.cmr");
    let honest = fs::read(&path).unwrap();
    fs::write(&path, &honest[..honest.len() / 2]).unwrap();
    assert_eq!(get(&https, &link, &[]).await.status.as_u16(), 500);
    expect("damaged", "a listener");
    fs::remove_file(&path).unwrap();
    assert_eq!(get(&https, &link, &[]).await.status.as_u16(), 404);
    expect("not_found", "a listener");
    let audit = ["audit", "verify", "--tenant", TENANT];
    assert!(home.run_ok(&audit).contains("all chains unbroken"));
    server.stop().await;
}

#[tokio::test]
async fn one_changed_character_of_a_link_opens_nothing() {
    let (home, mut server) = setup().serve();
    let recording = record(&home, &server, 1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    let at = link.find("&sig=").unwrap() + "&sig=".len();
    for position in (at..link.len()).step_by(7) {
        let mut changed = link.clone();
        let other = if &link[position..=position] == "A" { "B" } else { "A" };
        changed.replace_range(position..=position, other);
        let answer = get(&https, &changed, &[]).await;
        // The last character carries bits that must be zero.
        assert!(matches!(answer.status.as_u16(), 400 | 403), "character {position}: {}", answer.status);
    }
    for repeated in ["sub=x", "kid=k1", "exp=1", "sig=x", "track=agent&track=agent"] {
        let answer = get(&https, &format!("{link}&{repeated}"), &[]).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "grant_malformed"), "{repeated}");
    }
    // A grant for one track is none for the other.
    let caller = Grant { track: TrackSelection::Caller, ..grant(&recording) };
    let widened = target(&caller, GRANT_KEY).replace("track=caller", "track=agent");
    assert_eq!(code(&get(&https, &widened, &[]).await), "grant_signature");
    server.stop().await;
}

#[tokio::test]
async fn a_suspended_tenant_plays_nothing_and_a_closing_one_still_does() {
    let (home, mut server) = setup().serve();
    let recording = record(&home, &server, 1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    let tenant = home.tenant(TENANT).clone();
    for (reloads, (status, wanted)) in
        (1..).zip([("suspended", 403), ("closing", 200), ("closed", 403), ("active", 200)])
    {
        home.rewrite_tenant(&TenantSetup { top: format!("status = \"{status}\""), ..tenant.clone() });
        server.signal("HUP");
        server.wait_log("tenants, their secrets and keys were read again", reloads).await;
        assert_eq!(get(&https, &link, &[]).await.status.as_u16(), wanted, "{status}");
    }
    server.stop().await;
}

#[tokio::test]
async fn other_pages_may_ask_only_if_the_tenant_says_so() {
    let origin = "https://app.example.com";
    let setup = setup().tenant(|tenant| tenant.playback = format!("allowed_origins = [{origin:?}]"));
    let (home, mut server) = setup.serve();
    let recording = record(&home, &server, 1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    let preflight = async |page: &str| {
        let headers = [("origin", page), ("access-control-request-method", "GET")];
        https.request(Method::OPTIONS, &link, &headers, bytes::Bytes::new()).await.unwrap()
    };
    let answer = preflight(origin).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    for (name, value) in [
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", "GET, HEAD"),
        ("access-control-allow-headers", "range, if-range"),
        ("vary", "origin"),
    ] {
        assert_eq!(header(&answer, name), value);
    }
    for page in
        ["https://evil.example.com", "http://app.example.com", "https://app.example.com.evil.example", "null"]
    {
        let answer = preflight(page).await;
        let names: Vec<_> =
            answer.headers.keys().filter(|name| name.as_str().starts_with("access-control")).collect();
        assert!(answer.status.as_u16() == 204 && names.is_empty(), "{page}: {names:?}");
    }
    let refused = get(&https, &target(&grant(&recording), "a key of nobody"), &[("origin", origin)]).await;
    assert_eq!(header(&refused, "access-control-allow-origin"), origin, "the page can read why");
    server.stop().await;
}

#[tokio::test]
async fn keys_that_are_gone_or_changed_round_open_nothing() {
    let (home, mut server) = setup().serve();
    let first = record(&home, &server, 1).await;
    let second = record(&home, &server, 2).await;
    server.stop().await;
    // Only what was not opened before is asked from the store at once.
    let mut server = home.serve();
    server.allow("damaged");
    let tag = fs::read_dir(home.data().join("store/k")).unwrap().next().unwrap().unwrap().path();
    let envelope = |recording: &str| tag.join(recording).join("0000.json");
    let honest = fs::read(envelope(&second)).unwrap();
    fs::copy(envelope(&first), envelope(&second)).unwrap();
    let https = server.https();
    let link = target(&grant(&second), GRANT_KEY);
    let answer = get(&https, &link, &[]).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (500, "damaged"));
    let renamed = String::from_utf8(fs::read(envelope(&first)).unwrap()).unwrap().replace(&first, &second);
    fs::write(envelope(&second), renamed).unwrap();
    assert_eq!(code(&get(&https, &link, &[]).await), "damaged", "the wrap is bound to its recording");
    assert!(server.metric("integrity_failures_total") >= 2.0);
    fs::remove_file(envelope(&second)).unwrap();
    let answer = get(&https, &link, &[]).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (404, "not_found"));
    for command in [&["verify"][..], &["open", "--out", "never.wav"]] {
        let ran = home.run(&[command, &["--tenant", TENANT, "--recording", &second]].concat());
        assert_eq!(ran.code, Some(1), "{command:?}");
    }
    assert!(!home.path().join("never.wav").exists());
    fs::create_dir_all(envelope(&second).parent().unwrap()).unwrap();
    fs::write(envelope(&second), honest).unwrap();
    assert_eq!(get(&https, &link, &[]).await.body, file(Encoding::Pcm16, TrackSelection::Both));
    server.stop().await;
}

#[tokio::test]
async fn no_audit_record_means_no_audio_while_a_running_call_goes_on() {
    let (home, mut server) = setup().serve();
    server.allow("audit");
    let recording = record(&home, &server, 1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    let (caller, _) = super::tracks();
    let mut plan = server.plan(PATH, 2, callseal::simulate::Track::whole(caller));
    plan.pacing = callseal::simulate::Pacing::Scaled(8.0);
    let call = callseal::simulate::TwilioCall::connect(plan, &server.tls()).await.unwrap();
    let running = tokio::spawn(call.run(|_| ()));
    server.wait_log("recording begins", 2).await;
    let audit = home.data().join("store/a");
    fs::rename(&audit, home.data().join("moved")).unwrap();
    fs::write(&audit, "in the way").unwrap();
    let answer = get(&https, &link, &[]).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (503, "audit_unavailable"));
    assert!(server.metric("audit_failures_total") >= 1.0);
    assert!(!running.is_finished(), "the call is still on");
    fs::remove_file(&audit).unwrap();
    fs::rename(home.data().join("moved"), &audit).unwrap();
    assert_eq!(get(&https, &link, &[]).await.status.as_u16(), 200, "it works again");
    assert_eq!(running.await.unwrap().unwrap().close_code, Some(1000));
    let stored = server.wait_log("recording stored", 2).await;
    assert_eq!(home.open_ulaw(TENANT, stored.field("recording"), "caller"), caller);
    let verified = || (home.run(&["audit", "verify", "--tenant", TENANT]).code == Some(0)).then_some(());
    eventually("unbroken chains", verified).await;
    server.stop().await;
}
