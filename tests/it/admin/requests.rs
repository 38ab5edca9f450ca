//! Requests of people through the API.

use hyper::Method;
use serde_json::{Value, json};

use super::deletions::record;
use super::{Answered, Asker, OTHER, audited, path, serve, setup, token};
use crate::support::TENANT;

const CALLER: &str = "+4930901820017";

async fn ask(asker: &Asker, what: &str, body: Option<Value>) -> Answered {
    asker.ask(Method::POST, &path(what), Some("a letter"), body).await
}

async fn open(asker: &Asker, kind: &str) -> String {
    let opened = ask(asker, "requests", Some(json!({"kind": kind, "party": CALLER}))).await;
    assert_eq!((opened.status, &opened.body["state"]), (201, &"open".into()), "{opened:?}");
    assert!(!opened.body.to_string().contains("901820017"));
    opened.body["request"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_restriction_stops_playback_and_links_until_it_is_lifted() {
    let (home, server, askers) = serve(&["operator", "player"]);
    let [operator, player] = &askers[..] else { panic!("two askers") };
    let recording = record(&server, 1, CALLER).await;
    let restrict = open(operator, "restrict").await;
    let grants = path(&format!("recordings/{recording}/grants"));
    let grant = async || player.post(&grants, json!({"sub": "agent-7"})).await;
    let granted = grant().await;
    assert_eq!(granted.status, 201);
    let url = granted.body["url"].as_str().unwrap();
    let link = &url[url.find("/play/").unwrap()..];
    let played = async || server.https().get(link, &[]).await.unwrap().status.as_u16();
    assert_eq!(played().await, 200);
    let fulfilled = ask(operator, &format!("requests/{restrict}/fulfil"), None).await;
    assert_eq!((fulfilled.status, &fulfilled.body["done"]), (200, &json!(true)), "{fulfilled:?}");
    assert_eq!(played().await, 451);
    let refused = grant().await;
    assert_eq!((refused.status, &refused.body["code"]), (451, &"restricted".into()), "{refused:?}");
    let lifted = ask(operator, &format!("requests/{restrict}/lift"), None).await;
    assert_eq!((lifted.status, &lifted.body["state"]), (200, &"lifted".into()));
    assert_eq!((played().await, grant().await.status), (200, 201));
    let again = ask(operator, &format!("requests/{restrict}/lift"), None).await;
    assert_eq!((again.status, &again.body["code"]), (409, &"not_in_force".into()), "{again:?}");
    for action in ["request-open", "request-fulfil", "request-lift"] {
        assert_eq!(audited(&home, action).len(), 1, "{action}");
    }
}

#[tokio::test]
async fn they_are_told_what_is_kept_and_then_it_is_deleted() {
    let (home, server, askers) = serve(&["operator", "auditor"]);
    let [operator, auditor] = &askers[..] else { panic!("two askers") };
    let theirs = [record(&server, 1, CALLER).await, record(&server, 2, CALLER).await];
    let access = open(operator, "access").await;
    let target = path(&format!("requests/{access}/report"));
    let report = operator.ask(Method::GET, &target, Some("a letter"), None).await;
    let kept = report.body["recordings"].as_array().unwrap();
    assert_eq!(
        (report.status, kept.len(), &kept[0]["texts"]["from"]),
        (200, 2, &json!(CALLER)),
        "{report:?}"
    );
    let told = ask(operator, &format!("requests/{access}/fulfil"), None).await;
    assert_eq!((told.status, &told.body["report"]["recordings"]), (200, &report.body["recordings"]));

    let hold = path(&format!("recordings/{}/hold", theirs[1]));
    assert_eq!(operator.post_because(&hold, "a lawsuit").await.status, 200);
    let delete = open(operator, "delete").await;
    let deleted = ask(operator, &format!("requests/{delete}/fulfil"), None).await;
    assert_eq!(
        (deleted.status, &deleted.body["done"], &deleted.body["exceptions"]),
        (200, &json!(true), &json!([theirs[1]])),
        "{deleted:?}"
    );
    assert_eq!(auditor.get(&path(&format!("recordings/{}", theirs[0]))).await.status, 410);
    let settled = ask(operator, &format!("requests/{delete}/refuse"), None).await;
    assert_eq!((settled.status, &settled.body["code"]), (409, &"settled".into()), "{settled:?}");

    let shown = auditor.get(&path(&format!("requests/{delete}"))).await;
    assert_eq!(
        (&shown.body["party"], &shown.body["steps"][1]["what"]),
        (&json!(CALLER), &"fulfilled".into())
    );
    let refused = open(operator, "port").await;
    assert_eq!(ask(operator, &format!("requests/{refused}/refuse"), None).await.body["state"], "refused");
    let page = auditor.get(&path("requests?limit=2")).await;
    let rest = auditor.get(&path(&format!("requests?cursor={}", page.body["next"].as_str().unwrap()))).await;
    let ids = |page: &Answered| -> Vec<Value> {
        page.body["requests"].as_array().unwrap().iter().map(|one| one["request"].clone()).collect()
    };
    assert_eq!([ids(&page), ids(&rest)].concat(), [access, delete, refused].map(Value::from));
    assert!(!page.body.to_string().contains("901820017"), "lists have no numbers");
    assert_eq!(ids(&auditor.get(&path("requests?state=refused")).await).len(), 1);
    for action in ["request-open", "request-fulfil", "request-report", "show-request"] {
        let records = audited(&home, action);
        assert!(!records.is_empty(), "{action}");
        assert!(records.iter().all(|record| !record.to_string().contains("901820017")), "no number");
    }
}

#[tokio::test]
async fn nonsense_names_its_field_and_others_are_not_there() {
    let home = setup().write();
    let (admin, stranger) = (token(&home, "admin", Some(TENANT)), token(&home, "admin", Some(OTHER)));
    let server = home.serve();
    let (admin, stranger) = (Asker::new(&server, &admin), Asker::new(&server, &stranger));
    for (body, field) in [
        (json!({"party": CALLER}), "kind"),
        (json!({"kind": "access"}), "party"),
        (json!({"kind": "forget", "party": CALLER}), "kind"),
        (json!({"kind": "access", "party": "030 901820017"}), "party"),
        (json!({"kind": "access", "party": CALLER, "received": "yesterday"}), "received"),
        (json!({"kind": "access", "party": CALLER, "on_behalf_of": ""}), "on_behalf_of"),
        (json!({"kind": "access", "party": CALLER, "colour": "red"}), "colour"),
    ] {
        let answer = ask(&admin, "requests", Some(body.clone())).await;
        assert_eq!((answer.status, &answer.body["code"]), (400, &"invalid".into()), "{body}: {answer:?}");
        let named = format!("{}: {}", answer.body["field"], answer.body["detail"]);
        assert!(named.contains(field), "{body}: {answer:?}");
        assert!(!answer.body.to_string().contains("901820017"), "{answer:?}");
    }
    for query in ["limit=0", "limit=201", "cursor=x", "state=gone", "colour=red"] {
        assert_eq!(admin.get(&path(&format!("requests?{query}"))).await.status, 400, "{query}");
    }
    let id = open(&admin, "restrict").await;
    for target in [path(&format!("requests/{id}")), format!("/v1/tenants/{OTHER}/requests/{id}")] {
        assert_eq!(stranger.get(&target).await.status, 404, "{target}");
    }
    let fulfil = format!("/v1/tenants/{OTHER}/requests/{id}/fulfil");
    assert_eq!(stranger.post_because(&fulfil, "mine").await.status, 404);
    assert_eq!(admin.get(&path("requests/x")).await.status, 404);
}
