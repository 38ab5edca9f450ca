//! Who may do what: every cell of the table, and whoever is nobody.

use callseal::domain::access::{OPERATIONS, Role};
use hyper::Method;

use super::{Asker, OTHER, audited, path, serve, setup, token};
use crate::support::{TENANT, eventually};

/// An id that no recording and no notice has.
const NOTHING: &str = "0192f0c1a2b37c4d8e5f60718293a4b5";

#[tokio::test]
async fn each_role_may_do_what_the_table_says_and_nothing_else() {
    let names = Role::ALL.map(Role::name);
    let (home, mut server, askers) = serve(&names);
    server.allow("admin API refuses an operation");
    let mut refusals = 0;
    for operation in &OPERATIONS {
        let method = Method::from_bytes(operation.method.as_bytes()).unwrap();
        let of = |tenant: &str| {
            let named = operation.path.replace("{tenant}", tenant);
            ["{recording}", "{request}", "{notice}"]
                .iter()
                .fold(named, |path, name| path.replace(name, NOTHING))
        };
        let (target, other, unknown) = (of(TENANT), of(OTHER), of("nobody"));
        for (role, asker) in Role::ALL.iter().zip(&askers) {
            let ask = async |target: &str| asker.ask(method.clone(), target, Some("a test"), None).await;
            let own = ask(&target).await;
            if operation.roles.contains(role) && !operation.all_tenants {
                assert!(![401, 403, 405].contains(&own.status), "{} as {role}: {own:?}", operation.id);
                assert!(own.status < 500, "{} as {role}: {own:?}", operation.id);
            } else {
                assert_eq!(
                    (own.status, &own.body["code"]),
                    (403, &"forbidden".into()),
                    "{} as {role}",
                    operation.id
                );
                refusals += usize::from(operation.path.contains("{tenant}"));
            }
            if !operation.path.contains("{tenant}") {
                continue;
            }
            let mut elsewhere = [ask(&other).await, ask(&unknown).await];
            for answer in &mut elsewhere {
                assert_eq!(answer.status, 404, "{} as {role}: {answer:?}", operation.id);
                answer.body["request"] = "".into();
            }
            assert_eq!(
                elsewhere[0].body, elsewhere[1].body,
                "of other tenants nobody learns whether they are there"
            );
        }
        let bare = server.admin().request(method, &target, &[], Default::default()).await.unwrap();
        assert_eq!(bare.status, 401, "{}", operation.id);
        assert_eq!(bare.headers["www-authenticate"], "Bearer realm=\"callseal\"");
    }
    let denied: usize = OPERATIONS
        .iter()
        .map(|o| audited(&home, o.id))
        .map(|r| r.iter().filter(|r| r["result"] == "forbidden").count())
        .sum();
    assert_eq!(denied, refusals, "each refusal of somebody whom we know is in the audit log");
}

#[tokio::test]
async fn a_token_works_from_its_making_to_its_end_without_a_restart() {
    let home = setup().write();
    let mut server = home.serve();
    server.allow("nobody can use the admin API yet");
    server.allow("admin API refuses a token");
    let everywhere = Asker::new(&server, &token(&home, "auditor", None));
    let listed = async |asker: &Asker| asker.get("/v1/tenants").await;
    let mut answer = listed(&everywhere).await;
    while answer.status == 401 {
        answer = listed(&everywhere).await;
    }
    let ids: Vec<_> = answer.body["tenants"].as_array().unwrap().iter().map(|t| t["id"].clone()).collect();
    assert_eq!(ids, [TENANT, OTHER]);
    let tokens = home.run_json(&["token", "list", "--json"]);
    assert_eq!(
        (tokens.len(), &tokens[0]["roles"][0], &tokens[0]["tenant"]),
        (1, &"auditor".into(), &"*".into())
    );
    home.run_ok(&["token", "revoke", tokens[0]["id"].as_str().unwrap()]);
    while listed(&everywhere).await.status != 401 {}
    let own = Asker::new(&server, &token(&home, "admin", Some(OTHER)));
    let mut answer = listed(&own).await;
    while answer.status == 401 {
        answer = listed(&own).await;
    }
    assert_eq!(answer.body["tenants"].as_array().unwrap().len(), 1, "{answer:?}");
    // A file that cannot be used changes nothing.
    server.allow("API tokens cannot be used");
    std::fs::write(home.path().join("tokens.toml"), "nonsense").unwrap();
    server.wait_log("API tokens cannot be used; the old ones stay", 1).await;
    assert_eq!(listed(&own).await.status, 200);
    let written = home.run(&["token", "list"]);
    assert_eq!(written.code, Some(1));
    let text = own.token.rsplit('_').next().unwrap().to_owned();
    assert!(server.log().iter().all(|line| !line.text.contains(&text)), "no token is logged");
}

#[tokio::test]
async fn nonsense_is_refused_with_the_name_of_what_is_wrong() {
    let (home, _server, askers) = serve(&["admin", "operator"]);
    let [admin, operator] = &askers[..] else { panic!("two askers") };
    let recording = path(&format!("recordings/{NOTHING}"));
    for (target, body, field) in [
        (path("tickets"), serde_json::json!({"colour": "red"}), "colour"),
        (path("tickets"), serde_json::json!({"route": "No Route"}), "route"),
        (path("tickets"), serde_json::json!({"route": "nowhere"}), "route"),
        (path("tickets"), serde_json::json!({"ttl_secs": 601}), "ttl_secs"),
        (path("tickets"), serde_json::json!({"ttl_secs": -1}), "ttl_secs"),
        (path("tickets"), serde_json::json!({"retention_days": 0}), "retention_days"),
        (path("tickets"), serde_json::json!({"retention_days": 366}), "retention_days"),
        (path("retention"), serde_json::json!({"call_audio_days": 1}), "reason"),
        (path("retention"), serde_json::json!({"call_audio_days": -1, "reason": "x"}), "call_audio_days"),
        (path("tickets"), serde_json::json!({"metadata": {"a": "x".repeat(600)}}), "metadata"),
        (path("tickets"), serde_json::json!({"vapi_audio": "opus"}), "vapi_audio"),
        (path("tickets"), serde_json::json!([]), "body"),
        (format!("{recording}/grants"), serde_json::json!({}), "sub"),
        (format!("{recording}/grants"), serde_json::json!({"sub": "a", "track": "left"}), "track"),
        (format!("{recording}/grants"), serde_json::json!({"sub": "a", "format": "mp3"}), "format"),
        (format!("{recording}/grants"), serde_json::json!({"sub": "a", "ip": "here"}), "ip"),
    ] {
        let answer = admin.post(&target, body.clone()).await;
        assert_eq!((answer.status, &answer.body["code"]), (400, &"invalid".into()), "{body}: {answer:?}");
        let named = format!("{}: {}", answer.body["field"], answer.body["detail"]);
        assert!(named.contains(field), "{body}: {answer:?}");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=x", "query"),
        ("limit=1&limit=2", "query"),
        ("colour=red", "colour"),
        ("cursor=x", "cursor"),
        ("from=yesterday", "from"),
        ("to=1", "to"),
        ("details=maybe", "query"),
    ] {
        let answer = admin.get(&path(&format!("recordings?{query}"))).await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(answer.body.to_string().contains(field), "{query}: {answer:?}");
    }
    let without = operator.get(&path("recordings")).await;
    assert_eq!((without.status, &without.body["field"]), (400, &"x-callseal-reason".into()), "{without:?}");
    let too_long = operator.ask(Method::GET, &path("recordings"), Some(&"x".repeat(257)), None).await;
    assert_eq!(too_long.status, 400);
    drop(home);
}

#[tokio::test]
async fn what_is_no_request_of_the_api_is_refused() {
    let (home, mut server, askers) = serve(&["admin"]);
    let admin = &askers[0];
    let raw = async |headers: &[(&str, &str)], body: Vec<u8>| {
        let bearer = format!("Bearer {}", admin.token);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend(headers);
        server
            .admin()
            .request(Method::POST, &path("tickets"), &all, body.into())
            .await
            .unwrap()
            .status
            .as_u16()
    };
    let json = ("content-type", "application/json");
    assert_eq!(raw(&[], b"{\"ttl_secs\":1}".to_vec()).await, 415);
    assert_eq!(raw(&[json], vec![b' '; 65_537]).await, 413);
    assert_eq!(raw(&[json], b"{".to_vec()).await, 400);
    assert_eq!(raw(&[json], vec![0xff; 10]).await, 400);
    assert_eq!(raw(&[json], b"[".repeat(10_000)).await, 400);
    for target in ["/", "/v1", "/v1/", "/v1/tenants/", "/v1/tenants/a/b/c/d", "/metrics", "/healthz"] {
        assert_eq!(admin.get(target).await.status, 404, "{target}");
    }
    assert_eq!(admin.get(&path("recordings/nothing")).await.status, 404);
    let put = admin.ask(Method::PUT, &path("tickets"), None, None).await;
    assert_eq!((put.status, &put.body["detail"]), (405, &"allowed: POST".into()), "{put:?}");
    for token in ["", "x", "callseal_0123456789abcdef_x"] {
        server.allow("admin API refuses a token");
        assert_eq!(Asker::new(&server, token).get("/v1/tenants").await.status, 401, "{token}");
    }
    let document = server.admin().get("/openapi.json", &[]).await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document.body).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["paths"][&"/v1/tenants/{tenant}/tickets"]["post"]["operationId"], "create_ticket");
    drop(home);
}

#[tokio::test]
async fn whoever_asks_too_often_waits() {
    let home = setup().option("admin", "requests_per_sec", "1").write();
    let (often, seldom) = (token(&home, "auditor", None), token(&home, "auditor", None));
    let server = home.serve();
    let (often, seldom) = (Asker::new(&server, &often), Asker::new(&server, &seldom));
    let limited = async || {
        for _ in 0..1_000 {
            let answer = often.get("/v1/tenants").await;
            if answer.status == 429 {
                return answer;
            }
        }
        panic!("never limited");
    };
    assert_eq!(limited().await.body["code"], "too_many_requests");
    assert_eq!(seldom.get("/v1/tenants").await.status, 200, "others are served");
    eventually("the count", || {
        (server.metric("admin_requests_total{operation=\"list_tenants\",status=\"429\"}") >= 1.0)
            .then_some(())
    })
    .await;
}

#[test]
fn the_document_has_the_table() {
    let document = std::fs::read_to_string(crate::reader::repository("docs/API.md")).unwrap();
    let mut written: Vec<&str> =
        document.lines().filter(|line| line.contains("| `") && line.contains(" /v1/")).collect();
    let row = |operation: &callseal::domain::access::Operation| {
        let cells = Role::ALL.map(|role| if operation.roles.contains(&role) { " yes |" } else { " |" });
        let reason = if operation.needs_reason { " always |" } else { " |" };
        format!("| `{} {}` |{}{reason}", operation.method, operation.path, cells.concat())
    };
    for operation in &OPERATIONS {
        let row = row(operation);
        assert!(written.contains(&row.as_str()), "docs/API.md lacks: {row}");
        written.retain(|line| *line != row);
    }
    assert!(written.is_empty(), "docs/API.md has too many rows: {written:?}");
}
