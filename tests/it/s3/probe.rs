//! What the probe says of real stores, and what a node does about it.

use std::net::TcpListener;
use std::path::Path;

use callseal::config::{S3, S3Claims};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Chaos, Track, TwilioCall, Weather};
use callseal::store::probe::{self, Feature, Finding, Found};
use serde_json::Value;

use crate::support::{Setup, TENANT, write_private};

use super::servers::{ALL, NO_TAGS, Server, ceph, garage, open};

fn broken(findings: &[Finding]) -> Vec<Feature> {
    findings.iter().filter(|finding| finding.is_broken_claim()).map(|finding| finding.feature).collect()
}

#[tokio::test]
async fn ceph_keeps_what_is_claimed_of_it() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.over_tls(&ceph.bucket(ALL).await);
    let findings = probe::run(&open(&options).await).await.unwrap();
    assert_eq!(broken(&findings), []);
    let missing: Vec<_> = findings.iter().filter(|finding| finding.found == Found::No).collect();
    assert!(matches!(missing[..], [Finding { feature: Feature::Versions, .. }]), "{missing:?}");
    let damage = findings.iter().find(|finding| finding.feature == Feature::RefusesDamage).unwrap();
    assert_eq!(damage.found, Found::Yes, "RGW holds bodies against their signed digests: {damage:?}");
    let left = ceph.client().list_objects_v2().bucket(&options.bucket).send().await.unwrap();
    assert!(left.contents().is_empty(), "the probe leaves nothing");
}

/// RGW 16.2 ignores `If-None-Match` in a bucket with versions: every put is a version more.
#[tokio::test]
async fn versions_that_nobody_spoke_of_are_found() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    ceph.keep_versions(&options.bucket).await;
    let found = broken(&probe::run(&open(&options).await).await.unwrap());
    assert_eq!(found, [Feature::CreateOnce, Feature::CreateOnceRace, Feature::Versions]);
    let told = S3 { claims: S3Claims { versions: true, create_once: false, ..ALL }, ..options };
    assert_eq!(broken(&probe::run(&open(&told).await).await.unwrap()), []);
}

#[tokio::test]
async fn garage_is_found_out_unless_nothing_is_claimed() {
    let Some(garage) = garage() else { return };
    let options = garage.bucket(ALL).await;
    let expected = [Feature::TagsOnPut, Feature::TagsOnUpload, Feature::CreateOnce, Feature::CreateOnceRace];
    assert_eq!(broken(&probe::run(&open(&options).await).await.unwrap()), expected);
    let honest = S3 { claims: NO_TAGS, ..options };
    assert_eq!(broken(&probe::run(&open(&honest).await).await.unwrap()), []);
}

/// A node whose store is a bucket; the directory holds its keys.
fn node(server: &Server, options: &S3, dir: &Path) -> Setup {
    let secret = |name: &str| {
        let path = dir.join(name);
        write_private(&path, server.value(name));
        format!("{{ file = {:?} }}", path.display().to_string())
    };
    let text = |value: &str| format!("{value:?}");
    Setup::new()
        .option("store", "kind", "\"s3\"")
        .option("store", "profile", "\"ceph\"")
        .option("store", "endpoint", &text(options.endpoint.as_deref().unwrap()))
        .option("store", "region", &text(&options.region))
        .option("store", "bucket", &text(&options.bucket))
        .option("store", "access_key_id", &secret("S3_ACCESS_KEY_ID"))
        .option("store", "secret_access_key", &secret("S3_SECRET_ACCESS_KEY"))
}

#[tokio::test]
async fn a_call_is_stored_in_a_bucket_and_opened_again() {
    const SAMPLES: usize = 16_000;
    let Some(ceph) = ceph() else { return };
    let options = ceph.over_tls(&ceph.bucket(ALL).await);
    let dir = tempfile::tempdir().unwrap();
    let ca = format!("{:?}", options.ca_file.as_ref().unwrap().display().to_string());
    let setup = node(&ceph, &options, dir.path()).option("store", "ca_file", &ca);
    let (home, server) =
        setup.option("store", "prefix", "\"calls\"").option("log", "level", "\"trace\"").serve();
    let audio = &DEMO_CALLER[80_000..80_000 + SAMPLES];
    let plan = server.plan("acme-dental/reception", 1, Track::whole(audio));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.wait_log("recording stored", 1).await;
    let recording = home.recordings(TENANT).remove(0);
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), audio, "every sample came back");

    let client = ceph.client();
    let listed = client.list_objects_v2().bucket(&options.bucket).send().await.unwrap();
    let keys: Vec<_> = listed.contents().iter().map(|object| object.key().unwrap()).collect();
    assert!(keys.iter().all(|key| key.starts_with("calls/")), "{keys:?}");
    let last = keys.iter().find(|key| key.ends_with("/final.cmr")).unwrap();
    let tags = client.get_object_tagging().bucket(&options.bucket).key(*last).send().await.unwrap();
    let days = tags.tag_set().iter().find(|tag| tag.key() == "callseal-retention-days").unwrap();
    assert_eq!(days.value(), "365");
    let metrics = server.metrics();
    assert!(metrics.contains("store_capability{feature=\"create_once_race\"} 1"), "{metrics}");
    for line in server.log() {
        for secret in [ceph.value("S3_SECRET_ACCESS_KEY"), "AWS4-HMAC", "Signature=", "x-amz-", "https://127"]
        {
            assert!(!line.text.contains(secret), "{secret} is logged: {}", line.text);
        }
    }
}

#[tokio::test]
async fn a_broken_claim_stops_the_start() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    ceph.keep_versions(&options.bucket).await;
    let dir = tempfile::tempdir().unwrap();
    let home = node(&ceph, &options, dir.path()).write();
    let ran = home.run(&["serve"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("versions (set store.versions = true, or switch versions off)"), "{}", ran.err);
    assert!(!ran.err.contains("taking calls"), "{}", ran.err);

    let ran = home.run(&["store", "probe"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.out.lines().any(|line| line.starts_with("versions ") && line.contains(" no ")),
        "{}",
        ran.out
    );
    let setup = node(&ceph, &options, dir.path()).option("store", "versions", "true");
    let home = setup.option("store", "create_once", "false").write();
    let found: Value = serde_json::from_str(&home.run_ok(&["store", "probe", "--json"])).unwrap();
    let found: Vec<_> = found.as_array().unwrap().iter().map(|finding| finding["found"].as_str()).collect();
    assert_eq!(found.iter().filter(|found| **found == Some("yes")).count(), 9, "{found:?}");
    assert_eq!(found.iter().filter(|found| **found == Some("not_asked")).count(), 3, "{found:?}");
}

#[tokio::test]
async fn a_denial_stops_the_start_and_silence_does_not() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let dir = tempfile::tempdir().unwrap();
    let setup = node(&ceph, &options, dir.path()).option("store", "bucket", "\"never-made\"");
    let ran = setup.write().run(&["serve"]);
    assert!(ran.code == Some(1) && ran.err.contains("there is no such bucket"), "{}", ran.err);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let setup =
        node(&ceph, &options, dir.path()).option("store", "endpoint", &format!("\"http://{nobody}\""));
    let (_home, mut server) = setup.serve();
    let warning = "the store does not answer; what it can do is not checked yet";
    server.allow(warning);
    server.allow(NOT_COUNTED);
    server.wait_log(warning, 1).await;
}

/// What the log says of requests of people while the store cannot be listed.
const NOT_COUNTED: &str = "somebody's requests cannot be counted";

/// The way to a store, which is closed at first.
async fn closed_way(server: &Server) -> Chaos {
    let way = Chaos::start(server.value("S3_ENDPOINT").trim_start_matches("http://").parse().unwrap()).await;
    let way = way.unwrap();
    way.set(Weather::Refuse);
    way
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_found_broken_later_ends_the_taking_of_calls() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    ceph.keep_versions(&options.bucket).await;
    let dir = tempfile::tempdir().unwrap();
    let way = closed_way(&ceph).await;
    let setup = node(&ceph, &options, dir.path());
    let (home, mut server) =
        setup.option("store", "endpoint", &format!("\"http://{}\"", way.address())).serve();
    let (warning, error) =
        ("is not checked yet", "the store does not do what the configuration claims; no new call is taken");
    server.allow(warning);
    server.allow(NOT_COUNTED);
    server.allow(error);
    server.wait_log("the store does not answer; what it can do is not checked yet", 1).await;
    way.set(Weather::Fair);
    let told = server.wait_log(error, 1).await;
    assert!(told.field("broken").contains("set store.versions = true"), "{}", told.text);
    let ready = server.ops_get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("the store does not do what the configuration claims"), "{}", ready.body);
    let plan = server.plan("acme-dental/reception", 1, Track::whole(&DEMO_CALLER[..1_600]));
    let refused = TwilioCall::connect(plan, &server.tls()).await.map(drop).unwrap_err();
    assert!(format!("{refused:?}").contains("503"), "{refused:?}");
    assert!(home.recordings(TENANT).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_where_awss_tools_find_them_and_are_read_again() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let (dir, way) = (tempfile::tempdir().unwrap(), closed_way(&ceph).await);
    let text = |value: &str| format!("{value:?}");
    let home = Setup::new()
        .option("store", "kind", "\"s3\"")
        .option("store", "profile", "\"ceph\"")
        .option("store", "credentials", "\"chain\"")
        .option("store", "endpoint", &text(&format!("http://{}", way.address())))
        .option("store", "region", &text(&options.region))
        .option("store", "bucket", &text(&options.bucket))
        .write();
    let (id, secret) = (ceph.value("S3_ACCESS_KEY_ID"), ceph.value("S3_SECRET_ACCESS_KEY"));
    let profile = |secret: &str| {
        write_private(
            &dir.path().join("credentials"),
            &format!("[media]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"),
        );
    };
    profile("outdated");
    let file = dir.path().join("credentials").display().to_string();
    let variables = [("AWS_SHARED_CREDENTIALS_FILE", file.as_str()), ("AWS_PROFILE", "media")];
    let mut server = home.serve_with(&variables);
    server.allow("is not checked yet");
    server.allow(NOT_COUNTED);
    way.set(Weather::Fair);
    server.wait_log("the store does not let us in; what it can do is not checked yet", 1).await;
    profile(secret);
    server.wait_log("the store does what the configuration claims", 1).await;
    assert_eq!(server.ops_get("/readyz").status, 200);

    let keys = [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)];
    let ran = home.run_with(&["store", "probe"], &keys);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
}
