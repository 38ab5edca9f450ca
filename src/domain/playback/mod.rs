//! From sealed recordings to something a player understands. Knows timelines, bytes of WAV files and grants; must not
//! know HTTP types or stores.

pub mod timeline;
//! How a sealed recording becomes something a player can ask for: who may play, which bytes, in which container.

pub mod grant;
pub mod range;
pub mod wav;
