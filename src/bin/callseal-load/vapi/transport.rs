//! A client brings the caller, the server dials Vapi for the assistant and passes both voices on.
//!
//! The caller speaks in real time from the first moment. The assistant speaks in real time as well, but for a start that it has
//! ahead, as players need: what it says is recorded when it is played, and without the start every delay would be a pause. Each
//! message is held against what the other end has sent, and how long it was on its way is measured with one clock.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use callseal::clock;
use callseal::simulate::{AgentCall, CHUNK_MS, CallError, LagHistogram, Received, Track, TranscriberCall};
use tokio::time::sleep_until;

use crate::recordings::Compared;
use crate::sampler::Tally;
use crate::scenario::percentiles;
use crate::sheet::Sheet;
use crate::traffic::{CallFailed, Went};

use super::switchboard::Line;
use super::{Dialled, NORMAL, PATIENCE, due, samples};

/// Messages that the assistant is ahead of its time: 200 ms.
const AHEAD: usize = 10;
/// How long the client stays after the last sample was played to the caller: a recorder that plays by its own clock may be
/// later than we are.
const STAY: Duration = Duration::from_secs(1);

/// What is known of all calls together.
#[derive(Default)]
pub(super) struct Lines(Mutex<Totals>);

#[derive(Default)]
struct Totals {
    passed_on: LagHistogram,
    /// While nothing was there to be played, after the assistant's first word.
    paused: Duration,
}

impl Lines {
    pub(super) fn figures(&self, compared: Option<&Compared>, sheet: &mut Sheet) {
        let totals = lock(&self.0);
        percentiles("passed_on", &totals.passed_on, sheet);
        sheet.cost("player_paused_ms", totals.paused.as_secs_f64() * 1000.0, "ms");
        if let Some(compared) = compared {
            sheet.cost("recordings_paused_ms", compared.paused_ms, "ms");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Places one call and stays to its end.
pub(super) async fn place(dialled: Dialled, line: Line, lines: &Lines) -> Result<Went, CallFailed> {
    let began = clock::monotonic();
    let connected = TranscriberCall::connect(&dialled.endpoint, &dialled.target, &[], &dialled.tls).await;
    let handshake = clock::since(began);
    dialled.tally.tried.fetch_add(1, Ordering::Relaxed);
    let call = connected.map_err(CallFailed::Connect)?;
    let [caller, assistant] = &dialled.tracks;
    let (up, down) = (Way::default(), Way::default());
    let mut player = Player::default();
    let speaking = async {
        let client =
            Client { call, player: &mut player, says: End::new(caller, &up, &dialled.tally), hears: &down };
        let vapi = End::new(assistant, &down, &dialled.tally);
        tokio::try_join!(client.run(assistant.chunks()), self::assistant(line, vapi, &up, caller.chunks()))
    };
    let (mut send_lag, others) = dialled.while_open(Box::pin(speaking)).await.map_err(CallFailed::Later)?;
    send_lag.merge(&others);
    let mut totals = lock(&lines.0);
    totals.paused += player.paused;
    for way in [up, down] {
        totals.passed_on.merge(&lock(&way.0).delays);
    }
    Ok(Went { handshake, send_lag, ..Went::default() })
}

/// One direction: what was sent and has not arrived, in order.
#[derive(Default)]
struct Way(Mutex<OnTheWay>);

#[derive(Default)]
struct OnTheWay {
    messages: VecDeque<(Instant, Bytes)>,
    arrived: usize,
    delays: LagHistogram,
}

impl Way {
    fn leaves(&self, message: Bytes) {
        lock(&self.0).messages.push_back((clock::monotonic(), message));
    }

    fn arrived(&self, message: &Bytes) -> Result<(), CallError> {
        let mut way = lock(&self.0);
        let number = way.arrived;
        let sent = way.messages.pop_front().filter(|(_, sent)| sent == message);
        let (left, _) = sent.ok_or(CallError::NotPassedOn(number))?;
        way.arrived += 1;
        way.delays.record(clock::since(left));
        Ok(())
    }

    /// Returns how many messages have arrived.
    fn count(&self) -> usize {
        lock(&self.0).arrived
    }
}

/// What one end says, in its time.
struct End<'a> {
    track: &'a Track,
    way: &'a Way,
    tally: &'a Tally,
    number: usize,
    lags: LagHistogram,
}

impl<'a> End<'a> {
    fn new(track: &'a Track, way: &'a Way, tally: &'a Tally) -> Self {
        Self { track, way, tally, number: 0, lags: LagHistogram::default() }
    }

    fn is_done(&self) -> bool {
        self.number >= self.track.chunks()
    }

    /// Returns the next message, which is sent at once.
    fn next(&mut self) -> Bytes {
        let message = Bytes::from(samples(self.track.base64(self.number)));
        self.number += 1;
        self.way.leaves(message.clone());
        message
    }

    /// Notes that it was sent, and when it was due.
    fn sent(&mut self, due: Instant) {
        let lag = clock::since(due);
        self.lags.record(lag);
        self.tally.sent(1, lag);
    }
}

/// What the caller hears: messages in order, each for its 20 ms.
#[derive(Default)]
struct Player {
    /// Where what is there ends.
    end: Option<Instant>,
    paused: Duration,
}

impl Player {
    fn play(&mut self, now: Instant) {
        let end = self.end.unwrap_or(now);
        self.paused += now.saturating_duration_since(end);
        self.end = Some(end.max(now) + Duration::from_millis(CHUNK_MS));
    }
}

/// The tenant's own program: brings the caller, and plays what the assistant says.
struct Client<'a> {
    call: TranscriberCall,
    player: &'a mut Player,
    says: End<'a>,
    hears: &'a Way,
}

impl Client<'_> {
    /// Speaks, and stays until the last of the assistant's messages was played; answers how late it was.
    async fn run(mut self, to_hear: usize) -> Result<LagHistogram, CallError> {
        let began = clock::monotonic();
        let latest = due(began, self.says.track.chunks()) + 2 * PATIENCE;
        while !self.says.is_done() || self.hears.count() < to_hear {
            let due = if self.says.is_done() { latest } else { due(began, self.says.number) };
            tokio::select! {
                () = sleep_until(due.into()) => {
                    if self.says.is_done() {
                        return Err(CallError::NotPassedOn(self.hears.count()));
                    }
                    let message = self.says.next();
                    self.call.send_binary(message).await?;
                    self.says.sent(due);
                }
                received = self.call.recv() => self.hear(received?)?,
            }
        }
        let until = self.player.end.unwrap_or(began) + STAY;
        loop {
            tokio::select! {
                () = sleep_until(until.into()) => break,
                received = self.call.recv() => self.hear(received?)?,
            }
        }
        self.call.close(NORMAL).await;
        Ok(self.says.lags)
    }

    fn hear(&mut self, received: Received) -> Result<(), CallError> {
        match received {
            Received::Binary(message) => {
                self.hears.arrived(&message)?;
                self.player.play(clock::monotonic());
                Ok(())
            }
            Received::Text(_) => Ok(()),
            Received::Closed { code, reason } => Err(CallError::Closed { code, reason }),
        }
    }
}

/// Vapi's end: the assistant speaks when it was dialled, and hears the caller until the client hangs up.
async fn assistant(
    mut line: Line,
    mut says: End<'_>,
    hears: &Way,
    to_hear: usize,
) -> Result<LagHistogram, CallError> {
    let mut call = line.reached().await?;
    let began = clock::monotonic();
    loop {
        let due = due(began, says.number.saturating_sub(AHEAD));
        tokio::select! {
            () = sleep_until(due.into()), if !says.is_done() => {
                let message = says.next();
                call.send_binary(message).await?;
                says.sent(due);
            }
            received = call.recv() => match received? {
                Received::Binary(message) => hears.arrived(&message)?,
                Received::Text(_) => {}
                Received::Closed { .. } => break,
            }
        }
    }
    // So that the server hears that it was heard.
    finish(&mut call).await;
    if hears.count() < to_hear { Err(CallError::NotPassedOn(hears.count())) } else { Ok(says.lags) }
}

/// Lets the answer to a close leave.
async fn finish(call: &mut AgentCall) {
    let _ended = tokio::time::timeout(PATIENCE, call.recv()).await.is_ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_changed_missing_or_invented_is_noticed() {
        let way = Way::default();
        let [one, two] = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        way.leaves(one.clone());
        way.leaves(two.clone());
        assert!(way.arrived(&one).is_ok());
        assert!(matches!(way.arrived(&one), Err(CallError::NotPassedOn(1))));
        assert!(matches!(way.arrived(&two), Err(CallError::NotPassedOn(1))), "none is on its way");
        assert_eq!((way.count(), lock(&way.0).delays.count()), (1, 1));
    }

    #[test]
    fn a_player_pauses_where_nothing_is_there() {
        let (began, ms) = (clock::monotonic(), Duration::from_millis);
        let mut player = Player::default();
        for at in [5, 5, 20, 65, 100] {
            player.play(began + ms(at));
        }
        // Three messages from 5 to 65, the fourth to 85; the fifth is 15 late.
        assert_eq!((player.paused, player.end), (ms(15), Some(began + ms(120))));
    }
}
