//! From the recorder to the store: segments as they are cut, the manifest, then one final object.
//!
//! Knows ciphertext, object names and tags. Must not know plaintext, any key or providers.

mod backlog;
mod breaker;
mod compact;
mod door;
mod index;
mod live;
mod objects;
mod pace;
mod put;
mod read_back;
mod requests;
mod retry;
mod tags;
mod turns;
mod uploader;

pub use compact::{CompactError, WrittenFinal, clean, compact, write_final};
pub use index::{Entries, Index, NotIndexed, entries_of, put_entries, remove_entries, remove_other_entries};
pub use objects::{FinalObject, Listed, RecordingObjects, SegmentId, final_manifest};
pub use put::PutError;
pub use requests::Requests;
pub use retry::{Retry, RetryPolicy};
pub use tags::{RetentionTags, newest_order, tag_order};
pub use uploader::{Lane, UploadContext, Uploader};
