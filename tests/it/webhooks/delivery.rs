//! What becomes of a notice on its way.

use std::collections::BTreeSet;
use std::time::Duration;

use callseal::domain::notice::{Event, Facts, NoticeKind, Schedule, Subject};
use callseal::domain::sign::{encode_hex, hmac_sha256};
use callseal::notices::manage::RedeliverError;
use callseal::store::layout::{self, NoticePlace};

use super::receiver::{Answer, Got};
use super::world::{QUICK, SECRETS, World, event, free_port, notice};
use crate::support::{TENANT, eventually, files_below};

/// What a receiver does that trusts one secret: checks both signatures of a request.
fn is_signed(got: &Got, secret: &str) -> bool {
    let timestamp = &got.headers["x-callseal-timestamp"];
    let timed = [timestamp.as_bytes(), b".", &got.body].concat();
    let has = |header: &str, text: &[u8]| {
        let wanted = format!("sha256={}", encode_hex(&hmac_sha256(secret.as_bytes(), [text])));
        got.headers[header].split(',').any(|signature| signature == wanted)
    };
    has("x-signature-256", &got.body) && has("x-callseal-signature", &timed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_is_signed_by_each_secret_and_delivered_once() {
    let (world, receiver) = World::listening().await;
    let node = world.node("a");
    let told = event(NoticeKind::Complete, 1);
    assert!(node.notices.told(&world.id(), told.clone()).await);
    let sent = world.wait_for(NoticePlace::Sent, 1).await.remove(0);
    let got = receiver.got();
    assert_eq!(got.len(), 1);
    let got = &got[0];
    assert!(SECRETS.iter().all(|secret| is_signed(got, secret)));
    assert!(!is_signed(got, "another secret"));
    let id = notice(&told).to_string();
    assert_eq!(
        (got.id(), got.kind(), &got.headers["x-callseal-id"]),
        (id.clone(), told.kind.name().into(), &id)
    );
    let body = got.json();
    assert_eq!((&body["tenant"], &body["revision"]), (&TENANT.into(), &0.into()));
    assert_eq!(body["recording"], "01".repeat(16));
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["host"], format!("localhost:{}", receiver.port));
    assert_eq!(got.target, "/callseal?token=t0ken");
    assert_eq!((sent.id, sent.attempts, sent.last.as_deref()), (id, 1, Some("status 200")));
    world.wait_for(NoticePlace::Waiting, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_readable_is_in_the_outbox() {
    let world = World::new(|_| format!("https://localhost:{}/", free_port())).await;
    let node = world.teller();
    let mut told = event(NoticeKind::Complete, 1);
    told.facts.route = Some("canary-route".to_owned());
    assert!(node.notices.told(&world.id(), told).await);
    let outbox = files_below(world.store_dir());
    let outbox: Vec<_> =
        outbox.into_iter().filter(|(path, _)| path.display().to_string().contains("/o/")).collect();
    assert!(!outbox.is_empty());
    for (path, content) in outbox {
        let text = String::from_utf8_lossy(&content);
        for word in ["recording", "canary", TENANT, "created"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_errs_hangs_or_hangs_up_is_told_again() {
    let (world, receiver) = World::listening().await;
    receiver.next([
        Answer::Status(500),
        Answer::Close,
        Answer::Silent,
        Answer::Status(404),
        Answer::LongHead,
        Answer::Redirect("https://localhost/elsewhere".to_owned()),
    ]);
    let node = world.node_with("a", QUICK);
    assert!(node.notices.told(&world.id(), event(NoticeKind::Partial, 1)).await);
    let sent = world.wait_for(NoticePlace::Sent, 1).await.remove(0);
    let got = receiver.got();
    // More, where the machine was too busy for an attempt.
    assert!(got.len() >= 7 && sent.attempts >= 7, "{} requests, {} attempts", got.len(), sent.attempts);
    assert!(got.iter().all(|one| one.body == got[0].body && one.id() == sent.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_by_its_status_however_long_its_body_is() {
    let (world, receiver) = World::listening().await;
    receiver.always(Answer::Endless);
    let node = world.node("a");
    assert!(node.notices.told(&world.id(), event(NoticeKind::Complete, 1)).await);
    let sent = world.wait_for(NoticePlace::Sent, 1).await.remove(0);
    assert_eq!((sent.attempts, receiver.got().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_away_is_told_when_it_is_back() {
    let port = free_port();
    let world = World::new(|_| format!("https://localhost:{port}/")).await;
    let node = world.node_with("a", QUICK);
    for number in 1..=20 {
        assert!(node.notices.told(&world.id(), event(NoticeKind::Complete, number)).await);
    }
    // Some attempts have failed.
    eventually("failed attempts", || {
        let files = files_below(world.store_dir());
        files.iter().any(|(path, _)| path.ends_with("0002")).then_some(())
    })
    .await;
    let receiver = world.identity.listen(port).await;
    world.wait_for(NoticePlace::Sent, 20).await;
    world.wait_for(NoticePlace::Waiting, 0).await;
    let ids: BTreeSet<_> = receiver.got().iter().map(Got::id).collect();
    assert_eq!(ids.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_that_nobody_takes_is_dead_and_can_be_sent_again() {
    let (world, receiver) = World::listening().await;
    receiver.always(Answer::Status(503));
    let attempt = Duration::from_secs(2);
    let schedule = Schedule { attempt, give_up: attempt * 2, ..QUICK };
    let node = world.node_with("a", schedule);
    let told = event(NoticeKind::Failed, 1);
    assert!(node.notices.told(&world.id(), told.clone()).await);
    let dead = world.wait_for(NoticePlace::Dead, 1).await.remove(0);
    assert_eq!((dead.attempts, dead.last.as_deref()), (2, Some("receiver answers with status 503")));
    assert_eq!(dead.body["type"], "recording.failed");
    world.wait_for(NoticePlace::Waiting, 0).await;

    receiver.always(Answer::Status(204));
    let desk = world.desk();
    assert!(matches!(
        desk.redeliver(notice(&event(NoticeKind::Failed, 2))).await,
        Err(RedeliverError::NotFound)
    ));
    desk.redeliver(notice(&told)).await.unwrap();
    let sent = world.wait_for(NoticePlace::Sent, 1).await.remove(0);
    assert_eq!((sent.id, sent.body), (dead.id, dead.body));
    world.wait_for(NoticePlace::Dead, 0).await;
    world.wait_for(NoticePlace::Waiting, 0).await;
    // What was delivered can be sent again as well.
    let before = receiver.got().len();
    node.notices.desk(world.id()).unwrap().redeliver(notice(&told)).await.unwrap();
    eventually("another delivery", || (receiver.got().len() == before + 1).then_some(())).await;
    world.wait_for(NoticePlace::Sent, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_says_gone_is_not_asked_again() {
    let (world, receiver) = World::listening().await;
    receiver.next([Answer::Status(410)]);
    let node = world.node("a");
    assert!(node.notices.told(&world.id(), event(NoticeKind::Complete, 1)).await);
    let dead = world.wait_for(NoticePlace::Dead, 1).await.remove(0);
    assert_eq!((dead.attempts, receiver.got().len()), (1, 1));
    // Of other notices it is told.
    assert!(node.notices.told(&world.id(), event(NoticeKind::Complete, 2)).await);
    world.wait_for(NoticePlace::Sent, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_outlives_its_process() {
    let (world, receiver) = World::listening().await;
    let told = event(NoticeKind::Recovered, 1);
    {
        let node = world.teller();
        assert!(node.notices.told(&world.id(), told.clone()).await);
    }
    // A node that died between its claim and its attempt.
    let begun = layout::waiting_notice(world.id().tag(), notice(&told), 1);
    let tags = callseal::store::Tags::new();
    world.store.put_new(&begun, bytes::Bytes::from_static(b"x"), &tags).await.unwrap();
    assert_eq!(receiver.connections(), 0);
    let _node = world.node_with("b", Schedule { attempt: Duration::from_secs(3), ..QUICK });
    let sent = world.wait_for(NoticePlace::Sent, 1).await.remove(0);
    assert_eq!((sent.id, sent.attempts), (notice(&told).to_string(), 2));
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_see_the_same_tell_it_once() {
    let (world, receiver) = World::listening().await;
    let nodes = [world.node("a"), world.node("b"), world.node("c")];
    let id = world.id();
    for number in 1..=40 {
        let told = event(NoticeKind::Complete, number);
        let telling = nodes.iter().map(|node| node.notices.told(&id, told.clone()));
        assert_eq!(futures_util::future::join_all(telling).await, [true; 3]);
    }
    world.wait_for(NoticePlace::Sent, 40).await;
    world.wait_for(NoticePlace::Waiting, 0).await;
    let ids: BTreeSet<_> = receiver.got().iter().map(Got::id).collect();
    assert_eq!((ids.len(), receiver.got().len()), (40, 40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_told_is_not_told_again() {
    let (world, receiver) = World::listening().await;
    let (node, id) = (world.node("a"), world.id());
    let (told, other) = (event(NoticeKind::Complete, 1), event(NoticeKind::Complete, 2));
    assert!(node.notices.told(&id, told.clone()).await);
    world.wait_for(NoticePlace::Sent, 1).await;
    assert!(node.notices.told(&id, told.clone()).await && node.notices.told(&id, other).await);
    world.wait_for(NoticePlace::Sent, 2).await;
    world.wait_for(NoticePlace::Waiting, 0).await;
    let times = receiver.got().iter().filter(|got| got.id() == notice(&told).to_string()).count();
    assert_eq!((times, receiver.got().len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_delays_no_other_tenant() {
    let (first, second) = (free_port(), free_port());
    let other = [("other", format!("https://localhost:{second}/"))];
    let world = World::with(|_| format!("https://localhost:{first}/"), "", &other).await;
    let (hanging, quick) = (world.identity.listen(first).await, world.identity.listen(second).await);
    hanging.always(Answer::Silent);
    // An attempt takes longer than this test may.
    let node = world.node_with("a", Schedule { attempt: Duration::from_secs(600), ..QUICK });
    let (id, other) = (world.id(), "other".parse().unwrap());
    for number in 1..=50 {
        assert!(node.notices.told(&id, event(NoticeKind::Complete, number)).await);
    }
    eventually("attempts that hang", || (hanging.got().len() == 4).then_some(())).await;
    for number in 1..=50 {
        assert!(node.notices.told(&other, event(NoticeKind::Complete, number)).await);
    }
    eventually("the other tenant's notices", || (quick.got().len() == 50).then_some(())).await;
    assert_eq!(hanging.got().len(), 4, "no more than its share is on its way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_told_what_they_have_chosen() {
    let port = free_port();
    let chosen = "events = [\"recording.complete\", \"key.unavailable\"]";
    let world = World::with(|_| format!("https://localhost:{port}/"), chosen, &[]).await;
    let receiver = world.identity.listen(port).await;
    let (node, id) = (world.node("a"), world.id());
    assert!(node.notices.told(&id, event(NoticeKind::Partial, 1)).await, "nobody wants to know");
    assert!(node.notices.told(&"stranger".parse().unwrap(), event(NoticeKind::Complete, 1)).await);
    let mut told = event(NoticeKind::Complete, 2);
    told.facts =
        Facts { call: Some("CA-canary".to_owned()), route: Some("reception".to_owned()), ..told.facts };
    assert!(node.notices.told(&id, told).await);
    // However many calls get no key, one notice for some minutes is enough.
    let period =
        Event { kind: NoticeKind::KeyUnavailable, subject: Subject::Period(7), facts: Facts::default() };
    for _ in 0..10 {
        assert!(node.notices.told(&id, period.clone().because("denied")).await);
    }
    world.wait_for(NoticePlace::Sent, 2).await;
    world.wait_for(NoticePlace::Waiting, 0).await;
    let kinds: BTreeSet<_> = receiver.got().iter().map(Got::kind).collect();
    assert_eq!(kinds, ["key.unavailable".to_owned(), "recording.complete".to_owned()].into());
    assert_eq!(receiver.got().len(), 2);
    let complete = receiver.got().into_iter().find(|got| got.kind() == "recording.complete").unwrap().json();
    assert_eq!((&complete["route"], complete.get("call")), (&"reception".into(), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_that_was_tampered_with_is_neither_sent_nor_tried_for_ever() {
    let (world, receiver) = World::listening().await;
    let told = event(NoticeKind::Complete, 1);
    let name = layout::waiting_notice(world.id().tag(), notice(&told), 0);
    {
        let node = world.teller();
        assert!(node.notices.told(&world.id(), told.clone()).await);
    }
    let mut object = world.store.get(&name, None).await.unwrap().bytes.to_vec();
    *object.last_mut().unwrap() ^= 1;
    world.store.delete(&name).await.unwrap();
    world.store.put_new(&name, object.into(), &callseal::store::Tags::new()).await.unwrap();
    // And one that was put in the place of another.
    let other = event(NoticeKind::Complete, 2);
    {
        let node = world.teller();
        assert!(node.notices.told(&world.id(), other.clone()).await);
    }
    let moved = layout::waiting_notice(world.id().tag(), notice(&event(NoticeKind::Complete, 3)), 0);
    let object =
        world.store.get(&layout::waiting_notice(world.id().tag(), notice(&other), 0), None).await.unwrap();
    world.store.put_new(&moved, object.bytes, &callseal::store::Tags::new()).await.unwrap();
    // And an attempt whose notice is gone.
    let late = layout::waiting_notice(world.id().tag(), notice(&event(NoticeKind::Complete, 4)), 2);
    world.store.put_new(&late, bytes::Bytes::new(), &callseal::store::Tags::new()).await.unwrap();
    let _node = world.node_with("a", QUICK);
    world.wait_for_empty_outbox().await;
    assert_eq!(receiver.got().iter().map(Got::id).collect::<Vec<_>>(), [notice(&other).to_string()]);
}
