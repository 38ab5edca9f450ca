//! Routes that end the phone call when the agent is lost.

use callseal::domain::sign::encode_base64;
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{AgentServer, ApiAnswer, Direction, Received, Track, TwilioApiServer, TwilioCall};
use tempfile::TempDir;

use super::{connect, greeted, next_of, next_text, serve_with};
use crate::support::{ACCOUNT, AUTH_TOKEN, Home, LIMIT, Server, Setup, TENANT};

fn caller() -> Track {
    Track::whole(&DEMO_CALLER[..8_000])
}

/// A server whose route `agent` ends calls at an API; the directory is that of the API's certificate.
fn serve(agent: &AgentServer, api: &TwilioApiServer, upstream: &str) -> (TempDir, Home, Server) {
    serve_as(agent, api, upstream, Setup::new())
}

fn serve_as(
    agent: &AgentServer,
    api: &TwilioApiServer,
    upstream: &str,
    setup: Setup,
) -> (TempDir, Home, Server) {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("api.pem");
    std::fs::write(&ca, api.certificate_pem()).unwrap();
    let setup = setup
        .option("relay", "twilio_api_url", &format!("{:?}", api.url()))
        .option("relay", "twilio_api_ca_file", &format!("{:?}", ca.display().to_string()))
        // Longer than any answer that comes.
        .option("relay", "twilio_api_timeout_ms", "10000");
    let (home, server) = serve_with(agent, &format!("on_loss = \"hangup\"\n{upstream}"), setup);
    (dir, home, server)
}

/// Places a call whose agent is lost after the first audio message; answers the call, and that agent was the last.
async fn lose_agent(server: &Server, agent: &mut AgentServer, number: u8) -> TwilioCall {
    let (mut call, mut reached) = connect(server, agent, number, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    call.send_media(Direction::Inbound, 102, caller().base64(0).unwrap()).await.unwrap();
    assert!(next_text(&mut reached).await.contains("media"));
    reached.reset();
    call
}

fn closed(code: u16, reason: &str) -> Received {
    Received::Closed { code: Some(code), reason: reason.to_owned() }
}

/// What the API was asked, without what belongs to the client.
fn asked(api: &TwilioApiServer) -> Vec<(String, String, String)> {
    let requests = api.requests().into_iter();
    requests
        .map(|request| (request.line.clone(), request.header("authorization").to_owned(), request.body))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_agent_ends_the_phone_call() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let api = TwilioApiServer::start([]).await.unwrap();
    let (_dir, home, server) = serve(&agent, &api, "");
    let mut call = lose_agent(&server, &mut agent, 1).await;
    assert_eq!(next_of(&mut call).await, closed(1000, "call ended"));
    let line = format!("POST /2010-04-01/Accounts/{ACCOUNT}/Calls/CA{}.json", "01".repeat(16));
    let user = format!("Basic {}", encode_base64(format!("{ACCOUNT}:{AUTH_TOKEN}").as_bytes()));
    assert_eq!(asked(&api), [(line, user, "Status=completed".to_owned())], "one request");
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&"partial".into(), &"agent-lost".into()), "{shown}");
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), DEMO_CALLER[..160]);
    assert!((server.metric("relay_hangups_total{result=\"ended\"}") - 1.0).abs() < 0.1);
    assert!((server.metric("relay_agents_lost_total{action=\"hangup\"}") - 1.0).abs() < 0.1);

    // Whoever ends the call by himself has no phone call ended.
    let (mut call, mut reached) = connect(&server, &mut agent, 2, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    reached.close(1000, "goodbye").await.unwrap();
    assert_eq!(next_of(&mut call).await, closed(1000, "goodbye"));
    assert_eq!(asked(&api).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_refuses_ends_the_phone_call_with_a_key_of_the_account() {
    let agent = AgentServer::start(Some(503)).await.unwrap();
    let api = TwilioApiServer::start([ApiAnswer::not_in_progress()]).await.unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    crate::support::write_private(secret.path(), "an API key's secret");
    let (key, secret) =
        (format!("SK{}", "0f".repeat(16)), format!("{:?}", secret.path().display().to_string()));
    let setup = Setup::new().tenant(|tenant| {
        tenant.twilio = format!("api_keys.{ACCOUNT} = {{ sid = {key:?}, secret = {{ file = {secret} }} }}");
    });
    let (_dir, _home, mut server) = serve_as(&agent, &api, "", setup);
    server.allow("agent was not reached");
    let plan = server.plan(&format!("{TENANT}/agent"), 1, caller());
    let mut call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    // It may be closed before all of this is sent.
    let _closed_early = call.greet().await.is_err();
    assert_eq!(next_of(&mut call).await, closed(1000, "call ended"), "it was over already");
    let user = format!("Basic {}", encode_base64(format!("{key}:an API key's secret").as_bytes()));
    let requests = asked(&api);
    assert_eq!((requests.len(), &requests[0].1), (1, &user));
    assert!((server.metric("relay_hangups_total{result=\"over\"}") - 1.0).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_cannot_be_ended_is_given_back() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let answers = [ApiAnswer::status(401), ApiAnswer::status(500), ApiAnswer::Reset];
    let api = TwilioApiServer::start(answers).await.unwrap();
    let finest = Setup::new().option("log", "level", "\"trace\"");
    let (_dir, home, mut server) = serve_as(&agent, &api, "", finest);
    server.allow("call could not be ended");
    for (number, result, requests) in [(1, "refused", 1), (2, "unreachable", 3)] {
        let mut call = lose_agent(&server, &mut agent, number).await;
        assert_eq!(next_of(&mut call).await, closed(1011, "agent lost"));
        assert_eq!(asked(&api).len(), requests);
        let series = format!("relay_hangups_total{{result={result:?}}}");
        assert!((server.metric(&series) - 1.0).abs() < 0.1, "{series}");
        let recording = server.stored(number.into()).await;
        assert_eq!(home.show(TENANT, &recording)["cause"], "agent-lost");
    }
    let logged = server.logged("call could not be ended, it is given back to the provider");
    assert_eq!((logged.len(), logged[0].json["status"].as_u64()), (2, Some(401)));
    // Neither ids nor secrets of it are in any line.
    let text: String = server.log().into_iter().map(|line| line.text + "\n").collect();
    for canary in
        [AUTH_TOKEN.to_owned(), ACCOUNT.to_owned(), format!("CA{}", "01".repeat(16)), "Basic ".to_owned()]
    {
        assert!(!text.contains(&canary), "{canary}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_call_is_ended_the_caller_is_recorded_and_others_go_on() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let api = TwilioApiServer::start([ApiAnswer::Hang, ApiAnswer::Hang]).await.unwrap();
    let (_dir, home, mut server) = serve(&agent, &api, "");
    server.allow("call could not be ended");
    let mut call = lose_agent(&server, &mut agent, 1).await;
    crate::support::eventually("the API to be asked", || (asked(&api).len() == 1).then_some(())).await;
    // The first call waits for an answer that does not come; the second one is passed on.
    let (mut other, mut reached) = connect(&server, &mut agent, 2, caller()).await;
    other.greet().await.unwrap();
    let stream = greeted(&mut reached).await;
    reached.send_text(super::mark(&stream, "heard")).await.unwrap();
    assert!(matches!(next_of(&mut other).await, Received::Text(text) if text.contains("heard")));
    // The provider ends the first one: nothing more is waited for.
    for (timestamp, chunk) in [(122, 1), (142, 2)] {
        call.send_media(Direction::Inbound, timestamp, caller().base64(chunk).unwrap()).await.unwrap();
    }
    let closing = tokio::time::timeout(LIMIT, call.close(1000, ""));
    assert_eq!(closing.await.expect("the close is answered"), Some(1000));
    let recording = server.stored(1).await;
    assert_eq!(home.show(TENANT, &recording)["cause"], "agent-lost");
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), DEMO_CALLER[..480], "nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_come_back_ends_the_phone_call() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let api = TwilioApiServer::start([]).await.unwrap();
    let (_dir, _home, mut server) = serve(&agent, &api, "hold_secs = 1");
    server.allow("agent was not reached");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    reached.reset();
    // One that comes back ends nothing.
    let mut back = tokio::time::timeout(LIMIT, agent.call()).await.unwrap().unwrap();
    greeted(&mut back).await;
    assert_eq!(asked(&api), []);
    agent.stop_listening();
    back.reset();
    assert_eq!(next_of(&mut call).await, closed(1000, "call ended"));
    assert_eq!(asked(&api).len(), 1);
}
