//! Rotation of key-encryption keys: commands under a running node, and rewraps that are interrupted anywhere.

mod running;
mod schedule;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use callseal::control::audit::AuditLog;
use callseal::control::retention::OrderedBy;
use callseal::control::rewrap::{Rewrap, RewrapReport};
use callseal::domain::ids::{RecordingId, TenantId};
use callseal::domain::retention::{Deletion, Order, Reason};
use callseal::keys::{KeyService, Keyring, LocalKeys, envelope_name, envelope_prefix, system_random};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use callseal::store::faulty::{Fault, Faults, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{Store, Tags, layout};
use tempfile::TempDir;

use crate::support::{Home, Server, Setup, TENANT, eventually, files_below};

async fn record(server: &Server, number: u8) -> String {
    let plan = server.plan("acme-dental/reception", number, Track::whole(&DEMO_CALLER[..8_000]));
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.wait_log("recording stored", before + 1).await.field("recording").to_owned()
}

#[tokio::test]
async fn keys_are_rotated_moved_and_retired_under_a_running_node() {
    let (home, server) = Setup::new().serve();
    let old = record(&server, 1).await;
    let link = home.grant(TENANT, &old, &[]);
    let by = ["--actor", "ops", "--reason", "yearly"];
    let run = |what: &[&str]| home.run(&[&["keys"], what].concat());

    assert!(home.run_ok(&["keys", "rotate", "--dry-run", by[0], by[1]]).contains("version 2 would be made"));
    assert!(home.run_ok(&[&["keys", "rotate"][..], &by].concat()).contains("version 2 is made"));
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    let new = record(&server, 2).await;
    let status = || home.run_json(&["keys", "status", "--json"]).remove(0);
    let counts = |status: &serde_json::Value| {
        [0, 1].map(|row| status["versions"][row]["recordings"].as_u64().unwrap())
    };
    // A new key is minted ahead for each that a call takes.
    let both = || Some(status()).filter(|status| counts(status).iter().all(|count| *count > 0));
    let before = eventually("keys under both versions", both).await;

    let early = run(&["retire", "--tenant", TENANT, "--version", "1", "--yes", by[0], by[1]]);
    assert!(early.err.contains("less than 24 hours old"), "{}", early.err);
    let retire =
        ["retire", "--tenant", TENANT, "--version", "1", "--after-hours", "0", "--yes", by[0], by[1]];
    assert!(run(&retire).err.contains("move them first"));

    let would = home.run_json(&["keys", "rewrap", "--dry-run", "--json", by[0], by[1]]).remove(0);
    assert_eq!(would["would_move"].as_u64().unwrap(), counts(&before)[0], "{would}");
    let moved = home.run_json(&[&["keys", "rewrap", "--json"][..], &by].concat()).remove(0);
    assert!(moved["moved"].as_u64().unwrap() > 0 && moved["failed"] == 0, "{moved}");
    assert_eq!(counts(&status())[0], 0);
    assert!(home.run_ok(&["keys", "status"]).contains("version 2"));

    assert!(run(&["retire", "--tenant", TENANT, "--version", "2", "--yes", by[0], by[1]]).code != Some(0));
    assert_eq!(run(&retire).code, Some(0));
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 2).await;
    // From the envelope that was moved: the cache of the node ends with the node.
    for recording in [&old, &new] {
        assert_eq!(home.open_ulaw(TENANT, recording, "caller"), DEMO_CALLER[..8_000]);
    }
    assert_eq!(server.https().get(&link, &[]).await.unwrap().status.as_u16(), 200);
    let envelopes = files_below(&home.data().join("store/k"));
    let of_old = |path: &&PathBuf| path.display().to_string().contains(old.as_str());
    let names: Vec<_> = envelopes.iter().map(|(path, _)| path).filter(of_old).collect();
    assert_eq!(names.len(), 1, "older revisions are destroyed: {names:?}");
    let audit = home.run_ok(&["audit", "show", "--tenant", TENANT]);
    for action in ["keys-rotate", "keys-rewrap", "keys-retire"] {
        assert!(audit.contains(action), "{audit}");
    }
}

/// A store with envelopes under an old version.
struct World {
    /// Removed when it is dropped; the home of a server has its own.
    _dir: Option<TempDir>,
    ring: PathBuf,
    store: Arc<dyn Store>,
    faults: Faults,
    tenant: TenantId,
    recordings: Vec<RecordingId>,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Faulty::new(Folder::open(dir.path().join("store")).await.unwrap());
        let (faults, tenant) = (store.faults(), TENANT.parse().unwrap());
        let ring = dir.path().join("keyring.json");
        let made = "2026-01-01T00:00:00Z";
        Keyring::init(&ring, std::slice::from_ref(&tenant), made, system_random).unwrap();
        let mut world =
            Self { _dir: Some(dir), ring, store: Arc::new(store), faults, tenant, recordings: Vec::new() };
        for _ in 0..3 {
            let minted = world.keys().mint(&world.tenant).await.unwrap();
            world.recordings.push(minted.ids.recording);
        }
        Keyring::rotate(&world.ring, &world.tenant, made, system_random).unwrap();
        world
    }

    /// The store and the keyring of a home.
    async fn of(home: &Home) -> Self {
        let store = Faulty::new(Folder::open(home.data().join("store")).await.unwrap());
        let (faults, ring) = (store.faults(), home.data().join("keyring.json"));
        let tenant = TENANT.parse().unwrap();
        Self { _dir: None, ring, store: Arc::new(store), faults, tenant, recordings: Vec::new() }
    }

    fn keys(&self) -> Arc<KeyService> {
        let ring = Keyring::load(&self.ring).unwrap();
        Arc::new(KeyService::new(Arc::new(LocalKeys::new(ring)), Arc::clone(&self.store)))
    }

    async fn rewrap(&self) -> Option<RewrapReport> {
        let keys = self.keys();
        let audit = AuditLog::start("test".to_owned(), Arc::clone(&keys), Arc::clone(&self.store));
        let by = OrderedBy::operator("ops", "yearly");
        let rewrap = Rewrap::new(Arc::clone(&self.store), keys, audit, 10_000);
        rewrap.run(&self.tenant, &by, |_| ()).await.ok()
    }

    async fn revisions(&self, recording: RecordingId) -> usize {
        let prefix = envelope_prefix(self.tenant.tag(), recording);
        self.store.list_after(&prefix, None, 10).await.unwrap().len()
    }

    async fn assert_all_open(&self, when: &str) {
        for recording in &self.recordings {
            let opened = self.keys().open(&self.tenant, *recording).await;
            assert!(opened.is_ok(), "{when}: {:?}", opened.err());
        }
    }
}

#[tokio::test]
async fn a_rewrap_may_be_interrupted_at_any_request() {
    let mut interrupted = 0;
    for fault in [Fault::Break, Fault::LoseAnswer] {
        for request in 1..=40 {
            let when = format!("{fault:?} at every request number {request}");
            let world = World::new().await;
            world.faults.fail_every(None, request, fault);
            interrupted += usize::from(world.rewrap().await.is_none_or(|report| report.failed > 0));
            world.faults.heal();
            world.assert_all_open(&when).await;
            let report = world.rewrap().await.unwrap();
            assert_eq!(report.failed, 0, "{when}");
            world.assert_all_open(&when).await;
            for recording in &world.recordings {
                let wrap = world.keys().wrap_of(&world.tenant, *recording).await.unwrap().unwrap();
                let revisions = world.revisions(*recording).await;
                assert_eq!((wrap.kek_version.as_str(), revisions), ("2", 1), "{when}");
            }
        }
    }
    assert!(interrupted > 20, "{interrupted} were interrupted");
}

#[tokio::test]
async fn two_rewraps_at_the_same_time_come_to_the_same_end() {
    let world = World::new().await;
    let (one, other) = tokio::join!(world.rewrap(), world.rewrap());
    assert!(one.is_some() && other.is_some());
    // One may have met a revision that the other destroyed; nothing is lost by it.
    assert_eq!(world.rewrap().await.unwrap().failed, 0);
    world.assert_all_open("after both").await;
    for recording in &world.recordings {
        assert_eq!(world.revisions(*recording).await, 1);
    }
}

#[tokio::test]
async fn the_key_of_a_deleted_recording_is_never_brought_back() {
    let world = World::new().await;
    let (tag, doomed) = (world.tenant.tag(), world.recordings[0]);
    let deletion = Deletion {
        reason: Reason::Requested,
        expires_ms: None,
        objects: 0,
        dates: vec!["2026-01-01".into()],
    };
    let order = serde_json::to_vec(&Order::NONE.begin(deletion)).unwrap();
    world.store.put_new(&layout::order(tag, doomed, 0), Bytes::from(order), &Tags::new()).await.unwrap();
    let report = world.rewrap().await.unwrap();
    assert_eq!((report.gone, report.failed), (1, 0));
    assert_eq!(world.revisions(doomed).await, 0);
    assert!(world.keys().open(&world.tenant, doomed).await.is_err());
    assert!(world.keys().open(&world.tenant, world.recordings[1]).await.is_ok());
}

#[tokio::test]
async fn swapped_and_damaged_envelopes_are_not_moved() {
    let world = World::new().await;
    let (tag, victim, other) = (world.tenant.tag(), world.recordings[0], world.recordings[1]);
    let name = |recording| envelope_name(tag, recording, 0);
    let stolen = world.store.get(&name(other), None).await.unwrap().bytes;
    world.store.delete(&name(victim)).await.unwrap();
    world.store.put_new(&name(victim), stolen, &Tags::new()).await.unwrap();
    let report = world.rewrap().await.unwrap();
    assert_eq!(report.failed, 1, "{report:?}");
    assert!(world.keys().open(&world.tenant, victim).await.is_err());
    assert!(world.keys().open(&world.tenant, other).await.is_ok());
}
