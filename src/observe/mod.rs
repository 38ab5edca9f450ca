//! What operators see: metrics and logs. Neither ever holds keys, tokens, grants, signatures, audio, numbers or URLs.

pub mod logs;
pub mod metrics;
