//! How a node stops, and what it reads again while it runs.

use callseal::simulate::{Track, TwilioCall};

use crate::support::{Setup, TENANT};

#[tokio::test]
async fn a_call_is_recorded() {
    let (home, mut server) = Setup::new().serve();
    assert_eq!(server.ops_get("/readyz").status, 200);
    let audio: Vec<u8> = (0..=255).cycle().take(1600).collect();
    let plan = server.plan("acme-dental/reception", 1, Track::whole(audio.clone()));
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    assert_eq!(call.run(|_| ()).await.unwrap().close_code, Some(1000));
    let sealed = server.wait_log("recording sealed", 1).await;
    let shown = home.finished(TENANT, sealed.field("recording")).await;
    assert_eq!(shown["state"], "complete");
    assert_eq!(home.open_ulaw(TENANT, sealed.field("recording"), "caller"), audio);
    server.stop().await;
}
