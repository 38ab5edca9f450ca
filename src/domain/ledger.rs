//! The deletion ledger of a tenant: who ordered what to be deleted, and when nobody could open it any more.
//!
//! A chain of numbered objects, each created once (`docs/FORMAT.md` section 11.9). What an entry says is sealed; its
//! number, and the digest of the object before it, stand in clear, so that whoever has no key can check the chain. An
//! entry that was changed, exchanged or taken out is noticed; a cut end is noticed by whoever knows a later entry.

use serde::{Deserialize, Serialize};

use super::cmr::{KEY_BYTES, Salt, SealError, SealedBox, sha256};
use super::ids::{KeyId, RecordingId, TenantTag};
use super::index::IndexKind;
use super::retention::Reason;
use super::sign::{decode_base64, encode_base64, encode_hex};
use super::time::UnixMillis;

/// The largest object: an entry has an actor and a reason in somebody's words.
pub const MAX_LINK_BYTES: usize = 64 * 1024;
/// What an empty chain ends with.
const NO_LINK: [u8; 32] = [0; 32];

/// As a part of what a recording was ordered to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// By its own id.
    Recording,
    /// With everything of its call.
    Call,
    /// With everything of a party to it.
    Party,
    /// With everything of its tenant.
    Tenant,
    /// Again, because a backup had brought it back.
    Replay,
}

impl Scope {
    /// Returns the scope of everything that has a term in common.
    pub fn of(kind: IndexKind) -> Self {
        match kind {
            IndexKind::Call => Self::Call,
            IndexKind::Party => Self::Party,
        }
    }

    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::Call => "call",
            Self::Party => "party",
            Self::Tenant => "tenant",
            Self::Replay => "replay",
        }
    }
}

/// What the ledger says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Entry {
    /// Somebody ordered that a recording be deleted.
    Ordered {
        /// Which, 32 hexadecimal digits.
        recording: String,
        /// As a part of what.
        scope: Scope,
        /// Who.
        actor: String,
        /// Why, in their words.
        reason: String,
        /// When: Unix milliseconds by the store's clock.
        at_ms: u64,
    },
    /// A recording is kept for fewer days than its manifest says, because its tenant wants that of all.
    Shortened {
        /// Which, 32 hexadecimal digits.
        recording: String,
        /// Who.
        actor: String,
        /// Why, in their words.
        reason: String,
        /// When: Unix milliseconds by the store's clock.
        at_ms: u64,
        /// When it must be gone: Unix milliseconds.
        expires_ms: u64,
    },
    /// The key of a recording is destroyed; what else there is of it follows.
    Deleted {
        /// Which, 32 hexadecimal digits.
        recording: String,
        /// Why.
        reason: Reason,
        /// When it had to be gone, if that is known: Unix milliseconds.
        expires_ms: Option<u64>,
        /// When its key was gone: Unix milliseconds by the store's clock.
        deleted_at_ms: u64,
        /// From when on backups and versions of the store have no key of it either: Unix milliseconds.
        final_at_ms: u64,
        /// How many objects it had, its envelopes included.
        objects: u64,
    },
}

impl Entry {
    /// Returns which recording it is about; `None` if what stands there is none.
    pub fn recording(&self) -> Option<RecordingId> {
        match self {
            Self::Ordered { recording, .. }
            | Self::Shortened { recording, .. }
            | Self::Deleted { recording, .. } => recording.parse().ok(),
        }
    }

    /// Whether the recording must be gone at `now`.
    pub fn is_due(&self, now: UnixMillis) -> bool {
        match self {
            Self::Ordered { .. } | Self::Deleted { .. } => true,
            Self::Shortened { expires_ms, .. } => *expires_ms <= now.0,
        }
    }
}

/// One object of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    v: u8,
    number: u64,
    prev: String,
    key: String,
    sealed: String,
}

/// Where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// How many links there are.
    pub links: u64,
    /// SHA-256 of the last object; zeros without any.
    pub digest: [u8; 32],
}

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// An entry is not there.
    #[error("entry {0} is missing")]
    Missing(u64),
    /// It is no entry, or one of another place.
    #[error("entry {0} is not one, or of another place")]
    Malformed(u64),
    /// It does not follow on the one before it.
    #[error("entry {0} does not follow on the one before it")]
    Unlinked(u64),
    /// It does not open.
    #[error("entry {0} does not open")]
    Sealed(u64),
}

impl Head {
    /// The end of a chain without links.
    pub const EMPTY: Self = Self { links: 0, digest: NO_LINK };

    /// Seals the entry that follows. `key` is the key whose envelope lies under `key_id`; `salt` must be fresh random
    /// bytes.
    ///
    /// # Errors
    /// [`SealError::Cipher`].
    pub fn seal(
        &self,
        tenant: TenantTag,
        (key_id, key): (RecordingId, &[u8; KEY_BYTES]),
        salt: &Salt,
        entry: &Entry,
    ) -> Result<Vec<u8>, SealError> {
        let json = serde_json::to_vec(entry).unwrap_or_default();
        let context = self.context(tenant, key_id);
        let sealed = SealedBox::LEDGER_ENTRY.seal(key, salt, &context, &json)?;
        let link = Link {
            v: 1,
            number: self.links,
            prev: encode_hex(&self.digest),
            key: key_id.to_string(),
            sealed: encode_base64(&sealed),
        };
        Ok(serde_json::to_vec(&link).unwrap_or_default())
    }

    /// Returns the end of the chain when these bytes have followed.
    #[must_use]
    pub fn after(&self, link: &[u8]) -> Self {
        Self { links: self.links.saturating_add(1), digest: sha256(link) }
    }

    /// Reads the object that follows, which its name gives the number `number`.
    ///
    /// # Errors
    /// [`ChainFault`].
    pub fn next(&self, number: u64, bytes: &[u8]) -> Result<Link, ChainFault> {
        if number != self.links {
            return Err(ChainFault::Missing(self.links));
        }
        let malformed = ChainFault::Malformed(number);
        if bytes.len() > MAX_LINK_BYTES {
            return Err(malformed);
        }
        let link: Link = serde_json::from_slice(bytes).map_err(|_| malformed)?;
        if link.v != 1 || link.number != number {
            return Err(malformed);
        }
        if link.prev != encode_hex(&self.digest) {
            return Err(ChainFault::Unlinked(number));
        }
        Ok(link)
    }

    /// Reads an object alone, and the end of the chain that it says it follows on.
    ///
    /// # Errors
    /// [`ChainFault::Malformed`].
    pub fn claimed_by(number: u64, bytes: &[u8]) -> Result<(Self, Link), ChainFault> {
        let malformed = ChainFault::Malformed(number);
        let link: Link = serde_json::from_slice(bytes).map_err(|_| malformed)?;
        let digest = decode_hex_32(&link.prev).ok_or(malformed)?;
        if link.v != 1 || link.number != number {
            return Err(malformed);
        }
        Ok((Self { links: number, digest }, link))
    }

    fn context(&self, tenant: TenantTag, key_id: RecordingId) -> Vec<u8> {
        [&tenant.0[..], &key_id.0, &self.links.to_be_bytes(), &self.digest].concat()
    }
}

impl std::fmt::Display for Head {
    /// As `links:digest`, which [`Head::from_str`](std::str::FromStr::from_str) reads.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.links, encode_hex(&self.digest))
    }
}

/// Why a text is no end of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the end of a ledger must be a number, ':' and 64 lower-case hexadecimal digits, as callseal ledger verify prints it"
)]
pub struct InvalidHead;

impl std::str::FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let (links, digest) = text.split_once(':').ok_or(InvalidHead)?;
        let is_number = (1..=19).contains(&links.len()) && links.bytes().all(|b| b.is_ascii_digit());
        let links = links.parse().ok().filter(|_| is_number).ok_or(InvalidHead)?;
        Ok(Self { links, digest: decode_hex_32(digest).ok_or(InvalidHead)? })
    }
}

pub(super) fn decode_hex_32(text: &str) -> Option<[u8; 32]> {
    let (left, right) = text.split_at_checked(32)?;
    let halves = [left.parse::<KeyId>().ok()?.0, right.parse::<KeyId>().ok()?.0];
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&halves.concat());
    Some(bytes)
}

impl Link {
    /// Returns under which id the envelope of its key lies; `None` if what stands there is none.
    pub fn key_id(&self) -> Option<RecordingId> {
        self.key.parse().ok()
    }

    /// Opens it as what follows on `before`.
    ///
    /// # Errors
    /// [`ChainFault::Sealed`].
    pub fn open(&self, before: &Head, tenant: TenantTag, key: &[u8; KEY_BYTES]) -> Result<Entry, ChainFault> {
        let fault = ChainFault::Sealed(before.links);
        let key_id = self.key_id().ok_or(fault)?;
        let sealed = decode_base64(self.sealed.as_bytes()).ok_or(fault)?;
        let context = before.context(tenant, key_id);
        let json = SealedBox::LEDGER_ENTRY.open(key, &context, &sealed).map_err(|_| fault)?;
        serde_json::from_slice(&json).map_err(|_| fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantTag = TenantTag([1; 16]);
    const KEY_ID: RecordingId = RecordingId([2; 16]);

    fn entry(number: u8) -> Entry {
        Entry::Ordered {
            recording: RecordingId([number; 16]).to_string(),
            scope: Scope::Party,
            actor: "j.doe".to_owned(),
            reason: "request 17".to_owned(),
            at_ms: 1_790_000_000_000,
        }
    }

    fn chain(links: u8) -> Vec<Vec<u8>> {
        let mut head = Head::EMPTY;
        let seal = |number| {
            let link = head.seal(TENANT, (KEY_ID, &[3; 32]), &[number; 32], &entry(number)).unwrap();
            head = head.after(&link);
            link
        };
        (0..links).map(seal).collect()
    }

    /// Reads a chain; objects carry their names.
    fn read(links: &[(u64, Vec<u8>)], tenant: TenantTag) -> Result<Vec<Entry>, ChainFault> {
        let (mut head, mut entries) = (Head::EMPTY, Vec::new());
        for (number, bytes) in links {
            entries.push(head.next(*number, bytes)?.open(&head, tenant, &[3; 32])?);
            head = head.after(bytes);
        }
        Ok(entries)
    }

    fn named(links: Vec<Vec<u8>>) -> Vec<(u64, Vec<u8>)> {
        (0..).zip(links).collect()
    }

    #[test]
    fn a_chain_says_what_was_put_into_it() {
        let links = named(chain(5));
        let wanted: Vec<_> = (0..5).map(entry).collect();
        assert_eq!(read(&links, TENANT), Ok(wanted));
        assert!(links.iter().all(|(_, link)| !String::from_utf8_lossy(link).contains("j.doe")), "sealed");
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let good = named(chain(4));
        for (number, link) in &good {
            for at in 0..link.len() {
                let mut links = good.clone();
                links[usize::try_from(*number).unwrap()].1[at] ^= 1;
                assert!(read(&links, TENANT).is_err(), "byte {at} of entry {number}");
            }
        }
        let mut gone = good.clone();
        gone.remove(1);
        assert_eq!(read(&gone, TENANT), Err(ChainFault::Missing(1)));
        let closed_up = named(gone.into_iter().map(|(_, link)| link).collect());
        assert_eq!(read(&closed_up, TENANT), Err(ChainFault::Malformed(1)));
        let mut swapped = good.clone();
        let (one, two) = (swapped[1].1.clone(), swapped[2].1.clone());
        (swapped[1].1, swapped[2].1) = (two, one);
        assert_eq!(read(&swapped, TENANT), Err(ChainFault::Malformed(1)));
        let other = read(&good, TenantTag([9; 16]));
        assert_eq!(other, Err(ChainFault::Sealed(0)), "of another tenant");
    }

    #[test]
    fn an_end_is_written_and_read() {
        let head = Head::EMPTY.after(b"x");
        assert_eq!(head.to_string().parse(), Ok(head));
        let digits = "a".repeat(64);
        for bad in
            ["", "1", ":", &format!("x:{digits}"), &format!("+1:{digits}"), &format!("1:{digits}0"), "1:aé"]
        {
            assert_eq!(bad.parse::<Head>(), Err(InvalidHead), "{bad}");
        }
    }

    #[test]
    fn a_forged_link_in_the_right_place_does_not_open() {
        let mut links = named(chain(2));
        let head = Head::EMPTY.after(&links[0].1);
        let forged = head.seal(TENANT, (KEY_ID, &[4; 32]), &[7; 32], &entry(9)).unwrap();
        links[1].1 = forged;
        assert_eq!(read(&links, TENANT), Err(ChainFault::Sealed(1)));
    }
}
