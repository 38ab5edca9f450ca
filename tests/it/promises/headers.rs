//! What every answer of the public listener tells browsers about TLS.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};

use crate::support::wire::{exchange, signed_upgrade, upgrade};
use crate::support::{Setup, TENANT};

const HSTS: &str = "max-age=63072000; includeSubDomains; preload";

#[tokio::test]
async fn a7_every_answer_says_that_only_tls_will_do() {
    let (home, mut server) = Setup::new().serve();
    server.allow("stream handshake refused");
    let plan = server.plan(&format!("{TENANT}/reception"), 1, Track::whole(&DEMO_CALLER[..1_600]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let link = home.grant(TENANT, &server.stored(1).await, &[]);
    let request =
        |line: &str, more: &str| format!("{line} HTTP/1.1\r\nHost: media.example.com\r\n{more}\r\n");
    let mut seen = Vec::new();
    for (status, request) in [
        (101, signed_upgrade("/twilio/v1/acme-dental/reception")),
        (200, request("GET /healthz", "")),
        (200, request(&format!("GET {link}"), "")),
        (
            204,
            request(
                &format!("OPTIONS {link}"),
                "Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n",
            ),
        ),
        (206, request(&format!("GET {link}"), "Range: bytes=0-9\r\n")),
        (400, request(&format!("GET {link}&dl=2"), "")),
        (403, upgrade("/twilio/v1/acme-dental/reception", "")),
        (404, request("GET /nothing", "")),
        (405, request("POST /healthz", "Content-Length: 0\r\n")),
        (416, request(&format!("GET {link}"), "Range: bytes=99999999-\r\n")),
        (426, request("GET /twilio/v1/acme-dental/reception", "")),
    ] {
        let answer = exchange(&mut server.connect().await, &request).await;
        assert_eq!(answer.header("strict-transport-security"), HSTS, "{request}{answer:?}");
        seen.push((status, answer.status));
    }
    assert!(seen.iter().all(|(wanted, got)| wanted == got), "{seen:?}");
}
