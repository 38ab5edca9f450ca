//! What operators see: metrics, logs and traces. None ever holds keys, tokens, grants, signatures, audio, numbers or URLs.

pub mod event_loop;
mod local_histogram;
pub mod logs;
pub mod metrics;
pub mod page;
pub mod traces;
