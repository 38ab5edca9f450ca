//! callseal is an encrypted call-media ingest proxy.
//!
//! Telephony providers send the audio of live calls over a websocket. callseal terminates that websocket, seals
//! every audio frame with a key of the tenant the moment it arrives, stores only ciphertext, and plays recordings
//! back through signed, expiring URLs.
//!
//! ```text
//!  Twilio ── TLS websocket ──► ingest ──► domain::provider ──► domain::session ──► journal ──► upload ──► store
//!                              admission    message → event     frame → sealed     ciphertext   retry      segments →
//!                              permit                           frame → segment    on disk      budget     manifest → final
//!                                                                    ▲
//!                              key source ──► keys ────── DEK ───────┤
//!                                                                    ▼
//!  player ◄── http::playback ◄── WAV bytes ◄── domain::playback: open, place on the timeline ◄── ranged reads ◄── store
//!             grant checked, Range, audit record
//! ```
//!
//! Where things live:
//!
//! | module | knows | must not know |
//! |---|---|---|
//! | [`domain`] | the rules: provider messages, the recording format, timelines, grants | sockets, disks, clocks, randomness |
//! | [`config`] | files, environment, secrets by reference | everything that runs |
//! | [`ingest`] | TLS, websockets, provider authentication, limits | the store, manifests, KEKs |
//! | [`relay`] | both sockets of a live call | sealing, the store, the journal |
//! | [`recorder`] | where the outputs of a session go | wire formats, the store |
//! | [`journal`] | ciphertext, files, flush times | keys, providers |
//! | [`upload`], [`store`] | ciphertext, object names, tags, retry, budget | plaintext, any key, providers |
//! | [`keys`] | KEK sources, versions, wrap and unwrap | audio, sockets |
//! | `aws` | credentials and TLS of AWS's clients | which service is asked |
//! | [`control`] | audit, recovery, listing | frame layout, sockets |
//! | [`notices`] | what a tenant's server is told, and until when | audio, sockets of calls, why it happened |
//! | [`observe`] | metrics, logs and traces | what they are of |
//! | [`http`] | routes, status codes, who is asking | SDK types, bare keys |
//! | [`claims`] | whether a bucket does what is claimed of it | what it is used for |
//! | [`websocket`] | what a failure means, pings, closing | whose socket it is |
//! | [`authorities`] | who vouches for those whom we dial | who they are |
//! | [`jitter`] | how waits are spread | what for |
//! | [`locked`] | pages that nobody else reads | which keys lie there |
//! | [`tenants`] | who the tenants are now | what is done for them |
//! | [`tickets`] | which tickets were used | what is in them |
//! | [`admin`] | the API of operators: routes, roles, tokens | wire formats of providers, bare keys |
//! | [`live`] | which streams are live, and what is wanted of them | sockets, sessions |
//! | [`calls`] | which calls of Vapi are heard, and by which node | sockets, audio |
//! | [`server`] | the order of start and stop | everything else |
//! | [`cli`] | arguments, what is printed | how anything is done |
//! | [`simulate`] | what a provider and a player do, seen from outside | the server |
//!
//! One word per thing, in code, configuration, metrics and documents:
//! a *tenant*'s *KEK* wraps the *DEK* of one *recording*; a *connection* carries one *stream* with one or two
//! *tracks*; a provider *message* is decoded to an *event*, the audio of a media event is a *frame*, encrypted it is a
//! *sealed frame*; sealed frames make a *segment*, segments and a *manifest* make the *final* object; a *grant* is a
//! signed, expiring right to play; a *notice* is one signed request that tells a tenant's server what happened.

pub mod admin;
pub mod answer;
pub mod authorities;
mod aws;
pub mod calls;
pub mod claims;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod domain;
pub mod drain;
pub mod http;
pub mod ingest;
pub mod jitter;
pub mod journal;
pub mod keys;
pub mod live;
pub mod locked;
pub mod node;
pub mod notices;
pub mod observe;
pub mod recorder;
pub mod relay;
pub mod server;
pub mod simulate;
pub mod store;
pub mod tenants;
pub mod tickets;
pub mod upload;
pub mod websocket;
