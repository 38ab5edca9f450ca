//! A conversation with an agent: what is recorded is what was said and what was heard.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{AgentCall, AgentServer, Conversation, Received, Track};

use super::{SECOND, clear, connect, greeted, mark, media, noise, serve};
use crate::support::TENANT;

/// By how many samples the model may be off: 60 ms for the way there and back and what it takes as jitter, and as much as the
/// provider of this test was late itself.
fn slack(conversation: &Conversation) -> usize {
    60 * 8 + usize::try_from(conversation.worst_delay.as_millis()).unwrap() * 8
}

/// Says something in one message, then something that is interrupted, then answers in small pieces.
async fn talk(mut agent: AgentCall) {
    let stream = greeted(&mut agent).await;
    agent.send_text(media(&stream, &noise(1, 4_000))).await.unwrap();
    agent.send_text(mark(&stream, "greeting")).await.unwrap();
    // Messages of the caller since the interruptible part began.
    let mut heard = None;
    loop {
        let Ok(received) = agent.recv().await else { return };
        let Received::Text(text) = received else { return };
        if text.starts_with(r#"{"event":"media""#) {
            heard = heard.map(|count| count + 1);
        }
        if text.contains(r#""name":"greeting""#) {
            agent.send_text(media(&stream, &noise(2, 16_000))).await.unwrap();
            agent.send_text(mark(&stream, "interrupted")).await.unwrap();
            heard = Some(0);
        } else if heard == Some(25) {
            heard = None;
            agent.send_text(clear(&stream)).await.unwrap();
            for piece in noise(3, 4_000).chunks(1_000) {
                agent.send_text(media(&stream, piece)).await.unwrap();
            }
        }
    }
}

/// The runs of sound in what was heard: where each begins, and its samples.
fn utterances(heard: &[Option<u8>]) -> Vec<(usize, Vec<u8>)> {
    let mut found: Vec<(usize, Vec<u8>)> = Vec::new();
    for (at, sample) in heard.iter().enumerate() {
        let Some(sample) = sample else { continue };
        match found.last_mut() {
            Some((start, samples)) if *start + samples.len() == at => samples.push(*sample),
            _ => found.push((at, vec![*sample])),
        }
    }
    found
}

/// Compares audio without printing it.
fn same(found: &[u8], wanted: &[u8], who: &str) {
    assert_eq!(found.len(), wanted.len(), "{who}");
    let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
    assert_eq!(differs, None, "{who}: the first sample that differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_is_what_was_said_and_what_was_heard() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (home, server) = serve(&agent, "");
    let caller = &DEMO_CALLER[..40_000];
    let (mut call, reached) = connect(&server, &mut agent, 1, Track::whole(caller)).await;
    let talking = tokio::spawn(talk(reached));
    let conversation: Conversation = call.converse(SECOND * 5).await.unwrap();
    call.send_stop().await.unwrap();
    assert_eq!(call.close(1000, "").await, Some(1000));
    talking.await.unwrap();
    assert_eq!(conversation.marks, ["greeting", "interrupted"]);
    let slack = slack(&conversation);

    let recording = server.stored(1).await;
    assert_eq!(home.show(TENANT, &recording)["state"], "complete");
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    let said = home.open_ulaw(TENANT, &recording, "caller");
    same(&said[..caller.len()], caller, "what the caller said");

    let recorded = home.open_ulaw(TENANT, &recording, "agent");
    let sound: Vec<Option<u8>> =
        recorded.iter().map(|byte| Some(*byte).filter(|byte| *byte != 0xff)).collect();
    // The recording begins with the caller's first sample, 102 ms after the stream did.
    let heard = &conversation.heard[102 * 8..];
    let (wanted, found) = (utterances(heard), utterances(&sound));
    let spoken = |list: &[(usize, Vec<u8>)]| list.iter().map(|(_, samples)| samples.len()).sum::<usize>();
    assert!(
        spoken(&wanted).abs_diff(spoken(&found)) <= slack,
        "{} heard, {} recorded",
        spoken(&wanted),
        spoken(&found)
    );
    assert!(spoken(&wanted) < 4_000 + 12_000 + 4_000, "the second was interrupted");
    // Everything that was recorded was heard, at its place, and in the same order.
    let flat =
        |list: &[(usize, Vec<u8>)]| list.iter().flat_map(|(_, samples)| samples.clone()).collect::<Vec<u8>>();
    let (wanted_flat, found_flat) = (flat(&wanted), flat(&found));
    let (greeting, interrupted, answer) = (noise(1, 4_000), noise(2, 16_000), noise(3, 4_000));
    for (who, heard) in [("caller", &wanted_flat), ("recording", &found_flat)] {
        let cut = heard.len() - 8_000;
        same(&heard[..4_000], &greeting, who);
        same(&heard[4_000..4_000 + cut], &interrupted[..cut], who);
        same(&heard[4_000 + cut..], &answer, who);
    }
    let last = |list: &[(usize, Vec<u8>)]| list.last().map(|(at, samples)| at + samples.len()).unwrap();
    assert!(wanted[0].0.abs_diff(found[0].0) <= slack, "{} {}", wanted[0].0, found[0].0);
    assert!(last(&wanted).abs_diff(last(&found)) <= slack, "{} {}", last(&wanted), last(&found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_has_sent_and_nobody_heard_is_not_recorded() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (home, server) = serve(&agent, "");
    let caller = &DEMO_CALLER[..8_000];
    let (mut call, mut reached) = connect(&server, &mut agent, 1, Track::whole(caller)).await;
    let talking = tokio::spawn(async move {
        let stream = greeted(&mut reached).await;
        reached.send_text(media(&stream, &noise(1, 80_000))).await.unwrap();
        while let Ok(Received::Text(_)) = reached.recv().await {}
    });
    let conversation = call.converse(SECOND).await.unwrap();
    call.send_stop().await.unwrap();
    call.close(1000, "").await;
    talking.await.unwrap();
    let recording = server.stored(1).await;
    let recorded = home.open_ulaw(TENANT, &recording, "agent");
    let spoken = recorded.iter().filter(|byte| **byte != 0xff).count();
    let heard = conversation.heard.iter().flatten().count();
    assert!(
        heard < 9_000 && spoken.abs_diff(heard) <= slack(&conversation),
        "{heard} heard, {spoken} recorded of 80000"
    );
}
