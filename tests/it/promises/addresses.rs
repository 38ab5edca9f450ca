//! Which address the audit log has: that of the socket, or the one that a trusted proxy names.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};

use crate::support::{Home, Server, Setup, TENANT};

const HEADER: &str = "cf-connecting-ip";
const MISSING: &str = "proxied_without_address_total";

/// Records a call; answers a link to it.
async fn link(home: &Home, server: &Server) -> String {
    let plan = server.plan(&format!("{TENANT}/reception"), 1, Track::whole(&DEMO_CALLER[..1_600]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    home.grant(TENANT, &server.stored(1).await, &[])
}

/// Plays with these headers; answers the address in the audit log.
async fn seen(home: &Home, server: &Server, link: &str, headers: &[(&str, &str)]) -> String {
    assert_eq!(server.https().get(link, headers).await.unwrap().status, 200);
    let records = home.run_json(&["audit", "show", "--tenant", TENANT]);
    let played = records.iter().rfind(|record| record["action"] == "play").unwrap();
    assert!(played["actor"].as_str().is_some() && played["time"].as_str().is_some(), "{played}");
    played["source"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn b6_the_audit_log_has_the_address_that_a_trusted_proxy_names() {
    let (home, server) = Setup::new().option("", "trusted_proxies", "[\"127.0.0.1\"]").serve();
    let link = link(&home, &server).await;
    // The call itself came without the header.
    let before = server.metric(MISSING);
    for (named, address) in [("203.0.113.9", "203.0.113.9"), ("2001:db8:0:0:0:0:0:7", "2001:db8::7")] {
        let other = ("x-forwarded-for", "198.51.100.1");
        assert_eq!(seen(&home, &server, &link, &[(HEADER, named), other]).await, address);
    }
    assert_eq!(server.metric(MISSING), before);
    let odd: [&[(&str, &str)]; 5] = [
        &[],
        &[(HEADER, "")],
        &[(HEADER, "somebody")],
        &[(HEADER, "203.0.113.9, 203.0.113.10")],
        &[(HEADER, "203.0.113.9"), (HEADER, "203.0.113.10")],
    ];
    for headers in odd {
        assert_eq!(seen(&home, &server, &link, headers).await, "127.0.0.1", "{headers:?}");
    }
    assert_eq!(server.metric(MISSING), before + 5.0, "what the proxy did not say is counted");
}

#[tokio::test]
async fn b6_a_header_of_somebody_else_is_ignored() {
    for proxies in ["[]", "[\"198.51.100.0/24\", \"2001:db8::/32\"]"] {
        let (home, server) = Setup::new().option("", "trusted_proxies", proxies).serve();
        let link = link(&home, &server).await;
        for named in ["203.0.113.9", "198.51.100.7", "2001:db8::7"] {
            let headers = [(HEADER, named), ("x-forwarded-for", named)];
            assert_eq!(seen(&home, &server, &link, &headers).await, "127.0.0.1", "{proxies}: {named}");
        }
        assert_eq!(server.metric(MISSING), 0.0);
    }
}
