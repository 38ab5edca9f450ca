//! Shredding through the real program: two nodes that have a key by heart, the commands, a store that was restored.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use serde_json::{Value, json};

use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::{Home, Ran, Server, Setup, TENANT, eventually, files_below};

const CALLER: &str = "+4930901820017";
const BY: [&str; 4] = ["--actor", "j.doe", "--reason", "request 17"];

async fn record(server: &Server, number: u8, caller: &str) -> String {
    let mut plan = server.plan("acme-dental/reception", number, Track::whole(&DEMO_CALLER[..8_000]));
    plan.parameters = BTreeMap::from([("from".to_owned(), caller.to_owned())]);
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.stored(before + 1).await
}

/// A second node with the store and the keys of the first.
fn neighbour(of: &Home) -> Home {
    let quoted = |path: &str| format!("{:?}", of.data().join(path).display().to_string());
    let shared = Setup::new().option("store", "path", &quoted("store"));
    shared.option("keys", "keyring_file", &quoted("keyring.json")).write()
}

async fn status(server: &Server, link: &str) -> u16 {
    server.https().get(link, &[]).await.unwrap().status.as_u16()
}

fn run(home: &Home, what: &[&str], more: &[&str]) -> Ran {
    home.run(&[what, &["--tenant", TENANT], more].concat())
}

fn json_of(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

fn shred(home: &Home, more: &[&str]) -> Ran {
    run(home, &["keys", "shred"], &[&BY[..], more].concat())
}

fn copy(from: &Path, to: &Path) {
    for (path, content) in files_below(from) {
        let copied = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(copied.parent().unwrap()).unwrap();
        if !copied.exists() {
            fs::write(copied, content).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_shredded_is_gone_on_every_node_and_stays_gone() {
    let (home, mut server) = Setup::new().serve();
    let second = neighbour(&home);
    let mut other_server = second.serve();
    let shredded = record(&server, 1, CALLER).await;
    let kept = record(&server, 2, "+4930901820018").await;
    let links = [&shredded, &kept].map(|recording| home.grant(TENANT, recording, &[]));
    for node in [&server, &other_server] {
        assert_eq!(status(node, &links[0]).await, 200, "now its key is known by heart");
    }
    let backup = tempfile::tempdir().unwrap();
    copy(&home.data().join("store"), backup.path());

    for yes in ["--yes", "--dry-run"] {
        let unknown = shred(&home, &["--recording", &"7".repeat(32), yes]);
        assert!(
            unknown.code == Some(1) && unknown.err.contains("there is no such recording"),
            "{}",
            unknown.err
        );
    }
    let look = json_of(&shred(&home, &["--party", "+49 30 90182-0017", "--dry-run", "--json"]));
    let one = |dry_run: bool| {
        json!({"dry_run": dry_run, "found": 1, "deleted": 1, "held": 0, "waiting": 0, "gone": 0,
            "failed": 0})
    };
    assert_eq!(look, one(true));
    assert_eq!(status(&server, &links[0]).await, 200, "nothing was done");
    let unasked = shred(&home, &["--party", CALLER]);
    assert!(unasked.code == Some(1) && unasked.err.contains("1 recording of acme-dental will be destroyed"));
    assert_eq!(json_of(&shred(&home, &["--party", CALLER, "--yes", "--json"])), one(false));
    for node in [&server, &other_server] {
        assert_eq!(status(node, &links[0]).await, 410, "gone");
        assert_eq!(status(node, &links[1]).await, 200, "the other stays");
    }
    let end = json_of(&run(&home, &["ledger", "verify"], &["--json"]));
    assert_eq!(end["entries"], 2);
    let copied = home.path().join("ledger.copy");
    let name = copied.display().to_string();
    assert!(run(&home, &["ledger", "export"], &["--out", &name]).out.contains("2 entries"));
    assert_eq!(run(&home, &["ledger", "export"], &["--out", &name]).code, Some(1), "never over another file");

    // The whole store comes back from the backup, as it was.
    copy(backup.path(), &home.data().join("store"));
    let replay = ["ledger", "replay"];
    let would = json_of(&run(&home, &replay, &["--actor", "ops", "--dry-run", "--json"]));
    assert_eq!((&would["deleted"], &would["gone"]), (&json!(1), &json!(0)));
    let done = json_of(&run(&home, &replay, &["--actor", "ops", "--yes", "--json", "--from", &name]));
    assert_eq!((&done["deleted"], &done["failed"]), (&json!(1), &json!(0)));
    let again = json_of(&run(&home, &replay, &["--actor", "ops", "--yes", "--json"]));
    assert_eq!((&again["deleted"], &again["gone"]), (&json!(0), &json!(1)));
    assert_eq!(status(&server, &links[0]).await, 410);
    assert_eq!(home.recordings(TENANT), std::slice::from_ref(&kept));
    let noted = end["end"].as_str().unwrap();
    assert_eq!(run(&home, &["ledger", "verify"], &["--has", noted]).code, Some(0));

    let all = json_of(&shred(&home, &["--all", "--yes", "--json"]));
    assert_eq!((&all["found"], &all["deleted"]), (&json!(1), &json!(1)));
    assert_eq!(home.recordings(TENANT), [""; 0]);
    server.stop().await;
    other_server.stop().await;
}

#[tokio::test]
async fn a_call_that_goes_on_is_not_played_any_more_and_goes_when_it_has_ended() {
    let (home, mut server) = Setup::new().option("segments", "max_age_ms", "1000").serve();
    let mut socket = server.open("acme-dental/reception").await;
    for message in greeting(5) {
        socket.text(message).await;
    }
    socket.text(media(&stream_id(5), 1, 7)).await;
    let call = format!("CA{:032x}", 5);
    let list = ["recordings", "list", "--tenant", TENANT, "--json", "--call", &call];
    let find = || home.run_json(&[&list[..], &BY].concat()).pop();
    let recording = eventually("a call that goes on", find).await["recording"].as_str().unwrap().to_owned();
    let link = home.grant(TENANT, &recording, &[]);
    assert_eq!(status(&server, &link).await, 200);
    let shredded = json_of(&shred(&home, &["--call", &call, "--yes", "--json"]));
    assert_eq!((&shredded["waiting"], &shredded["deleted"]), (&json!(1), &json!(0)), "it goes on");
    assert_eq!(status(&server, &link).await, 410);
    socket.text(media(&stream_id(5), 2, 7)).await;
    socket.text(stop(&stream_id(5))).await;
    assert_eq!(socket.close(Some(1000)).await, Some(1000), "and was not harmed");
    server.stored(1).await;
    home.run_ok(&["sweep", "--yes"]);
    assert_eq!(home.show(TENANT, &recording)["state"], "deleted");
    assert_eq!(status(&server, &link).await, 410);
    server.stop().await;
}

#[test]
fn hostile_commands_get_clear_errors() {
    let home = Setup::new().write();
    for (more, error) in [
        (&[][..], "--recording <ID>|--call <ID>|--party <NUMBER>|--all"),
        (&["--all", "--call", "CA"], "cannot be used with"),
        (&["--recording", "x"], "32 lower-case hexadecimal digits"),
        (&["--party", "0301234567"], "--party: party must be a number in international form"),
    ] {
        let ran = shred(&home, more);
        assert!(ran.code != Some(0) && ran.err.contains(error), "{more:?}: {}", ran.err);
    }
    let nobody = home.run(&["keys", "shred", "--tenant", TENANT, "--all", "--actor", "", "--reason", "x"]);
    assert_eq!(nobody.code, Some(2));
    let file = home.path().join("copy");
    let name = file.display().to_string();
    let long = "x".repeat(200_000);
    for content in ["", "{", "{\"name\":\"../a\",\"body\":\"\"}", "{\"name\":\"a/b\",\"body\":\"AA\"}", &long]
    {
        fs::write(&file, content).unwrap();
        let ran = run(&home, &["ledger", "replay"], &["--actor", "ops", "--yes", "--from", &name]);
        let is_empty = content.is_empty();
        assert_eq!(ran.code, Some(i32::from(!is_empty)), "{}", ran.err);
        assert!(is_empty || ran.err.contains("line 1 is not one of a copy of a ledger"), "{}", ran.err);
    }
    for bad in ["", "4", "4:abc"] {
        let ran = run(&home, &["ledger", "verify"], &["--has", bad]);
        assert!(ran.code == Some(2) && ran.err.contains("64 lower-case hexadecimal digits"), "{}", ran.err);
    }
}
