//! Agents that refuse, hang or die, and what becomes of the caller.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{AgentServer, Direction, Received, Track};

use super::{connect, greeted, next_of, next_text, serve};
use crate::support::TENANT;

fn caller() -> Track {
    Track::whole(&DEMO_CALLER[..8_000])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_agent_gives_the_call_back() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (home, mut server) = serve(&agent, "on_loss = \"close\"");
    server.allow("agent lost");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    let payload = caller();
    call.send_media(Direction::Inbound, 102, payload.base64(0).unwrap()).await.unwrap();
    assert!(next_text(&mut reached).await.contains("media"));
    reached.reset();
    let lost = Received::Closed { code: Some(1011), reason: "agent lost".to_owned() };
    assert_eq!(next_of(&mut call).await, lost);
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&"partial".into(), &"agent-lost".into()), "{shown}");
    assert_eq!(
        home.open_ulaw(TENANT, &recording, "caller"),
        DEMO_CALLER[..160],
        "nothing is lost of the recording"
    );

    // A code of a server in trouble is a loss as well.
    let (mut call, mut reached) = connect(&server, &mut agent, 2, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    reached.close(1012, "restart").await.unwrap();
    assert_eq!(next_of(&mut call).await, lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_held_until_the_agent_is_back() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (home, server) = serve(&agent, "on_loss = \"hold\"\nhold_secs = 20");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    let stream = greeted(&mut reached).await;
    let track = caller();
    let mut sent = 0;
    let mut say = async |call: &mut callseal::simulate::TwilioCall| {
        call.send_media(
            Direction::Inbound,
            102 + sent * 20,
            track.base64(usize::try_from(sent).unwrap()).unwrap(),
        )
        .await
        .unwrap();
        sent += 1;
    };
    say(&mut call).await;
    assert!(next_text(&mut reached).await.contains("media"));
    reached.reset();
    say(&mut call).await;
    let mut back = agent.call().await.unwrap();
    assert_eq!(greeted(&mut back).await, stream, "the new agent gets the same greeting");
    say(&mut call).await;
    let media = next_text(&mut back).await;
    assert!(media.contains("media"), "{media}");
    back.close(1000, "").await.unwrap();
    assert!(matches!(next_of(&mut call).await, Received::Closed { code: Some(1000), .. }));
    let recording = server.stored(1).await;
    let said = home.open_ulaw(TENANT, &recording, "caller");
    assert!(said == DEMO_CALLER[..480], "all of it was recorded, also what no agent heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_not_held_for_ever() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (_home, mut server) = serve(&agent, "on_loss = \"hold\"\nhold_secs = 1");
    server.allow("agent was not reached");
    server.allow("agent unreachable");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    agent.stop_listening();
    reached.reset();
    let given_back = next_of(&mut call).await;
    assert!(matches!(given_back, Received::Closed { code: Some(1011), .. }), "{given_back:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_refuses_gives_the_call_back_and_what_was_said_is_recorded() {
    let agent = AgentServer::start(Some(503)).await.unwrap();
    let (home, mut server) = serve(&agent, "");
    server.allow("agent was not reached");
    server.allow("agent unreachable");
    let plan = server.plan(&format!("{TENANT}/agent"), 1, caller());
    let mut call = callseal::simulate::TwilioCall::connect(plan, &server.tls()).await.unwrap();
    // It may be closed before all of this is sent.
    let _closed_early = call.greet().await.is_err();
    let ended = next_of(&mut call).await;
    assert_eq!(ended, Received::Closed { code: Some(1011), reason: "agent unreachable".to_owned() });
    assert!(home.recordings(TENANT).len() <= 1);
    let metrics = server.ops_get("/metrics").body;
    assert!(metrics.contains("relay_dials_total{result=\"refused\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_closes_both_sides() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let setup = crate::support::Setup::new().option("drain", "max_secs", "1");
    let (home, mut server) = super::serve_with(&agent, "", setup);
    server.allow("calls are closed");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    call.send_media(Direction::Inbound, 102, caller().base64(0).unwrap()).await.unwrap();
    assert!(next_text(&mut reached).await.contains("media"));
    server.signal("TERM");
    let closed = Received::Closed { code: Some(1001), reason: "shutting down".to_owned() };
    assert_eq!(next_of(&mut call).await, closed);
    assert_eq!(super::next(&mut reached).await, closed);
    let recording = server.stored(1).await;
    assert!(home.open_ulaw(TENANT, &recording, "caller") == DEMO_CALLER[..160]);
}
