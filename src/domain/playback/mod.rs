//! From sealed recordings to something a player understands: who may play, which samples, which bytes of which file.
//!
//! Knows timelines, WAV files, byte ranges and grants; must not know HTTP types or stores.

pub mod grant;
pub mod range;
pub mod timeline;
pub mod wav;
