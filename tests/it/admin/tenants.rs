//! Tenants that are kept in the store: made, changed, suspended and closed through the API and the command line.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use callseal::config::Config;
use callseal::domain::ids::TenantId;
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use callseal::store::Store;
use callseal::store::folder::Folder;
use callseal::tenants::{Book, Revision};
use hyper::Method;
use serde_json::{Value, json};

use super::{Answered, Asker, token};
use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::{
    ACCOUNT, AUTH_TOKEN, Home, Server, Setup, TENANT, TenantSetup, eventually, files_below,
};

pub(super) const NEW: &str = "new-tenant";
/// What the log says of a call that is refused, and of one whose tenant is suspended.
const REFUSED: &str = "stream handshake refused";
const SUSPENDED: &str = "call refused: its tenant takes none";

/// A node that keeps tenants in the store, and makes keys for them.
pub(super) fn setup() -> Setup {
    Setup::new()
        .option("admin", "tokens_file", "\"tokens.toml\"")
        .option("admin", "requests_per_sec", "10000")
        .option("keys", "rotate", "\"auto\"")
        .option("tenants", "keys", "{ s1 = { file = \"secrets/tenants\" } }")
}

pub(super) fn settings(id: &str) -> Value {
    json!({
        "id": id,
        "twilio": {"account_sids": [ACCOUNT], "auth_tokens": [{"value": AUTH_TOKEN}]},
        "limits": {"max_starts_per_sec": 1000},
        "route": [{"name": "reception"}],
    })
}

/// A node, and an admin of all tenants.
fn serve() -> (Home, Server, Asker) {
    let home = setup().write();
    let token = token(&home, "admin", None);
    let server = home.serve();
    let asker = Asker::new(&server, &token);
    (home, server, asker)
}

pub(super) async fn create(asker: &Asker, settings: Value) -> Answered {
    asker.ask(Method::POST, "/v1/tenants", Some("a new customer"), Some(settings)).await
}

pub(super) fn about(id: &str, rest: &str) -> String {
    format!("/v1/tenants/{id}{rest}")
}

/// Gives an order about a tenant, with the ETag that was read.
async fn order(asker: &Asker, id: &str, what: &str, etag: &str) -> Answered {
    let headers = [("x-callseal-reason", "as agreed"), ("if-match", etag)];
    asker.ask_with(Method::POST, &about(id, &format!("/{what}")), &headers, None).await
}

pub(super) async fn put(asker: &Asker, id: &str, etag: &str, settings: Value) -> Answered {
    let headers = [("x-callseal-reason", "as agreed"), ("if-match", etag)];
    asker.ask_with(Method::PUT, &about(id, "/settings"), &headers, Some(settings)).await
}

/// Whether a call to a tenant is taken.
pub(super) async fn takes_calls(server: &Server, tenant: &str, number: u8) -> bool {
    let plan = server.plan(&format!("{tenant}/reception"), number, Track::whole(&DEMO_CALLER[..1_600]));
    match TwilioCall::connect(plan, &server.tls()).await {
        Ok(call) => call.run(|_| ()).await.is_ok(),
        Err(_) => false,
    }
}

/// Whether a file is what a folder has of a tenant's revision.
fn is_of_tenants(path: &Path) -> bool {
    path.parent().and_then(Path::parent).is_some_and(|dir| dir.ends_with("t"))
}

/// The fields that an answer complains about.
fn fields(answer: &Answered) -> Vec<&str> {
    assert_eq!((answer.status, &answer.body["code"]), (400, &"invalid".into()), "{answer:?}");
    let faults = answer.body["faults"].as_array().unwrap();
    faults.iter().map(|fault| fault["field"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_tenant_lives_in_the_store_and_every_node_has_it() {
    let (home, mut server, admin) = serve();
    let made = create(&admin, settings(NEW)).await;
    assert_eq!(
        (made.status, made.etag.as_str(), &made.body["source"]),
        (201, "\"1\"", &"store".into()),
        "{made:?}"
    );
    assert!(takes_calls(&server, NEW, 1).await, "the node that was asked takes its calls at once");
    let recording = server.stored(1).await;
    assert_eq!(home.finished(NEW, &recording).await["state"], "complete", "commands know it too");
    let files = files_below(&home.data());
    assert!(files.iter().any(|(path, _)| is_of_tenants(path)), "a revision is in the store");
    for (path, content) in files {
        let has_it = content.windows(AUTH_TOKEN.len()).any(|part| part == AUTH_TOKEN.as_bytes());
        assert!(!has_it, "{} holds the tenant's secret", path.display());
    }
    let sibling = home.sibling("second");
    fs::copy(home.path().join("secrets/tenants"), sibling.path().join("secrets/tenants")).unwrap();
    fs::copy(home.path().join("tokens.toml"), sibling.path().join("tokens.toml")).unwrap();
    let mut second = sibling.serve();
    for node in [&mut server, &mut second] {
        node.allow(REFUSED);
        node.allow(SUSPENDED);
    }
    assert!(takes_calls(&second, NEW, 2).await, "a node that starts has it from the beginning");
    let there = Asker::new(&second, &admin.token);

    // A call that runs goes on when its tenant is suspended; new ones are refused, on every node.
    let (mut socket, stream) = (server.open(&format!("{NEW}/reception")).await, stream_id(3));
    for text in greeting(3) {
        socket.text(text).await;
    }
    socket.text(media(&stream, 1, 0x11)).await;
    socket.settle().await;
    let suspended = order(&admin, NEW, "suspend", &made.etag).await;
    assert_eq!((suspended.status, &suspended.body["status"]), (200, &"suspended".into()), "{suspended:?}");
    assert!(!takes_calls(&server, NEW, 4).await, "a suspended tenant takes no calls");
    assert!(takes_calls(&server, TENANT, 5).await, "others do");
    socket.text(media(&stream, 2, 0x11)).await;
    socket.text(stop(&stream)).await;
    socket.settle().await;
    socket.close(Some(1000)).await;
    server.stored(3).await;
    while there.get(&about(NEW, "")).await.body["status"] != "suspended" {}
    assert!(!takes_calls(&second, NEW, 6).await, "neither on another node");

    let stale = order(&there, NEW, "resume", &made.etag).await;
    assert_eq!((stale.status, &stale.body["code"]), (412, &"stale".into()), "{stale:?}");
    let resumed = order(&there, NEW, "resume", &suspended.etag).await;
    assert_eq!((resumed.status, resumed.etag.as_str()), (200, "\"3\""), "{resumed:?}");
    while admin.get(&about(NEW, "")).await.body["status"] != "active" {}
    assert!(takes_calls(&server, NEW, 7).await);
    server.stop().await;
    drop(second);
    let server = home.serve();
    assert!(takes_calls(&server, NEW, 8).await, "also after a restart");
    let shown = home.run_json(&["audit", "show", "--tenant", NEW]);
    for action in ["tenant.created", "tenant.suspended", "tenant.resumed"] {
        let record = shown.iter().find(|record| record["action"] == action);
        let record = record.unwrap_or_else(|| panic!("{action} is not in the audit log"));
        assert!(record["reason"].is_string() && record["actor"].as_str().unwrap().starts_with("token:"));
    }
}

#[tokio::test]
async fn everything_that_is_wrong_is_said_at_once_and_nothing_is_read_for_a_client() {
    let (home, _server, admin) = serve();
    let secret = home.path().join("secrets/tenants");
    let wrong = json!({
        "status": "active",
        "colour": "red",
        "retention": {"call_audio_days": 0},
        "twilio": {
            "account_sids": ["nothing"],
            "auth_tokens": [{"file": secret}, {"env": "HOME"}, {"kept": "00"}, "plain"],
        },
        "webhook": {"url": "https://127.0.0.1/", "allow_private": true, "secrets": [{"value": "short"}]},
        "route": [
            {"name": "a", "mode": "bidirectional", "upstream": {"url": "wss://localhost/"}},
            {"name": "b", "mode": "bidirectional", "upstream": {"url": "wss://169.254.169.254/latest"}},
            {"name": "c", "mode": "sideways"},
        ],
    });
    let answer = create(&admin, wrong).await;
    for field in [
        "id",
        "status",
        "colour",
        "retention.call_audio_days",
        "twilio.account_sids[0]",
        "twilio.auth_tokens[0]",
        "twilio.auth_tokens[1]",
        "twilio.auth_tokens[2].kept",
        "twilio.auth_tokens[3]",
        "webhook.allow_private",
        "webhook.secrets[0]",
        "route[0].upstream.url",
        "route[1].upstream.url",
        "route[2].mode",
    ] {
        assert!(fields(&answer).contains(&field), "{field} is missing: {answer:?}");
    }
    let text = answer.body.to_string();
    assert!(!text.contains("plain") && !text.contains(secret.to_str().unwrap()), "{text}");
    for (body, field) in [
        (json!({"id": "No Name"}), "id"),
        (json!({"id": 7}), "id"),
        (json!({"id": NEW, "keys": {"provider": "vault-transit", "kek": "transit/x"}}), "keys.provider"),
        (json!({"id": NEW, "route": [{"name": "a", "provider": "vapi-listen"}]}), "vapi.secrets"),
    ] {
        let answer = create(&admin, body.clone()).await;
        assert!(fields(&answer).contains(&field), "{body}: {answer:?}");
    }
    assert_eq!(create(&admin, json!({"id": null})).await.status, 400);
    for (id, code) in [(TENANT, "file_tenant"), (NEW, "exists")] {
        if id == NEW {
            assert_eq!(create(&admin, settings(NEW)).await.status, 201);
        }
        let again = create(&admin, settings(id)).await;
        assert_eq!((again.status, &again.body["code"]), (409, &code.into()), "{again:?}");
    }
}

#[tokio::test]
async fn a_change_is_of_what_was_read_and_secrets_are_never_shown() {
    let (home, mut server, admin) = serve();
    server.allow("admin API refuses an operation");
    let mut first = settings(NEW);
    first["playback"] =
        json!({"grant_keys": {"k1": {"value": "an invented grant key of more than 32 bytes"}}});
    create(&admin, first.clone()).await;
    let shown = admin.get(&about(NEW, "/settings")).await;
    assert_eq!((shown.status, shown.etag.as_str()), (200, "\"1\""), "{shown:?}");
    let text = shown.body.to_string();
    assert!(!text.contains(AUTH_TOKEN) && !text.contains("invented grant key"), "{text}");
    assert_eq!(shown.body["reason"], "a new customer");
    let mut next = shown.body["settings"].clone();
    next["limits"]["max_streams"] = 7.into();
    let without = [("x-callseal-reason", "why")];
    let answer = admin.ask_with(Method::PUT, &about(NEW, "/settings"), &without, Some(next.clone())).await;
    assert_eq!((answer.status, &answer.body["code"]), (428, &"precondition_required".into()), "{answer:?}");
    assert_eq!(put(&admin, NEW, "*", next.clone()).await.body["field"], "if-match");
    let updated = put(&admin, NEW, &shown.etag, next.clone()).await;
    assert_eq!((updated.status, &updated.body["max_streams"]), (200, &7.into()), "{updated:?}");
    assert!(takes_calls(&server, NEW, 1).await, "kept secrets go on working");
    let stale = put(&admin, NEW, &shown.etag, next.clone()).await;
    assert_eq!((stale.status, &stale.body["code"]), (412, &"stale".into()), "{stale:?}");
    // Of two changes of one revision one wins.
    let (one, two) = tokio::join!(
        put(&admin, NEW, &updated.etag, next.clone()),
        put(&admin, NEW, &updated.etag, next.clone())
    );
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{one:?} {two:?}");
    let other = put(&admin, NEW, "\"3\"", json!({"id": "another"})).await;
    assert_eq!(fields(&other), ["id"]);

    // Whoever is admin of one tenant does not say what a tenant may.
    let own = Asker::new(&server, &token(&home, "admin", Some(NEW)));
    while own.get(&about(NEW, "")).await.status == 401 {
        server.allow("admin API refuses a token");
    }
    assert_eq!(own.get(&about(NEW, "")).await.status, 200);
    for (method, path) in [
        (Method::POST, "/v1/tenants".to_owned()),
        (Method::GET, about(NEW, "/settings")),
        (Method::PUT, about(NEW, "/settings")),
        (Method::POST, about(NEW, "/suspend")),
        (Method::POST, about(NEW, "/close")),
    ] {
        let answer = own.ask(method.clone(), &path, Some("why"), None).await;
        assert_eq!((answer.status, &answer.body["code"]), (403, &"forbidden".into()), "{method} {path}");
    }
    for path in [about(TENANT, "/settings"), about("nobody", "/settings")] {
        assert_eq!(own.get(&path).await.status, 404);
    }
    assert_eq!(admin.get(&about(TENANT, "/settings")).await.body["code"], "file_tenant");
}

#[tokio::test]
async fn commands_make_and_change_tenants_without_a_running_node() {
    let home = setup().write();
    let file = home.path().join("new.toml");
    fs::write(home.path().join("secrets/new-token"), AUTH_TOKEN).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(home.path().join("secrets/new-token"), private).unwrap();
    let text = |limit: u32| {
        format!(
            "id = \"{NEW}\"\n[limits]\nmax_streams = {limit}\n[twilio]\naccount_sids = [\"{ACCOUNT}\"]\n\
             auth_tokens = [{{ file = \"secrets/new-token\" }}]\n[[route]]\nname = \"reception\"\n"
        )
    };
    fs::write(&file, text(5)).unwrap();
    let (from, by) = (file.display().to_string(), ["--actor", "ada", "--reason", "agreed"]);
    let run = |args: &[&str]| home.run(&[args, &by].concat());
    let would = run(&["tenant", "create", "--from", &from, "--dry-run"]);
    assert!(would.code == Some(0) && would.out.contains("would have revision 1"), "{would:?}");
    assert_eq!(home.run_json(&["tenant", "list", "--json"]).len(), 1);
    let made = run(&["tenant", "create", "--from", &from]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(run(&["tenant", "create", "--from", &from]).err.contains("names are not used again"));
    let mut server = home.serve();
    for expected in ["nobody can use the admin API yet", REFUSED, SUSPENDED] {
        server.allow(expected);
    }
    assert!(takes_calls(&server, NEW, 1).await);
    fs::write(&file, text(6)).unwrap();
    let target = ["--tenant", NEW];
    let stale = run(&[&["tenant", "update", "--from", &from, "--revision", "2"][..], &target].concat());
    assert!(stale.code == Some(1) && stale.err.contains("revision 1, not 2"), "{stale:?}");
    let updated = run(&[&["tenant", "update", "--from", &from][..], &target].concat());
    assert_eq!(updated.code, Some(0), "{updated:?}");
    server.wait_log("tenants of the store were taken", 1).await;
    let shown = home.run_json(&["tenant", "show", "--tenant", NEW]).remove(0);
    assert_eq!((&shown["revision"], &shown["settings"]["limits"]["max_streams"]), (&2.into(), &6.into()));
    assert!(!shown.to_string().contains(AUTH_TOKEN) && shown["by"] == "ada", "{shown}");
    assert_eq!(run(&[&["tenant", "suspend"][..], &target].concat()).code, Some(0));
    server.wait_log("tenants of the store were taken", 2).await;
    eventually("the suspension", || {
        let listed = home.run_json(&["tenant", "list", "--json"]);
        (listed.len() == 2 && listed[1]["status"] == "suspended").then_some(())
    })
    .await;
    assert!(!takes_calls(&server, NEW, 2).await, "the running node has seen it");
    let unasked = run(&[&["tenant", "close"][..], &target].concat());
    assert!(unasked.code == Some(1) && unasked.err.contains("--yes"), "{unasked:?}");
    let closing =
        home.run_json(&[&["tenant", "close", "--yes", "--json"][..], &target, &by].concat()).remove(0);
    assert_eq!(closing["status"], "closing");
    assert!(closing["close_by"].is_string(), "{closing}");
    assert_eq!(run(&[&["tenant", "resume"][..], &target].concat()).code, Some(0));
    fs::write(&file, "id = \"x\"\n[twilio]\nauth_tokens = [{ file = \"nowhere\" }]\n").unwrap();
    let missing = run(&["tenant", "create", "--from", &from]);
    assert!(missing.code == Some(64) && missing.err.contains("twilio.auth_tokens[0]"), "{missing:?}");
}

#[tokio::test]
async fn the_file_of_a_node_counts_and_a_node_without_a_key_says_so() {
    let (home, mut server, admin) = serve();
    create(&admin, settings(NEW)).await;
    server.allow("a file and the store have a tenant of this name");
    server.allow(REFUSED);
    let mut file = TenantSetup::new(NEW);
    file.auth_tokens = vec!["0123456789abcdef0123456789abcdef".to_owned()];
    home.rewrite_tenant(&file);
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    assert!(!takes_calls(&server, NEW, 1).await, "the file has another token");
    assert_eq!(admin.get(&about(NEW, "")).await.body["source"], "file");
    fs::remove_file(home.path().join("tenants").join(format!("{NEW}.toml"))).unwrap();
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 2).await;
    assert!(takes_calls(&server, NEW, 2).await, "without the file it is the store's again");

    let mute = Setup::new().option("admin", "tokens_file", "\"tokens.toml\"").write();
    let token = token(&mute, "admin", None);
    let without = mute.serve();
    let answer = create(&Asker::new(&without, &token), settings(NEW)).await;
    assert_eq!((answer.status, &answer.body["code"]), (409, &"not_configured".into()), "{answer:?}");
}

#[tokio::test]
async fn a_node_that_must_not_make_keys_says_so_and_makes_nothing() {
    let home = setup().option("keys", "rotate", "\"manual\"").write();
    let token = token(&home, "admin", None);
    let server = home.serve();
    let admin = Asker::new(&server, &token);
    let answer = create(&admin, settings(NEW)).await;
    assert_eq!(fields(&answer), ["keys"], "{answer:?}");
    assert_eq!(admin.get(&about(NEW, "")).await.status, 404);
    assert!(!files_below(&home.data()).iter().any(|(path, _)| is_of_tenants(path)));
}

/// Puts a further revision of a tenant, as a node at another time would have.
pub(super) async fn put_revision(home: &Home, tenant: &str, change: impl FnOnce(&mut Revision)) {
    let config = Config::load(&home.config(), [("A", "B"); 0]).unwrap();
    let store: Arc<dyn Store> = Arc::new(Folder::open(&home.data().join("store")).await.unwrap());
    let book = Book::new(store, config.stored_tenants.as_ref().unwrap());
    let tag = tenant.parse::<TenantId>().unwrap().tag();
    let mut revision = book.newest(tag).await.unwrap().unwrap();
    revision.revision += 1;
    change(&mut revision);
    assert!(book.put(tag, &revision).await.unwrap());
}

fn status(home: &Home, tenant: &str) -> Value {
    let listed = home.run_json(&["tenant", "list", "--json"]);
    let found = listed.into_iter().find(|line| line["tenant"] == tenant);
    found.map(|line| line["status"].clone()).unwrap_or_default()
}

fn in_path(path: &Path, part: &str) -> bool {
    path.components().any(|component| component.as_os_str() == part)
}

#[tokio::test]
async fn a_closed_tenant_ends_with_everything_but_what_is_held() {
    let home = setup()
        .option("retention", "interval_secs", "1")
        .option("retention", "max_share_percent", "100")
        .write();
    let token = token(&home, "admin", None);
    let mut server = home.serve();
    server.allow(REFUSED);
    server.allow(SUSPENDED);
    let admin = Asker::new(&server, &token);
    let made = create(&admin, settings(NEW)).await;
    assert_eq!(made.status, 201, "{made:?}");
    for (number, tenant) in [(1, NEW), (2, NEW), (3, TENANT)] {
        assert!(takes_calls(&server, tenant, number).await);
        server.stored(usize::from(number)).await;
    }
    let recordings = home.recordings(NEW);
    let by = ["--actor", "ada", "--reason", "a lawsuit"];
    let recording = ["--tenant", NEW, "--recording", recordings[0].as_str()];
    home.run_ok(&[&["recordings", "hold"][..], &recording, &by].concat());
    let about = ["--tenant", NEW, "--kind", "access", "--party", "+4930901820017"];
    home.run_ok(&[&["requests", "open"][..], &about, &by].concat());
    let closing = order(&admin, NEW, "close", &made.etag).await;
    assert_eq!((closing.status, &closing.body["status"]), (200, &"closing".into()), "{closing:?}");
    assert!(closing.body["close_by"].is_string(), "{closing:?}");
    assert!(!takes_calls(&server, NEW, 4).await);
    // Nothing is deleted before the day.
    let left = || home.run_json(&["tenant", "left", "--tenant", NEW, "--json"]).remove(0);
    assert_eq!(
        (left()["held"].as_array().unwrap().len(), left()["waiting"].as_array().unwrap().len()),
        (1, 1)
    );

    put_revision(&home, NEW, |revision| revision.close_by_ms = Some(1)).await;
    eventually("the deletion of what is not held", || {
        let left = left();
        (left["waiting"] == serde_json::json!([]))
            .then(|| assert_eq!(left["held"][0], recordings[0].as_str()))
    })
    .await;
    assert_eq!(status(&home, NEW), "closing", "while something is held");
    home.run_ok(&[&["recordings", "release"][..], &recording, &by].concat());
    eventually("the end of the tenant", || (status(&home, NEW) == "closed").then_some(())).await;
    assert!(home.recordings(NEW).is_empty());
    let audited = home.run_json(&["audit", "show", "--tenant", NEW]);
    let actions: Vec<_> = audited.iter().filter_map(|record| record["action"].as_str()).collect();
    assert!(actions.contains(&"tenant.closing") && actions.contains(&"tenant.closed"), "{actions:?}");

    // When its audit log has had its time, that goes, and the key last.
    let ring = || fs::read_to_string(home.data().join("keyring.json")).unwrap();
    assert!(ring().contains(NEW));
    put_revision(&home, NEW, |revision| revision.at = "2020-01-01T00:00:00Z".to_owned()).await;
    eventually("the end of its key", || (!ring().contains(NEW)).then_some(())).await;
    assert!(ring().contains(TENANT));
    let (store, tag) = (home.data().join("store"), NEW.parse::<TenantId>().unwrap().tag().to_string());
    let of_them = |class: &str| files_below(&store.join(class)).iter().any(|(path, _)| in_path(path, &tag));
    assert!(of_them("d") && of_them("t"), "receipts and settings stay");
    for class in ["r", "h", "x", "o", "q", "y", "i"] {
        assert!(!of_them(class), "{class}");
    }
    let theirs = home.recordings(TENANT);
    assert_eq!(home.show(TENANT, &theirs[0])["state"], "complete", "others keep what they have");
}
