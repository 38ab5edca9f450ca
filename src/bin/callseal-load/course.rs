//! Which calls are placed when, and what they say: follows from the options and the seed alone, so that whatever a
//! call said can be made again and compared with its recording.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use callseal::simulate::speech::{CHUNK_BYTES, DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{CHUNK_MS, CallIds, CallPlan, Speech, Track};
use clap::ValueEnum;

use crate::node::Target;
use crate::random::SplitMix;
use crate::recordings::{Encoding, Placed, Said};

/// Between the last call's start and the measurement: its handshake, and the memory that handshakes need only shortly.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);
/// Calls of one run at most.
const MAX_CALLS: usize = 1_000_000;
/// The shortest call of those that come and go.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest one, in means.
const LONGEST: f64 = 4.0;
/// Between the end of a call and the start of the next on the same line.
const PAUSE: Duration = Duration::from_millis(200);
/// TCP and TLS together are given up after so long.
const SLOWEST_HANDSHAKE: Duration = Duration::from_secs(10);
/// Calls at the same time from one address: it has 28,000 ports, and those of ended calls are not free at once.
const CALLS_PER_ADDRESS: u32 = 5_000;
/// The noise repeats after so many chunks of 20 ms, a prime number, so that no two calls say the same at a time.
pub(crate) const NOISE_CHUNKS: usize = 3_049;

/// What calls say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Audio {
    /// Noise from the seed, in which no two milliseconds are alike: nothing can be right by chance
    Noise,
    /// A conversation, with its pauses
    Speech,
}

/// Which tracks of a call Twilio sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tracks {
    /// The caller's and the agent's, 50 messages a second each
    Both,
    /// The caller's alone, as Twilio does it unless it is told otherwise
    Inbound,
}

impl Tracks {
    /// Returns how many messages a call has in a second.
    pub(crate) fn messages_per_sec(self) -> f64 {
        match self {
            Self::Both => 100.0,
            Self::Inbound => 50.0,
        }
    }
}

/// What both sides of every call say.
pub(crate) struct Voices {
    pub(crate) caller: Arc<Speech>,
    pub(crate) agent: Arc<Speech>,
}

impl Voices {
    pub(crate) fn new(audio: Audio, seed: u64) -> Self {
        let speech = |audio: &'static [u8]| Speech::new(Bytes::from_static(audio));
        match audio {
            Audio::Noise => Self { caller: noise(seed), agent: noise(!seed) },
            Audio::Speech => Self { caller: speech(DEMO_CALLER), agent: speech(DEMO_AGENT) },
        }
    }
}

/// Makes noise without the code of silence, so that no sample can be right by chance for long.
pub(crate) fn noise(seed: u64) -> Arc<Speech> {
    let mut random = SplitMix(seed);
    let bytes = (0..NOISE_CHUNKS * CHUNK_BYTES / 8).flat_map(|_| random.next().to_be_bytes());
    Speech::new(bytes.map(|byte| byte.min(0xfe)).collect())
}

/// Which calls are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Base,
    Burst,
    /// Short ones beside the others, whose recordings are not looked at.
    Storm,
    /// Connections that say nothing, as websockets or as TLS alone.
    Silent,
    SilentTls,
}

impl Group {
    /// Whether what they say is compared with their recordings.
    pub(crate) fn is_compared(self) -> bool {
        match self {
            Self::Base | Self::Burst => true,
            Self::Storm | Self::Silent | Self::SilentTls => false,
        }
    }
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) index: u32,
    pub(crate) start: Duration,
    pub(crate) length: Duration,
    pub(crate) group: Group,
}

/// All calls of a run in the order of their starts.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    pub(crate) calls: Vec<Planned>,
    /// What is measured.
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) seed: u64,
    /// At the same time.
    pub(crate) most: u32,
    pub(crate) tracks: Tracks,
    /// Addresses that they come from.
    addresses: u32,
}

/// What a course is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Calls at the same time.
    pub(crate) calls: u32,
    pub(crate) measured: Duration,
    pub(crate) ramp: Duration,
    /// The mean length of calls that come and go; without it they last.
    pub(crate) churn: Option<Duration>,
    pub(crate) tracks: Tracks,
    pub(crate) seed: u64,
}

/// Calls that all begin within some time while others run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Burst {
    pub(crate) calls: u32,
    /// After the measurement has begun.
    pub(crate) after: Duration,
    pub(crate) within: Duration,
    /// How long each of them lasts at most; without it to the end.
    pub(crate) lasts: Option<Duration>,
    pub(crate) group: Group,
}

impl Burst {
    /// Returns how many of its calls there are at the same time at most.
    fn most(&self) -> u32 {
        let Some(lasts) = self.lasts else { return self.calls };
        let longest = (lasts + SLOWEST_HANDSHAKE).as_millis();
        let most = u128::from(self.calls) * longest / self.within.as_millis().max(1);
        u32::try_from(most).map_or(self.calls, |most| most.min(self.calls))
    }
}

impl Course {
    /// Plans calls that begin evenly spread over the ramp, so that they are out of step as well, and last to the end;
    /// with churn each is followed by another.
    pub(crate) fn new(wanted: &Wanted, burst: Option<Burst>) -> anyhow::Result<Self> {
        let from = wanted.ramp + SETTLE;
        let until = from + wanted.measured;
        let mut calls = Vec::new();
        let mut add = |start: Duration, length: Duration, group| -> anyhow::Result<()> {
            ensure!(
                calls.len() < MAX_CALLS,
                "that are more than {MAX_CALLS} calls; give a longer --churn-secs"
            );
            calls.push(Planned { index: 0, start, length, group });
            Ok(())
        };
        for line in 0..wanted.calls {
            let mut start = wanted.ramp.mul_f64(f64::from(line) / f64::from(wanted.calls));
            let Some(mean) = wanted.churn else {
                add(start, until - start, Group::Base)?;
                continue;
            };
            let mut random = SplitMix(wanted.seed ^ u64::from(line).wrapping_mul(0x9e6c_63d0_876a_68ad));
            while until.saturating_sub(start) >= SHORTEST {
                let length = random_length(&mut random, mean).min(until - start);
                add(start, length, Group::Base)?;
                start += length + PAUSE;
            }
        }
        if let Some(burst) = burst {
            ensure!(burst.after + burst.within < wanted.measured, "the burst lies behind the end of the run");
            for number in 0..burst.calls {
                let share = f64::from(number) / f64::from(burst.calls);
                let start = from + burst.after + burst.within.mul_f64(share);
                add(start, burst.lasts.unwrap_or(until).min(until - start), burst.group)?;
            }
        }
        let most = wanted.calls.saturating_add(burst.map_or(0, |burst| burst.most()));
        let mut course = Self::in_order(calls, from, until, wanted.seed, most);
        // The ports of calls that are over are not free at once.
        let in_all = wanted.calls.saturating_add(burst.map_or(0, |burst| burst.calls));
        course.addresses = in_all.div_ceil(CALLS_PER_ADDRESS);
        course.tracks = wanted.tracks;
        Ok(course)
    }

    /// Plans calls of random length that begin in the ramp and end by themselves.
    pub(crate) fn ending(calls: u32, ramp: Duration, longest: Duration, seed: u64) -> Self {
        let mut random = SplitMix(seed ^ 0x5851_f42d_4c95_7f2d);
        let shortest = SHORTEST.min(longest);
        let planned = (0..calls).map(|line| Planned {
            index: line,
            start: ramp.mul_f64(f64::from(line) / f64::from(calls)),
            length: shortest + (longest - shortest).mul_f64(random.share()),
            group: Group::Base,
        });
        Self::in_order(planned.collect(), ramp, ramp + longest, seed, calls)
    }

    fn in_order(mut calls: Vec<Planned>, from: Duration, until: Duration, seed: u64, most: u32) -> Self {
        calls.sort_by_key(|call| call.start);
        for (index, call) in (0..).zip(&mut calls) {
            call.index = index;
        }
        let addresses = most.div_ceil(CALLS_PER_ADDRESS);
        Self { calls, from, until, seed, most, tracks: Tracks::Both, addresses }
    }

    /// Plans one call of this length.
    pub(crate) fn one(length: Duration, seed: u64) -> Self {
        let call = Planned { index: 0, start: Duration::ZERO, length, group: Group::Base };
        Self::in_order(vec![call], Duration::ZERO, length, seed, 1)
    }

    /// Returns the seconds that the run takes if nothing goes wrong.
    pub(crate) fn secs(&self) -> u64 {
        self.until.as_secs()
    }

    /// Returns what both sides of a call say, whichever of them is sent.
    pub(crate) fn voices(&self, call: Planned, voices: &Voices) -> [Track; 2] {
        let mut random = self.random(call);
        let offset = usize::try_from(random.next() >> 48).unwrap_or(0);
        let chunks = call.length.as_millis().div_ceil(u128::from(CHUNK_MS));
        let chunks = usize::try_from(chunks).unwrap_or(usize::MAX);
        [&voices.caller, &voices.agent].map(|voice| Track::looped(voice, offset, chunks))
    }

    /// Names a call of Twilio's.
    pub(crate) fn ids(&self, call: Planned, account: &str) -> CallIds {
        let mut random = self.random(call);
        let _offset = random.next();
        CallIds::new(account, &random.bytes(), &random.bytes())
    }

    /// Plans a call of Twilio's at a server.
    pub(crate) fn plan(&self, call: Planned, target: &Target, voices: &Voices) -> CallPlan {
        let [caller, agent] = self.voices(call, voices);
        let mut endpoint = target.endpoint.clone();
        if let Some(address) = self.address(call, endpoint.address().ip()) {
            endpoint = endpoint.from_address(address);
        }
        let ids = self.ids(call, target.account.as_str());
        let mut plan = CallPlan::new(endpoint, &target.path, &target.auth_token, ids, caller);
        plan.agent = (self.tracks == Tracks::Both).then_some(agent);
        plan
    }

    /// Returns what a call of Twilio's said, to compare its recording with.
    pub(crate) fn said(&self, call: Planned, account: &str, voices: &Voices) -> Said {
        let [caller, agent] = self.voices(call, voices).map(|track| track.audio());
        let tracks = [caller, if self.tracks == Tracks::Both { agent } else { Default::default() }];
        Said { call: self.ids(call, account).call, tracks, encoding: Encoding::Ulaw, placed: Placed::Whole }
    }

    /// Returns the address that a call comes from; `None` where any will do, because one has enough ports.
    pub(crate) fn address(&self, call: Planned, server: IpAddr) -> Option<IpAddr> {
        // All of 127.0.0.0/8 is this machine; of IPv6 only one address is.
        if self.addresses <= 1 || !server.is_ipv4() {
            return None;
        }
        let number = call.index % self.addresses;
        Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + number).into())
    }

    fn random(&self, call: Planned) -> SplitMix {
        SplitMix(self.seed ^ u64::from(call.index).wrapping_mul(0x2545_f491_4f6c_dd1d))
    }
}

/// Returns a length as those of calls that end at any moment with the same chance, with this mean, cut at both ends.
fn random_length(random: &mut SplitMix, mean: Duration) -> Duration {
    let means = -(1.0 - random.share()).max(f64::MIN_POSITIVE).ln();
    mean.mul_f64(means.min(LONGEST)).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use callseal::simulate::{Endpoint, TlsClient};

    use super::*;

    fn target() -> Target {
        let tls = TlsClient::new(rcgen::generate_simple_self_signed(vec![]).unwrap().cert.pem().as_bytes());
        Target {
            endpoint: Endpoint::new("127.0.0.1:1".parse().unwrap(), "wss://localhost:1").unwrap(),
            path: "/twilio/v1/acme-dental/reception".to_owned(),
            tls: tls.unwrap(),
            account: "AC000000000000000000000000c0ffee01".parse().unwrap(),
            auth_token: b"token".to_vec(),
        }
    }

    fn wanted(seed: u64, churn_secs: Option<u64>) -> Wanted {
        let seconds = Duration::from_secs;
        let (churn, tracks) = (churn_secs.map(seconds), Tracks::Both);
        Wanted { calls: 100, measured: seconds(10), ramp: seconds(5), churn, tracks, seed }
    }

    #[test]
    fn calls_are_repeatable_and_all_different() {
        let course = |seed| Course::new(&wanted(seed, Some(3)), None).unwrap();
        let (one, again, other) = (course(1), course(1), course(2));
        assert_eq!(one.calls, again.calls);
        assert_ne!(one.calls, other.calls);
        let (target, voices) = (target(), Voices::new(Audio::Noise, 1));
        let mut streams = BTreeSet::new();
        for call in &one.calls {
            let plan = one.plan(*call, &target, &voices);
            assert_eq!(plan.ids, again.plan(*call, &target, &voices).ids);
            let said = one.said(*call, target.account.as_str(), &voices);
            assert_eq!((&said.call, &said.tracks[0]), (&plan.ids.call, &plan.caller.audio()));
            assert!(streams.insert(plan.ids.stream) && streams.insert(plan.ids.call));
        }
        let ids = other.plan(other.calls[0], &target, &voices).ids;
        assert!(streams.insert(ids.stream) && streams.insert(ids.call));
    }

    #[test]
    fn of_one_track_the_other_is_neither_sent_nor_expected() {
        let (target, voices) = (target(), Voices::new(Audio::Noise, 1));
        let course = Course::new(&Wanted { tracks: Tracks::Inbound, ..wanted(1, None) }, None).unwrap();
        let (call, account) = (course.calls[0], target.account.as_str());
        assert!(course.plan(call, &target, &voices).agent.is_none());
        let [caller, agent] = course.said(call, account, &voices).tracks;
        assert!(!caller.is_empty() && agent.is_empty());
    }

    #[test]
    fn lasting_calls_last_to_the_end_and_others_come_and_go_until_it() {
        let lasting = Course::new(&wanted(1, None), None).unwrap();
        assert_eq!(lasting.calls.len(), 100);
        assert!(lasting.calls.iter().all(|call| call.start + call.length == lasting.until));
        let churned = Course::new(&wanted(1, Some(2)), None).unwrap();
        assert!(churned.calls.len() > 200, "{}", churned.calls.len());
        assert!(
            churned
                .calls
                .iter()
                .all(|call| call.length >= SHORTEST || call.start + call.length == churned.until)
        );
        assert!(churned.calls.iter().all(|call| call.start + call.length <= churned.until));
        assert!(churned.calls.is_sorted_by_key(|call| call.start));
        let lengths: BTreeSet<_> = churned.calls.iter().map(|call| call.length).collect();
        assert!(lengths.len() > 50, "lengths are random");
    }

    #[test]
    fn a_burst_comes_while_others_run() {
        let seconds = Duration::from_secs;
        let burst =
            Burst { calls: 50, after: seconds(4), within: seconds(1), lasts: None, group: Group::Burst };
        let course = Course::new(&wanted(1, None), Some(burst)).unwrap();
        let starts: Vec<_> =
            course.calls.iter().filter(|call| call.group == Group::Burst).map(|call| call.start).collect();
        assert_eq!(starts.len(), 50);
        assert!(starts.iter().all(|at| (seconds(10)..seconds(11)).contains(at)), "{starts:?}");
        assert!(Course::new(&wanted(1, None), Some(Burst { after: seconds(10), ..burst })).is_err());
    }

    #[test]
    fn many_calls_come_from_many_addresses() {
        let server: IpAddr = "127.0.0.1".parse().unwrap();
        let mut course = Course::new(&wanted(1, None), None).unwrap();
        assert_eq!(course.address(course.calls[7], server), None);
        course.addresses = 12;
        let addresses: BTreeSet<_> =
            course.calls.iter().filter_map(|call| course.address(*call, server)).collect();
        assert_eq!(addresses.len(), 12);
        assert!(addresses.iter().all(IpAddr::is_loopback));
    }
}
