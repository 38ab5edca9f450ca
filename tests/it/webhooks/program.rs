//! Notices of the real program: of calls, orders and deletions, and what its commands do.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use serde_json::Value;
use tempfile::TempDir;

use super::receiver::{Answer, Got, Identity, Receiver};
use super::world::{SECRETS, free_port, table};
use crate::support::{Home, Server, Setup, TENANT, eventually};

/// A node with a receiver for its tenant's notices.
pub(super) struct Site {
    dir: TempDir,
    identity: Identity,
    port: u16,
    pub(super) home: Home,
}

impl Site {
    fn new(more: &str) -> Self {
        Self::with(more, |setup| setup)
    }

    pub(super) fn with(more: &str, change: impl FnOnce(Setup) -> Setup) -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        let identity = Identity::new(dir.path(), "receiver");
        let webhook = table(dir.path(), &format!("https://localhost:{port}/hooks?token=t0ken"), more);
        let ca_file = format!("{:?}", identity.ca_file.display().to_string());
        let setup = Setup::new()
            .option("webhook", "ca_file", &ca_file)
            .option("webhook", "first_retry_secs", "1")
            .option("webhook", "scan_interval_secs", "1")
            .tenant(|tenant| tenant.playback = webhook);
        Self { dir, identity, port, home: change(setup).write() }
    }

    pub(super) async fn listen(&self) -> Receiver {
        self.identity.listen(self.port).await
    }
}

pub(super) async fn call(server: &Server, route: &str, number: u8) {
    let plan = server.plan(&format!("{TENANT}/{route}"), number, Track::whole(&DEMO_CALLER[..16_000]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
}

/// Waits for a notice of this kind; answers it.
async fn told(receiver: &Receiver, kind: &str) -> Value {
    let look = || receiver.got().into_iter().find(|got| got.kind() == kind);
    eventually(&format!("a notice {kind}"), look).await.json()
}

fn order(home: &Home, what: &str, recording: &str) {
    let target = ["recordings", what, "--tenant", TENANT, "--recording", recording];
    let by: &[&str] = &["--actor", "counsel", "--reason", "a lawsuit"];
    let yes: &[&str] = if what == "delete" { &["--yes"] } else { &[] };
    home.run_ok(&[&target[..], by, yes].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_told_of_the_whole_life_of_a_recording() {
    let site = Site::new("call_ids = true");
    let receiver = site.listen().await;
    let mut server = site.home.serve();
    call(&server, "reception", 1).await;
    let recording = server.stored(1).await;
    let complete = told(&receiver, "recording.complete").await;
    assert_eq!((&complete["recording"], &complete["revision"]), (&recording.as_str().into(), &0.into()));
    assert_eq!((&complete["cause"], &complete["lost_ms"]), (&"stop".into(), &0.into()));
    assert_eq!(complete["route"], "reception");
    assert!(complete["call"].as_str().unwrap().starts_with("CA"), "{complete}");
    assert!(complete["expires_ms"].as_u64() > complete["ended_ms"].as_u64());

    // Orders are given by another process, which delivers nothing itself.
    order(&site.home, "hold", &recording);
    assert_eq!(told(&receiver, "recording.held").await["recording"], recording.as_str());
    order(&site.home, "release", &recording);
    told(&receiver, "recording.released").await;
    order(&site.home, "delete", &recording);
    site.home.run_ok(&["sweep", "--yes"]);
    assert_eq!(told(&receiver, "recording.deleted").await["recording"], recording.as_str());
    assert_eq!(told(&receiver, "recording.purged").await["recording"], recording.as_str());

    let kinds: Vec<_> = receiver.got().iter().map(Got::kind).collect();
    let mut once = kinds.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), kinds.len(), "each is told once: {kinds:?}");
    assert!(server.metric("notices_made_total") >= 1.0);
    let delivered = || server.metric("notices_attempts_total{result=\"delivered\"}");
    eventually("attempts that are counted", || (delivered() >= 5.0).then_some(())).await;
    assert!(server.log().iter().all(|line| !line.text.contains("t0ken")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_down_harms_no_call_and_is_told_after_a_crash() {
    let site = Site::with("", |setup| setup.option("webhook", "attempt_timeout_ms", "2000"));
    let mut server = site.home.serve();
    server.allow("notice not delivered");
    for number in 1..=3 {
        call(&server, "reception", number).await;
    }
    server.stored(3).await;
    let recordings = site.home.recordings(TENANT);
    for recording in &recordings {
        assert_eq!(site.home.verify(TENANT, recording)["state"], "complete");
    }
    eventually("attempts that fail", || {
        (server.metric("notices_attempts_total{result=\"unreachable\"}") >= 3.0).then_some(())
    })
    .await;
    eventually("a backlog that is seen", || (server.metric("notices_waiting") >= 3.0).then_some(())).await;
    server.kill();

    let receiver = site.listen().await;
    let mut server = site.home.serve();
    for recording in &recordings {
        let look =
            || receiver.got().iter().find(|got| got.json()["recording"] == recording.as_str()).cloned();
        assert_eq!(eventually("its notice", look).await.kind(), "recording.complete");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_a_crash_cut_off_is_told_when_it_is_recovered() {
    let site = Site::new("");
    let receiver = site.listen().await;
    let mut server = site.home.serve();
    let mut plan = server.plan("acme-dental/reception", 1, Track::whole(&DEMO_CALLER[..80_000]));
    plan.pacing = callseal::simulate::Pacing::RealTime;
    let running = tokio::spawn(TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()));
    eventually("frames that are journaled", || {
        (server.metric("journal_records_total") >= 10.0).then_some(())
    })
    .await;
    server.kill();
    assert!(running.await.unwrap().is_err());
    let mut server = site.home.serve();
    let recovered = told(&receiver, "recording.recovered").await;
    assert_eq!(recovered["recording"], site.home.recordings(TENANT)[0].as_str());
    assert_eq!(recovered["cause"], "crash");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_consent_is_told_as_skipped() {
    let site = Site::with("", |setup| {
        setup.tenant(|tenant| {
            tenant.routes.push(("asked".to_owned(), "record = \"on-consent\"\n".to_owned()));
        })
    });
    let receiver = site.listen().await;
    let mut server = site.home.serve();
    call(&server, "asked", 1).await;
    let skipped = told(&receiver, "recording.skipped").await;
    assert_eq!((&skipped["reason"], &skipped["route"]), (&"no-consent".into(), &"asked".into()));
    assert!(skipped.get("recording").is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_list_show_try_and_send_again() {
    let site = Site::new("");
    let receiver = site.listen().await;
    receiver.always(Answer::Status(410));
    let mut server = site.home.serve();
    server.allow("notice is dead");
    call(&server, "reception", 1).await;
    server.wait_log("notice is dead", 1).await;
    let list = |more: &[&str]| {
        site.home.run_json(&[&["webhooks", "list", "--tenant", TENANT, "--json"], more].concat())
    };
    let dead = list(&[]);
    assert_eq!((dead.len(), &dead[0]["state"]), (1, &"dead".into()));
    assert_eq!(dead[0]["body"]["type"], "recording.complete");
    let id = dead[0]["id"].as_str().unwrap();
    let shown = site.home.run_json(&["webhooks", "show", "--tenant", TENANT, "--id", id]);
    assert_eq!(shown, dead);
    let said = site.home.run_ok(&["webhooks", "list", "--tenant", TENANT]);
    assert!(said.contains(id) && said.contains("410"), "{said}");

    let by = ["--tenant", TENANT, "--actor", "operator"];
    let ran = site.home.run(&[&["webhooks", "test"], &by[..]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("410") && !ran.err.contains("t0ken"), "{}", ran.err);
    receiver.always(Answer::Status(200));
    let said = site.home.run_ok(&[&["webhooks", "test"], &by[..]].concat());
    assert!(said.contains("with status 200"), "{said}");
    assert_eq!(told(&receiver, "webhook.test").await["tenant"], TENANT);

    site.home.run_ok(&[&["webhooks", "redeliver", "--all-dead"], &by[..]].concat());
    eventually("the notice is sent again", || {
        let times = receiver.got().iter().filter(|got| got.kind() == "recording.complete").count();
        (times == 2).then_some(())
    })
    .await;
    eventually("it is noted as sent", || (list(&["--state", "sent"]).len() == 1).then_some(())).await;
    eventually("nothing waits or is dead", || list(&[]).is_empty().then_some(())).await;
    let ran = site.home.run(&[&["webhooks", "redeliver", "--id", &"0".repeat(32)], &by[..]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no such notice"), "{}", ran.err);
    let audited = site.home.run_json(&["audit", "show", "--tenant", TENANT]);
    let has = |action: &str| {
        audited.iter().any(|record| record["action"] == action && record["actor"] == "operator")
    };
    assert!(has("webhook-test") && has("webhook-redeliver"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_changed_without_a_restart() {
    let site = Site::new("");
    let receiver = site.listen().await;
    let mut server = site.home.serve();
    call(&server, "reception", 1).await;
    told(&receiver, "recording.complete").await;
    let signatures = |got: &Got| got.headers["x-callseal-signature"].split(',').count();
    assert_eq!(signatures(&receiver.got()[0]), SECRETS.len());
    let mut tenant = site.home.tenant(TENANT).clone();
    let one = site.dir.path().join("webhook-1.secret").display().to_string();
    let url = format!("https://localhost:{}/other", site.port);
    tenant.playback =
        format!("[webhook]\nurl = {url:?}\nsecrets = [{{ file = {one:?} }}]\nallow_private = true\n");
    site.home.rewrite_tenant(&tenant);
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    call(&server, "reception", 2).await;
    let second = eventually("another notice", || receiver.got().into_iter().nth(1)).await;
    assert_eq!((signatures(&second), second.target.as_str()), (1, "/other"));
    server.stop().await;
}
