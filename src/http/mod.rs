//! What is served over HTTP: routes, status codes, who is asking. Must not know SDK types or bare keys.

pub mod answer;
mod ops;
mod play_body;
mod playback;
mod router;

pub use answer::{Answer, Body};
pub use ops::serve_ops;
pub use router::{Peer, handle};
