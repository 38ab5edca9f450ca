//! A real node whose keys are in an invented KMS, one that lies, is away, or is exchanged for another.

use std::time::Duration;

use bytes::Bytes;
use callseal::clock;
use callseal::keys::envelope_name;
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{AgentServer, Direction, Track, TwilioCall};
use callseal::store::folder::Folder;
use callseal::store::{Store, Tags};
use tempfile::TempDir;

use super::aws_kms::ARN;
use super::http::Way;
use super::kms::{FakeKms, Mood};
use super::world::tenant;
use crate::support::{Home, Server, Setup, TENANT, TenantSetup, eventually, files_below, write_private};

pub(super) const SECOND_TENANT: &str = "beta-plumbing";

/// A node with a KMS, and the files that it reads.
pub(super) struct Node {
    pub(super) home: Home,
    pub(super) server: Server,
    pub(super) kms: FakeKms,
    _secrets: TempDir,
}

impl Node {
    pub(super) async fn start(change: impl FnOnce(Setup) -> Setup) -> Self {
        let (kms, secrets) = (FakeKms::start(&[ARN]).await, TempDir::new().unwrap());
        let secret = |name: &str| {
            let path = secrets.path().join(name);
            write_private(&path, "AKTESTTESTTESTTEST00");
            format!("{{ file = {:?} }}", path.display().to_string())
        };
        let setup = Setup::new()
            .option("keys", "provider", "\"aws-kms\"")
            .option("keys", "kek", &format!("{ARN:?}"))
            .option("keys", "attempt_timeout_ms", "1000")
            .option("aws_kms", "endpoint", &format!("{:?}", kms.http.url()))
            .option("aws_kms", "credentials", "\"static\"")
            .option("aws_kms", "access_key_id", &secret("id"))
            .option("aws_kms", "secret_access_key", &secret("secret"))
            .add_tenant(TenantSetup::new(SECOND_TENANT));
        let (home, server) = change(setup).serve();
        Self { home, server, kms, _secrets: secrets }
    }

    /// Places a call; answers its recording.
    pub(super) async fn record(&self, id: &str, number: u8) -> String {
        let plan = self.server.plan(&format!("{id}/reception"), number, Track::whole(&DEMO_CALLER[..8_000]));
        let before = self.server.logged("recording stored").len();
        TwilioCall::connect(plan, &self.server.tls()).await.unwrap().run(|_| ()).await.unwrap();
        self.server.wait_log("recording stored", before + 1).await.field("recording").to_owned()
    }

    /// Waits until all keys that are made ahead are there.
    pub(super) async fn wait_for_pool(&self, keys: f64) {
        let is_full = || (self.server.metric("keys_waiting") >= keys).then_some(());
        eventually("keys made ahead", is_full).await;
    }

    async fn store(&self) -> Folder {
        Folder::open(self.home.data().join("store")).await.unwrap()
    }

    pub(super) async fn envelope(&self, id: &str, recording: &str) -> Bytes {
        let name = envelope_name(tenant(id).tag(), recording.parse().unwrap(), 0);
        self.store().await.get(&name, None).await.unwrap().bytes
    }

    pub(super) async fn replace_envelope(&self, id: &str, recording: &str, json: Bytes) {
        let (store, name) =
            (self.store().await, envelope_name(tenant(id).tag(), recording.parse().unwrap(), 0));
        store.delete(&name).await.unwrap();
        store.put_new(&name, json, &Tags::new()).await.unwrap();
    }

    pub(super) async fn play(&self, link: &str) -> u16 {
        self.server.https().get(link, &[]).await.unwrap().status.as_u16()
    }

    pub(super) fn errors(&self, purpose: &str, kind: &str) -> f64 {
        self.server.metric(&format!("key_errors_total{{use=\"{purpose}\",kind=\"{kind}\"}}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_recorded_under_a_wrap_that_does_not_open() {
    for mood in [Mood::Garble, Mood::UseAnotherKey] {
        let mut node = Node::start(|setup| setup).await;
        node.server.allow("key envelope does not open");
        node.server.allow("no key could be made a moment ago");
        node.kms.set_mood(mood);
        let connect = |number| {
            let plan =
                node.server.plan(&format!("{TENANT}/reception"), number, Track::whole(&DEMO_CALLER[..800]));
            let tls = node.server.tls();
            async move { TwilioCall::connect(plan, &tls).await }
        };
        assert!(connect(1).await.is_err(), "{mood:?}");
        assert!(node.errors("mint", "bad_envelope") > 0.0, "{mood:?}");
        let envelopes = crate::support::files_below(&node.home.data().join("store/k"));
        assert!(envelopes.is_empty(), "{mood:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_the_key_service_is_away() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let secrets = TempDir::new().unwrap();
    let ca = secrets.path().join("ca.pem");
    std::fs::write(&ca, agent.certificate_pem()).unwrap();
    let port = agent.address().port();
    let mut node = Node::start(|setup| {
        let ca = format!("{:?}", ca.display().to_string());
        setup.option("relay", "ca_file", &ca).tenant(|tenant| {
            let lines =
                format!("mode = \"bidirectional\"\n[route.upstream]\nurl = \"wss://localhost:{port}/agent\"");
            tenant.routes.push(("agent".to_owned(), lines));
        })
    })
    .await;
    for text in ["cannot mint a key ahead", "no key for a new call"] {
        node.server.allow(text);
    }
    let first = node.record(TENANT, 1).await;
    node.wait_for_pool(8.0).await;
    let plan = node.server.plan(&format!("{TENANT}/reception"), 2, Track::whole(&DEMO_CALLER[..8_000]));
    let running = TwilioCall::connect(plan, &node.server.tls()).await.unwrap();
    node.wait_for_pool(8.0).await;

    // From now on nothing is ever answered: whoever waits for it waits in vain.
    node.kms.http.set_way(Way::Silent);
    for number in 3..11 {
        node.record(TENANT, number).await;
    }
    running.run(|_| ()).await.unwrap();
    node.server.wait_log("recording stored", 10).await;

    // Nothing is left: a call that somebody answers goes on without a recording, another one is refused.
    let refused = || {
        let plan = node.server.plan(&format!("{TENANT}/reception"), 11, Track::whole(&DEMO_CALLER[..800]));
        let tls = node.server.tls();
        async move { TwilioCall::connect(plan, &tls).await.is_err() }
    };
    assert!(refused().await);
    let plan = node.server.plan(&format!("{TENANT}/agent"), 12, Track::whole(&DEMO_CALLER[..800]));
    let call = TwilioCall::connect(plan, &node.server.tls()).await.unwrap();
    let _reached =
        tokio::time::timeout(crate::support::LIMIT, agent.call()).await.expect("the agent is dialled");
    assert!((node.server.metric("calls_unrecorded_total") - 1.0).abs() < f64::EPSILON);
    drop(call);

    node.kms.http.set_way(Way::Open(Duration::ZERO));
    node.wait_for_pool(8.0).await;
    let last = node.record(TENANT, 13).await;
    for recording in [first, last] {
        assert_eq!(node.home.open_ulaw(TENANT, &recording, "caller"), DEMO_CALLER[..8_000]);
    }
}

/// How long a call waits to be answered, and until the first of its frames is sealed and in the journal.
async fn time_start(node: &Node, number: u8) -> [Duration; 2] {
    let track = Track::whole(&DEMO_CALLER[..800]);
    let plan = node.server.plan(&format!("{TENANT}/reception"), number, track.clone());
    let journal = node.home.data().join("journal");
    let written = || files_below(&journal).iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let (tls, began) = (node.server.tls(), clock::monotonic());
    let mut call = TwilioCall::connect(plan, &tls).await.unwrap();
    let answered = clock::since(began);
    let before = written();
    call.greet().await.unwrap();
    call.send_media(Direction::Inbound, 102, track.base64(0).unwrap()).await.unwrap();
    while written() <= before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let sealed = clock::since(began);
    call.send_stop().await.unwrap();
    call.close(1000, "").await;
    [answered, sealed]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and asserts nothing about time"]
async fn call_starts_with_a_slow_key_service() {
    for latency in [0, 500] {
        let node = Node::start(|setup| setup).await;
        node.kms.http.set_way(Way::Open(Duration::from_millis(latency)));
        let cold = time_start(&node, 1).await;
        println!("{latency} ms a request, no key ahead: answered and sealed after {cold:?}");
        let mut starts = Vec::new();
        for number in 0..20 {
            node.wait_for_pool(8.0).await;
            starts.push(time_start(&node, 2 + number).await);
        }
        for (at, name) in ["answered", "first frame in the journal"].into_iter().enumerate() {
            let mut times: Vec<_> = starts.iter().map(|start| start[at]).collect();
            times.sort();
            println!("{latency} ms a request, 20 calls: {name} p50 {:?}, at most {:?}", times[10], times[19]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_gets_another_key_while_the_node_runs() {
    let mut node = Node::start(|setup| setup).await;
    node.server.allow("keys cannot be used; the old configuration stays");
    let old = node.record(TENANT, 1).await;
    node.wait_for_pool(8.0).await;
    let second = ARN.replace("1234abcd-", "2222abcd-");
    node.kms.set_state(&second, "Enabled");
    let kek = |envelope: &[u8]| {
        let envelope: serde_json::Value = serde_json::from_slice(envelope).unwrap();
        envelope["wraps"][0]["kek"].as_str().unwrap().to_owned()
    };
    let own = format!("former_keks = [{{ provider = \"aws-kms\", kek = {ARN:?} }}]");
    let mut changed = node.home.tenant(TENANT).clone();
    changed.top = format!("[keys]\nprovider = \"aws-kms\"\nkek = {second:?}\n{own}");
    node.home.rewrite_tenant(&changed);
    node.server.signal("HUP");
    node.server.wait_log("tenants, their secrets and keys were read again", 1).await;
    // Not one of those that were made ahead before.
    let new = node.record(TENANT, 2).await;
    assert_eq!(kek(&node.envelope(TENANT, &new).await), second);
    assert_eq!(kek(&node.envelope(TENANT, &old).await), ARN);
    for recording in [&old, &new] {
        assert_eq!(node.play(&node.home.grant(TENANT, recording, &[])).await, 200);
    }

    // A keyring was not there when the node was started.
    changed.top = "[keys]\nprovider = \"local\"".to_owned();
    node.home.rewrite_tenant(&changed);
    node.server.signal("HUP");
    let refused = node.server.wait_log("keys cannot be used; the old configuration stays", 1).await;
    assert!(refused.field("error").contains("start the node anew"), "{}", refused.text);
    let third = node.record(TENANT, 3).await;
    assert_eq!(kek(&node.envelope(TENANT, &third).await), second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_say_what_they_do_for_a_key_service() {
    let node = Node::start(|setup| setup).await;
    let recording = node.record(TENANT, 1).await;
    node.wait_for_pool(8.0).await;
    let by = ["--actor", "ops"];
    assert!(node.home.run_ok(&["keys", "init"]).contains("2 tenants have their key elsewhere"));
    assert!(!node.home.data().join("keyring.json").exists());

    assert!(node.home.run_ok(&[&["keys", "rotate"][..], &by].concat()).contains("enable-key-rotation"));
    let one = node.home.run(&[&["keys", "rotate", "--tenant", TENANT][..], &by].concat());
    assert_eq!(one.code, Some(1));
    assert!(one.err.contains("AWS KMS, which rotates it by itself"), "{}", one.err);
    let retire = ["keys", "retire", "--tenant", TENANT, "--version", "1", "--yes", by[0], by[1]];
    assert!(node.home.run(&retire).err.contains("versions in a key service are destroyed there"));

    let status = node.home.run_json(&["keys", "status", "--tenant", TENANT, "--json"]).remove(0);
    let row = &status["services"][0];
    assert_eq!(
        (&row["provider"], &row["kek"], &row["version"]),
        (&"aws-kms".into(), &ARN.into(), &"unversioned".into())
    );
    assert!(row["recordings"].as_u64().unwrap() >= 9, "{status}");
    assert!(node.home.run_ok(&["keys", "status"]).contains("the oldest wrapped 2"));

    let rewrap = |more: &[&str]| {
        node.home.run_json(&[&["keys", "rewrap", "--tenant", TENANT, "--json"], more, &by].concat()).remove(0)
    };
    assert_eq!(rewrap(&[])["moved"], 0);
    assert_eq!(rewrap(&["--older-than-days", "1"])["moved"], 0);
    let would = rewrap(&["--older-than-days", "0", "--dry-run"]);
    assert!(would["would_move"].as_u64().unwrap() >= 9, "{would}");
    let moved = rewrap(&["--older-than-days", "0"]);
    assert!(moved["moved"].as_u64().unwrap() >= 9 && moved["failed"] == 0, "{moved}");
    let re_encrypted = node.kms.asked().iter().filter(|(operation, _)| operation == "ReEncrypt").count();
    assert!(re_encrypted >= 9, "{re_encrypted} did not leave KMS");
    assert_eq!(node.home.open_ulaw(TENANT, &recording, "caller"), DEMO_CALLER[..8_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_whose_key_was_withdrawn_can_be_deleted() {
    let mut node = Node::start(|setup| setup).await;
    node.server.allow("recording");
    let recording = node.record(TENANT, 1).await;
    let second = ARN.replace("1234abcd-", "2222abcd-");
    node.kms.set_state(&second, "Enabled");
    let mut changed = node.home.tenant(TENANT).clone();
    changed.top = format!("[keys]\nprovider = \"aws-kms\"\nkek = {second:?}");
    node.home.rewrite_tenant(&changed);
    node.kms.set_state(ARN, "PendingDeletion");
    let by = ["--actor", "counsel", "--reason", "they left"];
    let target = ["--tenant", TENANT, "--recording", &recording];
    node.home.run_ok(&[&["recordings", "delete", "--yes"][..], &target, &by].concat());
    let swept = node.home.run_json(&["sweep", "--yes", "--json"]).remove(0);
    assert_eq!(swept["deleted"], 1, "{swept}");
    let left = crate::support::files_below(&node.home.data().join("store/r"));
    assert!(
        left.iter().all(|(path, _)| !path.display().to_string().contains(&recording)),
        "its audio is gone"
    );
}
