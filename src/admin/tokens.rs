//! API tokens: made once and shown once, kept as hashes in a file that the nodes read.
//!
//! A token is `callseal_<id>_<secret>`: the id finds its entry, 32 random bytes make it unguessable, so that a plain hash
//! suffices. The file is TOML, one `[[token]]` each; nodes notice within [`INTERVAL`] that it has changed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::clock;
use crate::domain::access::{Principal, Reach, Role};
use crate::domain::sign::{encode_base64url, encode_hex, equal};
use crate::domain::time::UnixMillis;
use crate::keys::fill_random;

/// What every token begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "callseal_";
/// A thousand tokens have about 300 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Tokens of one file: a few for each program that uses the API.
pub const MAX_TOKENS: usize = 1_000;
/// The longest name of a token.
pub const MAX_NAME_BYTES: usize = 64;
/// How soon a node notices that tokens were made or revoked.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// Others may write it, and so give themselves any role.
    #[error("{} has mode {mode:03o}; only its owner may write it: chmod 600 {}", path.display(), path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a file of tokens.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// No token of that id.
    #[error("there is no token {0}")]
    NoToken(String),
    /// The system refused.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a text is not taken for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// Nobody has it.
    #[error("unknown token")]
    Unknown,
    /// Somebody had it.
    #[error("token has expired")]
    Expired,
}

/// One token, without what makes it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Sixteen hexadecimal digits.
    pub id: String,
    /// Who or what uses it.
    pub name: String,
    /// What it may be used for.
    pub roles: Vec<Role>,
    /// On which tenants.
    pub reach: Reach,
    /// When it was made.
    pub created: UnixMillis,
    /// From when on it is worth nothing.
    pub expires: UnixMillis,
    hash: [u8; 32],
}

/// What a new token shall be.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// 1 to 64 bytes.
    pub name: String,
    /// At least one.
    pub roles: Vec<Role>,
    /// On which tenants.
    pub reach: Reach,
    /// From when on it is worth nothing.
    pub expires: UnixMillis,
}

/// Whether a text looks like one of our tokens, and not like somebody else's.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The tokens of a file.
#[derive(Debug, Clone, Default)]
pub struct TokenList(Vec<Token>);

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    token: Vec<RawToken>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    id: String,
    name: String,
    roles: Vec<String>,
    /// An id, or `*`.
    tenant: String,
    created: String,
    expires: String,
    /// SHA-256 of the token, hexadecimal.
    hash: String,
}

impl TokenList {
    /// Reads a file of tokens; one that is not there has none.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        let io = |source| TokensError::Io { path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened.map_err(io)?,
        };
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(TokensError::Loose { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(io)?;
        Self::parse(&text).map_err(|problem| TokensError::Malformed { path: path.to_owned(), problem })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let raw: RawList = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if raw.token.len() > MAX_TOKENS {
            return Err(format!("has {} tokens; allowed: {MAX_TOKENS}", raw.token.len()));
        }
        let mut tokens: Vec<Token> = Vec::with_capacity(raw.token.len());
        for (index, raw) in raw.token.into_iter().enumerate() {
            let token = raw.check().map_err(|problem| format!("token[{index}].{problem}"))?;
            if tokens.iter().any(|other| other.id == token.id) {
                return Err(format!("token[{index}].id: {} is there twice", token.id));
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// Returns the tokens in the order of their making.
    pub fn tokens(&self) -> &[Token] {
        &self.0
    }

    /// Says who brings a token.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub fn find(&self, text: &str, now: UnixMillis) -> Result<Principal, TokenRefusal> {
        let id = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).map_or("", |(id, _)| id);
        let token = self.0.iter().find(|token| token.id == id).ok_or(TokenRefusal::Unknown)?;
        if !equal(&token.hash, &hash(text)) {
            return Err(TokenRefusal::Unknown);
        }
        if now >= token.expires {
            return Err(TokenRefusal::Expired);
        }
        let actor = format!("token:{}:{}", token.id, token.name);
        let key = token.id.clone();
        Ok(Principal { actor, key, roles: token.roles.clone(), reach: token.reach.clone() })
    }

    /// Makes a token and adds it; answers its text, which nobody can find out again.
    ///
    /// # Errors
    /// What is wrong with the order, or with the random numbers.
    pub fn create(&mut self, new: NewToken, now: UnixMillis) -> Result<(String, Zeroizing<String>), String> {
        check_name(&new.name)?;
        if new.roles.is_empty() {
            return Err("role: is missing".to_owned());
        }
        if self.0.len() >= MAX_TOKENS {
            return Err(format!("there are {MAX_TOKENS} tokens already; revoke some"));
        }
        let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; 32]));
        let filled = fill_random(&mut id).and_then(|()| fill_random(&mut *secret));
        filled.map_err(|_| "no random bytes".to_owned())?;
        let id = encode_hex(&id);
        let text = Zeroizing::new(format!("{PREFIX}{id}_{}", encode_base64url(&*secret)));
        let NewToken { name, roles, reach, expires } = new;
        self.0.push(Token { id: id.clone(), name, roles, reach, created: now, expires, hash: hash(&text) });
        Ok((id, text))
    }

    /// Takes a token away.
    ///
    /// # Errors
    /// [`TokensError::NoToken`].
    pub fn revoke(&mut self, id: &str) -> Result<Token, TokensError> {
        let at = self.0.iter().position(|token| token.id == id);
        at.map(|at| self.0.remove(at)).ok_or_else(|| TokensError::NoToken(id.to_owned()))
    }

    /// Replaces the file in one step; it is its owner's alone from its first moment.
    ///
    /// # Errors
    /// [`TokensError::Io`]; the old file is unchanged.
    pub fn save(&self, path: &Path) -> Result<(), TokensError> {
        let io = |source| TokensError::Io { path: path.to_owned(), source };
        let raw = RawList { token: self.0.iter().map(RawToken::of).collect() };
        let text = toml::to_string(&raw).map_err(|error| io(io::Error::other(error)))?;
        let temporary = path.with_extension("toml.new");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(io)?;
        let head = "# API tokens by their hashes; written by: callseal token\n";
        file.write_all(head.as_bytes()).and_then(|()| file.write_all(text.as_bytes())).map_err(io)?;
        file.sync_all().and_then(|()| fs::rename(&temporary, path)).map_err(io)
    }
}

impl RawToken {
    fn of(token: &Token) -> Self {
        Self {
            id: token.id.clone(),
            name: token.name.clone(),
            roles: token.roles.iter().map(|role| role.name().to_owned()).collect(),
            tenant: token.reach.to_string(),
            created: clock::rfc3339(token.created),
            expires: clock::rfc3339(token.expires),
            hash: encode_hex(&token.hash),
        }
    }

    fn check(self) -> Result<Token, String> {
        if self.id.len() != 16 || !self.id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("id: allowed: 16 hexadecimal digits".to_owned());
        }
        check_name(&self.name)?;
        let roles: Result<Vec<Role>, _> = self.roles.iter().map(|role| role.parse()).collect();
        let roles = roles.map_err(|error| format!("roles: {error}"))?;
        if roles.is_empty() {
            return Err("roles: allowed: at least one".to_owned());
        }
        let time = |name: &str, text: &str| {
            clock::parse_rfc3339(text)
                .ok_or_else(|| format!("{name}: allowed: a time such as 2026-11-26T12:00:00Z"))
        };
        Ok(Token {
            roles,
            reach: Reach::parse(&self.tenant).map_err(|error| format!("tenant: {error}, or *"))?,
            created: time("created", &self.created)?,
            expires: time("expires", &self.expires)?,
            hash: parse_hash(&self.hash).ok_or("hash: allowed: 64 hexadecimal digits")?,
            id: self.id,
            name: self.name,
        })
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_plain = name.chars().all(|c| !c.is_control() && c != ':');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !is_plain {
        return Err(format!("name: allowed: 1 to {MAX_NAME_BYTES} bytes without ':' and control characters"));
    }
    Ok(())
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The tokens that hold now.
pub struct Tokens {
    path: PathBuf,
    list: ArcSwap<TokenList>,
}

impl Tokens {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let list = TokenList::load(path)?;
        if list.tokens().is_empty() {
            tracing::warn!("nobody can use the admin API yet; make a token with: callseal token create");
        }
        Ok(Self { path: path.to_owned(), list: ArcSwap::from_pointee(list) })
    }

    /// Says who brings a token.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub fn find(&self, text: &str) -> Result<Principal, TokenRefusal> {
        self.list.load().find(text, clock::wall())
    }

    /// Reads the file again whenever it has changed. A file that cannot be used changes nothing.
    pub async fn watch(self: Arc<Self>) {
        let mut known = self.stamp();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = self.stamp();
            if now == known {
                continue;
            }
            known = now;
            match TokenList::load(&self.path) {
                Ok(list) => {
                    tracing::info!(tokens = list.tokens().len(), "API tokens were read again");
                    self.list.store(Arc::new(list));
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "API tokens cannot be used; the old ones stay");
                }
            }
        }
    }

    /// What differs between two states of the file.
    fn stamp(&self) -> Option<(u64, i64, i64, u64)> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn new(name: &str) -> NewToken {
        NewToken {
            name: name.to_owned(),
            roles: vec![Role::Player, Role::Ingest],
            reach: Reach::parse("acme").unwrap(),
            expires: UnixMillis(NOW.0 + 1000),
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires_or_is_revoked_also_through_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        assert!(TokenList::load(&path).unwrap().tokens().is_empty(), "a missing file has no tokens");
        let mut list = TokenList::default();
        let (id, text) = list.create(new("dash board"), NOW).unwrap();
        let (_, other) = list.create(new("other"), NOW).unwrap();
        list.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let written = fs::read_to_string(&path).unwrap();
        assert!(!written.contains(&text[text.len() - 43..]), "the secret is not in the file");

        let mut list = TokenList::load(&path).unwrap();
        let principal = list.find(&text, NOW).unwrap();
        assert_eq!(principal.actor, format!("token:{id}:dash board"));
        assert_eq!(
            (principal.roles.as_slice(), principal.reach.to_string().as_str()),
            (&[Role::Player, Role::Ingest][..], "acme")
        );
        assert_eq!(list.find(&text, UnixMillis(NOW.0 + 1000)), Err(TokenRefusal::Expired));
        let mut forged = other.to_string();
        forged.replace_range(PREFIX.len()..PREFIX.len() + 16, &id);
        for wrong in ["", "callseal_", &text[1..], &text[..text.len() - 1], &forged, &format!("{}x", *text)] {
            assert_eq!(list.find(wrong, NOW), Err(TokenRefusal::Unknown), "{wrong}");
        }
        list.revoke(&id).unwrap();
        assert_eq!(list.find(&text, NOW), Err(TokenRefusal::Unknown));
        assert!(list.find(&other, NOW).is_ok());
        assert!(matches!(list.revoke(&id), Err(TokensError::NoToken(_))));
    }

    #[test]
    fn a_file_that_others_may_write_or_that_says_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        let mut list = TokenList::default();
        list.create(new("one"), NOW).unwrap();
        list.save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let id = list.tokens()[0].id.clone();
        for (from, to, named) in [
            (id.as_str(), "xyz", "token[0].id"),
            ("\"player\"", "\"root\"", "token[0].roles"),
            ("\"acme\"", "\"ACME\"", "token[0].tenant"),
            ("expires = \"2", "expires = \"x", "token[0].expires"),
            ("hash = \"", "hash = \"z", "token[0].hash"),
            ("name = \"one\"", "name = \"\"", "token[0].name"),
            ("name = \"one\"", "colour = \"red\"", "colour"),
        ] {
            let error = TokenList::parse(&text.replace(from, to)).unwrap_err();
            assert!(error.contains(named), "{from}: {error}");
        }
        let twice = text.replace("# API", "# ") + &text;
        assert!(TokenList::parse(&twice).unwrap_err().contains("twice"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        assert!(matches!(TokenList::load(&path), Err(TokensError::Loose { mode: 0o622, .. })));
        for name in ["", "a:b", "a\nb", &"x".repeat(65)] {
            assert!(list.create(new(name), NOW).is_err(), "{name:?}");
        }
    }
}
