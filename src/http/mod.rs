//! What is served over HTTP: routes, status codes, who is asking. Must not know SDK types or bare keys.

mod ops;
mod play_body;
mod playback;
mod router;
mod traced;

pub use ops::serve_ops;
pub use router::{handle, handle_admin};
