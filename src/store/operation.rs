//! The operations of a store, by name.

/// One method of [`Store`](super::Store) or [`Upload`](super::Upload).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `put_new`
    PutNew,
    /// `get`
    Get,
    /// `head`
    Head,
    /// `list_after`
    ListAfter,
    /// `delete`
    Delete,
    /// `tags`
    Tags,
    /// `set_tags`
    SetTags,
    /// `lock`
    Lock,
    /// `begin_upload`
    BeginUpload,
    /// `put_part`
    PutPart,
    /// `complete`
    Complete,
    /// `abort`
    Abort,
    /// `ping`
    Ping,
    /// `now`
    Now,
    /// `delete_all`
    DeleteAll,
    /// `purge`
    Purge,
    /// `abort_uploads`
    AbortUploads,
}

impl Operation {
    /// Names the operation for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::PutNew => "put_new",
            Self::Get => "get",
            Self::Head => "head",
            Self::ListAfter => "list_after",
            Self::Delete => "delete",
            Self::Tags => "tags",
            Self::SetTags => "set_tags",
            Self::Lock => "lock",
            Self::BeginUpload => "begin_upload",
            Self::PutPart => "put_part",
            Self::Complete => "complete",
            Self::Abort => "abort",
            Self::Ping => "ping",
            Self::Now => "now",
            Self::DeleteAll => "delete_all",
            Self::Purge => "purge",
            Self::AbortUploads => "abort_uploads",
        }
    }
}
