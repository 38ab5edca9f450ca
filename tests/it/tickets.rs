//! Tickets and consent: made by the command, brought by calls.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{CallError, CallPlan, Received, Track, TwilioCall};
use serde_json::Value;

use crate::support::{Home, Server, Setup, TENANT, TenantSetup, eventually, files_below};

const REFUSED: &str = "stream handshake refused: forbidden";

fn with_tickets(tenant: &mut TenantSetup) {
    tenant
        .top
        .push_str("\n[tickets]\nkeys = { t1 = { file = \"../secrets/ticket\" } }\nmax_ttl_secs = 600\n");
    let route = |name: &str, lines: &str| (name.to_owned(), lines.to_owned());
    tenant.routes.push(route("ticketed", "require_ticket = true"));
    tenant.routes.push(route("consenting", "record = \"on-consent\""));
}

fn setup() -> Setup {
    Setup::new().tenant(with_tickets)
}

/// Makes a ticket; answers the path of its URL below `/twilio/v1/`.
fn ticket(home: &Home, route: &str, more: &[&str]) -> String {
    let made = ["ticket", "--tenant", TENANT, "--route", route];
    let url = home.run_ok(&[&made[..], more].concat());
    url.trim().split_once("/twilio/v1/").unwrap().1.to_owned()
}

fn plan(server: &Server, path: &str, number: u8) -> CallPlan {
    server.plan(path, number, Track::whole(&DEMO_CALLER[..1_600]))
}

async fn call(server: &Server, path: &str, number: u8) -> Result<(), CallError> {
    TwilioCall::connect(plan(server, path, number), &server.tls()).await?.run(|_| ()).await.map(drop)
}

fn is_forbidden(outcome: &Result<(), CallError>) -> bool {
    matches!(outcome, Err(CallError::Refused { status: 403 }))
}

#[tokio::test]
async fn a_ticket_opens_one_call_and_says_what_becomes_of_it() {
    let (home, mut server) = setup().serve();
    server.allow(REFUSED);
    server.allow("ticket is not taken");
    let path =
        ticket(&home, "ticketed", &["--retention-days", "7", "--meta", "order=r-20417", "--meta", "a=b=c"]);
    call(&server, &path, 1).await.unwrap();
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!(shown["objects"][0]["tags"]["callseal-retention-days"], "7", "{shown}");
    assert_eq!(
        (&shown["ticket"]["order"], &shown["ticket"]["a"]),
        (&"r-20417".into(), &"b=c".into()),
        "{shown}"
    );

    assert!(is_forbidden(&call(&server, &path, 2).await), "a second time");
    assert!(is_forbidden(&call(&server, &format!("{TENANT}/ticketed"), 3).await), "without");
    let elsewhere = path.replacen("ticketed", "reception", 1);
    assert!(is_forbidden(&call(&server, &elsewhere, 4).await), "on another route");
    let good = ticket(&home, "ticketed", &[]);
    // Its last character but four, which has no spare bits.
    let (rest, end) = good.split_at(good.len() - 5);
    let broken = format!("{rest}{}{}", if end.starts_with('A') { 'B' } else { 'A' }, &end[1..]);
    assert!(is_forbidden(&call(&server, &broken, 5).await), "changed");
    assert!(is_forbidden(&call(&server, &format!("{TENANT}/reception/nonsense"), 6).await), "not a ticket");
    call(&server, &good, 7).await.unwrap();
    // Nothing of it is to be read anywhere.
    let text = path.rsplit('/').next().unwrap();
    for line in server.log() {
        assert!(!line.text.contains(text) && !line.text.contains("r-20417"), "{}", line.text);
    }
    let all = files_below(&home.data());
    assert!(all.iter().all(|(_, bytes)| !bytes.windows(7).any(|part| part == b"r-20417")));
    let audit = home.run_ok(&["audit", "show", "--tenant", TENANT]);
    assert!(audit.contains("mint-ticket"), "{audit}");
}

#[tokio::test]
async fn a_ticket_that_is_over_or_for_another_call_is_worth_nothing() {
    let (home, mut server) = setup().serve();
    for text in [REFUSED, "ticket is not taken", "ticket is for another call"] {
        server.allow(text);
    }
    let short = ticket(&home, "ticketed", &["--ttl-secs", "1"]);
    let forbidden = async || is_forbidden(&call(&server, &short, 1).await).then_some(());
    let mut over = false;
    for _ in 0..100 {
        // The first attempts may still be in time, and use it; either way it is worth nothing in the end.
        over |= forbidden().await.is_some();
        if over {
            break;
        }
    }
    assert!(over);
    let other = ticket(&home, "ticketed", &["--call", "CA00000000000000000000000000000000"]);
    let mut wrong = TwilioCall::connect(plan(&server, &other, 3), &server.tls()).await.unwrap();
    wrong.greet().await.unwrap();
    let closed = wrong.recv().await.unwrap();
    assert_eq!(closed, Received::Closed { code: Some(1008), reason: "other_call".to_owned() });
    let long = home.run(&["ticket", "--tenant", TENANT, "--route", "ticketed", "--ttl-secs", "601"]);
    assert!(long.err.contains("allowed for this tenant: 1 to 600"), "{}", long.err);
    let none = home.run(&["ticket", "--tenant", TENANT, "--route", "nowhere"]);
    assert!(none.err.contains("allowed: reception"), "{}", none.err);
}

#[tokio::test]
async fn a_ticket_that_another_node_was_brought_first_ends_the_second_call() {
    let (home, mut server) = setup().serve();
    server.allow("ticket was used on another node");
    let path = ticket(&home, "ticketed", &[]);
    let text = path.rsplit('/').next().unwrap().to_owned();
    // What another node on the same store does when it is brought the ticket.
    let ticket = {
        let secret = std::fs::read_to_string(home.path().join("secrets/ticket")).unwrap();
        let secret = secret.trim_end().as_bytes().to_vec();
        let tenant = TENANT.parse().unwrap();
        let now = callseal::clock::wall().0 / 1000;
        let place =
            callseal::domain::ticket::BroughtTo { tenant: &tenant, route: "ticketed", max_ttl_secs: 600 };
        callseal::domain::ticket::Ticket::open(&text, place, |_| Some(&secret), now).unwrap()
    };
    let store = callseal::store::folder::Folder::open(home.data().join("store")).await.unwrap();
    let store: std::sync::Arc<dyn callseal::store::Store> = std::sync::Arc::new(store);
    let tenant: callseal::domain::ids::TenantId = TENANT.parse().unwrap();
    callseal::tickets::Tickets::new(std::sync::Arc::clone(&store)).redeem(tenant.tag(), &ticket).unwrap();
    let known = || std::fs::read_dir(home.data().join("store/n")).ok().map(drop);
    eventually("the other node's note", known).await;
    let mut second = TwilioCall::connect(plan(&server, &path, 1), &server.tls()).await.unwrap();
    second.greet().await.unwrap();
    let track = Track::whole(&DEMO_CALLER[..1_600]);
    let closed = loop {
        let sent =
            second.send_media(callseal::simulate::Direction::Inbound, 102, track.base64(0).unwrap()).await;
        match sent {
            Ok(()) => tokio::task::yield_now().await,
            Err(CallError::Closed { code, reason }) => break (code, reason),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(closed, (Some(1008), "ticket already used".to_owned()));
}

#[tokio::test]
async fn without_consent_nothing_is_recorded() {
    let (home, server) = setup().serve();
    call(&server, &format!("{TENANT}/consenting"), 1).await.unwrap();
    let mut no = plan(&server, &format!("{TENANT}/consenting"), 2);
    no.parameters.insert("callseal_consent".to_owned(), "yes".to_owned());
    TwilioCall::connect(no, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let skipped = || {
        let audit = home.run_ok(&["audit", "show", "--tenant", TENANT]);
        (audit.matches("skipped").count() == 2).then_some(())
    };
    eventually("both streams in the audit log", skipped).await;
    assert!(home.recordings(TENANT).is_empty());
    assert!(server.ops_get("/metrics").body.contains("streams_without_consent_total 2"));

    let mut yes = plan(&server, &format!("{TENANT}/consenting"), 3);
    yes.parameters.insert("callseal_consent".to_owned(), "true".to_owned());
    TwilioCall::connect(yes, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let by_ticket = ticket(&home, "consenting", &["--consent"]);
    call(&server, &by_ticket, 4).await.unwrap();
    let known: Vec<Value> = [server.stored(1).await, server.stored(2).await]
        .map(|recording| home.show(TENANT, &recording)["consent"].clone())
        .into();
    assert!(known.contains(&"parameter".into()) && known.contains(&"ticket".into()), "{known:?}");
}
