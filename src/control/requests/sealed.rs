//! What a request is in the store: sealed under a key of the tenant, each revision bound to its name.
//!
//! An object is `01 || id of the key || sealed box` (`docs/FORMAT.md`), and the key one of the request alone, whose envelope lies
//! under its id: when that is destroyed, nobody reads the request any more.

use bytes::Bytes;

use crate::domain::cmr::{Dek, SealedBox};
use crate::domain::ids::{RecordingId, RequestId, TenantTag};
use crate::domain::request::Request;
use crate::keys::{KeyError, fill_random};

use super::RequestError;

const VERSION: u8 = 1;

/// Where an object belongs: what it is sealed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant: TenantTag,
    pub(super) request: RequestId,
    pub(super) revision: u32,
}

impl Place {
    fn context(&self, key: RecordingId) -> Vec<u8> {
        [&self.tenant.0[..], &key.0, &self.request.0, &self.revision.to_be_bytes()].concat()
    }

    pub(super) fn seal(
        &self,
        key_id: RecordingId,
        key: &Dek,
        request: &Request,
    ) -> Result<Bytes, RequestError> {
        let text = zeroize::Zeroizing::new(serde_json::to_vec(request).unwrap_or_default());
        let mut salt = [0; 32];
        fill_random(&mut salt)?;
        let sealed = SealedBox::REQUEST.seal(key.expose(), &salt, &self.context(key_id), &text);
        // A cipher that does not take a short text has no random bytes or no memory.
        let sealed = sealed.map_err(|_| KeyError::Entropy)?;
        Ok([&[VERSION][..], &key_id.0, &sealed].concat().into())
    }

    /// Opens what lies here; `None` for anything else.
    pub(super) fn open(&self, key: &Dek, object: &[u8]) -> Option<Request> {
        let key_id = Self::key_of(object)?;
        let sealed = object.get(1 + key_id.0.len()..)?;
        let text = SealedBox::REQUEST.open(key.expose(), &self.context(key_id), sealed).ok()?;
        serde_json::from_slice(&text).ok().filter(Request::is_known)
    }

    /// Reads which key an object is sealed with.
    pub(super) fn key_of(object: &[u8]) -> Option<RecordingId> {
        let (&[version], rest) = object.split_first_chunk()?;
        let (key, _) = rest.split_first_chunk()?;
        (version == VERSION).then_some(RecordingId(*key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::index::Term;
    use crate::domain::request::{Deed, RequestKind, Step};
    use crate::domain::time::UnixMillis;

    const KEY_ID: RecordingId = RecordingId([9; 16]);
    const PLACE: Place = Place { tenant: TenantTag([1; 16]), request: RequestId([2; 16]), revision: 3 };

    fn key() -> Dek {
        Dek::filled_by::<()>(|key| {
            key.fill(5);
            Ok(())
        })
        .unwrap()
    }

    fn request() -> Request {
        let (actor, reason) = ("jane".to_owned(), "a letter".to_owned());
        let step = Step { deed: Deed::Opened, at_ms: 1, actor, reason, detail: None, exceptions: Vec::new() };
        let party = Term::party("+4930901820017").unwrap();
        Request::new(RequestKind::Delete, &party, (UnixMillis(1), UnixMillis(2)), None, step)
    }

    #[test]
    fn a_request_opens_in_its_place_only_and_whole() {
        let object = PLACE.seal(KEY_ID, &key(), &request()).unwrap();
        assert_eq!(Place::key_of(&object), Some(KEY_ID));
        assert_eq!(PLACE.open(&key(), &object), Some(request()));
        for elsewhere in [
            Place { tenant: TenantTag([3; 16]), ..PLACE },
            Place { request: RequestId([3; 16]), ..PLACE },
            Place { revision: 4, ..PLACE },
        ] {
            assert_eq!(elsewhere.open(&key(), &object), None, "{elsewhere:?}");
        }
        for bit in 0..object.len() * 8 {
            let mut changed = object.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(PLACE.open(&key(), &changed), None, "bit {bit}");
        }
        for length in 0..object.len() {
            assert_eq!(PLACE.open(&key(), &object[..length]), None, "{length} bytes");
        }
    }
}
