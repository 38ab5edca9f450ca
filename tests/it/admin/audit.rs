//! The audit log through the API: verified, handed on with its proof, and what is told of a broken one.

use callseal::clock;
use callseal::control::audit::ExportCheck;
use callseal::domain::sign::encode_hex;
use hyper::Method;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Asker, audited, path, serve};
use crate::support::{TENANT, files_below};

async fn raw(server: &crate::support::Server, asker: &Asker, target: &str) -> Option<(u16, String, Vec<u8>)> {
    let bearer = format!("Bearer {}", asker.token);
    let headers = [("authorization", bearer.as_str())];
    let answer = server.admin().request(Method::GET, target, &headers, Default::default()).await.ok()?;
    let kind = answer.headers["content-type"].to_str().unwrap().to_owned();
    Some((answer.status.as_u16(), kind, answer.body.to_vec()))
}

#[tokio::test]
async fn a_log_is_verified_and_handed_on_with_its_proof() {
    let (home, server, askers) = serve(&["ingest", "auditor"]);
    let [ingest, auditor] = &askers[..] else { panic!("two askers") };
    for _ in 0..5 {
        assert_eq!(ingest.post(&path("tickets"), json!({})).await.status, 201);
    }
    let verified = auditor.get(&path("audit/verification")).await;
    assert_eq!((verified.status, &verified.body["unbroken"]), (200, &true.into()), "{verified:?}");
    assert!(verified.body["records"].as_u64().unwrap() >= 6, "{verified:?}");
    assert!(verified.body["chains"][0]["head"].is_string(), "{verified:?}");

    let (status, kind, lines) = raw(&server, auditor, &path("audit/export?format=jsonl")).await.unwrap();
    assert_eq!((status, kind.as_str()), (200, "application/x-ndjson"));
    let mut check = ExportCheck::default();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        check.line(line).unwrap();
    }
    assert_eq!(check.finish().unwrap().tenant, TENANT);

    // A span that is over is handed on alike each time, so its proof can be asked for by itself.
    let to = clock::rfc3339(clock::wall());
    for format in ["csv", "jsonl"] {
        let query = format!("?format={format}&to={to}");
        let (_, kind, table) = raw(&server, auditor, &path(&format!("audit/export{query}"))).await.unwrap();
        let proof = auditor.get(&path(&format!("audit/proof{query}"))).await;
        assert_eq!(proof.status, 200, "{proof:?}");
        let proved = if format == "csv" {
            assert!(kind.starts_with("text/csv"), "{kind}");
            assert!(table.starts_with(b"\"time\",\"chain\""));
            table
        } else {
            let proof = table.windows(9).rposition(|window| window == b"{\"proof\":").unwrap();
            table[..proof].to_vec()
        };
        assert_eq!(proof.body["sha256"], encode_hex(&Sha256::digest(&proved)), "{format}");
        assert!(proof.body["records"].as_u64().unwrap() >= 7, "{proof:?}");
    }
    let nothing = auditor.get(&path("audit/proof?format=csv&to=2020-01-01T00:00:00Z")).await;
    assert_eq!((&nothing.body["records"], &nothing.body["chains"]), (&0.into(), &json!([])), "{nothing:?}");
    for (query, field) in [
        ("", "format"),
        ("?format=xml", "format"),
        ("?format=csv&from=now", "from"),
        ("?format=csv&from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
        ("?format=csv&colour=red", "query"),
    ] {
        let answer = auditor.get(&path(&format!("audit/export{query}"))).await;
        assert_eq!((answer.status, &answer.body["field"]), (400, &field.into()), "{query}: {answer:?}");
    }
    for (action, times) in [("verify-audit", 1), ("export-audit", 3), ("prove-audit", 3)] {
        assert_eq!(audited(&home, action).len(), times, "{action}");
    }
    assert!(audited(&home, "export-audit")[0]["detail"].as_str().unwrap().starts_with("format=jsonl"));
}

#[tokio::test]
async fn a_broken_log_is_told_and_never_handed_on_as_whole() {
    let (home, mut server, askers) = serve(&["ingest", "auditor"]);
    server.allow("the audit log is broken");
    server.allow("an answer is cut off");
    let [ingest, auditor] = &askers[..] else { panic!("two askers") };
    for _ in 0..5 {
        assert_eq!(ingest.post(&path("tickets"), json!({})).await.status, 201);
    }
    let own = home.data().join("store/a");
    let tag = TENANT.parse::<callseal::domain::ids::TenantId>().unwrap().tag().to_string();
    let mut objects: Vec<_> = files_below(&own).into_iter().map(|(path, _)| path).collect();
    objects.retain(|object| object.display().to_string().contains(&tag));
    objects.sort();
    std::fs::remove_file(&objects[2]).unwrap();
    let verified = auditor.get(&path("audit/verification")).await;
    assert_eq!((verified.status, &verified.body["unbroken"]), (200, &false.into()), "{verified:?}");
    assert_eq!(verified.body["findings"][0]["code"], "missing", "{verified:?}");
    let proof = auditor.get(&path("audit/proof?format=csv")).await;
    assert_eq!((proof.status, &proof.body["code"]), (409, &"audit_broken".into()), "{proof:?}");
    for format in ["csv", "jsonl"] {
        match raw(&server, auditor, &path(&format!("audit/export?format={format}"))).await {
            // The connection is cut.
            None => {}
            Some((status, ..)) => assert_eq!(status, 409, "{format}"),
        }
    }
}
