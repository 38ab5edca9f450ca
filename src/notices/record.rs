//! What the objects of the outbox hold: sealed under a key of the tenant, each bound to its name.
//!
//! An object is `01 || id of the key || sealed box` (`docs/FORMAT.md`). The key is a DEK of its own whose envelope lies under
//! its id, as the key of a chain of audit records does.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::domain::cmr::{Dek, SealedBox};
use crate::domain::ids::{NoticeId, RecordingId, TenantTag};
use crate::keys::fill_random;
use crate::store::layout::NoticePlace;

const VERSION: u8 = 1;

/// Where an object belongs: what it is sealed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant: TenantTag,
    pub(super) notice: NoticeId,
    pub(super) place: NoticePlace,
    /// 0 but for attempts.
    pub(super) attempt: u32,
}

/// An attempt to deliver a notice. Whoever has created it makes the attempt, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// Version of this record: 1.
    pub(super) v: u8,
    /// RFC 3339, UTC.
    pub(super) at: String,
    /// The node that makes it.
    pub(super) node: String,
    /// What came of the attempt before, if that node knows.
    pub(super) last: Option<String>,
}

/// A notice that waits no more, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Version of this record: 1.
    pub v: u8,
    /// RFC 3339, UTC.
    pub at: String,
    /// The node that settled it.
    pub node: String,
    /// How often it was tried.
    pub attempts: u32,
    /// What came of the last attempt.
    pub outcome: String,
    /// Its body.
    pub body: String,
}

/// The object is not one, belongs elsewhere, or was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("object of the outbox does not open")]
pub struct Damaged;

impl Place {
    fn context(&self, key: RecordingId) -> Vec<u8> {
        let place = match self.place {
            NoticePlace::Waiting => 0,
            NoticePlace::Sent => 1,
            NoticePlace::Dead => 2,
        };
        [&self.tenant.0[..], &key.0, &self.notice.0, &[place], &self.attempt.to_be_bytes()].concat()
    }

    /// Seals what lies here; `None` without random bytes.
    pub(super) fn seal(&self, key_id: RecordingId, key: &Dek, text: &[u8]) -> Option<Vec<u8>> {
        let mut salt = [0; 32];
        fill_random(&mut salt).ok()?;
        let sealed = SealedBox::NOTICE.seal(key.expose(), &salt, &self.context(key_id), text).ok()?;
        Some([&[VERSION][..], &key_id.0, &sealed].concat())
    }

    /// Opens what lies here.
    pub(super) fn open(&self, key: &Dek, object: &[u8]) -> Result<Zeroizing<Vec<u8>>, Damaged> {
        let key_id = key_of(object)?;
        let sealed = object.get(1 + key_id.0.len()..).ok_or(Damaged)?;
        SealedBox::NOTICE.open(key.expose(), &self.context(key_id), sealed).map_err(|_| Damaged)
    }
}

/// Reads which key an object is sealed with.
pub(super) fn key_of(object: &[u8]) -> Result<RecordingId, Damaged> {
    let (&[version], rest) = object.split_first_chunk().ok_or(Damaged)?;
    let (key, _) = rest.split_first_chunk().ok_or(Damaged)?;
    if version == VERSION { Ok(RecordingId(*key)) } else { Err(Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_ID: RecordingId = RecordingId([9; 16]);

    fn key() -> Dek {
        Dek::filled_by::<()>(|key| {
            key.fill(5);
            Ok(())
        })
        .unwrap()
    }

    fn place() -> Place {
        Place {
            tenant: TenantTag([1; 16]),
            notice: NoticeId([2; 16]),
            place: NoticePlace::Waiting,
            attempt: 0,
        }
    }

    #[test]
    fn an_object_opens_in_its_place_only() {
        let object = place().seal(KEY_ID, &key(), b"{}").unwrap();
        assert_eq!(key_of(&object), Ok(KEY_ID));
        assert_eq!(**place().open(&key(), &object).unwrap(), *b"{}");
        for elsewhere in [
            Place { tenant: TenantTag([3; 16]), ..place() },
            Place { notice: NoticeId([3; 16]), ..place() },
            Place { place: NoticePlace::Sent, ..place() },
            Place { place: NoticePlace::Dead, ..place() },
            Place { attempt: 1, ..place() },
        ] {
            assert_eq!(elsewhere.open(&key(), &object), Err(Damaged), "{elsewhere:?}");
        }
    }

    #[test]
    fn nothing_but_the_whole_object_opens() {
        let object = place().seal(KEY_ID, &key(), b"{}").unwrap();
        for bit in 0..object.len() * 8 {
            let mut changed = object.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(place().open(&key(), &changed), Err(Damaged), "bit {bit}");
        }
        for length in 0..object.len() {
            assert_eq!(place().open(&key(), &object[..length]), Err(Damaged), "{length} bytes");
        }
    }
}
