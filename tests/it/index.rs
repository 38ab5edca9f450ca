//! Recordings are found by call and number, nobody reads either in the store, and nothing stays of what is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use callseal::simulate::{CallPlan, Pacing, Track, TwilioCall};
use serde_json::Value;

use crate::support::{Home, Ran, Server, Setup, TENANT, TenantSetup, eventually, files_below};

const PATH: &str = "acme-dental/reception";
const CALLER: &str = "+4930901820017";
const OWN: &str = "+4989904400123";
const OTHER_TENANT: &str = "other";
const BY: [&str; 4] = ["--actor", "j.doe", "--reason", "request 17"];

/// A call of two tracks that names its parties.
fn plan(server: &Server, number: u8, seconds: usize) -> CallPlan {
    let audio = |track: usize| {
        (0..seconds * 8_000).map(move |i| u8::try_from(i * (track * 2 + 3) / 7 % 251).unwrap())
    };
    let mut plan = server.plan(PATH, number, Track::whole(audio(0).collect::<Vec<_>>()));
    plan.agent = Some(Track::whole(audio(1).collect::<Vec<_>>()));
    plan.parameters = BTreeMap::from([
        ("From".to_owned(), "+49 (0)30 90 18 20 017".to_owned()),
        ("to".to_owned(), OWN.to_owned()),
        ("order".to_owned(), "r-20417".to_owned()),
    ]);
    plan
}

async fn call(server: &Server, number: u8) -> (String, String) {
    let plan = plan(server, number, 1);
    let call = plan.ids.call.clone();
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    (server.stored(before + 1).await, call)
}

fn look(home: &Home, tenant: &str, more: &[&str]) -> Ran {
    home.run(&[&["recordings", "list", "--tenant", tenant, "--json"][..], &BY, more].concat())
}

fn found(home: &Home, tenant: &str, more: &[&str]) -> Vec<String> {
    let ran = look(home, tenant, more);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines = ran.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| line["recording"].as_str().unwrap().to_owned()).collect()
}

/// Looks by every term of a call that [`plan`] has made.
fn assert_found(home: &Home, call: &str, recordings: &[String], when: &str) {
    let own: Vec<_> = recordings
        .iter()
        .filter(|recording| found(home, TENANT, &["--call", call]).contains(recording))
        .collect();
    assert_eq!(own.len(), 1, "{when}: one recording of {call}");
    for party in [CALLER, "tel:+49-30-90182-0017", OWN, "+49 89 904400 123"] {
        assert_eq!(found(home, TENANT, &["--party", party]), recordings, "{when}: {party}");
    }
}

/// Everything that the store and the journal hold, names included, without what nobody may read in it.
fn assert_unreadable(home: &Home, calls: &[&str]) {
    let mut files = 0;
    for (path, content) in files_below(&home.data()) {
        let name = path.strip_prefix(home.path()).unwrap().display().to_string();
        for secret in calls.iter().chain(&[CALLER, OWN, &CALLER[1..], &OWN[1..], "90 18 20 017", "r-20417"]) {
            assert!(!name.contains(secret), "{secret} in the name {name}");
            assert!(memchr::memmem::find(&content, secret.as_bytes()).is_none(), "{secret} in {name}");
        }
        files += 1;
    }
    assert!(files > 10, "{files} files");
}

fn with_other_tenant() -> Setup {
    Setup::new().option("segments", "max_age_ms", "1000").add_tenant(TenantSetup::new(OTHER_TENANT))
}

/// Names of the index of both tenants.
fn index(home: &Home) -> Vec<String> {
    let store = home.data().join("store");
    let names = files_below(&store.join("x")).into_iter();
    names.map(|(path, _)| path.strip_prefix(&store).unwrap().display().to_string()).collect()
}

#[tokio::test]
async fn a_recording_is_found_by_call_and_number_until_it_is_deleted() {
    let (home, mut server) = with_other_tenant().serve();
    let (first, first_call) = call(&server, 1).await;
    let (second, second_call) = call(&server, 2).await;
    let both = [first.clone(), second.clone()];
    assert_found(&home, &first_call, &both, "stored");
    assert_found(&home, &second_call, &both, "stored");
    assert_eq!(found(&home, TENANT, &["--party", OWN, "--limit", "1"]), std::slice::from_ref(&first));
    assert_eq!(found(&home, TENANT, &["--party", OWN, "--after", &first]), std::slice::from_ref(&second));
    for nobody in [&["--party", "+493090182001"][..], &["--call", "CA0"], &["--call", CALLER]] {
        assert_eq!(found(&home, TENANT, nobody), [""; 0], "{nobody:?}");
    }
    let input = [&["recordings", "list", "--tenant", TENANT, "--json", "--party", "-"][..], &BY].concat();
    assert_eq!(home.run_with_input(&input, &format!("{CALLER}\n")).out.lines().count(), 2);
    assert_eq!(found(&home, OTHER_TENANT, &["--party", CALLER]), [""; 0], "not of this tenant");
    assert_unreadable(&home, &[&first_call, &second_call]);

    let delete = ["recordings", "delete", "--tenant", TENANT, "--recording", &first, "--yes"];
    home.run_ok(&[&delete[..], &BY].concat());
    home.run_ok(&["sweep", "--yes"]);
    assert_found(&home, &second_call, std::slice::from_ref(&second), "one is deleted");
    assert_eq!(found(&home, TENANT, &["--call", &first_call]), [""; 0]);
    let left = index(&home);
    assert!(!left.is_empty() && left.iter().all(|name| !name.contains(&first)), "{left:?}");

    let audit = home.run_json(&["audit", "show", "--tenant", TENANT]);
    let finds: Vec<_> = audit.iter().filter(|record| record["action"] == "find").collect();
    assert!(
        finds.len() > 10
            && finds.iter().all(|find| find["actor"] == "j.doe" && find["reason"] == "request 17")
    );
    assert!(finds.iter().any(|find| find["detail"].as_str().unwrap().ends_with("found=2")), "{finds:?}");
    assert!(finds.iter().all(|find| !find.to_string().contains(&CALLER[3..])), "{finds:?}");
    server.stop().await;
    assert!(server.log().iter().all(|line| !line.text.contains(&CALLER[3..])));
}

#[tokio::test]
async fn the_same_caller_has_other_ids_with_another_tenant() {
    let (home, mut server) = with_other_tenant().serve();
    let (first, _) = call(&server, 1).await;
    let mut elsewhere = plan(&server, 1, 1);
    elsewhere.target = elsewhere.target.replace(TENANT, OTHER_TENANT);
    TwilioCall::connect(elsewhere, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let second = server.stored(2).await;
    assert_eq!(found(&home, TENANT, &["--party", CALLER]), [first]);
    assert_eq!(found(&home, OTHER_TENANT, &["--party", CALLER]), [second]);
    let of = |kind: &str| {
        let names = index(&home).into_iter();
        let blind: std::collections::BTreeSet<_> = names
            .filter(|name| name.contains(kind))
            .map(|name| name.split('/').nth(3).unwrap().to_owned())
            .collect();
        blind
    };
    // The same numbers and the same call, twice.
    assert_eq!((of("/party/").len(), of("/call/").len()), (4, 2));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_goes_on_is_found_and_one_that_crashed_as_well() {
    let home = with_other_tenant().write();
    let mut server = home.serve();
    let mut plan = plan(&server, 1, 60);
    plan.pacing = Pacing::RealTime;
    let name = plan.ids.call.clone();
    let sent = Arc::new(AtomicU64::new(0));
    let (call, progress) = (TwilioCall::connect(plan, &server.tls()).await.unwrap(), Arc::clone(&sent));
    let running = tokio::spawn(call.run(move |now| progress.store(now.sent_ms, Ordering::SeqCst)));
    let recording =
        eventually("a call that goes on", || found(&home, TENANT, &["--call", &name]).pop()).await;
    let listed = look(&home, TENANT, &["--party", CALLER]).out;
    assert!(listed.contains(&recording) && listed.contains("receiving"), "{listed}");
    server.kill();
    assert!(running.await.unwrap().is_err(), "the call was cut off");
    // As if the node had died before it put any entry.
    std::fs::remove_dir_all(home.data().join("store/x")).unwrap();
    let mut server = home.serve();
    eventually("readiness", || (server.ops_get("/readyz").status == 200).then_some(())).await;
    assert_eq!(home.finished(TENANT, &recording).await["state"], "recovered");
    assert_found(&home, &name, &[recording], "recovered");
    server.stop().await;
}

#[tokio::test]
async fn a_repair_from_the_store_alone_makes_a_recording_findable() {
    let home = with_other_tenant().write();
    let mut server = home.serve();
    let mut plan = plan(&server, 1, 60);
    plan.pacing = Pacing::RealTime;
    let name = plan.ids.call.clone();
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    let running = tokio::spawn(call.run(|_| ()));
    let recording = eventually("a stored segment", || found(&home, TENANT, &["--call", &name]).pop()).await;
    server.kill();
    assert!(running.await.unwrap().is_err());
    for lost in ["store/x", "journal"] {
        std::fs::remove_dir_all(home.data().join(lost)).unwrap();
    }
    home.run_ok(&["repair", "--after", "0"]);
    assert_found(&home, &name, &[recording], "repaired");
}

#[tokio::test]
async fn a_new_kek_keeps_the_index_and_a_new_index_key_makes_it_anew() {
    let (home, mut server) = with_other_tenant().serve();
    let (first, name) = call(&server, 1).await;
    let by = ["--actor", "ops", "--reason", "yearly"];
    home.run_ok(&[&["keys", "rotate", "--tenant", TENANT][..], &by].concat());
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    let (second, _) = call(&server, 2).await;
    let both = [first, second];
    assert_found(&home, &name, &both, "rotated");
    home.run_ok(&[&["keys", "rewrap", "--tenant", TENANT][..], &by].concat());
    let retire = ["keys", "retire", "--tenant", TENANT, "--version", "1", "--after-hours", "0", "--yes"];
    home.run_ok(&[&retire[..], &by].concat());
    assert_found(&home, &name, &both, "the first version is gone");

    let before = index(&home);
    let reindex = ["recordings", "reindex", "--tenant", TENANT, "--json", "--new-key", "--yes"];
    let report = home.run_json(&[&reindex[..], &by].concat()).remove(0);
    assert_eq!(
        (&report["recordings"], &report["indexed"], &report["failed"]),
        (&2.into(), &2.into(), &0.into())
    );
    assert_found(&home, &name, &both, "under another index key");
    let after = index(&home);
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|name| !before.contains(name)), "no entry under the former key is left");
    server.stop().await;
}

#[tokio::test]
async fn recordings_from_before_the_index_are_found_after_a_reindex() {
    let (home, mut server) = with_other_tenant().serve();
    let (recording, name) = call(&server, 1).await;
    server.stop().await;
    std::fs::remove_dir_all(home.data().join("store/x")).unwrap();
    assert_eq!(found(&home, TENANT, &["--call", &name]), [""; 0]);
    let reindex = || home.run_ok(&[&["recordings", "reindex", "--tenant", TENANT][..], &BY].concat());
    assert_eq!(reindex(), "recordings 1, indexed 1, running 0, failed 0\n");
    assert_found(&home, &name, std::slice::from_ref(&recording), "reindexed");
    let before = index(&home);
    reindex();
    assert_eq!(index(&home), before, "again changes nothing");
}

#[tokio::test]
async fn the_configuration_says_which_names_are_parties() {
    let setup = with_other_tenant().option("index", "party_keys", "[\"Patient No\"]");
    let (home, mut server) = setup.serve();
    let mut plan = plan(&server, 1, 1);
    plan.parameters.insert("patient_no".to_owned(), "+441632960001".to_owned());
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = server.stored(1).await;
    assert_eq!(found(&home, TENANT, &["--party", "+44 1632 960001"]), [recording]);
    assert_eq!(found(&home, TENANT, &["--party", CALLER]), [""; 0]);
    server.stop().await;
}

#[test]
fn hostile_terms_are_refused_without_being_shown() {
    let home = Setup::new().write();
    let long = "9".repeat(4000);
    for (option, text, error) in [
        ("--party", "030 901820017", "--party: party must be a number in international form"),
        ("--party", "+49'; drop table", "--party: party must be a number"),
        ("--party", "../../k/secret", "--party: party must be a number"),
        ("--party", &long, "--party: party must be a number"),
        ("--party", "", "--party: party must be a number"),
        ("--call", "a b", "--call: call id must be 1 to 256 visible ASCII characters"),
        ("--call", "CA\n", "CA"),
        ("--call", &long, "--call: call id must be"),
    ] {
        let ran = look(&home, TENANT, &[option, text]);
        if text == "CA\n" {
            assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "white space around an id is nothing");
            continue;
        }
        assert_eq!(ran.code, Some(1), "{option} {text:?}: {}", ran.out);
        assert!(ran.err.contains(error), "{option}: {}", ran.err);
        assert!(text.is_empty() || !ran.err.contains(text), "{option} is shown: {}", ran.err);
    }
    let list = ["recordings", "list", "--tenant", TENANT];
    for (more, error) in [
        (&["--call", "CA", "--actor", "a"][..], "--reason is missing"),
        (&["--party", "+4930901820017"], "--actor is missing"),
        (&["--actor", "a", "--reason", "b"], "for --call and --party only"),
        (&["--call", "CA", "--party", "+4930901820017"], "cannot be used with"),
    ] {
        let ran = home.run(&[&list[..], more].concat());
        assert!(ran.code != Some(0) && ran.err.contains(error), "{more:?}: {}", ran.err);
        assert!(!ran.err.contains("+4930901820017"), "{}", ran.err);
    }
}
