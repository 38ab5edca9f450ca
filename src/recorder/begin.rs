//! What a recording begins with: who it is for, and what it says of itself.

use crate::config::{Route, Tenant};
use crate::domain::audio::{AudioFormat, Speakers};
use crate::domain::policy::days_of_call;
use crate::domain::provider::StreamStart;
use crate::domain::recording::RecordingMetadata;
use crate::domain::session::AgentAudio;
use crate::domain::ticket::Ticket;
use crate::domain::time::UnixMillis;
use crate::keys::Minted;
use crate::live::Entry;

/// How a recording begins.
pub(crate) struct Begin<'a> {
    /// What the stream says of itself.
    pub(crate) start: &'a StreamStart,
    /// The ticket that it has brought.
    pub(crate) ticket: Option<&'a Ticket>,
    /// How the caller's consent is known.
    pub(crate) consent: Option<&'static str>,
    /// `twilio` or `vapi`.
    pub(crate) provider: &'static str,
    /// How the samples of all tracks are written.
    pub(crate) format: AudioFormat,
    /// Who is heard on the tracks.
    pub(crate) speakers: Speakers,
    /// Where the agent's audio comes from.
    pub(crate) agent: AgentAudio,
}

/// Returns what a stream is while it is live; the caller need not agree any more.
pub(crate) fn entry(
    tenant: &Tenant,
    route: &Route,
    key: &Minted,
    provider: &'static str,
    call: &str,
) -> Entry {
    Entry {
        tenant: tenant.id.clone(),
        recording: key.ids.recording,
        route: route.name.clone(),
        provider,
        call: call.to_owned(),
        order_key: key.dek.live_order_key(),
        has_consent: true,
    }
}

pub(super) fn metadata(
    tenant: &Tenant,
    route: &Route,
    begin: &Begin<'_>,
    wall: UnixMillis,
) -> RecordingMetadata {
    let Begin { start, ticket, consent, provider, format, speakers: _, agent: _ } = begin;
    // Whoever has the key of tickets cannot keep a call for longer than the tenant keeps all of them.
    let asked = ticket.and_then(|ticket| ticket.retention_days);
    let (retention_days, own_days) = days_of_call(tenant.retention.call_audio_days, asked);
    RecordingMetadata {
        v: 1,
        tenant: tenant.id.to_string(),
        route: route.name.to_string(),
        provider: (*provider).to_owned(),
        account: start.account.clone(),
        call: start.call.clone(),
        stream: start.stream.clone(),
        started_ms: wall.0,
        parameters: start.parameters.clone(),
        retention_days,
        own_days,
        ticket: ticket.map(|ticket| ticket.metadata.clone()).unwrap_or_default(),
        consent: consent.map(str::to_owned),
        format: *format,
    }
}
