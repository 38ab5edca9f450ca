//! From sealed recordings to something a player understands. Knows timelines, bytes of WAV files and grants; must not
//! know HTTP types or stores.

pub mod timeline;
