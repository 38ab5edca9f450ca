//! Nodes that hold only the half of a key pair that wraps: what they record another node plays and finishes, and nobody who
//! has one in hand opens anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use callseal::domain::playback::grant::TrackSelection;
use callseal::domain::playback::wav::{Encoding, WavLayout};
use callseal::keys::{KeyService, Recipient, RecipientFile, UNVERSIONED, Wrap, init_recipient};
use callseal::server::open_keys;
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{Pacing, Track, TwilioCall};
use tempfile::TempDir;

use super::attacks::try_forgeries;
use super::world::{ACME, OTHER, World};
use crate::reader::described_by_the_other_with;
use crate::support::stalls::Stalls;
use crate::support::{Home, Setup, TENANT, eventually, files_below};

const PATH: &str = "acme-dental/reception";
/// What a node that only records says to whoever wants to open something.
const REFUSAL: &str = "this node cannot open recordings";

/// A key pair's two files.
struct Pair {
    dir: TempDir,
    kek: String,
}

impl Pair {
    fn make() -> Self {
        let dir = TempDir::new().unwrap();
        let (open, wrap) = (dir.path().join("recipient.open"), dir.path().join("recipient.wrap"));
        let kek = init_recipient(&open, &wrap, "2026-01-05T09:30:00Z").unwrap().kek().kek;
        Self { dir, kek }
    }

    fn open(&self) -> PathBuf {
        self.dir.path().join("recipient.open")
    }

    fn wrap(&self) -> PathBuf {
        self.dir.path().join("recipient.wrap")
    }

    /// What must be nowhere else: the private key, and the sender key.
    fn secrets(&self) -> [String; 2] {
        let open: serde_json::Value = serde_json::from_slice(&fs::read(self.open()).unwrap()).unwrap();
        ["key", "sender"].map(|member| open[member].as_str().unwrap().to_owned())
    }

    /// The tables of a node in a role.
    fn tables(&self, role: &str) -> String {
        tables(role, &self.kek, &[if role == "full" { self.open() } else { self.wrap() }])
    }
}

fn tables(role: &str, kek: &str, files: &[PathBuf]) -> String {
    let option = if role == "full" { "open_files" } else { "wrap_files" };
    format!(
        "[keys]\nrole = {role:?}\nprovider = \"recipient\"\nkek = {kek:?}\n[recipient]\n{option} = {}\n",
        quoted(files)
    )
}

fn quoted(files: &[PathBuf]) -> String {
    let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    format!("{files:?}")
}

/// A store of one process whose node has no keyring.
async fn world(node: &str) -> World {
    let world = World::new(node).await;
    fs::remove_file(world.keyring()).unwrap();
    world
}

#[tokio::test]
async fn what_a_node_that_only_records_wraps_another_opens() {
    let pair = Pair::make();
    let world = world(&pair.tables("ingest")).await;
    let recordings = [world.mint(ACME).await.unwrap(), world.mint(OTHER).await.unwrap()];
    for (id, recording) in [ACME, OTHER].into_iter().zip(recordings) {
        let wrap = world.envelope(id, recording).await.wraps.remove(0);
        assert_eq!((&*wrap.provider, &wrap.kek, &*wrap.kek_version), ("recipient", &pair.kek, UNVERSIONED));
        let refused = world.open(id, recording).await.unwrap_err();
        assert_eq!(refused.label(), "write_only");
        assert!(refused.to_string().starts_with(REFUSAL), "{refused}");
    }
    let world = world.with_node(&pair.tables("full"));
    for (id, recording) in [ACME, OTHER].into_iter().zip(recordings) {
        assert_eq!(world.open(id, recording).await.unwrap(), world.envelope(id, recording).await.key_id);
    }
}

#[tokio::test]
async fn forged_envelopes_do_not_open_with_a_key_pair() {
    let (pair, others) = (Pair::make(), Pair::make());
    let world = world(&tables("full", &pair.kek, &[pair.open(), others.open()])).await;
    world.write_tenant(OTHER, &format!("provider = \"recipient\"\nkek = {:?}", others.kek));
    try_forgeries(&world).await;
}

#[tokio::test]
async fn a_wrap_is_bound_to_its_tenant_where_all_have_one_key_pair() {
    let pair = Pair::make();
    let world = world(&pair.tables("full")).await;
    let (ours, theirs) = (world.mint(ACME).await.unwrap(), world.mint(OTHER).await.unwrap());
    let stolen = world.envelope(OTHER, theirs).await;
    let mut envelope = world.envelope(ACME, ours).await;
    for key_id in [envelope.key_id.clone(), stolen.key_id.clone()] {
        (envelope.wraps, envelope.key_id) = (stolen.wraps.clone(), key_id);
        world.replace_envelope(ACME, ours, serde_json::to_vec(&envelope).unwrap()).await;
        assert_eq!(world.open(ACME, ours).await.unwrap_err().label(), "bad_envelope");
    }
}

#[tokio::test]
async fn no_wrap_is_opened_by_another_kind_of_key() {
    let pair = Pair::make();
    let former = "former_keks = [{ provider = \"local\" }]\n[recipient]";
    let node = pair.tables("full").replace("[recipient]", former);
    let world = World::new("").await;
    let local = world.mint(ACME).await.unwrap();
    let world = world.with_node(&node);
    let wrapped = world.mint(ACME).await.unwrap();
    assert!(world.open(ACME, local).await.is_ok(), "of before");
    let swap = |recording, change: fn(&mut Wrap, &str)| {
        let (world, kek) = (&world, &pair.kek);
        async move {
            let mut envelope = world.envelope(ACME, recording).await;
            let whole = serde_json::to_vec(&envelope).unwrap();
            change(&mut envelope.wraps[0], kek);
            world.replace_envelope(ACME, recording, serde_json::to_vec(&envelope).unwrap()).await;
            let error = world.open(ACME, recording).await.unwrap_err();
            world.replace_envelope(ACME, recording, whole).await;
            assert!(world.open(ACME, recording).await.is_ok());
            error.label()
        }
    };
    let as_local: fn(&mut Wrap, &str) = |wrap, _| {
        (wrap.provider, wrap.kek, wrap.kek_version) =
            ("local".to_owned(), format!("local/{ACME}"), "1".to_owned());
    };
    let as_recipient: fn(&mut Wrap, &str) = |wrap, kek| {
        (wrap.provider, wrap.kek, wrap.kek_version) =
            ("recipient".to_owned(), kek.to_owned(), UNVERSIONED.to_owned());
    };
    assert_eq!(swap(wrapped, as_local).await, "bad_envelope");
    assert_eq!(swap(local, as_recipient).await, "bad_envelope");
    let kind_alone: fn(&mut Wrap, &str) = |wrap, _| wrap.provider = "local".to_owned();
    assert_eq!(swap(wrapped, kind_alone).await, "foreign_kek");
    let newer: fn(&mut Wrap, &str) = |wrap, _| {
        let mut blob = base64_simd::STANDARD.decode_to_vec(wrap.blob.as_bytes()).unwrap();
        blob[0] = 2;
        wrap.blob = base64_simd::STANDARD.encode_to_string(blob);
    };
    assert_eq!(swap(wrapped, newer).await, "bad_envelope");
}

#[tokio::test]
async fn key_pairs_are_exchanged_and_recordings_moved_to_and_from_them() {
    let (first, second) = (Pair::make(), Pair::make());
    let world = World::new("").await;
    let old = world.mint(ACME).await.unwrap();
    let with = |kek: &str, former: &str, pairs: &[&Pair]| {
        let files: Vec<_> = pairs.iter().map(|pair| pair.open()).collect();
        let node = tables("full", kek, &files);
        node.replace("[recipient]", &format!("former_keks = [{former}]\n[recipient]"))
    };
    let of = |pair: &Pair| format!("{{ provider = \"recipient\", kek = {:?} }}", pair.kek);
    let world = world.with_node(&with(&first.kek, "{ provider = \"local\" }", &[&first]));
    assert_eq!(world.rewrap(ACME, None).await.moved, 1);
    let newer = world.mint(ACME).await.unwrap();
    let both = with(&second.kek, &of(&first), &[&first, &second]);
    let world = world.with_node(&both);
    for recording in [old, newer] {
        assert!(world.open(ACME, recording).await.is_ok(), "under the former key pair");
    }
    let report = world.rewrap(ACME, None).await;
    // The two recordings, and the audit chain of the rewrap before.
    assert!(report.moved >= 2 && report.failed == 0, "{report:?}");
    let world = world.with_node(&with(&second.kek, "", &[&second]));
    assert!(world.open(ACME, old).await.is_ok() && world.open(ACME, newer).await.is_ok());
    // And back to a key service of another kind.
    let back = format!(
        "[keys]\nformer_keks = [{}]\n[recipient]\nopen_files = {}\n",
        of(&second),
        quoted(&[second.open()])
    );
    let world = world.with_node(&back);
    assert_eq!(world.rewrap(ACME, None).await.failed, 0);
    let world = world.with_node("");
    assert!(world.open(ACME, old).await.is_ok() && world.open(ACME, newer).await.is_ok());
}

fn open(world: &World) -> Result<Arc<KeyService>, String> {
    open_keys(&world.config(), &world.store).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_node_begins_with_the_right_files_or_not_at_all() {
    let (pair, other) = (Pair::make(), Pair::make());
    let started = |role: &'static str, kek: &str, file: PathBuf| {
        let node = tables(role, kek, &[file]);
        async move { open(&world(&node).await) }
    };
    assert!(started("ingest", &pair.kek, pair.wrap()).await.is_ok());
    assert!(started("full", &pair.kek, pair.open()).await.is_ok());
    for (role, kek, file, wanted) in [
        ("ingest", &pair.kek, pair.open(), "is an open file; allowed here: a wrap file"),
        ("full", &pair.kek, pair.wrap(), "is a wrap file; allowed here: an open file"),
        ("ingest", &pair.kek, other.wrap(), "of which there is no file in recipient.wrap_files"),
        ("full", &other.kek, pair.open(), "of which there is no file in recipient.open_files"),
    ] {
        let refused = started(role, kek, file).await.err().unwrap();
        assert!(refused.contains(wanted), "{refused}");
    }
    // Somebody left the keyring of before.
    let world = World::new(&pair.tables("ingest")).await;
    let refused = open(&world).err().unwrap();
    assert!(refused.contains("take it away"), "{refused}");
}

/// A node that only records and one that opens, on one store.
pub(super) struct Nodes {
    pair: Pair,
    pub(super) ingest: Home,
    pub(super) playback: Home,
    pub(super) store: TempDir,
}

impl Nodes {
    fn new() -> Self {
        Self::with(|setup| setup, |setup| setup)
    }

    /// Two nodes that are set up further.
    pub(super) fn with(
        of_ingest: impl FnOnce(Setup) -> Setup,
        of_playback: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let (pair, store) = (Pair::make(), TempDir::new().unwrap());
        let setup = |role: &str| {
            let option = if role == "full" { "open_files" } else { "wrap_files" };
            let file = if role == "full" { pair.open() } else { pair.wrap() };
            Setup::new()
                .option("segments", "max_bytes", "32768")
                .option("store", "path", &format!("{:?}", store.path().display().to_string()))
                .option("keys", "role", &format!("{role:?}"))
                .option("keys", "provider", "\"recipient\"")
                .option("keys", "kek", &format!("{:?}", pair.kek))
                .option("recipient", option, &quoted(&[file]))
        };
        let ingest = of_ingest(setup("ingest").tenant(|tenant| tenant.grant_key.clear())).write();
        let playback = of_playback(setup("full")).write();
        Self { pair, ingest, playback, store }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_recorded_by_one_node_and_played_sample_by_sample_by_the_other() {
    const SAMPLES: usize = 48_000;
    let nodes = Nodes::new();
    let (mut ingest, mut playback) = (nodes.ingest.serve(), nodes.playback.serve());
    let (caller, agent) = (&DEMO_CALLER[80_000..80_000 + SAMPLES], &DEMO_AGENT[80_000..80_000 + SAMPLES]);
    let mut plan = ingest.plan(PATH, 1, Track::whole(caller));
    plan.agent = Some(Track::whole(agent));
    TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = ingest.stored(1).await;

    let link = nodes.playback.grant(TENANT, &recording, &["--format", "ulaw"]);
    let answer = playback.https().get(&link, &[]).await.unwrap();
    assert_eq!(answer.status, 200);
    let layout =
        WavLayout::new(Encoding::Ulaw, TrackSelection::Both.channels(), 8000, SAMPLES as u64).unwrap();
    let mut wanted = layout.header();
    layout.write_frames(caller, agent, &mut wanted).unwrap();
    assert!(answer.body == wanted, "{} bytes, {} wanted", answer.body.len(), wanted.len());

    let refused = ingest.https().get(&link, &[]).await.unwrap();
    assert_eq!(refused.status, 503);
    let problem: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(problem["code"], "write_only");
    assert!(problem["detail"].as_str().unwrap().contains(REFUSAL), "{problem}");

    assert_eq!(nodes.playback.show(TENANT, &recording)["state"], "complete");
    let verified = nodes.playback.verify(TENANT, &recording);
    assert_eq!(verified["grade"], "evidence", "the audit log of the other node is read, too");
    assert_eq!(nodes.playback.open_ulaw(TENANT, &recording, "agent"), agent);
    let status = nodes.playback.run_ok(&["keys", "status"]);
    assert!(status.contains(&nodes.pair.kek), "{status}");

    // An independent reader with the open file comes to the same.
    let store = &nodes.store;
    if let Some(theirs) =
        described_by_the_other_with(store.path(), "--open-file", &nodes.pair.open(), &recording)
    {
        assert_eq!(theirs["grade"], "authentic", "{theirs}");
        assert_eq!(theirs["tracks"].as_object().unwrap().len(), 2);
    }
    ingest.stop().await;
    playback.stop().await;
    for (path, content) in [store.path(), nodes.ingest.path()].into_iter().flat_map(files_below) {
        let has = |secret: &String| content.windows(secret.len()).any(|found| found == secret.as_bytes());
        assert!(!nodes.pair.secrets().iter().any(has), "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_that_opens_says_that_this_node_cannot() {
    let nodes = Nodes::new();
    let mut ingest = nodes.ingest.serve();
    let plan = ingest.plan(PATH, 1, Track::whole(&DEMO_CALLER[..8_000]));
    TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = ingest.stored(1).await;
    let home = &nodes.ingest;
    let wav = home.path().join("out.wav").display().to_string();
    let of = ["--tenant", TENANT, "--recording", &recording];
    for command in [
        &[&["recordings", "show"][..], &of].concat()[..],
        &[&["open", "--out", &wav][..], &of].concat(),
        &[&["verify"][..], &of].concat(),
        &[&["grant"][..], &of].concat(),
        &["audit", "show", "--tenant", TENANT],
        &["audit", "verify", "--tenant", TENANT],
        &["repair"],
        &["sweep", "--yes"],
        &["audit", "export", "--tenant", TENANT, "--out", &wav],
        &["keys", "rewrap", "--actor", "ops"],
        &["recordings", "list", "--tenant", TENANT, "--call", "CA1", "--actor", "ops", "--reason", "a test"],
        &["recordings", "reindex", "--tenant", TENANT, "--actor", "ops", "--reason", "a test"],
    ] {
        let ran = home.run(command);
        assert_eq!(ran.code, Some(1), "{command:?}: {}", ran.out);
        assert!(ran.err.contains(REFUSAL), "{command:?}: {}", ran.err);
    }
    assert!(!Path::new(&wav).exists());
    // Orders need no key, and names are no secret.
    home.run_ok(&[&["recordings", "hold", "--actor", "ops", "--reason", "a test"][..], &of].concat());
    assert_eq!(nodes.playback.show(TENANT, &recording)["hold"], true);
    let listed = home.run(&["recordings", "list", "--tenant", TENANT]);
    assert!(listed.out.contains(&recording) && listed.err.contains(REFUSAL), "{}{}", listed.out, listed.err);
    let status = home.run_ok(&["keys", "status"]);
    assert!(status.contains(&nodes.pair.kek), "{status}");
    ingest.stop().await;
}

/// Audio without silence, so that every sample tells where it belongs.
fn audio(track: u8) -> Vec<u8> {
    let step = u32::from(track) * 2 + 3;
    (0..640_000u32).map(|i| u8::try_from(i.wrapping_mul(step) / 7 % 251).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_cannot_finish_another_finishes() {
    /// The published bound for a killed node.
    const MAX_LOSS_MS: u64 = 60;
    const PACE: f64 = 4.0;
    let nodes = Nodes::new();
    let stalls = Stalls::watch();
    let mut ingest = nodes.ingest.serve();
    let mut plan = ingest.plan(PATH, 1, Track::whole(audio(0)));
    plan.agent = Some(Track::whole(audio(1)));
    plan.pacing = Pacing::Scaled(PACE);
    let sent_ms = Arc::new(AtomicU64::new(0));
    let (call, progress) = (TwilioCall::connect(plan, &ingest.tls()).await.unwrap(), Arc::clone(&sent_ms));
    let running = tokio::spawn(call.run(move |now| progress.store(now.sent_ms, Ordering::SeqCst)));
    let segments = || {
        let shown =
            nodes.playback.recordings(TENANT).pop().map(|recording| nodes.playback.show(TENANT, &recording));
        shown.and_then(|shown| shown["segments"].as_u64()).unwrap_or_default()
    };
    eventually("stored segments", || (segments() >= 2).then_some(())).await;
    // It can be heard meanwhile, as far as it is stored.
    let recording = nodes.playback.recordings(TENANT).pop().unwrap();
    assert_eq!(nodes.playback.show(TENANT, &recording)["state"], "receiving");
    let middle = sent_ms.load(Ordering::SeqCst) + 600;
    eventually("the middle of a segment", || (sent_ms.load(Ordering::SeqCst) >= middle).then_some(())).await;
    let sent = sent_ms.load(Ordering::SeqCst);
    ingest.kill();
    assert!(running.await.unwrap().is_err(), "the call was cut off");

    let mut ingest = nodes.ingest.serve();
    let handed_over =
        ingest.wait_log("recording cut off by a crash is stored, for others to finish", 1).await;
    assert_eq!(handed_over.field("recording"), recording);
    ingest.wait_log("journal of earlier processes is worked off", 1).await;
    assert_eq!(ingest.metric("recordings_handed_over_total"), 1.0);
    assert_eq!(ingest.ops_get("/readyz").status, 200);
    assert_eq!(nodes.playback.show(TENANT, &recording)["state"], "receiving");

    let repaired = nodes.playback.run_json(&["repair", "--after", "0", "--json"]);
    assert_eq!(repaired[0]["did"], "finished", "{repaired:?}");
    let shown = nodes.playback.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&"recovered".into(), &"crash".into()));
    assert_eq!(nodes.playback.verify(TENANT, &recording)["grade"], "evidence");
    let bound = stalls.bound(MAX_LOSS_MS);
    for (name, track) in [("caller", 0), ("agent", 1)] {
        let mut heard = nodes.playback.open_ulaw(TENANT, &recording, name);
        while heard.last() == Some(&0xff) {
            heard.pop();
        }
        assert!(audio(track).starts_with(&heard), "{name}: what is finished is what was sent");
        let lost = sent.saturating_sub((heard.len() / 8) as u64) / 4;
        println!("{name}: {lost} ms lost of {sent} ms of audio");
        assert!(lost <= bound, "{name}: {lost} ms lost");
    }
    // A further start has nothing left to do.
    ingest.stop().await;
    let mut ingest = nodes.ingest.serve();
    ingest.wait_log("journal of earlier processes is worked off", 1).await;
    assert_eq!(ingest.metric("recordings_handed_over_total"), 0.0);
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_a_node_that_only_records_in_hand_opens_nothing() {
    let nodes = Nodes::new();
    let mut ingest = nodes.ingest.serve();
    let plan = ingest.plan(PATH, 1, Track::whole(&DEMO_CALLER[..8_000]));
    TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = ingest.stored(1).await;
    ingest.kill();
    let node = fs::read_to_string(nodes.ingest.config()).unwrap();
    let try_with = |text: &str| {
        fs::write(nodes.ingest.config(), text).unwrap();
        let ran = nodes.ingest.run(&["verify", "--tenant", TENANT, "--recording", &recording]);
        assert_ne!(ran.code, Some(0), "{text}");
        ran.err
    };
    // Everything on its disk, and its wrap file, in the place of the file that opens.
    let full = node.replace("role = \"ingest\"", "role = \"full\"");
    let mut tried = 0;
    let mut on_disk: Vec<PathBuf> =
        files_below(nodes.ingest.path()).into_iter().map(|(path, _)| path).collect();
    on_disk.push(nodes.pair.wrap());
    for file in on_disk {
        let with =
            full.replace("wrap_files", "open_files").replace(&quoted(&[nodes.pair.wrap()]), &quoted(&[file]));
        let said = try_with(&with);
        assert!(
            said.contains("file of a key pair") || said.contains("open file") || said.contains("mode"),
            "{said}"
        );
        tried += 1;
    }
    assert!(tried > 8, "{tried} files");
    // A key pair of their own, under its name and under ours.
    let theirs = Pair::make();
    let with = |kek: &str| {
        let files = full.replace("wrap_files", "open_files");
        let files = files.replace(&quoted(&[nodes.pair.wrap()]), &quoted(&[theirs.open()]));
        files.replace(&nodes.pair.kek, kek)
    };
    assert!(try_with(&with(&theirs.kek)).contains("not this tenant's"));
    assert!(try_with(&with(&nodes.pair.kek)).contains("there is no file in recipient.open_files"));
    let envelope = files_below(nodes.store.path()).into_iter().find(|(path, _)| {
        path.extension().is_some_and(|extension| extension == "json")
            && path.display().to_string().contains(&recording)
    });
    let (path, json) = envelope.unwrap();
    let renamed = String::from_utf8(json.clone()).unwrap().replace(&nodes.pair.kek, &theirs.kek);
    fs::write(&path, renamed).unwrap();
    assert!(try_with(&with(&theirs.kek)).contains("wrong key or context"));
    fs::write(&path, json).unwrap();
    // The keyring of their own, in the name of the tenant.
    let local = node
        .replace("role = \"ingest\"\n", "")
        .replace("provider = \"recipient\"", "provider = \"local\"")
        .replace(&format!("kek = {:?}\n", nodes.pair.kek), "");
    let local = local.replace("wrap_files = ", "# ");
    fs::write(nodes.ingest.config(), &local).unwrap();
    nodes.ingest.run_ok(&["keys", "init"]);
    assert!(try_with(&local).contains("not this tenant's"));
    // And it is not the recording that does not open.
    assert_eq!(nodes.playback.verify(TENANT, &recording)["grade"], "evidence");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_node_takes_another_key_pair_and_no_other_role() {
    let nodes = Nodes::new();
    let mut ingest = nodes.ingest.serve();
    ingest.allow("the old configuration stays");
    let call = async |number: u8| {
        let plan = ingest.plan(PATH, number, Track::whole(&DEMO_CALLER[..8_000]));
        TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
        ingest.stored(number.into()).await
    };
    let first = call(1).await;
    let second_pair = Pair::make();
    let node = fs::read_to_string(nodes.ingest.config()).unwrap();
    let text = node.replace(&nodes.pair.kek, &second_pair.kek);
    let files = quoted(&[nodes.pair.wrap(), second_pair.wrap()]);
    fs::write(nodes.ingest.config(), text.replace(&quoted(&[nodes.pair.wrap()]), &files)).unwrap();
    ingest.signal("HUP");
    ingest.wait_log("tenants, their secrets and keys were read again", 1).await;
    let second = call(2).await;
    let wrap_of = |recording: &str| {
        let found = files_below(&nodes.store.path().join("k")).into_iter();
        let mut found = found.filter(|(path, _)| path.display().to_string().contains(recording));
        String::from_utf8(found.next().unwrap().1).unwrap()
    };
    assert!(wrap_of(&first).contains(&nodes.pair.kek));
    assert!(wrap_of(&second).contains(&second_pair.kek));
    let grown = fs::read_to_string(nodes.ingest.config()).unwrap();
    let grown = grown.replace("role = \"ingest\"", "role = \"full\"").replace("wrap_files", "open_files");
    let open_files = quoted(&[nodes.pair.open(), second_pair.open()]);
    fs::write(nodes.ingest.config(), grown.replace(&files, &open_files)).unwrap();
    ingest.signal("HUP");
    let refused = ingest.wait_log("keys cannot be used; the old configuration stays", 1).await;
    assert!(refused.field("error").contains("start the node anew"), "{}", refused.text);
    ingest.stop().await;
}

#[test]
fn the_commands_make_a_key_pair_once_and_tell_what_a_file_is() {
    let dir = TempDir::new().unwrap();
    let callseal = |args: &[&str]| {
        let done =
            Command::new(env!("CARGO_BIN_EXE_callseal")).args(args).current_dir(&dir).output().unwrap();
        (
            done.status.code(),
            String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap(),
        )
    };
    let files = ["--open-file", "keys/p.open", "--wrap-file", "p.wrap"];
    let (code, said) = callseal(&[&["keys", "recipient", "init"][..], &files].concat());
    assert_eq!(code, Some(0), "{said}");
    let made = Recipient::load(&dir.path().join("p.wrap"), RecipientFile::Wrap).unwrap();
    assert!(said.contains(&format!("kek = \"{}\"", made.kek().kek)), "{said}");
    let (code, said) = callseal(&[&["keys", "recipient", "init"][..], &files].concat());
    assert!(code == Some(1) && said.contains("exists already"), "{said}");
    let (_, said) = callseal(&["keys", "recipient", "show", "keys/p.open"]);
    assert!(said.contains(&made.kek().kek) && said.contains("wraps and opens"), "{said}");
    let (_, said) = callseal(&["keys", "recipient", "show", "--json", "p.wrap"]);
    let shown: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&shown["opens"], &shown["kek"]), (&false.into(), &made.kek().kek.into()));
    let again = ["--open-file", "keys/p.open", "--wrap-file", "again.wrap"];
    let (code, said) = callseal(&[&["keys", "recipient", "wrap-file"][..], &again].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        fs::read(dir.path().join("p.wrap")).unwrap(),
        fs::read(dir.path().join("again.wrap")).unwrap()
    );
    let wrong = ["--open-file", "p.wrap", "--wrap-file", "x.wrap"];
    let (code, said) = callseal(&[&["keys", "recipient", "wrap-file"][..], &wrong].concat());
    assert!(code == Some(1) && said.contains("is a wrap file; allowed here: an open file"), "{said}");
}
