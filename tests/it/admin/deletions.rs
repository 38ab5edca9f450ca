//! Deletions at once through the API: one recording, a call, a party; receipts and the ledger.

use hyper::Method;
use serde_json::{Value, json};

use super::{Asker, OTHER, audited, path, serve, setup, token};
use crate::support::{Server, TENANT};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};

const CALLER: &str = "+4930901820017";

pub(super) async fn record(server: &Server, number: u8, caller: &str) -> String {
    let mut plan = server.plan("acme-dental/reception", number, Track::whole(&DEMO_CALLER[..1_600]));
    plan.parameters = std::collections::BTreeMap::from([("from".to_owned(), caller.to_owned())]);
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.stored(before + 1).await
}

fn counts(found: u64, deleted: u64, held: u64, gone: u64) -> Value {
    json!({"done": true, "dry_run": false, "found": found, "deleted": deleted, "held": held, "waiting": 0,
        "gone": gone, "failed": 0})
}

async fn order(asker: &Asker, body: Value) -> super::Answered {
    asker.ask(Method::POST, &path("deletions"), Some("request 17"), Some(body)).await
}

async fn played(server: &Server, link: &str) -> u16 {
    server.https().get(link, &[]).await.unwrap().status.as_u16()
}

#[tokio::test]
async fn a_caller_is_forgotten_and_the_ledger_says_so() {
    let (home, server, askers) = serve(&["operator", "auditor"]);
    let [operator, auditor] = &askers[..] else { panic!("two askers") };
    let mut recordings = Vec::new();
    for (number, caller) in [(1, CALLER), (2, CALLER), (3, CALLER), (4, "+4930901820018")] {
        recordings.push(record(&server, number, caller).await);
    }
    let links: Vec<_> = recordings.iter().map(|recording| home.grant(TENANT, recording, &[])).collect();
    let held = path(&format!("recordings/{}/hold", recordings[1]));
    assert_eq!(operator.post_because(&held, "a lawsuit").await.status, 200);

    let look = order(operator, json!({"party": CALLER, "dry_run": true})).await;
    assert_eq!((look.status, &look.body["found"], &look.body["dry_run"]), (200, &json!(3), &json!(true)));
    assert_eq!(played(&server, &links[0]).await, 200, "nothing was done");
    let done = order(operator, json!({"party": "+49 30 90182-0017"})).await;
    assert_eq!((done.status, &done.body), (200, &counts(3, 2, 1, 0)));
    let statuses = [410, 200, 410, 200];
    for (link, status) in links.iter().zip(statuses) {
        assert_eq!(played(&server, link).await, status);
    }
    let shown = auditor.get(&path(&format!("recordings/{}", recordings[3]))).await;
    let call = shown.body["ended"]["call"].clone();
    assert_eq!(order(operator, json!({"call": call})).await.body, counts(1, 1, 0, 0));
    let again = order(operator, json!({"recording": recordings[3]})).await;
    assert_eq!(again.body, counts(1, 0, 0, 1));

    let receipt = auditor.get(&path(&format!("recordings/{}/receipt", recordings[0]))).await;
    assert_eq!((receipt.status, &receipt.body["reason"]), (200, &"requested".into()), "{receipt:?}");
    let number = receipt.body["ledger"].as_u64().unwrap();
    let not_deleted = auditor.get(&path(&format!("recordings/{}/receipt", recordings[1]))).await;
    assert_eq!(not_deleted.status, 404);
    let page = auditor.get(&path("ledger?limit=4")).await;
    assert_eq!((page.status, page.body["entries"].as_array().unwrap().len()), (200, 4), "{page:?}");
    let rest = auditor.get(&path(&format!("ledger?cursor={}", page.body["next"].as_str().unwrap()))).await;
    assert_eq!((rest.body["entries"].as_array().unwrap().len(), &rest.body["next"]), (2, &Value::Null));
    let about = auditor.get(&path(&format!("ledger?recording={}", recordings[0]))).await;
    let about = about.body["entries"].as_array().unwrap();
    let said: Vec<_> = about.iter().map(|entry| entry["what"].as_str().unwrap()).collect();
    assert_eq!(said, ["ordered", "deleted"]);
    assert_eq!((&about[0]["scope"], &about[0]["reason"]), (&"party".into(), &"request 17".into()));
    assert_eq!(about[1]["number"], number);
    let finals = [&about[1]["final"], &receipt.body["final"]].map(|at| at.as_str().unwrap());
    assert!(finals[0] <= finals[1], "the key goes first, and then the rest: {finals:?}");
    assert_eq!(home.run(&["ledger", "verify", "--tenant", TENANT]).code, Some(0));

    let shreds = audited(&home, "shred");
    let last = &shreds[2];
    assert_eq!((&last["request"], &last["role"]), (&done.request.into(), &"operator".into()), "{last}");
    assert!(shreds.iter().all(|record| !record.to_string().contains("901820017")), "no number is shown");
}

#[tokio::test]
async fn wrong_orders_name_their_field_and_others_are_not_there() {
    let home = setup().write();
    let (admin, stranger) = (token(&home, "admin", Some(TENANT)), token(&home, "admin", Some(OTHER)));
    let server = home.serve();
    let (admin, stranger) = (Asker::new(&server, &admin), Asker::new(&server, &stranger));
    for (body, field) in [
        (json!({}), "recording"),
        (json!({"recording": "x"}), "recording"),
        (json!({"party": "030 901820017"}), "party"),
        (json!({"call": ""}), "call"),
        (json!({"call": "CA1", "party": CALLER}), "call"),
        (json!({"recording": "x", "party": CALLER}), "party"),
        (json!({"all": true}), "all"),
        (json!({"party": CALLER, "dry_run": "yes"}), "dry_run"),
    ] {
        let answer = order(&admin, body.clone()).await;
        assert_eq!((answer.status, &answer.body["code"]), (400, &"invalid".into()), "{body}: {answer:?}");
        let named = format!("{}: {}", answer.body["field"], answer.body["detail"]);
        assert!(named.contains(field), "{body}: {answer:?}");
        assert!(!answer.body.to_string().contains("901820017"), "{answer:?}");
    }
    for query in ["limit=0", "limit=1001", "cursor=x", "cursor=-1", "recording=x", "colour=red"] {
        assert_eq!(admin.get(&path(&format!("ledger?{query}"))).await.status, 400, "{query}");
    }
    let recording = record(&server, 1, CALLER).await;
    let id = json!({"recording": recording});
    assert_eq!(order(&stranger, id.clone()).await.status, 404, "of another tenant");
    // Through its own tenant it finds nothing of ours.
    let own = format!("/v1/tenants/{OTHER}/deletions");
    let nothing = stranger.ask(Method::POST, &own, Some("mine"), Some(id)).await;
    assert_eq!(nothing.body, counts(0, 0, 0, 0), "{nothing:?}");
    let nobody = stranger.ask(Method::POST, &own, Some("mine"), Some(json!({"party": CALLER}))).await;
    assert_eq!(nobody.body, counts(0, 0, 0, 0), "{nobody:?}");
    let link = home.grant(TENANT, &recording, &[]);
    assert_eq!(played(&server, &link).await, 200);
}
