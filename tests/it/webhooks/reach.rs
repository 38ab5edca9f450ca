//! Whom a notice never reaches: this machine, its network, whoever a redirect names, and anybody without a certificate.

use callseal::config::{HttpsUrl, Webhook};
use callseal::domain::ids::NoticeId;
use callseal::notices::manage::{TrialError, try_out};
use callseal::notices::{PostError, Poster};

use super::receiver::{Answer, Identity};
use super::world::{PATIENT, QUICK, World, free_port};

const NOTICE: NoticeId = NoticeId([5; 16]);

fn at(webhook: &Webhook, url: &str, allow_private: bool) -> Webhook {
    let url: HttpsUrl = url.parse().unwrap();
    Webhook { url, allow_private, ..webhook.clone() }
}

#[tokio::test]
async fn addresses_that_are_not_public_are_not_dialled() {
    let (world, receiver) = World::listening().await;
    let (webhook, poster, port) = (world.webhook(), world.poster(), receiver.port);
    for url in [
        format!("https://127.0.0.1:{port}/"),
        // A name that resolves to this machine, and numbers that resolvers take for its address.
        format!("https://localhost:{port}/"),
        format!("https://2130706433:{port}/"),
        format!("https://127.1:{port}/"),
        format!("https://0x7f000001:{port}/"),
        format!("https://0.0.0.0:{port}/"),
        format!("https://[::1]:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "https://192.168.1.1/".to_owned(),
        "https://100.64.0.1/".to_owned(),
        "https://[fd00:ec2::254]/".to_owned(),
        "https://[fe80::1]/".to_owned(),
    ] {
        let posted = poster.post(&at(&webhook, &url, false), NOTICE, b"{}").await;
        // What some resolvers and TLS take for no name at all is not reached either.
        assert!(matches!(posted, Err(PostError::NotPublic | PostError::Unreachable(_))), "{url}: {posted:?}");
    }
    for url in [format!("https://127.0.0.1:{port}/"), format!("https://localhost:{port}/")] {
        let posted = poster.post(&at(&webhook, &url, false), NOTICE, b"{}").await;
        assert!(matches!(posted, Err(PostError::NotPublic)), "{url}: {posted:?}");
    }
    assert_eq!(receiver.connections(), 0);
    for url in [format!("https://127.0.0.1:{port}/"), format!("https://localhost:{port}/")] {
        assert_eq!(poster.post(&at(&webhook, &url, true), NOTICE, b"{}").await.unwrap(), 200, "{url}");
    }
}

#[tokio::test]
async fn redirects_lead_nowhere() {
    let (world, receiver) = World::listening().await;
    let elsewhere = world.identity.listen(0).await;
    for status in ["https://localhost:PORT/internal", "/callseal", "http://169.254.169.254/"] {
        let to = status.replace("PORT", &elsewhere.port.to_string());
        receiver.next([Answer::Redirect(to)]);
        let posted = world.poster().post(&world.webhook(), NOTICE, b"{}").await;
        assert!(matches!(posted, Err(PostError::Redirect(302))), "{posted:?}");
    }
    assert_eq!((receiver.got().len(), elsewhere.connections()), (3, 0));
}

#[tokio::test]
async fn a_certificate_must_be_vouched_for_and_for_this_name() {
    let (world, receiver) = World::listening().await;
    let (webhook, other) = (world.webhook(), Identity::new(world.dir(), "other"));
    let stranger = Poster::new(Some(&other.ca_file), PATIENT.attempt).unwrap();
    let posted = stranger.post(&webhook, NOTICE, b"{}").await;
    assert!(matches!(posted, Err(PostError::Tls(_))), "{posted:?}");
    let system = Poster::new(None, PATIENT.attempt).unwrap();
    assert!(matches!(system.post(&webhook, NOTICE, b"{}").await, Err(PostError::Tls(_))));
    // The certificate is for localhost and its addresses, not for this name of the same machine.
    let name = format!("https://localhost.localdomain:{}/", receiver.port);
    let posted = world.poster().post(&at(&webhook, &name, true), NOTICE, b"{}").await;
    assert!(matches!(posted, Err(PostError::Tls(_) | PostError::Unreachable(_))), "{posted:?}");
    assert!(receiver.got().is_empty());
}

#[tokio::test]
async fn failures_are_told_apart_and_show_nothing_of_the_url_but_its_host() {
    let (world, receiver) = World::listening().await;
    let (webhook, poster) = (world.webhook(), world.poster());
    let nobody = at(&webhook, &format!("https://localhost:{}/c4nary?t=c4nary", free_port()), true);
    let unknown = at(&webhook, "https://nowhere.invalid/c4nary?t=c4nary", true);
    let answers = [
        (Answer::Status(500), "refused"),
        (Answer::Status(410), "gone"),
        (Answer::Redirect("https://a/".to_owned()), "redirect"),
        (Answer::Silent, "timeout"),
        (Answer::Close, "protocol"),
        (Answer::LongHead, "protocol"),
    ];
    let mut failures = Vec::new();
    let hasty = Poster::new(Some(&world.identity.ca_file), QUICK.attempt).unwrap();
    for (answer, name) in answers {
        receiver.next([answer]);
        let poster = if name == "timeout" { &hasty } else { &poster };
        failures.push((poster.post(&webhook, NOTICE, b"{}").await.unwrap_err(), name));
    }
    failures.push((poster.post(&nobody, NOTICE, b"{}").await.unwrap_err(), "unreachable"));
    failures.push((poster.post(&unknown, NOTICE, b"{}").await.unwrap_err(), "unreachable"));
    for (error, name) in failures {
        assert_eq!(error.name(), name, "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("c4nary") && !shown.contains("t0ken"), "{shown}");
    }
    assert!(!format!("{webhook:?}").contains("t0ken"));
}

#[tokio::test]
async fn a_trial_is_a_signed_notice_like_any_other() {
    let (world, receiver) = World::listening().await;
    let trial = try_out(&world.poster(), &world.id(), &world.webhook()).await.unwrap();
    let got = receiver.got().remove(0);
    assert_eq!((got.kind(), got.id(), trial.status), ("webhook.test".to_owned(), trial.id, 200));
    receiver.next([Answer::Status(500)]);
    let failed = try_out(&world.poster(), &world.id(), &world.webhook()).await;
    assert!(matches!(failed, Err(TrialError::Post(PostError::Refused(500)))));
}
